from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

class HasFileno(Protocol):
    def fileno(self) -> int: ...

SENDFILE: int
MAPPING: int
DIRECT: int
READ: int

class FileBody:
    file: HasFileno
    offset: int
    count: int
    way: int
    def __init__(self, file: HasFileno, offset: int, count: int, way: int = ...) -> None: ...

class Parts:
    @property
    def pieces(self) -> list[bytes | FileBody]: ...
    @property
    def count(self) -> int: ...
    def __init__(self, pieces: Iterable[bytes | FileBody]) -> None: ...

class Prepared:
    @property
    def text(self) -> bytes: ...
    @property
    def pairs(self) -> tuple[tuple[str, str], ...]: ...
    def __init__(self, headers: Iterable[tuple[str, str]]) -> None: ...
    def __iter__(self) -> Iterator[tuple[str, str]]: ...

class Tunnel:
    @property
    def stream(self) -> object: ...
    @property
    def first(self) -> bytes: ...
    @property
    def idle_seconds(self) -> float: ...
    def __init__(self, stream: object, first: bytes = b"", idle_seconds: float = 0) -> None: ...

Body: TypeAlias = bytes | FileBody | Parts | Tunnel | Iterator[bytes]

class Response:
    status: str
    headers: list[tuple[str, str]] | Prepared
    body: Body
    close: Callable[[], object] | None
    buffer: int
    def __init__(
        self,
        status: str,
        headers: list[tuple[str, str]] | Prepared,
        body: Body = b"",
        close: Callable[[], object] | None = None,
        *,
        buffer: int = 0,
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
