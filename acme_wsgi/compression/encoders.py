"""What turns a body into its encoded form: one class for each content coding, and what a level costs.

Law: the only place that names a compression library. All of them release the interpreter's lock while they
work. An encoder belongs to one body and to one greenlet at a time. The same pieces give the same output
wherever the library is the same (a gzip header has no time in it).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import brotli

if TYPE_CHECKING:
    from acme_wsgi.config.schema.content import Compression

WORTH_A_THREAD = 2_000
"""Microseconds of work from which an I/O thread does it, and the loop goes on meanwhile."""


class Encoder(Protocol):
    """One body on its way: pieces in, encoded bytes out.

    `compress` may keep back what it likes; after `flush` the recipient has all of what went in; `finish` ends
    the encoded body, once. The first two may return b"".
    """

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...
    def finish(self) -> bytes: ...


def tokens(settings: Compression) -> tuple[str, ...]:
    """The content codings that `compression.algorithms` stands for, in its order: ("br", "gzip")."""
    return tuple(dict.fromkeys(_TOKENS[name] for name in settings.algorithms))


def extension(token: str) -> str:
    """How the names of files in this coding end: ".br", ".gz"."""
    return _CODINGS[token].extension


def encoder(token: str, level: int, size: int | None = None) -> Encoder:
    """A new encoder for one body.

    :param level: 1-11; what the coding has no use for means its highest
    :param size: how many bytes the body will have, None if nobody knows; a promise about memory, not checked
    """
    return _CODINGS[token].make(level, size)


def compress(token: str, level: int, data: bytes) -> bytes:
    """A whole body at once."""
    made = _CODINGS[token].make(level, len(data))
    return made.compress(data) + made.finish()


def costly(token: str, level: int, size: int) -> bool:
    """Would `size` bytes keep the loop for so long that they should go through an I/O thread?"""
    rates = _CODINGS[token].rates
    return size > rates[min(level, len(rates)) - 1] * WORTH_A_THREAD


class _Gzip:
    """RFC 1952, by zlib; its header has no time and no name."""

    __slots__ = ("_object", "compress")

    def __init__(self, level: int, size: int | None) -> None:
        self._object = zlib.compressobj(min(level, 9), zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self.compress: Callable[[bytes], bytes] = self._object.compress

    def flush(self) -> bytes:
        return self._object.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._object.flush(zlib.Z_FINISH)


class _Brotli:
    """RFC 7932."""

    __slots__ = ("compress", "finish", "flush")

    def __init__(self, level: int, size: int | None) -> None:
        made = brotli.Compressor(quality=min(level, 11), lgwin=_window(size))
        self.compress: Callable[[bytes], bytes] = made.process
        self.flush: Callable[[], bytes] = made.flush
        self.finish: Callable[[], bytes] = made.finish


def _window(size: int | None) -> int:
    """Brotli's window as a power of two: all of a body that fits; a larger one would only cost memory."""
    if size is None:
        return _STREAM_WINDOW
    return min(max((size + 15).bit_length(), 10), 22)


_STREAM_WINDOW = 16


class _Coding:
    """What is known of a content coding."""

    __slots__ = ("extension", "make", "rates")

    def __init__(
        self, make: Callable[[int, int | None], Encoder], extension: str, rates: tuple[float, ...]
    ) -> None:
        self.make = make
        self.extension = extension
        self.rates = rates
        """Bytes in a microsecond at each level, of HTML on a slow machine."""


_CODINGS = {
    "br": _Coding(_Brotli, ".br", (150, 100, 80, 60, 35, 30, 20, 15, 12, 1, 0.5)),
    "gzip": _Coding(_Gzip, ".gz", (60, 55, 45, 40, 30, 22, 18, 12, 10)),
}
_TOKENS = {"brotli": "br", "gzip": "gzip"}
