"""Changes in directories, as the kernel tells of them: one inotify(7) descriptor a worker, read in its loop.

A watch is for one name in one directory, there or not. The kernel watches whole directories, each once, and
tells of all that is in them.

Its law: knows inotify and the hub's loop. It knows nothing of what the watched files are for.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import monkey

MAX_DIRECTORIES = 8192
MAX_WATCHES = 200_000

# File systems whose changes are all told, by statfs(2)'s f_type: those that nobody can change but through
# this kernel. Not told is what happens on a server (NFS, CIFS, 9p), behind FUSE, or in an overlay's layers.
_TELLING = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0xF2F52010,  # F2FS
        0x2FC12FC1,  # ZFS
        0xCA451A4E,  # bcachefs
        0x3153464A,  # JFS
        0x52654973,  # ReiserFS
        0x3434,  # NILFS
        0x4D44,  # FAT
        0x2011BAB0,  # exFAT
        0x73717368,  # squashfs
        0xE0F5E1E2,  # EROFS
        0x9660,  # ISO 9660
    }
)

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x02, 0x04, 0x08
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_UNMOUNT, _Q_OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_ONLYDIR, _EXCL_UNLINK = 0x01000000, 0x04000000
_MASK = (
    _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
    | _ONLYDIR | _EXCL_UNLINK
)  # fmt: skip

_HEAD = struct.Struct("iIII")
_BATCH = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.statfs.argtypes = (ctypes.c_char_p, ctypes.c_char_p)


class Watch:
    """A name that is watched until `cancel`, which may be repeated."""

    __slots__ = ("_changes", "callback", "directory", "name")

    def __init__(self, changes: Changes, directory: int, name: bytes, callback: Callable[[], None]) -> None:
        self._changes = changes
        self.directory = directory
        self.name = name
        self.callback = callback

    def cancel(self) -> None:
        """Have the callback called no more. It may be called in another thread meanwhile."""
        self._changes._forget(self)


class Changes:
    """Tells of changes. Made in the thread of the loop that will tell; `watch` and `cancel` are for any.

    At most `directories` and `watches` at a time: then, as at the system's limits (fs.inotify.*), there are
    no more watches until others are cancelled.
    """

    def __init__(self, directories: int = MAX_DIRECTORIES, watches: int = MAX_WATCHES) -> None:
        self._hub: Any = gevent.get_hub()
        # A real lock, held for an instant only: I/O threads have no loop to wait in.
        self._lock: Any = monkey.get_original("_thread", "allocate_lock")()
        self._directories: dict[int, dict[bytes, set[Watch]]] = {}
        self._max_directories = directories
        self._max_watches = watches
        self._watches = 0
        self._fd = -1
        self._watcher: Any = None

    def __len__(self) -> int:
        """How many watches there are."""
        return self._watches

    def watch(self, directory: str | bytes, name: bytes, callback: Callable[[], None]) -> Watch | None:
        """Have `callback` called, in the loop, when `name` in `directory` is created, changed, moved or
        deleted, or the directory itself is.

        None if that can't be told: limits, no such directory, a file system that doesn't tell. May wait for a
        disk. The callback must not wait; it may be called more than once, and also without a change.
        """
        path = os.fsencode(directory)
        if not tells(path):
            return None
        with self._lock:
            if self._watches >= self._max_watches or not self._started():
                return None
            number = _libc.inotify_add_watch(self._fd, path, _MASK)
            if number < 0:
                return None
            names = self._directories.get(number)
            if names is None:
                if len(self._directories) >= self._max_directories:
                    _libc.inotify_rm_watch(self._fd, number)
                    return None
                names = self._directories[number] = {}
            watch = Watch(self, number, name, callback)
            names.setdefault(name, set()).add(watch)
            self._watches += 1
            return watch

    def close(self) -> None:
        """Forget all watches. In the loop's thread."""
        with self._lock:
            self._directories.clear()
            self._watches = 0
            fd, self._fd = self._fd, -1
            if self._watcher is not None:
                self._watcher.stop()
                self._watcher.close()
                self._watcher = None
        if fd >= 0:
            os.close(fd)

    def _started(self) -> bool:
        if self._fd < 0:
            self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._fd >= 0:
                self._hub.loop.run_callback_threadsafe(self._attach)
        return self._fd >= 0

    def _attach(self) -> None:
        with self._lock:
            if self._fd >= 0 and self._watcher is None:
                # Alone it doesn't keep the loop running.
                self._watcher = self._hub.loop.io(self._fd, 1, ref=False)
                # Before the requests that came in the same round.
                self._watcher.priority = self._hub.loop.MAXPRI
                self._watcher.start(self._ready)

    def _forget(self, watch: Watch) -> None:
        with self._lock:
            names = self._directories.get(watch.directory)
            if names is None or watch not in names.get(watch.name, ()):
                return
            names[watch.name].remove(watch)
            self._watches -= 1
            if not names[watch.name]:
                del names[watch.name]
            if not names:
                del self._directories[watch.directory]
                _libc.inotify_rm_watch(self._fd, watch.directory)

    def _ready(self) -> None:
        """One batch of events; the loop comes back for more."""
        try:
            data = os.read(self._fd, _BATCH)
        except BlockingIOError:
            return
        concerned: dict[Watch, None] = {}
        with self._lock:
            for number, mask, name in events(data):
                for watch in self._concerned(number, mask, name):
                    concerned[watch] = None
        for watch in concerned:
            try:
                watch.callback()
            except Exception:  # noqa: BLE001
                # One that fails must not keep the others from being told.
                self._hub.handle_error(watch.callback, *sys.exc_info())

    def _concerned(self, number: int, mask: int, name: bytes) -> list[Watch]:
        if mask & _Q_OVERFLOW:
            return [watch for names in self._directories.values() for watch in _all_of(names)]
        names = self._directories.get(number)
        if names is None:
            return []
        if name:
            return list(names.get(name, ()))
        found = _all_of(names)
        if mask & _IGNORED:  # deleted or unmounted: the kernel has forgotten it, and so do we
            del self._directories[number]
            self._watches -= len(found)
        return found


def _all_of(names: dict[bytes, set[Watch]]) -> list[Watch]:
    return [watch for watches in names.values() for watch in watches]


def tells(path: bytes) -> bool:
    """Whether the file system at `path` tells of each change."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs, which begins with f_type
    if _libc.statfs(path, buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF in _TELLING


def events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(watch descriptor, mask, name) of each struct inotify_event; no name: the directory itself."""
    at = 0
    while at < len(data):
        number, mask, _, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield number, mask, data[at : at + length].rstrip(b"\0")
        at += length
