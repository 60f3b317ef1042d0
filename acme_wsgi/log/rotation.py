"""Rotation of the log files by the server itself: when a file is due, and what takes its place.

Law: one process rotates, the arbiter; it calls :func:`rotate` about once a second, and tells the others to
reopen when that says so. Nothing here waits, logs more than once about the same trouble, or fails: a file
that can't be rotated goes on growing, and every process goes on writing to the file that it has.

No line is lost: a file is renamed, never truncated, so who has it open goes on writing to it until told.

The directory may belong to a less trusted account than ours. So nothing is done through a symbolic link, a
file is created only where there is none, and only files that were ours are given away.
"""

from __future__ import annotations

import atexit
import calendar
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from acme_wsgi.log import generations
from acme_wsgi.log.access import reopen
from acme_wsgi.log.compress import Compressor
from acme_wsgi.log.generations import PART, Identity
from acme_wsgi.log.sink import FILE_MODE, open_sinks

RETRY = 10.0
"""Seconds until a file that could not be rotated is tried again."""

Owner = tuple[int, int]
"""User and group id of the processes that write to the files."""

_HEAD = 64 << 10  # so far into a file the first time in it is looked for
# Both from the line's start: what stands further on may come from a client.
_ISO = re.compile(rb'(?:\{"timestamp": "|timestamp=)?(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.\d{3}Z')
_APACHE = re.compile(rb"[^ ]+ - - \[(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)\]")
_MONTHS = b"JanFebMarAprMayJunJulAugSepOctNovDec"

_logger = logging.getLogger("acme.log")


class Rules(Protocol):
    """``logging.rotation`` of the configuration."""

    @property
    def size(self) -> int | None: ...
    @property
    def age(self) -> float | None: ...
    @property
    def count(self) -> int: ...
    @property
    def compress(self) -> bool: ...


class AccessSettings(Protocol):
    """What rotation needs of ``logging.access``."""

    @property
    def enabled(self) -> bool: ...
    @property
    def output(self) -> str: ...


class ErrorSettings(Protocol):
    """What rotation needs of ``logging.error``."""

    @property
    def output(self) -> str | None: ...


class Settings(Protocol):
    """What rotation needs of the ``logging`` section."""

    @property
    def output(self) -> str: ...
    @property
    def access(self) -> AccessSettings: ...
    @property
    def error(self) -> ErrorSettings: ...
    @property
    def rotation(self) -> Rules: ...


def files(settings: Settings) -> Iterator[str]:
    """The paths that are logged to, each once."""
    access = settings.access.output if settings.access.enabled else None
    for output in dict.fromkeys((settings.output, settings.error.output, access)):
        if output is not None and output.startswith("/"):
            yield output


@dataclass(slots=True)
class _File:
    """What is remembered of one output.

    :ivar now: the file that the path led to when it was last looked at
    :ivar began: when its first line was written (epoch seconds); None: not known yet
    :ivar squeeze: there may be generations to compress
    :ivar told: the trouble that the log was told of
    :ivar retry_at: not before this time (monotonic seconds), after trouble
    """

    path: str
    now: Identity | None = None
    began: float | None = None
    squeeze: bool = True
    told: str = ""
    retry_at: float = 0.0

    def complain(self, doing: str, why: str) -> None:
        """Tell a trouble once, until it is over or another one."""
        self.retry_at = time.monotonic() + RETRY
        if self.told != why:
            self.told = why
            _logger.warning("can't %s %s: %s", doing, self.path, why)

    def fine(self, found: os.stat_result) -> None:
        """All is well, with this file in place."""
        self.now = generations.identity(found)
        self.told = ""

    def is_due(self, found: os.stat_result, rules: Rules) -> bool:
        """Whether the file has reached the size or the age to be rotated; an empty one never has."""
        if not found.st_size:
            return False
        if rules.size is not None and found.st_size >= rules.size:
            return True
        if rules.age is None:
            return False
        if self.began is None:
            self.began = began(self.path, found)
        return time.time() - self.began >= rules.age


