from collections.abc import Callable
from typing import Any

from acme_wsgi.handlers import Handler, Request
from acme_wsgi.http.writer import Response

class Exchange(Response):
    request: Request | None
    transmit: Callable[[bytes], None]
    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]: ...

def make_handle(application: Callable[..., Any], exchange_type: type[Exchange]) -> Handler: ...
