"""The messages of tests/corpus/replies as data, and a connection to a backend reduced to its framing.

Knows the files and their sidecars (described in tests/corpus/README.md), acme_wsgi.http.reply and .chunked,
and calls the parser exactly as a connection does: again with a longer buffer until the head is complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from acme_wsgi.http.chunked import ChunkedDecoder
from acme_wsgi.http.h1 import ParseError
from acme_wsgi.http.reply import ParsedReply, ReplyError, parse_reply
from tests.unit.http.corpus import pairs


@dataclass(frozen=True)
class Final:
    """A complete final reply as plain values, so that two of them can be compared."""

    minor: int
    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    dropped: tuple[bytes, ...]  # names of the fields that go no further
    framing: str  # "none", "length", "chunked" or "close"
    content_length: int  # -1: none
    body: bytes  # decoded
    keep_alive: bool
    upgrade: bool
    protocol: bytes


@dataclass(frozen=True)
class Accept:
    """What a backend answers to one request: interim replies, if any, and a final one that must be taken."""

    name: str
    raw: bytes
    why: str
    asked: str  # the method of the request
    final: Final


@dataclass(frozen=True)
class Reject:
    """What must be refused, and whether a head or a body is at fault."""

    name: str
    raw: bytes
    why: str
    where: str  # "head" or "body"


@cache
def accepts() -> tuple[Accept, ...]:
    """Every message of tests/corpus/replies/accept, by name."""
    return tuple(_accept(name, raw, data) for name, raw, data in pairs("replies/accept"))


def _accept(name: str, raw: bytes, data: dict[str, object]) -> Accept:
    values = dict(data)
    headers, dropped = values.pop("headers"), values.pop("dropped")
    assert isinstance(headers, list)
    assert isinstance(dropped, list)
    why, asked = str(values.pop("why")), str(values.pop("asked"))
    final = Final(
        reason=str(values.pop("reason")).encode("latin-1"),
        headers=tuple((key.encode("latin-1"), value.encode("latin-1")) for key, value in headers),
        dropped=tuple(key.encode("latin-1") for key in dropped),
        body=str(values.pop("body")).encode("latin-1"),
        protocol=str(values.pop("protocol")).encode("latin-1"),
        **values,  # type: ignore[arg-type]  # a sidecar with a key too many or too few fails here, which is wanted
    )
    return Accept(name, raw, why, asked, final)


@cache
def rejects() -> tuple[Reject, ...]:
    """Every message of tests/corpus/replies/reject, by name."""
    return tuple(Reject(name=name, raw=raw, **data) for name, raw, data in pairs("replies/reject"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Outcome:
    """What came of the bytes that a backend sent for one request."""

    interim: tuple[int, ...]  # statuses of the interim replies
    final: Final | None  # None: incomplete, or refused
    end: int | None  # offset at which the final reply ended
    refusal: str | None  # where the fault is: "head" or "body"


class Exchange:
    """Feeds what a backend sends to the parser and the chunked decoder, piece by piece."""

    def __init__(self, asked: str = "GET", max_size: int = 8192) -> None:
        self._asked = asked
        self._max_size = max_size
        self._buffer = b""
        self._used = 0
        self._interim: list[int] = []
        self._head: ParsedReply | None = None
        self._decoder = ChunkedDecoder()
        self._body = b""
        self._final: Final | None = None
        self._refusal: str | None = None

    def feed(self, data: bytes) -> None:
        """Take a piece. Behind the reply's end and behind a refusal everything stays where it is."""
        self._buffer += data
        while self._final is None and self._refusal is None and self._step():
            pass

    def close(self) -> None:
        """The backend has closed the connection."""
        if self._head is not None and self._final is None and self._framing() == "close":
            self._complete(self._take(len(self._buffer)))

    def outcome(self) -> Outcome:
        """What the bytes came to so far."""
        return Outcome(
            tuple(self._interim),
            self._final,
            self._used if self._final is not None else None,
            self._refusal,
        )

    def _take(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._used += len(taken)
        return taken

    def _framing(self) -> str:
        assert self._head is not None
        return "none" if self._asked == "HEAD" else self._head.extent

    def _step(self) -> bool:
        """One transition; False when more bytes are needed."""
        if self._head is None:
            return self._read_head()
        framing = self._framing()
        if framing == "chunked":
            return self._read_chunks()
        if framing == "close" or (framing == "length" and len(self._buffer) < self._head.content_length):
            return False
        self._complete(self._take(self._head.content_length if framing == "length" else 0))
        return True

    def _read_head(self) -> bool:
        try:
            head = parse_reply(self._buffer, self._max_size)
        except ReplyError:
            self._refusal = "head"
            return False
        if head is None:
            return False
        self._take(head.consumed)
        if head.status < 200 and head.status != 101:
            self._interim.append(head.status)
        else:
            self._head = head
        return True

    def _read_chunks(self) -> bool:
        if not self._buffer:
            return False
        before = self._decoder.consumed_total
        try:
            self._body += self._decoder.feed(self._buffer)
        except ParseError:
            self._refusal = "body"
            return False
        self._take(self._decoder.consumed_total - before)
        if self._decoder.done:
            self._complete(self._body)
        return self._decoder.done

    def _complete(self, body: bytes) -> None:
        head = self._head
        assert head is not None
        self._final = Final(
            minor=head.minor,
            status=head.status,
            reason=head.reason,
            headers=tuple(head.headers),
            dropped=tuple(name for (name, _), drop in zip(head.headers, head.dropped, strict=True) if drop),
            framing=self._framing(),
            content_length=head.content_length,
            body=body,
            keep_alive=head.keep_alive,
            upgrade=head.upgrade,
            protocol=head.protocol,
        )


def exchange(pieces: Iterable[bytes], asked: str = "GET", max_size: int = 8192) -> Outcome:
    """Feed the pieces to a new Exchange, close it, and say what came of them."""
    backend = Exchange(asked, max_size)
    for piece in pieces:
        backend.feed(piece)
    backend.close()
    return backend.outcome()
