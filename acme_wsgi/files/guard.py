"""What a kept value depends on: its files are watched, and then looked at once more.

A change between the finding of a file and the watching of it would be seen by nobody. So the watches come
first, then a second look is compared with what was found: either it shows the change, or the change is still
to come, and a watch tells.

Watched are the file's name in its directory and each directory's name in the one above it, up to the root.
Some changes no watch tells of; a value that could miss one isn't `certain`, and ends after a while by itself:
- on the way is a symlink (what it points to isn't watched), or a file system that doesn't tell;
- the file has several names: what is written through one in another directory is told there;
- the file was changed just now: its times are coarse, and a second change might show the same ones.
Nobody tells of what is written through a shared mapping, nor through a name that a file is given in another
directory later on, nor that something was mounted over a directory.

Its law: knows Beneath and Changes. It knows neither values nor their table. All of it may wait for a disk.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from acme_wsgi.files.beneath import Beneath, split
from acme_wsgi.files.changes import Changes, Watch
from acme_wsgi.files.openfile import OpenFile

SETTLED_NS = 2_000_000_000
"""A file that was changed longer ago can't change again without a new time (FAT counts in two seconds)."""

Seen = OpenFile | os.stat_result | None
Identity = tuple[int, int]
"""Device and inode of a directory."""

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class Armed:
    """The watches that guard a value, whether they tell of everything, and the root that they are in."""

    watches: list[Watch]
    certain: bool
    identity: Identity


class Guard:
    """Arms values that depend on files below `root`."""

    def __init__(self, root: Beneath, changes: Changes) -> None:
        self._root = root
        self._changes = changes

    def identity(self) -> Identity | None:
        """Which directory the root is now (device, inode); None if there is none."""
        try:
            root = self._root.open_root()
        except OSError:
            return None
        try:
            return _identity(os.fstat(root))
        finally:
            os.close(root)

    def arm(self, depends: Mapping[bytes, Seen], callback: Callable[[], None]) -> Armed | None:
        """Have `callback` called when something happens to one of the paths; may be before this returns.

        None, and nothing is watched, if one of them isn't any more what was seen there or can't be looked at.
        """
        try:
            root = self._root.open_root()
        except OSError:
            return None
        steps = _Steps(self._changes, root, callback)
        try:
            certain = all(steps.watch(relative) for relative in depends)
            now = time.time_ns()
            for relative, seen in depends.items():
                if self._version(relative, root) != version(seen):
                    steps.cancel()
                    return None
                certain = certain and settled(seen, now)
            return Armed(steps.watches, certain, _identity(os.fstat(root)))
        except OSError:  # no descriptors left, a broken disk: what was to be kept is there all the same
            steps.cancel()
            return None
        finally:
            steps.close()

    def _version(self, relative: bytes, root: int) -> tuple[int, ...] | None:
        try:
            return version(self._root.stat(relative, root))
        except (FileNotFoundError, PermissionError):
            return None


def version(seen: Seen) -> tuple[int, ...] | None:
    """What distinguishes one version of a file from another; of a directory, from another directory."""
    if seen is None:
        return None
    if isinstance(seen, OpenFile):
        return (seen.dev, seen.ino, seen.mode, seen.size, seen.mtime_ns, seen.ctime_ns)
    if stat.S_ISDIR(seen.st_mode):
        return (seen.st_dev, seen.st_ino, seen.st_mode)
    return (seen.st_dev, seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def settled(seen: Seen, now: int) -> bool:
    """Whether each change to come will show: the file has one name, and its last change is some time ago."""
    if seen is None:
        return True
    if isinstance(seen, OpenFile):
        return seen.links == 1 and abs(now - seen.ctime_ns) > SETTLED_NS
    if stat.S_ISDIR(seen.st_mode):
        return True
    return seen.st_nlink == 1 and abs(now - seen.st_ctime_ns) > SETTLED_NS


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


class _Steps:
    """The way to each path, name by name, each name watched once."""

    def __init__(self, changes: Changes, root: int, callback: Callable[[], None]) -> None:
        self.watches: list[Watch] = []
        self._changes = changes
        self._callback = callback
        self._directories: dict[bytes, int] = {b"": root}
        self._certain: dict[bytes, bool] = {}

    def watch(self, relative: bytes) -> bool:
        """Watch all names on the way to a path, as far as it goes; whether each change of it will be told."""
        try:
            parts = split(relative)
        except FileNotFoundError:  # refused, whatever there is
            return True
        place = b""
        for part in parts:
            directory = self._directories.get(place)
            if directory is None:  # the way ends before: what would prolong it is watched
                return True
            place += b"/" + part
            if place not in self._certain:
                self._certain[place] = self._step(directory, part, place)
            if not self._certain[place]:
                return False
        return True

    def _step(self, directory: int, name: bytes, place: bytes) -> bool:
        watch = self._changes.watch(f"/proc/self/fd/{directory}", name, self._callback)
        if watch is None:
            return False
        self.watches.append(watch)
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
        except OSError as error:
            return error.errno in _ABSENT
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            self._directories[place] = fd
        else:
            os.close(fd)
        return not stat.S_ISLNK(mode)

    def cancel(self) -> None:
        for watch in self.watches:
            watch.cancel()

    def close(self) -> None:
        for fd in self._directories.values():
            os.close(fd)
