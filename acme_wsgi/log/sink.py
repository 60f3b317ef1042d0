"""Where log lines go: one bounded queue and one real thread for each output of the process.

Law: knows bytes and descriptors, nothing of formats or levels, and never logs. The thread is an operating
system thread also where gevent has patched everything, so a blocked pipe or a slow disk stops this thread and
nobody else; it runs nothing that gevent could have replaced. It is started by the first line written in a
process, so a fork needs no care: the child starts its own.

A queue holds at most :data:`QUEUE_LIMIT` bytes. What doesn't fit is dropped and counted, and so is what the
output refuses (a full disk, a closed pipe); :meth:`Sink.losses` is how the owner of the sink hears of it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import sys
import time
import weakref
from _thread import LockType
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

QUEUE_LIMIT = 8 << 20
"""Bytes that may wait for one output of one process."""

CLOSE_TIMEOUT = 1.0
"""Seconds that closing waits for an output that doesn't take its lines."""

REPORT_INTERVAL = 10.0
"""Seconds between two reports of losses; the first comes at once."""

FILE_MODE = 0o640
"""Permissions of a log file that is created."""

_GATHER = 64 << 10  # small lines are written together up to this many bytes
_STANDARD = {"stdout": 1, "stderr": 2}
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}


def _native(module: str, name: str) -> Any:
    """A function of the standard library as it was before gevent patched it, whether or not it has."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(__import__(module), name)


class _Descriptor:
    """An order to the writer in the queue: from here on, write to this descriptor."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd


class _Stop:
    """The last order in a queue."""


_STOP = _Stop()


