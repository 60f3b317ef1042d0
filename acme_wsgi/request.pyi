from collections.abc import Callable
from typing import Any

from acme_wsgi.body import Body

class Request:
    environ: dict[str, Any]
    method: str
    path: str
    request_id: str
    params: dict[str, str]
    started: bool
    body: Body
    head_only: bool
    minor: int
    reads_on: bool
    @property
    def host(self) -> str: ...
    def start(self, status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], None]: ...
    def early_hints(self, headers: list[tuple[str, str]]) -> None: ...
    def interim(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def limit_body(self, size: int) -> None: ...
    def set_timeout(self, seconds: float) -> None: ...
    def close_connection(self) -> None: ...
