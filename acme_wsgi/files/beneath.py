"""Files below a root, and nothing else: whatever path is asked for, nothing outside of the root is opened.

The kernel is asked to keep the walk inside (openat2(2) with RESOLVE_BENEATH); where it can't, the path is
walked here, component by component, just as strictly. Both refuse a symlink that is absolute or climbs out of
the root, even one that would come back in. An O_PATH descriptor, which opens nothing, holds what was found,
and only a regular file is then opened for reading, through that descriptor: a FIFO or a device never is, and
nobody can put another file in its place in between.

Its law: knows directories and path bytes, and no URL: its caller has decoded that. All of it may wait for
a disk.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acme_wsgi.files.openfile import OpenFile

WELL_KNOWN = b".well-known"
"""The one name with a dot that is served, as the first component (RFC 8615)."""

MAX_PATH = 4095
MAX_DEPTH = 256
MAX_SYMLINKS = 40
"""As the kernel's (path_resolution(7)), but for the depth, which bounds the descriptors that a walk takes."""

# What says that there is nothing there to be served, whatever else it says.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.EINVAL})

Walk = Callable[[int, bytes], int]
"""(descriptor of the root, relative path) -> O_PATH descriptor of what is there, or OSError."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of a directory: `size` in bytes, `mtime_ns` in nanoseconds since the epoch."""

    name: bytes
    is_directory: bool
    size: int
    mtime_ns: int


class Beneath:
    """What lies below the directory `root`.

    Paths are bytes relative to it, without a slash at the front; one slash at the end means a directory.
    FileNotFoundError is raised for all that is not to be served, whether it is there or not: absent, outside,
    a dot-file, neither file nor directory, or no possible path. Other OSErrors (EMFILE, EIO) pass through.
    The root is looked up anew each time: it may be a symlink that a deployment switches.
    """

    def __init__(self, root: str | Path, walk: Walk | None = None) -> None:
        self.root = os.fspath(root)
        self._walk = walk

    def open(self, relative: bytes) -> OpenFile:
        """The regular file at `relative`.

        Raises FileNotFoundError, IsADirectoryError for a directory, PermissionError.
        """
        with self._found(relative) as (fd, found):
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), relative)
            return OpenFile(_reopened(fd, os.O_RDONLY | os.O_NOCTTY))

    def stat(self, relative: bytes, root: int | None = None) -> os.stat_result:
        """Of the regular file or directory at `relative`. Raises FileNotFoundError, PermissionError.

        `root`: a descriptor from `open_root`, for several looks at one and the same directory.
        """
        with self._found(relative, root) as (_, found):
            return found

    def listing(self, relative: bytes, limit: int) -> list[Listed]:
        """The entries of the directory at `relative`, directories first, then by name.

        Left out is what `open` would refuse. After `limit` entries no more are read, and which ones these are
        is chance: whoever wants to say that there are more asks for one more than it shows.
        Raises FileNotFoundError, NotADirectoryError, PermissionError.
        """
        with self._found(relative) as (fd, found):
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), relative)
            directory = _reopened(fd, os.O_RDONLY | os.O_DIRECTORY)
        try:
            entries: list[Listed] = []
            with os.scandir(directory) as names:
                for entry in names:
                    if len(entries) >= limit:
                        break
                    if listed := self._listed(directory, relative, entry):
                        entries.append(listed)
        finally:
            os.close(directory)
        return sorted(entries, key=lambda entry: (not entry.is_directory, entry.name))

    def open_root(self) -> int:
        """An O_PATH descriptor of the directory that the root is now; the caller closes it."""
        return os.open(self.root, os.O_PATH | os.O_DIRECTORY)

    @contextmanager
    def _found(self, relative: bytes, root: int | None = None) -> Iterator[tuple[int, os.stat_result]]:
        """An O_PATH descriptor of the file or directory at `relative`, and its stat."""
        split(relative)
        fd = self._lookup(relative or b".", root)
        try:
            found = os.fstat(fd)
            if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
                raise _absent(relative)
            yield fd, found
        finally:
            os.close(fd)

    def _lookup(self, relative: bytes, root: int | None) -> int:
        own = -1
        try:
            if root is None:
                root = own = self.open_root()
            return (self._walk or best_walk())(root, relative)
        except OSError as error:
            if error.errno in _ABSENT:
                raise _absent(relative) from error
            raise
        finally:
            if own >= 0:
                os.close(own)

    def _listed(self, directory: int, relative: bytes, entry: os.DirEntry[str]) -> Listed | None:
        name = os.fsencode(entry.name)
        if name.startswith(b".") and (relative or name != WELL_KNOWN):
            return None
        try:
            if entry.is_symlink():
                found = self.stat(b"/".join(filter(None, (relative.rstrip(b"/"), name))))
            else:
                found = entry.stat(follow_symlinks=False)
        except OSError:  # gone meanwhile, or leading outside
            return None
        is_directory = stat.S_ISDIR(found.st_mode)
        needed = os.X_OK if is_directory else os.R_OK
        if not is_directory and not stat.S_ISREG(found.st_mode):
            return None
        if not os.access(entry.name, needed, dir_fd=directory, effective_ids=True):
            return None
        return Listed(name, is_directory, found.st_size, found.st_mtime_ns)


