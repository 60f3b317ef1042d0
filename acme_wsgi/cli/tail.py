"""The end of a file, and what is added to it later: also when it is rotated meanwhile.

Law: knows files and lines, nothing of servers or of what the lines say. However large a file or a line is,
the memory used is bounded. Lines are bytes without their end; a line over MAX_LINE comes in pieces.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from acme_wsgi.errors import AcmeError

MAX_LINE = 1 << 20
"""Bytes of a line that are handed out in one piece."""

MAX_SHOWN = 64 << 20
"""Bytes of a file's end that are read into memory, however many lines were asked for."""

GRACE = 5.0
"""Seconds for which a file that was renamed is still read: its writers change to the new one one by one."""

_CHUNK = 64 << 10
_READ_MOST = 4 << 20  # of one file in one round


class NoFile(AcmeError):
    """The file can't be read as one."""

    exit_status = 1


def open_file(path: str) -> int:
    """A descriptor of a regular file.

    :raises NoFile: it isn't there, isn't ours to read, or is something else
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise NoFile(f"{path!r} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoFile(f"{path!r} is no regular file: there are no lines to look back at")
    return descriptor


def lines_backward(descriptor: int, end: int) -> Iterator[bytes]:
    """The lines before an offset, the last one first."""
    rest, position = b"", end
    cut = end <= 0  # whether what is left at the beginning is no line, but what a piece was cut from
    while position > 0:
        start = max(position - _CHUNK, 0)
        lines = (os.pread(descriptor, position - start, start) + rest).split(b"\n")
        position, rest = start, lines[0]
        yield from reversed(lines[1:])
        if cut := len(rest) > MAX_LINE:
            yield rest
            rest = b""
    if rest or not cut:
        yield rest


def last_lines(
    descriptor: int, end: int, wanted: int, verdict: Callable[[bytes], bool | None] = lambda line: True
) -> list[bytes]:
    """The last lines before an offset.

    :param wanted: how many at most
    :param verdict: whether a line is one of those; None: it goes with the line above it
    """
    found: list[bytes] = []
    undecided: list[bytes] = []
    held = 0
    lines = lines_backward(descriptor, end)
    first = next(lines, b"")
    for line in _chain(first, lines):
        undecided.append(line)
        decided = verdict(line)
        if decided is None and len(undecided) < wanted:
            continue
        if decided is not False:
            found += undecided
            held += sum(map(len, undecided))
        undecided.clear()
        if len(found) >= wanted or held > MAX_SHOWN:
            break
    return found[:wanted][::-1]


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """What lies behind the file's last line end is a line only if there is something."""
    if first:
        yield first
    yield from rest


class _File:
    """A file that is being followed.

    :ivar until: when it is let go of, because another one has its name now; 0 as long as it has
    """

    def __init__(self, descriptor: int, position: int) -> None:
        self.descriptor = descriptor
        found = os.fstat(descriptor)
        self.identity = (found.st_dev, found.st_ino)
        self.until = 0.0
        self._position = position
        self._rest = b""

    def read(self) -> list[bytes]:
        """The whole lines that were added since the last call."""
        lines = []
        if os.fstat(self.descriptor).st_size < self._position:  # truncated: what comes now is new
            lines = self.close_line()
            self._position = 0
        data = os.pread(self.descriptor, _READ_MOST, self._position)
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            whole += self.close_line()
        return lines + whole

    def close_line(self) -> list[bytes]:
        """The line that has no end yet, if there is one."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class Follower:
    """Reads what is added to a file, by name: to whatever file has the name now.

    :param path: its name
    :param descriptor: the file that has it, from `open_file`; closed by `close`
    :param position: where to begin in it
    """

    def __init__(self, path: str, descriptor: int, position: int) -> None:
        self._path = path
        self._files = [_File(descriptor, position)]

    def read(self) -> list[bytes]:
        """The lines that were added since the last call, those of a renamed file first."""
        lines: list[bytes] = []
        now = time.monotonic()
        for file in self._files[:]:
            lines += file.read()
            if file.until and now >= file.until:
                lines += file.close_line()
                os.close(file.descriptor)
                self._files.remove(file)
        if self._take_successor(now):
            lines += self._files[-1].read()
        return lines

    def _take_successor(self, now: float) -> bool:
        """Look whether another file has the name now."""
        try:
            found = Path(self._path).stat()
        except OSError:
            return False  # renamed, and the next one is still to come
        newest = self._files[-1]
        if (found.st_dev, found.st_ino) == newest.identity:
            return False
        with contextlib.suppress(NoFile):
            self._files.append(_File(open_file(self._path), 0))
            newest.until = now + GRACE
            return True
        return False

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            os.close(file.descriptor)
        self._files.clear()