class Sink:
    """One output. Get it from :func:`open_sink`; several logs of a process share it.

    :ivar output: "stdout", "stderr" or an absolute path
    :ivar dropped: lines that found the queue full
    :ivar failed: lines that the output refused
    :ivar error: why it refused the latest of them, "" if it never did
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self._fd = _STANDARD[output] if output in _STANDARD else _open(output)
        self._users = 0
        self._closed = False
        self._fresh()

    def _fresh(self) -> None:
        """The state of a process that has not written yet."""
        self._allocate: Callable[[], LockType] = _native("_thread", "allocate_lock")
        # Reentrant: a signal handler or a finaliser may log while this thread is inside.
        self._lock: Any = _native("_thread", "RLock")()
        # A binary semaphore: free means that something was put since the writer last looked.
        self._wake = self._allocate()
        self._wake.acquire()
        self._queue: deque[bytes | _Descriptor | LockType | _Stop] = deque()
        self._queued = 0
        self._running = False
        self._torn = False
        self.dropped = 0
        self.failed = 0
        self.error = ""
        self._reported = 0
        self._report_after = 0.0

    def _forked(self) -> None:
        """In the child: the parent's thread writes what the parent queued; its locks may be held for ever."""
        for order in self._queue:
            if isinstance(order, _Descriptor):
                self._switch(order)
        self._fresh()

    # -- what the owners do

    def put(self, data: bytes, lines: int) -> bool:
        """Queue whole lines; False (and counted) when there is no room. Never blocks, never raises."""
        with self._lock:
            if self._closed or self._queued + len(data) > QUEUE_LIMIT:
                self.dropped += lines
                return False
            self._queue.append(data)
            self._queued += len(data)
        self._rouse()
        return True

    def reopen(self) -> None:
        """Open the path anew, after whoever renamed the file; lines already queued still go to the old one.

        :raises OSError: it can't be opened; the old one stays in use
        """
        if self.output in _STANDARD or self._closed:
            return
        self._queue.append(_Descriptor(_open(self.output)))
        self._rouse()

    def drain(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Wait until what was put so far is written or refused; False when ``timeout`` seconds don't do."""
        if not self._running and not self._queue:
            return True
        done = self._allocate()
        done.acquire()
        self._queue.append(done)
        self._rouse()
        return bool(done.acquire(True, timeout))

    def losses(self) -> str | None:
        """What was lost since the last report, in one sentence, or None; at most every REPORT_INTERVAL."""
        lost = self.dropped + self.failed
        if lost == self._reported:
            return None
        now = time.monotonic()
        if now < self._report_after:
            return None
        cause = self.error if self.failed else "the output is slower than what is written to it"
        sentence = f"{lost - self._reported} lines for {self.output} were lost: {cause}"
        self._reported = lost
        self._report_after = now + REPORT_INTERVAL
        return sentence

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Give up one use of the sink; the last one writes what is queued, within ``timeout`` seconds.

        :returns: whether everything was written
        """
        with self._lock:
            self._users -= 1
            if self._users > 0 or self._closed:
                return True
            self._closed = True
        _sinks.pop(self.output, None)
        if not self._running:
            self._leave(self._fd)
            return True
        drained = self.drain(timeout)
        self._queue.append(_STOP)
        self._rouse()
        return drained

    # -- the writer

    def _rouse(self) -> None:
        if not self._running:
            self._start()
        try:
            self._wake.release()
        except RuntimeError:
            return  # roused already, and it hasn't looked yet

    def _start(self) -> None:
        with self._lock:
            if self._running:
                return
            self._running = True
            poll = _native("select", "poll")
            # The thread inherits the mask: a signal must interrupt the wait of the thread that handles it.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SYNCHRONOUS)
            try:
                _native("_thread", "start_new_thread")(self._run, (poll,))
            except RuntimeError as error:  # no more threads: the lines wait, and the next one tries again
                self._running = False
                self.error = str(error)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _run(self, poll: Callable[[], select.poll]) -> None:
        queue = self._queue
        while True:
            self._wake.acquire()
            while queue:
                order = queue.popleft()
                if isinstance(order, bytes):
                    self._write(self._gather(order), poll)
                elif isinstance(order, _Descriptor):
                    self._switch(order)
                elif isinstance(order, _Stop):
                    self._leave(self._fd)
                    return
                else:
                    order.release()

    def _gather(self, first: bytes) -> bytes:
        """``first`` and the small lines queued right behind it."""
        queue = self._queue
        parts, size = [first], len(first)
        # Only this thread takes from the queue, so what stands at its head stays there.
        while size < _GATHER and queue and isinstance(queue[0], bytes):
            part = queue.popleft()
            assert isinstance(part, bytes)
            parts.append(part)
            size += len(part)
        return b"".join(parts) if len(parts) > 1 else first

    def _write(self, data: bytes, poll: Callable[[], select.poll]) -> None:
        size = len(data)
        if self._torn:  # the rest of the last line was refused: don't glue this one to its stump
            self._torn = self._write_some(b"\n", poll) == 0
        done = 0 if self._torn else self._write_some(data, poll)
        if done < size:
            self.failed += data.count(b"\n", done)
        if done > 0:
            self._torn = data[done - 1] != 0x0A
        with self._lock:
            self._queued -= size

    def _write_some(self, data: bytes, poll: Callable[[], select.poll]) -> int:
        """Write until it is done or the output refuses; the number of bytes written."""
        done = 0
        try:
            for piece in _pieces(self._fd, data):
                end = done + len(piece)
                while done < end:
                    try:
                        done += os.write(self._fd, piece[len(piece) - (end - done) :])
                    except BlockingIOError:
                        waiter = poll()
                        waiter.register(self._fd, select.POLLOUT)
                        waiter.poll(1000)
        except OSError as error:
            self.error = error.strerror or str(error)
        return done

    def _switch(self, order: _Descriptor) -> None:
        old, new = os.fstat(self._fd), os.fstat(order.fd)
        if stat.S_ISREG(old.st_mode) and not os.path.samestat(old, new):
            # A server in the background has its standard output in the log as well: it goes along.
            for standard in _STANDARD.values():
                if _leads_to(standard, old):
                    os.dup2(order.fd, standard)
        # dup2 changes the file under an unchanged number: at no moment would a fork copy a closed descriptor.
        os.dup2(order.fd, self._fd, inheritable=False)
        os.close(order.fd)
        self._torn = False

    def _leave(self, fd: int) -> None:
        if fd > 2:
            os.close(fd)


def _leads_to(descriptor: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file)
    except OSError:  # closed
        return False


def _open(path: str) -> int:
    """Open a log file for appending. Without O_NONBLOCK a FIFO that nobody reads would block the caller."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    if os.geteuid() != 0:
        return os.open(path, flags, FILE_MODE)
    # Root must not write wherever the owner of the directory, who may be the workers' account, points to.
    try:
        return os.open(path, flags | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    owner = os.lstat(path).st_uid
    if owner != 0:
        reason = (
            f"a symbolic link of user {owner}, through which root does not write; chown -h root makes it good"
        )
        raise OSError(errno.ELOOP, reason, path)
    return os.open(path, flags, FILE_MODE)  # /dev/stdout, or where the administrator wants it


def _pieces(fd: int, data: bytes) -> Iterator[memoryview]:
    """``data`` in the writes that keep whole the lines of several processes writing to the same output.

    A write to a file that is open for appending is one piece whatever its length; one to a pipe only up to
    PIPE_BUF bytes, so there the cuts are made at line ends.
    """
    view = memoryview(data)
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        is_pipe = False  # the write will say what is wrong with the descriptor
    if not is_pipe:
        yield view
        return
    start = 0
    while start < len(data):
        end = start + select.PIPE_BUF
        if end < len(data):
            end = data.rfind(b"\n", start, end) + 1 or data.find(b"\n", end) + 1 or len(data)
        yield view[start:end]
        start = end


_sinks: dict[str, Sink] = {}
_all_sinks: weakref.WeakSet[Sink] = weakref.WeakSet()


def open_sink(output: str) -> Sink:
    """The sink of an output, shared by all logs of the process; each use of it ends in close().

    :param output: "stdout", "stderr" or an absolute path, created (FILE_MODE) if it isn't there
    :raises OSError: the path can't be opened
    """
    sink = _sinks.get(output)
    if sink is None:
        sink = _sinks[output] = Sink(output)
        _all_sinks.add(sink)
    sink._users += 1
    return sink


def open_sinks() -> list[Sink]:
    """All sinks in use in this process."""
    return list(_sinks.values())


def _after_fork() -> None:
    for sink in list(_all_sinks):
        sink._forked()


os.register_at_fork(after_in_child=_after_fork)
