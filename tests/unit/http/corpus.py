"""The messages of tests/corpus as data, for the tests that feed them to the parser or to a server.

Knows the files and their sidecars (described in tests/corpus/README.md), nothing of the parser: what a
message means is said by the sidecar alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[2] / "corpus"
MAX_SIZE = 8192  # bytes of a head, the default of server.max_header_size, for which the corpus is written
MAX_FIELDS = 100


@dataclass(frozen=True)
class Accept:
    """A request that must be taken, and everything that it means."""

    name: str
    raw: bytes
    why: str
    method: str
    target: bytes
    path: str
    query: str
    minor: int
    host: str
    headers: tuple[tuple[bytes, bytes], ...]
    framing: str  # "none", "length" or "chunked"
    content_length: int  # -1: no Content-Length
    body: bytes  # decoded
    keep_alive: bool
    expect_continue: bool
    upgrade: bool

    @property
    def head_size(self) -> int:
        """Length in bytes of the head, with the empty line that ends it and the one that may precede it."""
        return self.raw.index(b"\r\n\r\n", 2) + 4


@dataclass(frozen=True)
class Reject:
    """A message that must be refused, with which status, and whether its head or its body is at fault."""

    name: str
    raw: bytes
    why: str
    status: int
    where: str  # "head" or "body"


def pairs(kind: str) -> list[tuple[str, bytes, dict[str, object]]]:
    """Name, message and sidecar of every message of tests/corpus/`kind`, by name."""
    directory = DIRECTORY / kind
    messages = {path.stem for path in directory.glob("*.http")}
    sidecars = {path.stem for path in directory.glob("*.json")}
    if messages != sidecars:
        raise AssertionError(f"{directory}: no pair for {sorted(messages ^ sidecars)}")
    return [
        (
            name,
            (directory / f"{name}.http").read_bytes(),
            json.loads((directory / f"{name}.json").read_text()),
        )
        for name in sorted(messages)
    ]


@cache
def accepts() -> tuple[Accept, ...]:
    """Every message of tests/corpus/accept, by name."""
    return tuple(_accept(name, raw, data) for name, raw, data in pairs("accept"))


def _accept(name: str, raw: bytes, data: dict[str, object]) -> Accept:
    values = dict(data)
    headers = values.pop("headers")
    assert isinstance(headers, list)
    return Accept(
        name=name,
        raw=raw,
        target=str(values.pop("target")).encode("latin-1"),
        headers=tuple((key.encode("latin-1"), value.encode("latin-1")) for key, value in headers),
        body=str(values.pop("body")).encode("latin-1"),
        **values,  # type: ignore[arg-type]  # a sidecar with a key too many or too few fails here, which is wanted
    )


@cache
def rejects() -> tuple[Reject, ...]:
    """Every message of tests/corpus/reject, by name."""
    return tuple(Reject(name=name, raw=raw, **data) for name, raw, data in pairs("reject"))  # type: ignore[arg-type]
