from acme_wsgi.errors import HTTPError

class ParseError(HTTPError): ...

class ParsedHead:
    method: str
    target: bytes
    minor: int
    path: str
    query: str
    host: str
    headers: list[tuple[bytes, bytes]]
    content_length: int
    chunked: bool
    keep_alive: bool
    expect_continue: bool
    upgrade: bool
    consumed: int

def parse_head(data: bytes, max_size: int = 8192) -> ParsedHead | None: ...
