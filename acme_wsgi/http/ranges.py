"""Byte ranges: which parts of a representation a request asks for, and how several of them are sent.

Law: pure functions of a Range field and a length. Knows no file and no response. What a client can ask for is
bounded: so many specs are read, so many parts are sent, no byte is sent twice.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SPECS = 256
"""A field with more range-specs than this is ignored."""

MAX_PARTS = 64
"""So many parts, after those that touch were joined; a request for more gets the whole representation."""

GAP = 128
"""Bytes: ranges this near to each other are joined: a part's own head is as long (RFC 9110 15.3.7.2)."""

_HUGE = 10**18
_SPEC = re.compile(r"[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*\Z")


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `first` to `last` inclusive, counted from 0."""

    first: int
    last: int

    @property
    def count(self) -> int:
        """How many bytes these are."""
        return self.last - self.first + 1

    def content_range(self, size: int) -> str:
        """The Content-Range of this part of `size` bytes (RFC 9110 14.4)."""
        return f"bytes {self.first}-{self.last}/{size}"


class Unsatisfiable(ValueError):
    """None of the ranges lies within the representation: 416."""


def unsatisfied(size: int) -> str:
    """The Content-Range of a 416 (RFC 9110 15.5.17)."""
    return f"bytes */{size}"


def parse(field: str, size: int) -> list[Range] | None:
    """The ranges that a Range field asks for of `size` bytes, in the order asked for, what touches joined.

    None: the field doesn't count (another unit, malformed, too many ranges), the whole is the answer, as
    RFC 9110 14.2 allows.

    :raises Unsatisfiable: 416 is the answer
    """
    unit, equals, specs = field.partition("=")
    if not equals or unit.strip(" \t").lower() != "bytes":
        return None
    members = specs.split(",", MAX_SPECS)
    if len(members) > MAX_SPECS:
        return None
    wanted: list[Range] = []
    seen = False
    for member in members:
        if not member.strip(" \t"):
            continue
        found = _SPEC.match(member)
        if found is None:
            return None
        seen = True
        first, last = _bounds(found, size)
        if found[2] and last < first:
            return None  # 14.1.1: makes the whole field invalid
        if first < size and first <= last:
            wanted.append(Range(first, min(last, size - 1)))
        elif size == 0 and found[3] and _number(found[3]):
            return None  # satisfiable, but nothing that a Content-Range could name
    if not seen:
        return None
    if not wanted:
        raise Unsatisfiable(field)
    joined = _join(wanted)
    return joined if len(joined) <= MAX_PARTS else None


def multipart(parts: Sequence[Range], size: int, media_type: str) -> tuple[str, list[bytes | Range]]:
    """A multipart/byteranges body as its Content-Type and pieces: bytes as they are, ranges to be filled in
    (RFC 9110 14.6).
    """
    # 128 random bits: nobody who made the file could know them.
    boundary = secrets.token_hex(16)
    pieces: list[bytes | Range] = []
    lead = ""
    for part in parts:
        head = (
            f"{lead}--{boundary}\r\nContent-Type: {media_type}\r\n"
            f"Content-Range: {part.content_range(size)}\r\n\r\n"
        )
        pieces += [head.encode("latin-1"), part]
        lead = "\r\n"
    pieces.append(f"\r\n--{boundary}--\r\n".encode("latin-1"))
    return f"multipart/byteranges; boundary={boundary}", pieces


def _bounds(found: re.Match[str], size: int) -> tuple[int, int]:
    """First and last byte that a spec names, not yet clipped."""
    if found[3]:
        length = _number(found[3])
        # A suffix of no bytes lies behind the end.
        return (max(0, size - length), size - 1) if length else (size, size - 1)
    first = _number(found[1])
    return first, _number(found[2]) if found[2] else max(first, size - 1)


def _number(digits: str) -> int:
    """The value; what is beyond any file counts as _HUGE, however long it is."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 19 else _HUGE


def _join(wanted: list[Range]) -> list[Range]:
    """Overlapping and near ranges as one, each at the place where the first of its own was asked for."""
    joined: list[tuple[int, Range]] = []
    for place, part in sorted(enumerate(wanted), key=lambda item: item[1].first):
        if joined and part.first <= joined[-1][1].last + 1 + GAP:
            before, other = joined[-1]
            joined[-1] = min(before, place), Range(other.first, max(other.last, part.last))
        else:
            joined.append((place, part))
    return [part for _, part in sorted(joined, key=lambda item: item[0])]
