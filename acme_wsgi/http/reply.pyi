from acme_wsgi.errors import HTTPError

class ReplyError(HTTPError): ...

class ParsedReply:
    minor: int
    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    dropped: list[bool]
    forwarded: list[tuple[str, str]]
    status_line: str
    content_length: int
    chunked: bool
    keep_alive: bool
    upgrade: bool
    protocol: bytes
    extent: str
    consumed: int

def parse_reply(data: bytes, max_size: int = 8192) -> ParsedReply | None: ...
