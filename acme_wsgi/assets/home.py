"""The directory of what was built: objects by their content, the state, the manifest, and two locks.

Law: knows files and who may write them, not what is in them. A file appears under its name with all of its
content or not at all. Everything here can be thrown away: the next start builds it again. That nothing can be
written is an OSError of the call that would, and never more than that. Imports no gevent.

    RUNTIME_DIR/assets/
        manifest.json                URL -> versioned URL, for people and their tools
        state-CONFIGURATION.json     what the workers share
        objects/                     named by content and length
        build.lock  keeper-CONFIGURATION.lock
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from acme_wsgi.errors import AcmeError, ConfigError, Problem
from acme_wsgi.privileges import Account
from acme_wsgi.rundir import default_directory, open_directory

NAME = "assets"
MANIFEST = "manifest.json"
KEPT = 600.0
"""Seconds that an object is kept after it was last needed: somebody may be about to open it."""

FORGOTTEN = 3600.0
"""Seconds after which the state of a configuration that nobody serves any more is removed."""

_MODE = 0o750
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Home:
    """The directory, as this process reaches it.

    :ivar path: how; for a worker that may not walk there by name, through a descriptor
    :ivar shown: its name, for people
    """

    path: str
    shown: str
    _locks: dict[str, int] = field(default_factory=dict)

    def _join(self, name: str) -> str:
        return os.path.join(self.path, name)  # noqa: PTH118 - Path would cost more than the call

    # -- objects -------------------------------------------------------------------------------------------

    def object_path(self, name: str) -> str:
        """The path of an object."""
        return os.path.join(self.path, "objects", name)  # noqa: PTH118

    def has(self, name: str) -> bool:
        """Whether an object is there, and whole: its length is in its name."""
        try:
            size = Path(self.object_path(name)).stat().st_size
        except OSError:
            return False
        return size == length(name)

    def read(self, name: str) -> bytes:
        """An object's content; raises OSError."""
        return Path(self.object_path(name)).read_bytes()

    def put(self, content: bytes, extension: str) -> str:
        """Keep some content; returns the name of its object. Raises OSError where it can't be kept."""
        digest = hashlib.sha256(content).hexdigest()
        name = f"{digest[:40]}-{len(content):x}{extension}"
        if self.has(name):
            self.spare({name})
        else:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._join("objects"), _MODE)  # noqa: PTH102 - a mode, no parents
            self._write((self.object_path(name), content))
        return name

    def spare(self, needed: set[str]) -> None:
        """Have objects kept for KEPT seconds more by whoever sweeps, and doesn't know who needs them."""
        for name in needed:
            with contextlib.suppress(OSError):  # where that can't be done, nothing is swept either
                os.utime(self.object_path(name))

    def sweep(self, needed: set[str], now: float) -> int:
        """Remove objects that nobody has needed for KEPT seconds; returns how many.

        :param needed: these are needed now
        """
        removed = 0
        if not Path(self._join("objects")).is_dir():
            return removed
        with os.scandir(self._join("objects")) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.name in needed:
                        os.utime(entry.path)
                    elif entry.stat().st_mtime < now - KEPT:
                        os.unlink(entry.path)  # noqa: PTH108
                        removed += 1
        return removed

    # -- state and manifest --------------------------------------------------------------------------------

    def state(self, configuration: str) -> bytes:
        """The text of a state file; empty if there is none."""
        try:
            return Path(self._join(f"state-{configuration}.json")).read_bytes()
        except FileNotFoundError:
            return b""

    def put_state(self, configuration: str, text: bytes, manifest: bytes) -> None:
        """Replace a state file and the manifest that belongs to it: both or, with an OSError, neither."""
        self._write((self._join(MANIFEST), manifest), (self._join(f"state-{configuration}.json"), text))

    def mark(self, configuration: str) -> tuple[int, int, int] | None:
        """What changes whenever a state file is replaced; None if there is none."""
        try:
            found = Path(self._join(f"state-{configuration}.json")).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def others(self, configuration: str) -> list[bytes]:
        """The texts of the states of other configurations."""
        found = []
        for path in self._other_states(configuration):
            with contextlib.suppress(FileNotFoundError):
                found.append(path.read_bytes())
        return found

    def forget(self, configuration: str, now: float) -> None:
        """Remove the states of other configurations that are long out of use.

        A state is in use as long as its keeper lock is touched (`touch`).
        """
        for path in self._other_states(configuration):
            lock = Path(self._join(f"keeper-{path.stem.removeprefix('state-')}.lock"))
            with contextlib.suppress(FileNotFoundError):
                if max(path.stat().st_mtime, lock.stat().st_mtime) < now - FORGOTTEN:
                    path.unlink()
                    lock.unlink()

    def _other_states(self, configuration: str) -> list[Path]:
        own = f"state-{configuration}.json"
        return [path for path in Path(self.path).glob("state-*.json") if path.name != own]

    def _write(self, *files: tuple[str, bytes]) -> None:
        """Have files appear, each a path and its content: none before the content of all is written."""
        with contextlib.ExitStack() as leftovers:
            written = []
            for path, content in files:
                descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=self.path)
                leftovers.callback(Path(temporary).unlink, missing_ok=True)
                with open(descriptor, "wb") as file:
                    os.fchmod(descriptor, 0o640)
                    file.write(content)
                written.append((temporary, path))
            for temporary, path in written:
                os.replace(temporary, path)  # noqa: PTH105
            leftovers.pop_all()

    def insist_on_writing(self) -> None:
        """See that this process may write here. A disk that is full is no reason to refuse it.

        :raises ConfigError: it may not
        """
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=self.path)
        except OSError as error:
            if error.errno in _FULL:
                return
            reason = f"uid {os.geteuid()} can't write to {self.shown!r}: {error.strerror}"
            raise _refusal(reason) from error
        os.close(descriptor)
        os.unlink(temporary)  # noqa: PTH108

    def has_room(self, size: int) -> bool:
        """Whether a file of so many bytes may fit on the disk, as far as the disk knows."""
        found = os.statvfs(self.path)
        if not found.f_blocks:
            return True  # it says nothing of itself
        return found.f_bavail >= -(-size // found.f_frsize) and (found.f_favail > 0 or not found.f_files)

    def clear_temporary(self, now: float) -> None:
        """Remove what writers that died have left."""
        for path in Path(self.path).glob(".new-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - KEPT:
                    path.unlink()

    # -- locks ---------------------------------------------------------------------------------------------
    # POSIX record locks: they end with the process that took them, and no child of it has them too, as it
    # would have flock's. Each file is opened once: closing any descriptor of it would end the lock.

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """One process builds, the others wait.

        Where not even the lock's file can be made, nothing that is built could be kept, and nobody waits.
        """
        descriptor = None
        with contextlib.suppress(OSError):
            descriptor = self._lock_file("build.lock")
        if descriptor is None:
            yield
            return
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)

    def become_keeper(self, configuration: str) -> bool:
        """Whether this process is the one that looks for changes, until it dies; OSError if nobody can be."""
        descriptor = self._lock_file(f"keeper-{configuration}.lock")
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def touch(self, configuration: str) -> None:
        """Say that a configuration is in use."""
        os.utime(self._lock_file(f"keeper-{configuration}.lock"))

    def _lock_file(self, name: str) -> int:
        if name not in self._locks:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                self._locks[name] = os.open(self._join(name), flags, 0o640)
            except OSError as error:
                error.filename = f"{self.shown}/{name}"  # the path of ours may say nothing to people
                raise
        return self._locks[name]


def length(name: str) -> int:
    """How many bytes the object of this name has."""
    return int(name.partition(".")[0].rpartition("-")[2], 16)


# -- claiming it --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """A descriptor of the directory, taken while this process may walk there."""

    descriptor: int
    shown: str

    def open(self) -> Home:
        """The directory for the user that this process runs as by now."""
        try:
            by_name = Path(self.shown).stat()
            same = os.path.samestat(by_name, os.fstat(self.descriptor))
        except OSError:
            same = False
        usable = same and os.access(self.shown, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)
        return Home(self.shown if usable else f"/proc/self/fd/{self.descriptor}", self.shown)


def claim(runtime_dir: str | None, account: Account | None) -> Claim:
    """Make the directory, for the user that the workers run as; called before the worker becomes that user.

    :param runtime_dir: server.runtime_dir, None for the default
    :raises ConfigError: there is no place for it where nobody else may write
    """
    try:
        directory = runtime_dir or default_directory(os.environ)
        parent = open_directory(directory)
    except AcmeError as error:
        raise _refusal(str(error)) from error
    shown = str(Path(directory) / NAME)
    try:
        descriptor = _open(parent, account)
    except OSError as error:
        raise _refusal(f"{shown!r} can't be used: {error.strerror}") from error
    finally:
        os.close(parent)
    return Claim(descriptor, shown)


def _open(parent: int, account: Account | None) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(NAME, _MODE, dir_fd=parent)
    descriptor = os.open(NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        found = os.fstat(descriptor)
        owner = os.geteuid() if account is None else account.uid
        if found.st_uid != owner and found.st_uid == os.geteuid() and account is not None:
            _give_away(descriptor, account)
            found = os.fstat(descriptor)
        if found.st_uid != owner:
            raise PermissionError(0, f"it belongs to uid {found.st_uid}, not to {owner}")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(0, "others may write there")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _give_away(directory: int, account: Account) -> None:
    """All of it: an earlier server may have run its workers as us."""
    for _, _, names, here in os.fwalk(".", dir_fd=directory, follow_symlinks=False):
        for name in names:
            os.chown(name, account.uid, account.gid, dir_fd=here, follow_symlinks=False)
        os.fchown(here, account.uid, account.gid)


def _refusal(reason: str) -> ConfigError:
    message = f"no directory for built assets: {reason}"
    hint = "" if "server.runtime_dir" in reason else "server.runtime_dir names another directory"
    return ConfigError([Problem(None, None, None, "static", message, hint)])
