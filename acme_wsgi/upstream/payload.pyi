from collections.abc import Set as AbstractSet
from typing import Any, Protocol

WHOLE: int

class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def read1(self, size: int, /) -> bytes: ...
    def ready_before(self, other: Any, /) -> bool: ...

class Payload:
    expect: bool
    @property
    def length(self) -> int: ...
    @property
    def data(self) -> bytes | None: ...
    @property
    def first(self) -> bytes: ...
    @property
    def reader(self) -> Reader | None: ...
    @property
    def upgrade(self) -> bool: ...
    @property
    def tunnel_idle(self) -> float: ...
    def __init__(
        self,
        length: int = ...,
        data: bytes | None = b"",
        *,
        first: bytes = b"",
        reader: Reader | None = None,
        expect: bool = False,
        upgrade: bool = False,
        tunnel_idle: float = 0.0,
    ) -> None: ...

NOTHING: Payload
EMPTY: Payload

def payload_of(
    environ: dict[str, Any], method: str, tunnel_idle: float, hidden: AbstractSet[str] = ...
) -> Payload: ...
