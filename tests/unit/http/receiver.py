"""A connection reduced to its framing: bytes in pieces go in, requests or a refusal come out.

Used by the parser's tests and by the fuzzer in place of a real connection. Knows acme_wsgi.http.h1 and
nothing else; it calls the parser exactly as a connection does: again with a longer buffer until the head is
complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from acme_wsgi.http.chunked import ChunkedDecoder
from acme_wsgi.http.h1 import ParsedHead, ParseError, parse_head


@dataclass(frozen=True)
class Message:
    """A complete request as plain values, so that two of them can be compared."""

    method: str
    target: bytes
    path: str
    query: str
    minor: int
    host: str
    headers: tuple[tuple[bytes, bytes], ...]
    framing: str
    content_length: int
    keep_alive: bool
    expect_continue: bool
    upgrade: bool
    body: bytes


@dataclass(frozen=True)
class Refusal:
    """The status with which the connection is refused, and where the fault is: "head" or "body"."""

    status: int
    where: str


@dataclass(frozen=True)
class Outcome:
    """What came of a stream."""

    messages: tuple[Message, ...]  # complete requests in order
    ends: tuple[int, ...]  # offset in the stream at which each of them ended
    refusal: Refusal | None
    waiting: int  # bytes that wait for more, or stay unread behind a refusal


def message(head: ParsedHead, body: bytes) -> Message:
    """The values of a parsed head with the body that belongs to it."""
    framing = "chunked" if head.chunked else "length" if head.content_length >= 0 else "none"
    return Message(
        method=head.method,
        target=head.target,
        path=head.path,
        query=head.query,
        minor=head.minor,
        host=head.host,
        headers=tuple(head.headers),
        framing=framing,
        content_length=head.content_length,
        keep_alive=head.keep_alive,
        expect_continue=head.expect_continue,
        upgrade=head.upgrade,
        body=body,
    )


class Receiver:
    """Feeds a byte stream to the parser and the chunked decoder, piece by piece."""

    def __init__(self, max_size: int = 8192) -> None:
        self._max_size = max_size
        self._buffer = b""
        self._head: ParsedHead | None = None
        self._decoder: ChunkedDecoder | None = None
        self._decoded: list[bytes] = []
        self._messages: list[Message] = []
        self._ends: list[int] = []
        self._received = 0
        self._refusal: Refusal | None = None

    def feed(self, data: bytes) -> None:
        """Take a piece. After a refusal everything is ignored, as on a connection that is being closed."""
        if self._refusal is not None:
            return
        self._buffer += data
        self._received += len(data)
        while self._refusal is None and self._step():
            pass

    def outcome(self) -> Outcome:
        """What the stream came to so far."""
        return Outcome(tuple(self._messages), tuple(self._ends), self._refusal, len(self._buffer))

    def _step(self) -> bool:
        """One transition; False when more bytes are needed."""
        if self._head is None:
            return self._read_head()
        if self._decoder is not None:
            return self._read_chunked(self._decoder)
        return self._read_length(max(self._head.content_length, 0))

    def _read_head(self) -> bool:
        try:
            head = parse_head(self._buffer, self._max_size)
        except ParseError as error:
            self._refusal = Refusal(error.status, "head")
            return False
        if head is None:
            return False
        self._head = head
        self._buffer = self._buffer[head.consumed :]
        self._decoder = ChunkedDecoder() if head.chunked else None
        self._decoded = []
        return True

    def _read_length(self, length: int) -> bool:
        if len(self._buffer) < length:
            return False
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        self._complete(body)
        return True

    def _read_chunked(self, decoder: ChunkedDecoder) -> bool:
        if not self._buffer:
            return False
        before = decoder.consumed_total
        try:
            self._decoded.append(decoder.feed(self._buffer))
        except ParseError as error:
            self._refusal = Refusal(error.status, "body")
            return False
        self._buffer = self._buffer[decoder.consumed_total - before :]
        if decoder.done:
            self._complete(b"".join(self._decoded))
            return True
        assert not self._buffer, "an unfinished decoder takes all that it is fed"
        return False

    def _complete(self, body: bytes) -> None:
        assert self._head is not None
        self._messages.append(message(self._head, body))
        self._ends.append(self._received - len(self._buffer))
        self._head = None
        self._decoder = None


def receive(pieces: Iterable[bytes], max_size: int = 8192) -> Outcome:
    """Feed the pieces to a new Receiver and say what came of them."""
    receiver = Receiver(max_size)
    for piece in pieces:
        receiver.feed(piece)
    return receiver.outcome()


def single_bytes(data: bytes) -> Iterable[bytes]:
    """The data in pieces of one byte."""
    return (data[index : index + 1] for index in range(len(data)))