class Rotation:
    """The state between two looks."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._compressor = Compressor()

    def rotate(self, settings: Settings, owner: Owner | None) -> bool:
        """Look at every file once."""
        self._compressor.collect()
        rules = settings.rotation
        if rules.size is None and rules.age is None:
            return False
        known = self._known(settings)
        changed = [self._tend(file, rules, owner) for file in known]
        if rules.compress and not self._compressor.busy:
            for file in known:
                file.squeeze = file.squeeze and self._compressor.start(file.path)
        return any(changed)

    def prepare(self, settings: Settings, owner: Owner | None) -> None:
        """Have every file there, and writable for its writers."""
        for file in self._known(settings):
            try:
                found = generations.look(file.path)
                if found is None:
                    found = _create(file.path, None, owner)
                elif stat.S_ISREG(found.st_mode):
                    _give(file.path, owner)
            except OSError as error:
                file.complain("prepare", error.strerror or str(error))
            else:
                self._is_in_place(file, found)

    def abandon(self) -> None:
        """The process ends."""
        self._compressor.abandon()
        self._files.clear()

    def forget(self) -> None:
        """In a forked child."""
        self._compressor.forget()
        self._files.clear()

    def _known(self, settings: Settings) -> list[_File]:
        """The files of these settings, with what was remembered of them; of others nothing is."""
        before, self._files = self._files, {}
        for path in files(settings):
            file = before.get(path)
            if file is None:
                file = _File(path)
                if not self._compressor.busy:
                    with suppress(OSError):  # what an interrupted run has left behind
                        Path(path + PART).unlink()
            self._files[path] = file
        return list(self._files.values())

    def _tend(self, file: _File, rules: Rules, owner: Owner | None) -> bool:
        """Look at one file; True when another one has taken its place."""
        if time.monotonic() < file.retry_at:
            return False
        try:
            return self._look_at(file, rules, owner)
        except generations.Busy:
            return False
        except OSError as error:
            file.complain("rotate", error.strerror or str(error))
            return False

    def _look_at(self, file: _File, rules: Rules, owner: Owner | None) -> bool:
        found = generations.look(file.path)
        if found is not None and not stat.S_ISREG(found.st_mode):
            if stat.S_ISLNK(found.st_mode):
                file.complain("rotate", "it is a symbolic link")
            return False
        if found is None or file.now not in (None, generations.identity(found)):
            # Removed or replaced behind our back: who writes to it should write to what is there now.
            found = found or _create(file.path, None, owner)
        elif file.is_due(found, rules):
            with generations.locked(file.path):
                before = generations.look(file.path)
                if before is None or generations.identity(before) != generations.identity(found):
                    return False  # somebody was quicker; the next look finds out what is there
                generations.shift(file.path, rules.count)
                found = _create(file.path, before, owner)
            file.squeeze = True
            # Before reopening: in the new file it would keep an idle server's log from staying empty.
            _logger.info("rotated %s (%d bytes)", file.path, before.st_size)
        else:
            file.fine(found)
            return False
        self._is_in_place(file, found)
        _reopen(file.path)
        return True

    @staticmethod
    def _is_in_place(file: _File, found: os.stat_result) -> None:
        if file.now != generations.identity(found):
            file.began = None
        file.fine(found)


def _reopen(path: str) -> None:
    for sink in open_sinks():
        if sink.output == path:
            reopen(sink)


# -- files


def _create(path: str, before: os.stat_result | None, owner: Owner | None) -> os.stat_result:
    """Create an empty file, for `owner`, and with the permissions of the file that was there before.

    One that another process has just created is taken as it is.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, FILE_MODE)
    except FileExistsError:
        _give(path, owner)
        return os.lstat(path)
    try:
        if before is not None:
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & 0o666)
        _chown(descriptor, before, owner)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _chown(descriptor: int, before: os.stat_result | None, owner: Owner | None) -> None:
    """Give a new file to its writers, and to the group (of log readers, say) that its predecessor had."""
    user, group = owner or (os.geteuid(), os.getegid())
    if before is not None and before.st_uid == user and before.st_gid != group:
        with suppress(PermissionError):  # without root's rights only groups of our own
            os.fchown(descriptor, user, before.st_gid)
            return
    if owner not in (None, (os.geteuid(), os.getegid())):
        os.fchown(descriptor, user, group)


def _give(path: str, owner: Owner | None) -> None:
    """Give a file of ours, as the arbiter created it at the start, to those who write to it.

    Only such a file: another name of a file somewhere else (a link of whatever kind) would give that away.
    """
    if owner in (None, (os.geteuid(), os.getegid())):
        return
    assert owner is not None
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid():
            os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)


# -- age


def began(path: str, found: os.stat_result) -> float:
    """When a file's first line was written, by the time that stands in it: that survives restarts and copies.

    A file without any such time near its start counts from the last write to it that is seen first.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        head = os.read(descriptor, _HEAD)
    finally:
        os.close(descriptor)
    for line in head.split(b"\n"):
        written = _time_in(line)
        if written is not None:
            return min(written, time.time())
    return min(found.st_mtime, time.time())


def _time_in(line: bytes) -> float | None:
    """The time of a line in any of the server's formats."""
    if match := _ISO.match(line):
        year, month, day, hour, minute, second = map(int, match.groups())
        return _epoch(year, month, day, hour, minute, second)
    if match := _APACHE.match(line):
        month = _MONTHS.find(match[2]) // 3 + 1
        offset = (int(match[8]) * 60 + int(match[9])) * 60 * (-1 if match[7] == b"-" else 1)
        written = _epoch(int(match[3]), month, int(match[1]), int(match[4]), int(match[5]), int(match[6]))
        return None if written is None else written - offset
    return None


def _epoch(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float | None:
    if not (year >= 1970 and 1 <= month <= 12 and 1 <= day <= 31):
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second)))


# -- the one of this process

_rotation = Rotation()


def rotate(settings: Settings, *, owner: Owner | None) -> bool:
    """Rotate what is due. For the one process that does it, about once a second; never waits, never raises.

    :param settings: the ``logging`` section
    :param owner: user and group id of the processes that write, where they aren't ours
    :returns: whether the other processes must open their files anew (SIGUSR1)
    """
    return _rotation.rotate(settings, owner)


def prepare(settings: Settings, *, owner: Owner | None) -> None:
    """Create the files that aren't there and give ours to `owner`; call it before anybody (re)opens them.

    :param settings: the ``logging`` section
    :param owner: user and group id of the processes that write, where they aren't ours
    """
    _rotation.prepare(settings, owner)


def abandon() -> None:
    """The process ends: end what still goes on for it."""
    _rotation.abandon()


def _after_fork() -> None:
    _rotation.forget()


atexit.register(abandon)
os.register_at_fork(after_in_child=_after_fork)
