from collections.abc import Callable, Iterator
from typing import Protocol

class HasFileno(Protocol):
    def fileno(self) -> int: ...

class FileBody:
    file: HasFileno
    offset: int
    count: int
    def __init__(self, file: HasFileno, offset: int, count: int) -> None: ...

class Response:
    status: str
    headers: list[tuple[str, str]]
    body: bytes | FileBody | Iterator[bytes]
    close: Callable[[], object] | None
    def __init__(
        self,
        status: str,
        headers: list[tuple[str, str]],
        body: bytes | FileBody | Iterator[bytes] = b"",
        close: Callable[[], object] | None = None,
    ) -> None: ...

class Scratch:
    def getvalue(self) -> bytes: ...

def render_head(
    status: str,
    headers: list[tuple[str, str]],
    body_length: int = 0,
    *,
    minor: int = 1,
    head_only: bool = False,
    close: bool = False,
    request_id: str = "-",
) -> tuple[bytes, tuple[bool, int, bool]]: ...
