"""Compression of rotated logs, from the side of the process that rotates.

Law: one child at a time does the work (``squeeze.py``, niced), and nothing here waits for it. The plain file
goes only when its compressed form is whole, on the disk and under its name, and only if nobody has written to
it meanwhile: a file that a process still has open for writing isn't touched. The child may be reaped by
somebody else (an arbiter reaps whatever ends), so it tells through a pipe how it went.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from acme_wsgi.log import generations
from acme_wsgi.log.generations import GZ, PART, Identity
from acme_wsgi.log.squeeze import DONE

QUIET = 60.0
"""Seconds without a write after which a file counts as closed, where the kernel won't say whether it is."""

RETRY = 300.0
"""Seconds until the next attempt after one that failed."""

_PROGRAM = str(Path(__file__).with_name("squeeze.py"))
_MAX_REPORT = 4096

_logger = logging.getLogger("acme.log")


@dataclass(slots=True)
class _Job:
    """One file being compressed. The descriptors stay open so that no other file can take their place."""

    path: str
    pid: int
    report: int
    source: int
    target: int
    before: os.stat_result
    said: bytes = b""
    ended: bool = False

    def close(self) -> None:
        """Give the descriptors back."""
        for descriptor in (self.report, self.source, self.target):
            os.close(descriptor)


class Compressor:
    """Compresses what is left plain, one file after the other."""

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._not_before = 0.0
        self._told = ""

    @property
    def busy(self) -> bool:
        """Whether a child is at work."""
        return self._job is not None

    def start(self, path: str) -> bool:
        """Begin with the youngest plain generation of a log that nobody writes to any more.

        The youngest, since it stays longest: should files be rotated faster than they can be compressed, the
        work isn't for those that are about to go.

        :returns: whether there is more to do, now or later
        """
        if self._job is not None or time.monotonic() < self._not_before:
            return True
        left = False
        try:
            for number in range(1, generations.length(path) + 1):
                found = generations.look(generations.name(path, number))
                if found is not None and stat.S_ISREG(found.st_mode):
                    left = True
                    if self._begin(path, generations.name(path, number)):
                        break
        except OSError as error:
            self._failed(path, error.strerror or str(error))
        return left

    def collect(self) -> None:
        """Finish what the child has finished."""
        job = self._job
        if job is None:
            return
        if not _listen(job):
            return
        try:
            with generations.locked(job.path):
                self._finish(job)
        except generations.Busy:
            return
        except OSError as error:
            self._failed(job.path, error.strerror or str(error))
        self._end(job)

    def abandon(self) -> None:
        """Stop: the child is ended, its work undone. The plain file is still there, for the next start."""
        job = self._job
        if job is None:
            return
        if not _listen(job):
            os.kill(job.pid, signal.SIGKILL)  # it lives, or nobody has reaped it yet
            os.waitpid(job.pid, 0)
        self._end(job)
        with suppress(OSError):
            Path(job.path + PART).unlink()

    def forget(self) -> None:
        """In a forked child: the job is the parent's."""
        if self._job is not None:
            self._job.close()
            self._job = None

    # -- beginning

    def _begin(self, path: str, plain: str) -> bool:
        """Start a child on this file; False when somebody still writes to it."""
        source = os.open(plain, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if is_written(source):
                os.close(source)
                return False
            before = os.fstat(source)
            target = _create(path + PART, before)
        except OSError:
            os.close(source)
            raise
        try:
            pid, report = _spawn(source, target)
        except OSError:
            os.close(source)
            os.close(target)
            Path(path + PART).unlink()
            raise
        self._job = _Job(path, pid, report, source, target, before)
        return True

    # -- ending

    def _finish(self, job: _Job) -> None:
        """Put the result in the place of the plain file, whatever number that has by now."""
        part = job.path + PART
        made = generations.look(part)
        if made is None or generations.identity(made) != generations.identity(os.fstat(job.target)):
            return  # not ours any more: it will be done again
        said = job.said.decode(errors="replace").strip()
        if said != DONE:
            Path(part).unlink()
            self._failed(job.path, said.rpartition("\n")[2][:200] or "the compressing process was killed")
            return
        now = os.fstat(job.source)
        plain = _find(job.path, generations.identity(job.before))
        if plain is None or (now.st_size, now.st_mtime_ns) != (job.before.st_size, job.before.st_mtime_ns):
            Path(part).unlink()  # gone meanwhile, as the oldest; or written to by somebody
            return
        os.utime(part, ns=(job.before.st_atime_ns, job.before.st_mtime_ns), follow_symlinks=False)
        Path(part).rename(plain + GZ)
        Path(plain).unlink()
        self._told = ""

    def _end(self, job: _Job) -> None:
        self._job = None
        job.close()
        with suppress(ChildProcessError):  # somebody else reaped it
            os.waitpid(job.pid, os.WNOHANG)

    def _failed(self, path: str, why: str) -> None:
        self._not_before = time.monotonic() + RETRY
        if why != self._told:
            self._told = why
            _logger.warning("can't compress the rotated files of %s: %s", path, why)


def _listen(job: _Job) -> bool:
    """Take what the child says; True when it has ended."""
    with suppress(BlockingIOError):
        while not job.ended:
            said = os.read(job.report, _MAX_REPORT)
            job.said = (job.said + said)[-_MAX_REPORT:]
            job.ended = not said
    return job.ended


def is_written(descriptor: int) -> bool:
    """Whether any process has this file, which is open for reading here, open for writing.

    The kernel grants a read lease only if none has. Where it grants none at all (some network file systems, a
    file of somebody else's without CAP_LEASE), a file counts as closed after QUIET seconds without a write.
    """
    try:
        # The signal of a broken lease: one that does nothing, in place of one that ends the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return abs(time.time() - os.fstat(descriptor).st_mtime) < QUIET
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _create(path: str, like: os.stat_result) -> int:
    """A new file with the owner and mode of another; what lies there was left by an interrupted run."""
    with suppress(FileNotFoundError):
        Path(path).unlink()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with suppress(PermissionError):  # a group that isn't ours: then it has our own
        os.fchown(target, like.st_uid, like.st_gid)
    os.fchmod(target, stat.S_IMODE(like.st_mode) & 0o666)
    return target


def _spawn(source: int, target: int) -> tuple[int, int]:
    """Start the child; its process id and the descriptor on which it tells how it went."""
    report, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-B", _PROGRAM],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, source, 0),
                (os.POSIX_SPAWN_DUP2, target, 1),
                (os.POSIX_SPAWN_DUP2, writing, 2),
            ],
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGPIPE],
        )
    except OSError:
        os.close(report)
        raise
    finally:
        os.close(writing)
    os.set_blocking(report, False)
    return pid, report


def _find(path: str, wanted: Identity) -> str | None:
    """The plain generation that is this file."""
    for number in range(1, generations.length(path) + 1):
        plain = generations.name(path, number)
        found = generations.look(plain)
        if found is not None and generations.identity(found) == wanted:
            return plain
    return None