def split(relative: bytes) -> list[bytes]:
    """The components of a path that could be one of ours; FileNotFoundError for any other.

    The root is no component at all. Refused are NUL, empty components (but for one slash at the end), and
    each component with a dot in front: `.`, `..` and the dot-files; `.well-known` may come first.
    """
    parts = relative.split(b"/")
    if parts[-1] == b"":
        parts.pop()
    if len(relative) > MAX_PATH or len(parts) > MAX_DEPTH or b"\0" in relative or (relative and not parts):
        raise _absent(relative)
    for index, part in enumerate(parts):
        if part == b"" or (part[0] == 0x2E and (index or part != WELL_KNOWN)):
            raise _absent(relative)
    return parts


def _absent(relative: bytes) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), relative)


def _reopened(fd: int, flags: int) -> int:
    """Another descriptor of what `fd` holds, opened with `flags`."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except FileNotFoundError as error:
        raise OSError(errno.ENOSYS, "files can't be opened: /proc is not mounted") from error


# -- the kernel's walk

_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_TRIES = 16


class _How(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW = _How(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)


def kernel_walk(root: int, relative: bytes) -> int:
    """The walk by openat2(2), Linux 5.6.

    While anything is renamed or mounted on the machine the kernel can't be sure of a `..` in a symlink, and
    says EAGAIN: then again, and in the end on foot.
    """
    for _ in range(_TRIES):
        fd: int = _syscall(_OPENAT2, root, relative, ctypes.byref(_HOW), ctypes.sizeof(_How))
        if fd >= 0:
            return fd
        reason = ctypes.get_errno()
        if reason not in (errno.EAGAIN, errno.EINTR):
            raise OSError(reason, os.strerror(reason), relative)
    return own_walk(root, relative)


@functools.cache
def best_walk() -> Walk:
    """The kernel's walk if it has one and lets us (a container's filter may not), else our own."""
    try:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        try:
            os.close(kernel_walk(root, b"."))
        finally:
            os.close(root)
    except OSError:
        return own_walk
    return kernel_walk


# -- our own walk


def own_walk(root: int, relative: bytes) -> int:
    """The walk in single steps, each from a directory that is held open and through nothing but one name.

    `..` in a symlink goes back to the directory that was come from, whatever happened to it since.
    """
    held = [os.dup(root)]
    todo = relative.split(b"/")[::-1]
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                _must_be_a_directory(held[-1], relative)
            elif name == b"..":
                _must_be_a_directory(held[-1], relative)
                if len(held) == 1:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), relative)
                os.close(held.pop())
            else:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=held[-1])
                held.append(fd)
                if stat.S_ISLNK(os.fstat(fd).st_mode):
                    links += 1
                    todo += _target(fd, links, relative).split(b"/")[::-1]
                    os.close(held.pop())
            if len(held) > MAX_DEPTH:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), relative)
        return held.pop()
    finally:
        for fd in held:
            os.close(fd)


def _must_be_a_directory(fd: int, relative: bytes) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), relative)


def _target(link: int, links: int, relative: bytes) -> bytes:
    """Where a symlink points, if that may be followed: not absolute, and not one too many."""
    if links > MAX_SYMLINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), relative)
    target = os.readlink(b"", dir_fd=link)
    if target.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), relative)
    return target
