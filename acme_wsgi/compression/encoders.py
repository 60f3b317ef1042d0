"""What turns a body into its encoded form: one class for each content coding, and what a level costs.

Law: the only place that names a compression library. All of them release the interpreter's lock while they
work. An encoder belongs to one body and to one greenlet at a time. The same pieces give the same output
wherever the library is the same (a gzip header has no time in it).
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import brotli

deflate: ModuleType
try:
    # The same format and ratio in little more than half the time.
    deflate = importlib.import_module("zlib_ng.zlib_ng")
except ImportError:
    deflate = zlib

if TYPE_CHECKING:
    from acme_wsgi.config.schema.content import Compression

WORTH_A_THREAD = 2_000
"""Microseconds of work from which an I/O thread does it, and the loop goes on meanwhile."""

_GZIP_HEADER = 16  # what zlib wants added to the window's size
_MEMORY_LEVEL = 8
_SMALLEST_WINDOW = 9
_LOOK_AHEAD = 262  # bytes of the window that deflate can't look back into

_STREAM_WINDOW = 16
"""Of a brotli stream, as a power of two: thousands of event streams may be open for hours."""


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
    """RFC 1952, by zlib or what does the same faster; its header has no time and no name."""

    __slots__ = ("_object", "compress")

    def __init__(self, level: int, size: int | None) -> None:
        window, memory = _deflate_memory(size)
        self._object = deflate.compressobj(min(level, 9), zlib.DEFLATED, _GZIP_HEADER + window, memory)
        self.compress: Callable[[bytes], bytes] = self._object.compress

    def flush(self) -> bytes:
        flushed: bytes = self._object.flush(zlib.Z_SYNC_FLUSH)
        return flushed

    def finish(self) -> bytes:
        finished: bytes = self._object.flush(zlib.Z_FINISH)
        return finished


def _deflate_memory(size: int | None) -> tuple[int, int]:
    """Window and memory level for a body: making room for a 32 KB window takes as long as encoding 4 KB does.
    A size that was told wrong costs ratio only.
    """
    window, memory = zlib.MAX_WBITS, _MEMORY_LEVEL
    if size is not None:
        while window > _SMALLEST_WINDOW and size < (1 << (window - 1)) - _LOOK_AHEAD:
            window -= 1
            memory -= 1
    return window, memory


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


class _Coding:
    """What is known of a content coding."""

    __slots__ = ("extension", "make", "rates")

    def __init__(
        self, make: Callable[[int, int | None], Encoder], extension: str, rates: tuple[float, ...]
    ) -> None:
        self.make = make
        self.extension = extension
        self.rates = rates
        """Bytes in a microsecond at each level, of what takes longest among ordinary pages."""


_CODINGS = {
    "br": _Coding(_Brotli, ".br", (120, 115, 97, 77, 45, 35, 30, 30, 9, 1.5, 0.5)),
    "gzip": _Coding(_Gzip, ".gz", (128, 128, 110, 75, 70, 48, 38, 21, 17)),
}
_TOKENS = {"brotli": "br", "gzip": "gzip"}
