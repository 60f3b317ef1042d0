"""Reads answers off a connection's bytes, exactly: whole, not yet whole, or not what was asked for.

Knows HTTP/1.1 framing as far as the sites here use it: a length is always given, and nothing is pipelined.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

REFUSED = "refused"
RESET = "reset"
CLOSED = "closed"  # the connection ended before the first byte of the answer
CUT = "cut"  # it ended inside of the answer
WRONG = "wrong"  # another status, another body, or bytes too many
TIMEOUT = "timeout"

_BY_ERRNO = {errno.ECONNREFUSED: REFUSED, errno.ECONNRESET: RESET, errno.EPIPE: RESET}


class NotAnAnswer(Exception):
    """What came is no answer to one request; the text says what it is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer; `head` in lower case, without its last line end."""

    status: int
    head: bytes
    body: bytes

    @property
    def last(self) -> bool:
        """Whether the server closes the connection behind it."""
        return b"\r\nconnection: close" in self.head

    def has(self, field: bytes) -> bool:
        """Whether the head has this field, named in lower case."""
        return b"\r\n" + field + b":" in self.head


def read_answer(came: bytes) -> Answer | None:
    """The answer in all that came since the request, None while it isn't whole. Raises NotAnAnswer."""
    head, found, body = came.partition(b"\r\n\r\n")
    if not found:
        if not came.startswith(b"HTTP/1.1 "[: len(came)]):
            raise NotAnAnswer(repr(came[:80]))
        return None
    head = head.lower()
    try:
        status = int(head[9:12])
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
    except ValueError:
        raise NotAnAnswer(repr(came[:200])) from None
    if len(body) > length:
        raise NotAnAnswer(f"{len(body) - length} bytes behind the answer")
    return Answer(status, head, body) if len(body) == length else None


def ended_how(error: OSError | None, came: bytes) -> str:
    """The kind of failure when a connection ended, by an error or (None) in order, after these bytes."""
    if error is None:
        return CUT if came else CLOSED
    number = error.errno or 0
    return _BY_ERRNO.get(number) or errno.errorcode.get(number, type(error).__name__)
