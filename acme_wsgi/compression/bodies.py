"""Bodies on their way through an encoder: whole ones, files of an application's, and streams piece by piece.

Law: knows encoders and where their work is done: in the greenlet or, where that would hold up the loop, in an
I/O thread. Which response is encoded is decided elsewhere. A body's promised length is watched here, because
the encoded one goes out without it: what was cut short must not look whole.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from acme_wsgi import iothreads
from acme_wsgi.compression.encoders import compress, costly, encoder
from acme_wsgi.http.writer import FileBody

_logger = logging.getLogger("acme.compression")

_BLOCK = 1 << 20


def encode_bytes(token: str, level: int, body: bytes) -> bytes:
    """A whole body, encoded; others are served meanwhile if it is big."""
    if costly(token, level, len(body)):
        return iothreads.run(compress, token, level, body)
    return compress(token, level, body)


def encode_file(token: str, level: int, body: FileBody) -> bytes | None:
    """A part of a file, read and encoded in an I/O thread; None if the file has less than that by now."""
    return iothreads.run(_encode_file, token, level, body.file.fileno(), body.offset, body.count)


def _encode_file(token: str, level: int, descriptor: int, offset: int, count: int) -> bytes | None:
    made = encoder(token, level, count)
    encoded = []
    while count > 0:
        data = os.pread(descriptor, min(count, _BLOCK), offset)
        if not data:
            return None
        encoded.append(made.compress(data))
        offset += len(data)
        count -= len(data)
    encoded.append(made.finish())
    return b"".join(encoded)


class Encoding:
    """One body in pieces; each comes out with all that is needed to read it (PEP 3333 forbids delay).

    :param promised: the Content-Length that the application gave, in bytes; None: it gave none
    :param who: how messages call the request
    """

    __slots__ = ("_encoder", "_left", "_level", "_token", "_who", "overlong")

    def __init__(self, token: str, level: int, promised: int | None, who: str) -> None:
        self._token = token
        self._level = level
        self._encoder = encoder(token, level, promised)
        self._left = promised
        self._who = who
        self.overlong = False

    def piece(self, data: bytes) -> bytes:
        """What the recipient needs to read `data`; no more of it than was promised."""
        if self._left is not None:
            data = self._fit(data, self._left)
            self._left -= len(data)
        if not data:
            return b""
        if costly(self._token, self._level, len(data)):
            return iothreads.run(self._encode, data)
        return self._encode(data)

    def end(self) -> bytes:
        """The end of the encoded body; raises ValueError if less than promised has come."""
        if self._left:
            raise ValueError(f"the application sent {self._left} bytes less than its Content-Length")
        return self._encoder.finish()

    def _encode(self, data: bytes) -> bytes:
        return self._encoder.compress(data) + self._encoder.flush()

    def _fit(self, data: bytes, left: int) -> bytes:
        if len(data) > left and not self.overlong:
            self.overlong = True
            _logger.error("%s: the application sent more than its Content-Length", self._who)
        return data[:left]


class Pieces:
    """The iterator that stands in for a body's own. An exception of that one passes, and nothing ends the
    encoded body then.
    """

    __slots__ = ("_encoding", "_source")

    def __init__(self, source: Iterator[bytes], encoding: Encoding) -> None:
        self._source: Iterator[bytes] | None = source
        self._encoding = encoding

    def __iter__(self) -> Pieces:
        return self

    def __next__(self) -> bytes:
        if self._source is None:
            raise StopIteration
        for piece in self._source:
            if not isinstance(piece, bytes):
                raise TypeError(f"a body is made of bytes, not {type(piece).__name__}")
            encoded = self._encoding.piece(piece)
            if encoded or not piece:
                return encoded  # an empty piece may be there to send the head ahead of the first bytes
            if self._encoding.overlong:
                break
        self._source = None
        return self._encoding.end()
