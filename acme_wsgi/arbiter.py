"""The arbiter: the parent process. It binds, forks, watches and replaces workers, and never serves.

Law: imports no gevent and nothing that does, so that every worker starts from a clean interpreter. Signals
are written into a pipe and worked off in the loop; nothing happens inside a handler. It reads what workers
say on the scoreboard and through their boot pipes, and speaks to them in signals only.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from acme_wsgi import __version__, cpus, limits, sockets, worker
from acme_wsgi import log as logs
from acme_wsgi.config import Config
from acme_wsgi.errors import AcmeError, BootError, ConfigError, Problem
from acme_wsgi.limits import ResourceError
from acme_wsgi.scoreboard import Scoreboard, Slot

TICK = 0.5
"""Longest time between two looks at the workers, in seconds."""

HEARTBEAT_MARGIN = 1.0
"""Seconds beyond `server.timeout` before a worker counts as hung: its loop beats at least twice a second."""

BLOCKED_AFTER = 5.0
"""A loop that has stood still this long (or half of `server.timeout`) is reported while it still does."""

BOOT_LIMIT = 600.0
"""Seconds after which a worker that is still loading its application is given up."""

_STACK_DELAY = 0.3  # between asking a process for its stacks and reading them
_MAX_STACK = 32 * 1024
_MAX_REPORT = 256 * 1024
_BACKOFF_FIRST, _BACKOFF_MOST = 0.1, 30.0
_YOUNG = 1.0  # a worker that dies sooner after it got ready was never well
_GAP = 2.0  # the arbiter itself was stopped if a round took this long,
_AFTER_GAP = 5.0  # and for so long no heartbeat is judged

_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD,
)  # fmt: skip
# Handled by doing nothing, not ignored: a program that an application starts shall find them as usual.
_WITHOUT_EFFECT = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2)

log = logging.getLogger("acme.arbiter")


@dataclass(slots=True)
class _Child:
    """A worker process as its arbiter sees it. Times are monotonic seconds, 0 for "not yet"."""

    pid: int
    slot: Slot
    number: int
    forked: float
    report: int  # reading end of the boot pipe, -1 once it has been read
    said: bytes = b""
    ready: float = 0.0
    reported: bool = False  # this standstill is in the log already
    asked: float = 0.0  # when it was asked for its stacks
    killed: str = ""  # why we killed it

    @property
    def name(self) -> str:
        return f"worker {self.number} (pid {self.pid})"


@dataclass(slots=True)
class _Place:
    """A worker's place: it outlives the processes that take it in turn.

    :ivar failures: quick deaths in a row; the pause before the next start grows with them
    """

    index: int
    slot: Slot
    stacks: IO[bytes]
    child: _Child | None = None
    failures: int = 0
    start_at: float = 0.0


@dataclass(slots=True)
class Arbiter:
    """The server as a tree of processes.

    :ivar config: what to serve and how
    :ivar environ: the process environment; LISTEN_* is taken out of it
    :ivar make_engine: given to the workers, for tests; None means the real engine
    """

    config: Config
    environ: Any = field(default_factory=lambda: os.environ)
    make_engine: Callable[..., worker.Engine] | None = None
    _places: list[_Place] = field(default_factory=list)
    _listeners: list[sockets.Listener] = field(default_factory=list)
    _board: Scoreboard | None = None
    _pipe: tuple[int, int] = (-1, -1)
    _announced: bool = False
    _stop_by: float = 0.0  # 0 while running; after it, workers that still live are killed
    _quick: bool = False
    _failed: AcmeError | None = None
    _last_round: float = 0.0
    _judge_from: float = 0.0

    # -- the life of the server ----------

    def run(self) -> int:
        """Serve until told to stop.

        :returns: the exit status, 0
        :raises ListenError: an address can't be listened on
        :raises BootError, ConfigError: the first workers could not start; nothing runs any more
        :raises ResourceError: the kernel does not grant a limit that the configuration asks for
        """
        limits.make_room_for_stack(self.config.server.worker_stack_size)
        files = limits.raise_descriptor_limit()
        logs.setup(self.config.logging, process="arbiter")
        worker.name_process("acme: arbiter")
        server = self.config.server
        self._listeners = sockets.listeners(
            server.host,
            server.port,
            backlog=server.backlog,
            fastopen=server.tcp_fastopen,
            environ=self.environ,
        )
        try:
            self._prepare(server.workers or cpus.available(), files)
            self._loop()
        finally:
            self._take_down()
        if self._failed is not None:
            raise self._failed
        log.info("stopped")
        return 0

    def _prepare(self, workers: int, files: int) -> None:
        self._board = Scoreboard(workers)
        for index in range(workers):
            memory = os.memfd_create(f"acme-stacks-{index + 1}", os.MFD_CLOEXEC)
            self._places.append(_Place(index, self._board.slot(index), os.fdopen(memory, "w+b", buffering=0)))
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (*_SIGNALS, *_WITHOUT_EFFECT):
            signal.signal(number, _nothing)  # the number itself goes through the pipe
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._warn(workers, files)
        # Objects that live forever out of the collector's sight: its marks would unshare their pages.
        gc.collect()
        gc.freeze()

    def _warn(self, workers: int, files: int) -> None:
        for problem in self.config.warnings:
            log.warning("%s", problem)
        wanted = self.config.server.max_connections // workers
        if wanted > files - 64:
            log.warning(
                "server.max_connections is %d a worker, but a process may open only %d files here;"
                " raise that limit (LimitNOFILE=)",
                wanted,
                files,
            )

    def _loop(self) -> None:
        self._last_round = time.monotonic()
        while True:
            self._start_missing()
            self._wait()
            self._note_gap()
            self._work_off_signals()
            self._read_reports()
            self._reap()
            if self._stop_by:
                if not any(place.child for place in self._places):
                    return
                self._hurry_up()
            else:
                self._watch_all()
                self._announce()

    def _wait(self) -> None:
        """Sleep until a signal or a report comes, a start is due, or the tick is over."""
        poll = select.poll()
        poll.register(self._pipe[0], select.POLLIN)
        wait = TICK
        for place in self._places:
            if place.child is None:
                wait = min(wait, max(place.start_at - time.monotonic(), 0)) if not self._stop_by else wait
            elif place.child.report >= 0:
                poll.register(place.child.report, select.POLLIN)
            if place.child is not None and place.child.asked:
                wait = _STACK_DELAY
        poll.poll(wait * 1000)

    def _note_gap(self) -> None:
        """After the machine or this process was stopped, old heartbeats prove nothing."""
        now = time.monotonic()
        if now - self._last_round > _GAP:
            self._judge_from = now + _AFTER_GAP
            log.info("the arbiter was stopped for %.1f s", now - self._last_round)
        self._last_round = now

    def _announce(self) -> None:
        """Say once that all workers serve."""
        if self._announced or not all(place.child and place.child.ready for place in self._places):
            return
        self._announced = True
        where = ", ".join(listener.name for listener in self._listeners)
        log.info("acme %s ready: %d workers on %s", __version__, len(self._places), where)
        sockets.notify(self.environ, f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving on {where}")

    # -- signals ----------

    def _work_off_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._pipe[0], 4096):
                match number:
                    case signal.SIGTERM:
                        self._begin_stop(quick=False)
                    case signal.SIGINT | signal.SIGQUIT:
                        self._begin_stop(quick=True)
                    case signal.SIGUSR1:
                        logs.reopen_all()
                        self._tell_all(signal.SIGUSR1)
                        log.info("logs reopened")
                    case signal.SIGHUP:
                        log.warning("SIGHUP: reload is not available yet; nothing was changed")

    def _tell_all(self, number: int) -> None:
        for place in self._places:
            if place.child is not None:
                os.kill(place.child.pid, number)  # a child not reaped yet always has its id

    def _begin_stop(self, *, quick: bool) -> None:
        if self._stop_by and (self._quick or not quick):
            return
        patience = 0.0 if quick else self.config.server.shutdown_timeout
        self._quick = quick
        self._stop_by = time.monotonic() + patience + 2 * worker.STOP_MARGIN
        log.info("stopping %s", "at once" if quick else f"gracefully, for up to {patience:g} s")
        sockets.notify(self.environ, "STOPPING=1")
        self._tell_all(signal.SIGQUIT if quick else signal.SIGTERM)
        # New clients are turned away as soon as the workers let go of the sockets as well.
        for listener in self._listeners:
            listener.unlink()
            listener.close()

    def _hurry_up(self) -> None:
        """Kill what still lives past the end of the stop."""
        if time.monotonic() < self._stop_by:
            return
        for place in self._places:
            child = place.child
            if child is not None and not child.killed:
                self._kill(child, "it did not stop in time")

    # -- starting and ending of workers ----------

    def _start_missing(self) -> None:
        if self._stop_by:
            return
        now = time.monotonic()
        for place in self._places:
            if place.child is None and now >= place.start_at:
                self._start(place)

    def _start(self, place: _Place) -> None:
        assert self._board is not None
        _empty(place.stacks)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        arbiter = os.getpid()
        # Until the child has let go of the arbiter's signal pipe, a signal to it would look like one to us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            task = worker.Assignment(
                config=self.config,
                listeners=self._listeners,
                board=self._board,
                index=place.index,
                arbiter=arbiter,
                report=writing,
                stacks=place.stacks,
                make_engine=self.make_engine,
            )
            self._become_worker(task, reading, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
        os.set_blocking(reading, False)
        place.child = _Child(pid, place.slot, place.index + 1, time.monotonic(), reading)

    def _become_worker(self, task: worker.Assignment, reading: int, mask: Any) -> None:
        """In the child: shed everything of the arbiter's, work, and never return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                if number != signal.SIGHUP:  # the arbiter's alone; a terminal sends it to us as well
                    signal.signal(number, signal.SIG_DFL)
            signal.signal(worker.STACK_SIGNAL, signal.SIG_IGN)  # until it has somewhere to write to
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            others = [place.child.report for place in self._places if place.child and place.child.report >= 0]
            for descriptor in (*self._pipe, reading, *others):
                os.close(descriptor)
            status = worker.run(task)
        except BaseException:  # the process ends here whatever it was; the log must have it
            log.critical("worker %d failed", task.index + 1, exc_info=True)
        finally:
            logs.close()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for place in self._places:
                # Others can be here too: as process 1 of a container we inherit every orphan.
                if place.child is not None and place.child.pid == pid:
                    self._bury(place, place.child, status)

    def _bury(self, place: _Place, child: _Child, status: int) -> None:
        self._read_report(child)
        if child.report >= 0:
            os.close(child.report)
        now = time.monotonic()
        in_hand = place.slot.snapshot()["in_flight"]
        place.child = None
        place.slot.reset_gauges()
        if self._stop_by:
            if not self._failed and (in_hand or status):
                log.warning("%s %s with %d requests in its hands", child.name, ended_how(status), in_hand)
            return
        if not child.ready and not self._announced:
            self._give_up(child, status, _text(place.stacks))
            return
        self._mourn(place, child, status, in_hand, now)

    def _mourn(self, place: _Place, child: _Child, status: int, in_hand: int, now: float) -> None:
        """A worker died on its own: say so, and decide when the next one starts."""
        young = not child.ready or now - child.ready < _YOUNG
        place.failures = place.failures + 1 if young else 0
        pause = backoff(place.failures)
        place.start_at = now + pause
        why = f" ({child.killed})" if child.killed else ""
        detail = "" if child.killed else _text(place.stacks)  # what it wrote when it crashed
        if not child.ready:
            error = _boot_error(child, status, detail)
            why, detail = f" ({error})", getattr(error, "traceback", "")
        lived, then = now - child.forked, f"in {pause:g} s" if pause else "now"
        _log_with_stacks(
            logging.ERROR,
            f"{child.name} {ended_how(status)} after {lived:.1f} s, with {in_hand} requests in its hands"
            f"{why}; a new one starts {then}",
            detail,
        )

    def _give_up(self, child: _Child, status: int, stacks: str) -> None:
        """The server has never been up: a worker that can't start now won't start the next time either."""
        self._failed = self._failed or _boot_error(child, status, stacks)
        self._quick = True
        self._stop_by = time.monotonic() + worker.STOP_MARGIN
        self._tell_all(signal.SIGQUIT)

    # -- watching ----------

    def _read_reports(self) -> None:
        for place in self._places:
            if place.child is not None:
                self._read_report(place.child)

    def _read_report(self, child: _Child) -> None:
        with suppress(BlockingIOError):
            while child.report >= 0:
                said = os.read(child.report, 65536)
                child.said += said
                if not said or len(child.said) > _MAX_REPORT:
                    os.close(child.report)
                    child.report = -1
        if child.report < 0 and not child.ready and child.said.startswith(b'{"ready"'):
            child.ready = time.monotonic()
            log.info("%s ready after %.1f s", child.name, child.ready - child.forked)

    def _watch_all(self) -> None:
        now = time.monotonic()
        if now < self._judge_from:
            return
        for place in self._places:
            if place.child is not None and not place.child.killed:
                self._watch(place, place.child, now)

    def _watch(self, place: _Place, child: _Child, now: float) -> None:
        """Report a worker that stands still, and replace it when it has for too long."""
        timeout = self.config.server.timeout
        still = now - (place.slot.heartbeat / 1e9 if child.ready else child.forked)
        limit = timeout + HEARTBEAT_MARGIN if child.ready else max(BOOT_LIMIT, timeout)
        early = min(BLOCKED_AFTER, timeout / 2) if child.ready else max(timeout, BLOCKED_AFTER)
        if child.asked:
            if now - child.asked >= _STACK_DELAY:
                child.asked = 0.0
                self._judge(place, child, still, limit)
        elif still >= limit or (still >= early and not child.reported):
            _empty(place.stacks)
            os.kill(child.pid, worker.STACK_SIGNAL)
            child.asked = now
        elif still < early:
            child.reported = False

    def _judge(self, place: _Place, child: _Child, still: float, limit: float) -> None:
        """The stacks have been asked for and are here, as far as the process could write them."""
        doing = "has stood still" if child.ready else "has been starting"
        stacks = _text(place.stacks) or "(it did not answer: stopped, or stuck in the kernel)"
        if still < limit:
            child.reported = True
            _log_with_stacks(logging.WARNING, f"{child.name} {doing} for {still:.1f} s; it is here:", stacks)
            return
        text = f"{child.name} {doing} for {still:.1f} s and is replaced; it hung here:"
        _log_with_stacks(logging.ERROR, text, stacks)
        self._kill(child, f"{doing.removeprefix('has ')} for {still:.1f} s")

    def _kill(self, child: _Child, why: str) -> None:
        child.killed = why
        os.kill(child.pid, signal.SIGKILL)

    def _take_down(self) -> None:
        """Whatever happened, leave no process, no socket file and no handler behind."""
        for place in self._places:
            if place.child is not None:
                os.kill(place.child.pid, signal.SIGKILL)
                os.waitpid(place.child.pid, 0)
                place.child = None
            place.stacks.close()
        for listener in self._listeners:
            listener.unlink()
            listener.close()
        if self._pipe[0] >= 0:
            signal.set_wakeup_fd(-1)
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = (-1, -1)


