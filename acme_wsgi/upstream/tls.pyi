import ssl
from typing import Any

from acme_wsgi.upstream.link import Link

def client_context() -> ssl.SSLContext: ...

class TLSLink(Link):
    def __init__(self, shelf: Any, context: ssl.SSLContext, host: str) -> None: ...

def handshake(link: TLSLink, deadline_ns: int) -> None: ...
