"""The arbiter: the parent process. It binds, follows orders, watches and replaces workers, and never serves.

Law: imports no gevent and nothing that does, so that every worker starts from a clean interpreter. One
thread, one loop: signals are written into a pipe and worked off in it, orders come through the control
socket and are worked off in it too; nothing happens inside a handler, and nothing in the loop waits but its
one poll. The workers are crew.py's, what their heartbeats mean is watch.py's.
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
from typing import Any

from acme_wsgi import __version__, cpus, handover, limits, pidfile, privileges, sockets, upgrade, worker
from acme_wsgi import log as logs
from acme_wsgi.backends import Backends
from acme_wsgi.child import log_with_stacks
from acme_wsgi.config import Config
from acme_wsgi.control import Control, ControlError, Order, default_directory
from acme_wsgi.crew import FEWEST_SLOTS, SLOTS_PER_WORKER, Crew
from acme_wsgi.errors import AcmeError
from acme_wsgi.generation import Generation
from acme_wsgi.history import History
from acme_wsgi.reload import Reload
from acme_wsgi.scoreboard import Scoreboard
from acme_wsgi.stacks import STACK_SIGNAL
from acme_wsgi.status import describe
from acme_wsgi.systemd import Manager
from acme_wsgi.upstream.board import Board
from acme_wsgi.watch import BOOT_LIMIT, BOOT_REPORT, Watch

SECOND = 1.0
"""How often the history is written, logs are rotated, and the service manager hears that we live."""

_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCHLD,
)  # fmt: skip
# Passed on to the program that has followed us, as long as we stay.
_FOR_THE_SERVER = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Handled by doing nothing, not ignored: a program that an application starts shall find them as usual.
_WITHOUT_EFFECT = (signal.SIGTTIN, signal.SIGTTOU)

log = logging.getLogger("acme.arbiter")


@dataclass(slots=True)
class Arbiter:
    """The server as a tree of processes.

    :ivar config: what to serve and how; a reload makes it another one
    :ivar reread: reads the configuration again, for a reload; None means that there is nothing to read
    :ivar sources: the files and directories it comes from, for people
    :ivar environ: the process environment; LISTEN_* is taken out of it
    :ivar make_engine: given to the workers, for tests; None means the real engine
    """

    config: Config
    reread: Callable[[], Config] | None = None
    sources: tuple[str, ...] = ()
    environ: Any = field(default_factory=lambda: os.environ)
    make_engine: Callable[..., worker.Engine] | None = None
    started: float = field(default_factory=time.time)
    listeners: list[sockets.Listener] = field(default_factory=list)
    history: History = field(init=False)
    backends: Backends = field(init=False)
    crew: Crew = field(init=False)
    reload: Reload = field(init=False)
    manager: Manager = field(init=False)
    home: str = ""  # the directory that the server was started in
    directory: str = ""  # the runtime_dir in use, "" if there is none
    announced: bool = False
    stopping: bool = False
    program: upgrade.Program | None = None  # the one that shall follow us, or has
    _account: privileges.Account | None = None
    _handover: handover.Handover | None = None
    _given_up: list[sockets.Listener] = field(default_factory=list)  # the predecessor may need them again
    _given_up_at: float = 0.0  # until then
    _control: Control | None = None
    _watch: Watch = field(init=False)
    _pipe: tuple[int, int] = (-1, -1)
    _quick: bool = False
    _second: float = 0.0  # when the next second's work is due

    # -- the life of the server ----------

    def run(self) -> int:
        """Serve until told to stop.

        :returns: the exit status, 0
        :raises ListenError: an address can't be listened on
        :raises BootError, ConfigError: the first workers could not start; nothing runs any more
        :raises ResourceError: the kernel does not grant a limit that the configuration asks for
        """
        server = self.config.server
        limits.make_room_for_stack(server.worker_stack_size)
        files = limits.raise_descriptor_limit()
        self.home = upgrade.logical_directory(self.environ)
        self._handover = handover.take(self.environ)
        self.manager = Manager(self.environ)
        self._account = privileges.account(server.user, server.group, self.config.origins)
        logs.prepare(self.config.logging, owner=self._owner())
        logs.setup(self.config.logging, process="arbiter")
        worker.name_process(pidfile.ARBITER)
        try:
            self._listen()
            self._prepare(files)
            self._loop()
            if self.crew.failed is not None:
                self._tell_failure(self.crew.failed)
                raise self.crew.failed
        except AcmeError as error:
            if self._handover is not None:
                self._handover.refuse(str(error))
            raise
        finally:
            self._take_down()
        log.info("stopped")
        return 0

    def _listen(self) -> None:
        server = self.config.server
        options: dict[str, Any] = {"backlog": server.backlog, "fastopen": server.tcp_fastopen}
        if self._handover is None:
            self.listeners = sockets.listeners(server.host, server.port, environ=self.environ, **options)
            pidfile.claim(server.pid_file)
        else:
            self.listeners, removed = sockets.rebind(
                self._handover.listeners, server.host, server.port, **options
            )
            for listener in removed:  # the predecessor serves them to their end
                listener.close()

    def _prepare(self, files: int) -> None:
        workers = self.config.server.workers or cpus.available()
        board = Scoreboard(max(FEWEST_SLOTS, SLOTS_PER_WORKER * workers), used=0)
        self.history = History(board)
        self.directory = self._runtime_directory()
        if self._handover is None:
            self._open_control(None)  # this also makes the directory
        self.backends = Backends(Board(board.size), self.directory)
        prepared = self.backends.prepare(self.config)
        first = Generation(1, self.config, tuple(self.listeners), workers, *prepared)
        self.crew = Crew(
            board,
            self.backends.board,
            first,
            self._account,
            self._shed,
            pss=self.history.pss,
            stranger=self._met_stranger,
            make_engine=self.make_engine,
        )
        self.reload = Reload(self)
        self._watch = Watch()
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (*_SIGNALS, *_WITHOUT_EFFECT):
            signal.signal(number, _nothing)  # the number itself goes through the pipe
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self.warn(workers, files)
        # Objects that live forever out of the collector's sight: its marks would unshare their pages.
        gc.collect()
        gc.freeze()

    def warn(self, workers: int, files: int | None = None) -> None:
        """Log what the configuration asks for and doesn't get."""
        for problem in self.config.warnings:
            log.warning("%s", problem)
        wanted = self.config.server.max_connections // workers
        if files is not None and wanted > files - 64:
            log.warning(
                "server.max_connections is %d a worker, but a process may open only %d files here;"
                " raise that limit (LimitNOFILE=)",
                wanted,
                files,
            )

    def _runtime_directory(self) -> str:
        """Where the control socket goes; "" is nowhere: what others put into /tmp stops nobody."""
        try:
            return self.config.server.runtime_dir or default_directory(self.environ)
        except ControlError as error:
            log.warning("%s", error)
            return ""

    def _open_control(self, predecessor: int | None) -> None:
        """Let orders in; of a `predecessor` (process id) the socket's place is taken."""
        if not self.directory:
            return
        try:
            self._control = Control.open(self.directory, self._obey, predecessor=predecessor)
        except ControlError as error:
            log.warning("%s", error)

    def _loop(self) -> None:
        while True:
            self.crew.step()
            self.backends.look(self.crew.generations)
            if self.stopping or self.crew.failed is not None:
                if not any(self.crew) and not self._followed:
                    return
            elif self._followed:
                if not any(self.crew) and self._has_proven():
                    return
            else:
                self._watch.look(self.crew)
                self._announce()
                self.reload.advance()
                self._follow_program()
            ready = self._wait()
            self._watch.new_round()
            self._work_off_signals()
            if self._control is not None:
                self._control.handle(ready)
                self._control.expire(time.monotonic())
            if time.monotonic() >= self._second:
                self._each_second()

    def _wait(self) -> list[tuple[int, int]]:
        """Sleep until a signal, an order or a report comes, a start is due, or the tick is over."""
        poll = select.poll()
        poll.register(self._pipe[0], select.POLLIN)
        now = time.monotonic()
        due = min(self._watch.due(self.crew), self.backends.draining.due())
        wait = min(due, max(self.crew.next_start() - now, 0))
        for child in self.crew:
            if child.report >= 0:
                poll.register(child.report, select.POLLIN)
        if self.program is not None and self.program.pipe >= 0:
            poll.register(self.program.pipe, select.POLLIN)
        if self._control is not None:
            for descriptor, events in self._control.descriptors():
                poll.register(descriptor, events)
        return poll.poll(wait * 1000 + 1)

    def _each_second(self) -> None:
        now = time.monotonic()
        self._second = now + SECOND
        self.history.sample(now, {child.slot.index: child.pid for child in self.crew})
        if logs.rotate(self.config.logging, owner=self._owner()):
            self.crew.tell_all(signal.SIGUSR1)
        if self._given_up and now >= self._given_up_at:
            self._forget_given_up()
        if self.crew.serving or self._followed:
            self.manager.watchdog(now)

    def _forget_given_up(self) -> None:
        """Remove the UNIX sockets that the predecessor listened on and we don't."""
        for listener in self._given_up:
            listener.unlink()
        self._given_up.clear()

    def _announce(self) -> None:
        """Say once that all workers serve."""
        if self.announced or not self.crew.settled:
            return
        self.announced = True
        where = self.where()
        count = len(self.crew.places)
        workers = "1 worker" if count == 1 else f"{count} workers"
        log.info("acme %s ready: %s on %s", __version__, workers, where)
        if self._handover is not None:
            pidfile.write(self.config.server.pid_file)
            self._open_control(self._handover.predecessor)
        # Until this program has proven itself, the service manager looks after its predecessor.
        self.manager.ready(f"serving on {where}", main=self._handover is None)
        if self._handover is not None:
            self._handover.serve()
            self._given_up = [each for each in self._handover.listeners if each not in self.listeners]
            self._given_up_at = time.monotonic() + upgrade.PROOF
            self._handover = None

    def where(self) -> str:
        """The addresses, for people."""
        return ", ".join(listener.name for listener in self.listeners)

    def _owner(self) -> tuple[int, int] | None:
        """Whose the log files must be for the workers to open them, None for "ours"."""
        return None if self._account is None else (self._account.uid, self._account.gid)

    # -- signals and orders ----------

    def _work_off_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._pipe[0], 4096):
                if self._followed and number in _FOR_THE_SERVER:
                    self._pass_on(number)
                    continue
                match number:
                    case signal.SIGTERM:
                        self._begin_stop(quick=False)
                    case signal.SIGINT | signal.SIGQUIT:
                        self._begin_stop(quick=True)
                    case signal.SIGUSR1:
                        self._reopen()
                    case signal.SIGUSR2:
                        self._begin_upgrade(None)
                    case signal.SIGHUP:
                        self.reload.ask(None)

    def _obey(self, order: Order) -> None:
        """Work off an order from the control socket, or take it on."""
        match order.verb:
            case "status":
                order.reply(**describe(self))
            case "stats":
                order.reply(**self._stats(order.arguments))
            case "reload":
                self.reload.ask(order)
            case "restart":
                self._begin_upgrade(order)
            case "stop":
                self._begin_stop(quick=order.arguments.get("quick") is True)
                order.reply(patience=self.config.server.shutdown_timeout)
            case "drain":
                self.backends.draining.obey(order, self.crew.generation.plans)
            case "reopen":
                self._reopen()
                order.reply()
            case _:
                order.fail(f"this server knows no {order.verb!r}")

    def _stats(self, arguments: dict[str, Any]) -> dict[str, Any]:
        seconds = arguments.get("seconds", 10)
        return self.history.stats(
            seconds if isinstance(seconds, int) else 10, history=arguments.get("history") is True
        )

    def _reopen(self) -> None:
        logs.prepare(self.config.logging, owner=self._owner())
        logs.reopen_all()
        self.crew.tell_all(signal.SIGUSR1)
        log.info("logs reopened")

    def _begin_stop(self, *, quick: bool) -> None:
        if self.stopping and (self._quick or not quick):
            return
        self._follow_program()  # from its word on, the sockets are not ours to remove
        self.stopping, self._quick = True, quick
        patience = self.config.server.shutdown_timeout
        log.info("stopping %s", "at once" if quick else f"gracefully, for up to {patience:g} s")
        self.reload.cancel("the server stops")
        if self._followed:
            self._pass_on(signal.SIGQUIT if quick else signal.SIGTERM)
        else:
            self.manager.stopping()
            if self.program is not None:
                self.program.abandon("the server stops")
        # New clients are turned away as soon as the workers let go of the sockets as well.
        for listener in self.listeners:
            listener.unlink()
            listener.close()
        self.crew.stop(quick=quick)

    def _tell_failure(self, error: AcmeError) -> None:
        section = self.config.logging
        if (section.error.output or section.output) != "stderr":  # whoever raised it goes on to tell it there
            trace = getattr(error, "traceback", "")
            log_with_stacks(logging.CRITICAL, f"cannot start: {error}", trace)

    # -- the next program on the same sockets ----------

    def _begin_upgrade(self, order: Order | None) -> None:
        why_not = ""
        if self.stopping or not self.announced:
            why_not = "the server is starting or stopping"
        elif self.program is not None:
            why_not = self._hurry_program(self.program)
        elif self.reload.busy:
            why_not = "a reload is going on (another reload ends one that hangs)"
        if why_not:
            log.warning("no upgrade: %s", why_not)
            if order is not None:
                order.fail(why_not)
            return
        self.backends.draining.before_another_program()
        try:
            self.program = upgrade.spawn(
                self.listeners, {**self.environ, **self.manager.environ()}, self.home, order
            )
        except OSError as error:
            log.error("the next program can't be started: %s", error)
            if order is not None:
                order.fail(f"the next program can't be started: {error.strerror}")

    def _hurry_program(self, program: upgrade.Program) -> str:
        """Another upgrade is asked for while one is under way, which is ended if it hangs; what to answer."""
        if program.ready or not program.hangs(max(BOOT_REPORT, self.config.server.timeout)):
            return f"pid {program.pid} is already following"
        program.abandon("it did not get ready, and another upgrade was asked for")
        return f"pid {program.pid} did not get ready and is ended now; ask again"

    def _follow_program(self) -> None:
        """Hear whether the next program serves; then the workers of this one finish."""
        if self.program is None or self.program.ready:
            return
        self.program.listen()
        if not self.program.ready and self.program.hangs(BOOT_LIMIT):
            self.program.abandon(f"it did not get ready within {BOOT_LIMIT:g} s")
        if self.program.ready:
            if self.reload.busy:
                self._pass_on(signal.SIGHUP)  # it may have read the configuration before that was asked for
                self.reload.cancel("another program serves now, and is told to reload")
            handover.surrender(self.listeners)
            if self._control is not None:
                self._control.close()
                self._control = None
            self.crew.stop(quick=False)

    @property
    def _followed(self) -> bool:
        """Does the next program serve, and this one only stay to see that it lives?"""
        return self.program is not None and self.program.ready

    def _has_proven(self) -> bool:
        """Is the next program left alone from now on?"""
        assert self.program is not None
        if self.program.proven:
            log.info("pid %d goes on as the server", self.program.pid)
            self.manager.main_pid(self.program.pid)
        return self.program.proven

    def _pass_on(self, number: int) -> None:
        """A signal that is meant for the server: whoever knows its process id may still have ours."""
        assert self.program is not None
        os.kill(self.program.pid, number)  # not reaped yet, so it has its id

    def _met_stranger(self, pid: int, status: int) -> None:
        """A process ended that is no worker."""
        if self.program is None or pid != self.program.pid:
            return
        program, self.program = self.program, None
        program.ended(status)
        if program.ready and status != 0 and not self.stopping:
            log.error("pid %d, which was to go on as the server, is dead: this one takes over again", pid)
            for listener in self.listeners:
                listener.owner = os.getpid()
            self.crew.resume()
            self.announced = False
            try:
                pidfile.write(self.config.server.pid_file)
            except limits.ResourceError as error:
                log.error("%s", error)
            self._open_control(pid)
        elif program.ready and not self.stopping:
            self._begin_stop(quick=False)  # it served, and was stopped: so are we

    # -- ends ----------

    def _shed(self) -> None:
        """In a worker, right after the fork: let go of what is the arbiter's alone."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            if number != signal.SIGHUP:  # the arbiter's alone; a terminal sends it to us as well
                signal.signal(number, signal.SIG_DFL)
        # A rotation at this moment is no reason to die: no log is open yet.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(STACK_SIGNAL, signal.SIG_IGN)  # until it has somewhere to write to
        for descriptor in self._pipe:
            os.close(descriptor)
        if self._control is not None:
            self._control.abandon()
        if self.program is not None:
            self.program.close()
        if self._handover is not None:
            self._handover.close()

    def _take_down(self) -> None:
        """Whatever happened, leave no process, no file and no handler behind."""
        if hasattr(self, "crew"):
            self.crew.take_down()
        self._forget_given_up()
        for listener in self.listeners:
            listener.unlink()
            listener.close()
        if self._control is not None:
            self._control.close()
        pidfile.remove(self.config.server.pid_file)
        if self._pipe[0] >= 0:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                if number != signal.SIGCHLD:  # too late for it to mean anything, and no reason to die of it
                    signal.signal(number, signal.SIG_IGN)
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = (-1, -1)


def _nothing(_number: int, _frame: object) -> None:
    """A signal handler that leaves all to the loop."""
