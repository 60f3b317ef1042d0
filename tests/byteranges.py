"""Byte ranges as a client sees them (RFC 9110, section 14): which to ask for, and what an answer holds.

Knows the wire; shares no code with the server, whose answers it judges.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tests.wire import Reply


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file, as a response names and carries it."""

    first: int
    last: int
    size: int
    """Of the whole file."""
    data: bytes


_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_BOUNDARY = re.compile(r'multipart/byteranges; ?boundary="?([^"]+)"?')


def pieces(reply: Reply) -> list[Piece]:
    """The parts that a 206 carries, one or several; all of its framing is checked.

    :raises AssertionError: it is no 206, or framed wrongly
    """
    assert reply.status == 206, f"{reply.status} {reply.headers}"
    kind = reply.header("Content-Type") or ""
    several = _BOUNDARY.fullmatch(kind)
    if several is None:
        return [_piece(reply.header("Content-Range"), reply.body)]
    assert reply.header("Content-Range") is None, "a multipart answer has its ranges in its parts"
    delimiter = b"\r\n--" + several[1].encode()
    found, rest = [], reply.body if reply.body.startswith(b"\r\n") else b"\r\n" + reply.body
    while not rest.startswith(delimiter + b"--"):
        assert rest.startswith(delimiter + b"\r\n"), f"no delimiter at {rest[:80]!r}"
        head, _, rest = rest.removeprefix(delimiter + b"\r\n").partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n"))
        length = _length({name.lower(): value for name, value in fields.items()}["content-range"])
        found.append(_piece(fields["Content-Range"], rest[:length]))
        rest = rest[length:]
    assert rest in (delimiter + b"--\r\n", delimiter + b"--"), f"after the last part: {rest[:80]!r}"
    return found


def _length(text: str) -> int:
    matched = _CONTENT_RANGE.fullmatch(text)
    assert matched is not None, text
    return int(matched[2]) - int(matched[1]) + 1


def _piece(text: str | None, data: bytes) -> Piece:
    matched = _CONTENT_RANGE.fullmatch(text or "")
    assert matched is not None, f"Content-Range: {text}"
    first, last, size = (int(number) for number in matched.groups())
    assert len(data) == last - first + 1, f"{text}, but {len(data)} bytes"
    return Piece(first, last, size, data)


def one_range(chance: random.Random, size: int) -> tuple[str, int, int]:
    """A range of a file of `size` bytes: as a client may write it, and the first and last byte it means."""
    first = chance.randrange(size)
    last = min(size - 1, first + chance.choice((0, 1, 100, 4096, 65_536, size)))
    return chance.choice(
        (
            (f"{first}-{last}", first, last),
            (f"{first}-", first, size - 1),
            (f"-{size - first}", first, size - 1),
            (f"{first}-{size + first}", first, size - 1),
        )
    )


def apart(chance: random.Random, size: int, count: int) -> list[tuple[int, int]]:
    """Ranges that neither overlap nor touch, in ascending order, all over a file."""
    edges = sorted(chance.sample(range(0, size, 2), 2 * count))
    return list(zip(edges[::2], edges[1::2], strict=True))
