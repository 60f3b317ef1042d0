"""The arbiter: the parent process. It binds, forks, watches and replaces workers, and never serves.

Law: imports no gevent and nothing that does, so that every worker starts from a clean interpreter. Signals
are written into a pipe and worked off in the loop; nothing happens inside a handler. It reads what workers
say on the scoreboard and through their boot pipes, and speaks to them in signals only.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from acme_wsgi import __version__, cpus, limits, sockets, worker
from acme_wsgi import log as logs
from acme_wsgi.config import Config
from acme_wsgi.errors import AcmeError
from acme_wsgi.scoreboard import Scoreboard
from acme_wsgi.watch import STACK_DELAY, Child, Place, Watch, ended_how, log_with_stacks, start_error

TICK = 0.5
"""Longest time between two looks at the workers, in seconds."""

_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD,
)  # fmt: skip
# Handled by doing nothing, not ignored: a program that an application starts shall find them as usual.
_WITHOUT_EFFECT = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2)

log = logging.getLogger("acme.arbiter")


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
    _places: list[Place] = field(default_factory=list)
    _listeners: list[sockets.Listener] = field(default_factory=list)
    _board: Scoreboard | None = None
    _pipe: tuple[int, int] = (-1, -1)
    _announced: bool = False
    _stop_by: float = 0.0  # 0 while running; after it, workers that still live are killed
    _quick: bool = False
    _failed: AcmeError | None = None

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
            if self.config.logging.output != "stderr":  # whoever raised it goes on to tell it there
                trace = getattr(self._failed, "traceback", "")
                log_with_stacks(logging.CRITICAL, f"cannot start: {self._failed}", trace)
            raise self._failed
        log.info("stopped")
        return 0

    def _prepare(self, workers: int, files: int) -> None:
        self._board = Scoreboard(workers)
        for index in range(workers):
            memory = os.memfd_create(f"acme-stacks-{index + 1}", os.MFD_CLOEXEC)
            self._places.append(Place(index, self._board.slot(index), os.fdopen(memory, "w+b", buffering=0)))
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
        watch = Watch(self.config.server.timeout)
        while True:
            self._start_missing()
            self._wait()
            watch.new_round()
            self._work_off_signals()
            for place in self._places:
                if place.child is not None:
                    place.child.read_report()
            self._reap()
            if self._stop_by:
                if not any(place.child for place in self._places):
                    return
                self._hurry_up()
            else:
                watch.look(self._places)
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
                wait = STACK_DELAY
        poll.poll(wait * 1000)

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
                child.kill("it did not stop in time")

    # -- starting and ending of workers ----------

    def _start_missing(self) -> None:
        if self._stop_by:
            return
        now = time.monotonic()
        for place in self._places:
            if place.child is None and now >= place.start_at:
                self._start(place)

    def _start(self, place: Place) -> None:
        place.forget_stacks()
        try:
            place.child = self._fork(place)
        except OSError as error:  # no process or descriptor to be had: it may pass
            pause = place.postpone()
            log.error("worker %d cannot be started: %s; trying again in %g s", place.index + 1, error, pause)

    def _fork(self, place: Place) -> Child:
        """Start a worker; raises OSError when the kernel refuses."""
        assert self._board is not None
        arbiter = os.getpid()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        # Until the child has let go of the arbiter's signal pipe, a signal to it would look like one to us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                task = worker.Assignment(
                    config=self.config,
                    listeners=self._listeners,
                    board=self._board,
                    slot=place.slot,
                    index=place.index,
                    workers=len(self._places),
                    generation=1,
                    arbiter=arbiter,
                    report=writing,
                    stacks=place.stacks,
                    make_engine=self.make_engine,
                )
                self._become_worker(task, reading, before)
        except OSError:
            os.close(reading)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(writing)
        os.set_blocking(reading, False)
        return Child(pid, place.slot, place.index + 1, time.monotonic(), reading)

    def _become_worker(self, task: worker.Assignment, reading: int, mask: Any) -> NoReturn:
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

    def _bury(self, place: Place, child: Child, status: int) -> None:
        child.read_report()
        child.close_report()
        in_hand = place.slot.snapshot()["in_flight"]
        place.child = None
        place.slot.reset_gauges()
        if not self._stop_by:
            if child.ready or self._announced:
                place.mourn(child, status, in_hand)
            else:
                self._give_up(start_error(child, status, place.read_stacks()))
        elif not self._failed and (in_hand or status):
            log.warning("%s %s with %d requests in its hands", child.name, ended_how(status), in_hand)

    def _give_up(self, error: AcmeError) -> None:
        """The server has never been up: a worker that can't start now won't start the next time either."""
        self._failed = error
        self._quick = True
        self._stop_by = time.monotonic() + worker.STOP_MARGIN
        self._tell_all(signal.SIGQUIT)

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


def _nothing(_number: int, _frame: object) -> None:
    """A signal handler that leaves all to the loop."""
