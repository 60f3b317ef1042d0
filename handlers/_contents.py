"""What is in a file: its bytes while it is small, its digest, whether its text is UTF-8.

Law: reads open files, knows no names and no HTTP. Says whether a file changed while it was read. `read` may
wait for a disk and is called in the I/O threads; `Digests` is the loop's.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import time
from dataclasses import dataclass

from acme_wsgi.files.guard import SETTLED_NS
from acme_wsgi.files.openfile import OpenFile

SMALL = 16384
"""Bytes: files up to this size are kept as bytes, and leave in one send with their head."""

AT_ONCE = 32 << 20
"""Bytes: the digest of a file up to this size is waited for; that of a larger one comes later."""

PIECE = 1 << 20
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True)
class Content:
    """One version of a file.

    :ivar body: its bytes, None if it isn't small
    :ivar digest: hexadecimal; None: not wanted, or not known yet
    :ivar utf8: whether its text (the first megabyte of it) is UTF-8; true for what isn't text
    :ivar steady: it did not change while it was read
    """

    file: OpenFile
    body: bytes | None
    digest: str | None
    utf8: bool
    steady: bool


Key = tuple[int, int, int, int, int]


def key_of(file: OpenFile) -> Key:
    """What tells versions of files apart. With ctime: a tool may set mtime back."""
    return file.dev, file.ino, file.size, file.mtime_ns, file.ctime_ns


def has_settled(file: OpenFile) -> bool:
    """Whether its times name this version alone: they are coarse, and the next may come within an instant."""
    return abs(time.time_ns() - file.ctime_ns) > SETTLED_NS


class Digests:
    """The digests of the versions read lately; bounded, the oldest go first."""

    MOST = 20_000

    def __init__(self) -> None:
        self._known: dict[tuple[str, Key], str] = {}

    def get(self, algorithm: str, file: OpenFile) -> str | None:
        """The digest of this very version; None: not known."""
        return self._known.get((algorithm, key_of(file)))

    def put(self, algorithm: str, file: OpenFile, digest: str) -> None:
        """Remember a digest."""
        while len(self._known) >= self.MOST:
            del self._known[next(iter(self._known))]
        self._known[algorithm, key_of(file)] = digest


def read(file: OpenFile, algorithm: str | None, digest: str | None, text: bool) -> Content:
    """Read as much of a file as is needed.

    :param algorithm: of the digest; None: none is wanted
    :param digest: the digest, if it is known
    :param text: find out whether it is UTF-8
    :raises OSError: the disk failed
    """
    if file.size <= SMALL:
        body = os.pread(file.fileno(), SMALL, 0)
        steady = len(body) == file.size and file.unchanged()
        if not steady:
            digest = None
        elif algorithm is not None and digest is None:
            digest = hashlib.new(algorithm, body, usedforsecurity=False).hexdigest()
        return Content(file, body, digest, not text or is_utf8(body, True), steady)
    if algorithm is not None and digest is None and file.size <= AT_ONCE:
        digest = digest_of(file, algorithm)
    utf8 = not text or is_utf8(os.pread(file.fileno(), PIECE, 0), file.size <= PIECE)
    steady = file.unchanged()
    return Content(file, None, digest if steady else None, utf8, steady)


def whole(file: OpenFile) -> bytes | None:
    """All of a file's bytes; None: it changed meanwhile."""
    data = bytearray()
    while len(data) < file.size:
        piece = os.pread(file.fileno(), min(PIECE, file.size - len(data)), len(data))
        if not piece:
            return None
        data += piece
    return bytes(data) if file.unchanged() else None


def digest_of(file: OpenFile, algorithm: str) -> str:
    """The digest of a whole file, hexadecimal."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    at = 0
    while piece := os.pread(file.fileno(), PIECE, at):
        hashed.update(piece)
        at += len(piece)
    return hashed.hexdigest()


def is_utf8(data: bytes, complete: bool) -> bool:
    """Whether bytes are UTF-8; unless `complete`, the last character may be cut."""
    try:
        codecs.utf_8_decode(data, "strict", complete)
    except UnicodeDecodeError:
        return False
    return True
