"""The rotated files of a log: ``NAME.1`` is the youngest, ``NAME.2`` the one before; plain or ``.gz``.

Law: names and renames only; knows neither when a file is due nor who writes to it. Generations are numbered
without a gap from 1; a number behind a gap belongs to somebody else (``access.log.20240131``) and is left
alone. Nothing is ever renamed over a file that is there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

GZ = ".gz"
PART = ".gz.tmp"
"""What is being compressed is written to NAME and this, whatever number it will have in the end."""

Identity = tuple[int, int]
"""Device and inode: which file a path leads to."""


class Busy(Exception):
    """Another process is at work on the generations in this directory."""


def identity(status: os.stat_result) -> Identity:
    """Which file this is."""
    return status.st_dev, status.st_ino


def look(path: str) -> os.stat_result | None:
    """What is at the path itself, a link not followed; None for nothing."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def name(path: str, number: int) -> str:
    """The plain name of a generation."""
    return f"{path}.{number}"


def length(path: str) -> int:
    """How many generations there are: the last number before the first gap."""
    for number in count(1):
        plain = name(path, number)
        if look(plain) is None and look(plain + GZ) is None:
            return number - 1
    raise AssertionError("unreachable")


def shift(path: str, keep: int) -> None:
    """Make a generation of the file at `path`, which is then missing; older ones move up by one.

    :param keep: how many generations may be left; 0 removes the file itself
    :raises OSError: the first thing that could not be done; what was done until then leaves no file lost
    """
    for number in range(length(path), 0, -1):
        for suffix in ("", GZ):
            with suppress(FileNotFoundError):
                if number >= keep:
                    Path(name(path, number) + suffix).unlink()
                else:
                    Path(name(path, number) + suffix).rename(name(path, number + 1) + suffix)
    if keep:
        Path(path).rename(name(path, 1))
    else:
        Path(path).unlink()


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold off other processes that shift or compress in the directory of `path`; never waits.

    Two servers on the same files are not supported, but for the length of an upgrade there are two.

    :raises Busy: another one is at it now
    """
    directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        yield
    finally:
        os.close(directory)