def backoff(failures: int) -> float:
    """Seconds to wait before the next start after so many quick deaths in a row: doubling, bounded."""
    return min(_BACKOFF_FIRST * 2 ** min(failures - 1, 20), _BACKOFF_MOST) if failures else 0.0


def _boot_error(child: _Child, status: int, stacks: str) -> AcmeError:
    """What a worker said of its failed start, or what can be told of one that said nothing."""
    try:
        said = json.loads(child.said)
    except ValueError:
        why = f" ({child.killed})" if child.killed else ""
        return BootError(f"worker {child.number}", f"{ended_how(status)} while starting{why}", stacks)
    if "problems" in said:
        return ConfigError(Problem(*problem) for problem in said["problems"])
    if "limit" in said:
        return ResourceError(said["limit"])
    return BootError(said["where"], said["cause"], said["traceback"])


def _nothing(_number: int, _frame: object) -> None:
    """A signal handler that leaves all to the loop."""


def ended_how(status: int) -> str:
    """A wait status in words: ``exited with status 3``, ``was ended by SIGSEGV``."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _log_with_stacks(level: int, text: str, stacks: str) -> None:
    """Log a line with stacks as its traceback, in whatever form the log gives a traceback."""
    if log.isEnabledFor(level):
        log.handle(log.makeRecord(log.name, level, __file__, 0, text, (), None, sinfo=stacks or None))


# -- the file that stacks are written to ----------


def _empty(stacks: IO[bytes]) -> None:
    # Worker and arbiter share one file position: the worker's next word starts where this leaves it.
    stacks.seek(0)
    stacks.truncate()


def _text(stacks: IO[bytes]) -> str:
    return os.pread(stacks.fileno(), _MAX_STACK, 0).decode(errors="replace").rstrip()
