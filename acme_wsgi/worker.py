"""A worker: one process, one gevent hub, from the fork to its last request.

Law: the arbiter imports this file, so nothing of gevent (nor anything that needs it) is imported before `run`
has forked off into its own process, and gevent patches the standard library before anything else is imported
there. The worker knows its arbiter only as a process id, a pipe to report through, a file and signals.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from acme_wsgi import __version__, limits, privileges
from acme_wsgi.config import Config
from acme_wsgi.errors import EX_BOOT, BootError, ConfigError
from acme_wsgi.limits import ResourceError
from acme_wsgi.scoreboard import DRAINING, READY, STARTING, Scoreboard, Slot
from acme_wsgi.sockets import Listener
from acme_wsgi.stacks import Reporter, Running
from acme_wsgi.upstream.board import Board
from acme_wsgi.upstream.plan import Plans, Upstreams

GC_THRESHOLD = (10_000, 20, 50)
"""Collector thresholds while serving. A request makes few cycles; Python's 700 would look too often."""

STOP_MARGIN = 2.0
"""Seconds that a stopping worker gets beyond `shutdown_timeout` before the kernel or the arbiter ends it."""

_ORPHAN_CHECK = 1.0  # seconds between looks at whether the arbiter still lives
_LINGER = 1.0  # seconds that idle connections get to close by themselves once no request is open
_DRAIN_STEP = 0.02
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("acme.worker")


class Engine(Protocol):
    """What a worker needs of the thing that serves; `acme_wsgi.engine.Engine` is the one in use."""

    @property
    def open_requests(self) -> int: ...
    @property
    def connections(self) -> int: ...
    def running(self) -> list[Running]: ...
    def listen(self, sock: Any) -> None: ...
    def adopt(self, sock: Any) -> None: ...
    def start(self) -> None: ...
    def stop_accepting(self) -> None: ...
    def drain(self) -> None: ...
    def close_all(self) -> None: ...


@dataclass(slots=True)
class Assignment:
    """What the arbiter gives a worker into its life.

    :ivar index: the worker's place, from 0; people see it counted from 1
    :ivar workers: how many places there are
    :ivar slot: its part of the scoreboard
    :ivar generation: which configuration this is: 1, and one more with each reload
    :ivar account: whom it runs as, None for whom it is
    :ivar arbiter: the arbiter's process id
    :ivar report: descriptor of the pipe's end through which the worker says that it is ready or why not
    :ivar stacks: file that stacks are written to, shared with the arbiter
    :ivar backends: shared knowledge of all backends, in which the worker has the slot of the same number
    :ivar plans: the groups of backends that the configuration's proxy routes have
    :ivar sticky_key: what cookies that name a backend are sealed with; b"" if none is
    :ivar make_engine: builds the engine; None takes the real one
    """

    config: Config
    listeners: Sequence[Listener]
    board: Scoreboard
    slot: Slot
    index: int
    workers: int
    generation: int
    account: privileges.Account | None
    arbiter: int
    report: int
    stacks: IO[bytes]
    backends: Board
    plans: Plans
    sticky_key: bytes = field(repr=False)
    make_engine: Callable[..., Engine] | None = None


# -- boot ---------------------------------------------------------------------------------------------------


def run(task: Assignment) -> int:
    """Be a worker until told to stop.

    Called in the child right after the fork, with the signals at their defaults or ignored.

    :returns: the exit status: 0 after a stop that was asked for, else that of the error in the way
    """
    slot = _take_slot(task)
    _follow(task.arbiter)
    server = task.config.server
    orders = _Orders(limit=server.shutdown_timeout + STOP_MARGIN)
    orders.obey_during_boot()
    reporter = Reporter(task.stacks, slot, server.timeout)
    reporter.install()
    try:
        limits.set_stack(server.worker_stack_size)
        access_log = _open_logs(task)
        built = _claim_assets(task)
        if task.account is not None:
            privileges.drop(task.account)
            _follow(task.arbiter)  # the kernel has forgotten it with the old identity
        _patch(io_share(server.io_threads, task.workers, task.index))
        engine, service = _build(task, slot, access_log, reporter, built)
        _probe(engine, server.probe, server.timeout)
    except Exception as error:  # noqa: BLE001 - whatever keeps us from serving is the arbiter's to tell
        return _report_failure(task.report, error)
    _tune_gc()
    orders.obey()
    slot.beat()
    slot.state = READY
    engine.start()
    if service is not None:
        service.start()
    _report(task.report, ready=True)
    _serve(task, engine, service, slot, orders)
    _finish(access_log)
    return 0


def _take_slot(task: Assignment) -> Slot:
    slot = task.slot
    slot.reset_gauges()
    slot.number, slot.generation = task.index + 1, task.generation
    slot.pid = os.getpid()
    slot.state = STARTING
    name_process(f"acme: worker {task.index + 1}")
    return slot


def name_process(name: str) -> None:
    """Give the process a name of its own in `ps -o comm` and `top` (15 bytes are shown)."""
    Path("/proc/self/comm").write_text(name[:15])


def _follow(arbiter: int) -> None:
    """Have the kernel send SIGTERM should the arbiter die; leave at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != arbiter:
        os._exit(0)


def io_share(total: int, workers: int, index: int) -> int:
    """This worker's share of the I/O threads: at least one; the remainder goes to the first workers."""
    base, left = divmod(total, workers)
    return max(1, base + (index < left))


def _patch(io_threads: int) -> None:
    """Make the standard library cooperative, before anything else that could use it is loaded."""
    import gevent
    from gevent import monkey

    gevent.config.resolver = "thread"  # the system's own resolver and its settings, in the I/O threads
    monkey.patch_all()
    gevent.get_hub().threadpool.maxsize = io_threads


def _open_logs(task: Assignment) -> Any:
    """Open the logs while we are who may; returns the access log, None if there is none."""
    from acme_wsgi import log as logs

    logs.setup(task.config.logging, process=f"worker {task.index + 1}")
    return logs.AccessLog(task.config.logging) if task.config.logging.access.enabled else None


def _claim_assets(task: Assignment) -> Any:
    """Make the directory of built assets while we are who may; None if nothing is built."""
    from acme_wsgi.assets import home, plan

    static = task.config.static
    return home.claim(task.config.server.runtime_dir, task.account) if plan.wanted(static) else None


def _build(
    task: Assignment, slot: Slot, access_log: Any, reporter: Reporter, built: Any
) -> tuple[Engine, Any]:
    """Load the applications and build the engine around them, listening but not yet started.

    :returns: the engine, and the connections to backends, None if there are none
    """
    from acme_wsgi import pipeline
    from acme_wsgi.handlers.wsgi import FileWrapper

    make_engine = task.make_engine or _engine_class()
    compiled = pipeline.compile(task.config, built=built, upstreams=_upstreams(task))
    base_environ = {
        "SERVER_SOFTWARE": f"acme/{__version__}",
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input_terminated": True,  # a read past the body's end is empty, it never waits
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,  # greenlets: another request may run the same object while this one waits
        "wsgi.multiprocess": task.workers > 1,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
    }
    engine = make_engine(task.config, compiled.dispatch, access_log, slot, task.board, base_environ)
    reporter.know(engine, compiled.route_of)
    for listener in task.listeners:
        engine.listen(listener.sock)
    if compiled.assets is not None:
        from acme_wsgi.assets.keeper import Keeper

        Keeper(compiled.assets).start()
    return engine, compiled.service


def _upstreams(task: Assignment) -> Upstreams:
    """What the routes to backends need to know of the process they run in."""
    return Upstreams(
        board=task.backends,
        plans=task.plans,
        pool=task.config.server.connection_pool,
        slot=task.slot.index,
        sticky_key=task.sticky_key,
        generation=task.generation,
        pid=os.getpid(),
    )


def _probe(engine: Engine, what: str, timeout: float) -> None:
    """Have the engine answer a request of our own before it gets anybody else's; raises BootError."""
    from acme_wsgi.probe import probe

    probe(engine, what, timeout)


def _engine_class() -> Callable[..., Engine]:
    from acme_wsgi import engine

    return engine.Engine


def _tune_gc() -> None:
    """What the boot left behind lives forever: take it out of the collector's sight."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


def _report_failure(pipe: int, error: Exception) -> int:
    """Tell the arbiter why this worker can't start; returns the exit status to leave with."""
    match error:
        case ConfigError():
            _report(pipe, problems=[dataclasses.astuple(problem) for problem in error.problems])
        case BootError():
            _report(pipe, where=error.where, cause=error.cause, traceback=error.traceback)
        case ResourceError() | privileges.PrivilegeError():
            _report(pipe, limit=str(error))
        case _:
            cause = "".join(traceback.format_exception_only(error)).strip()
            _report(pipe, where="starting a worker", cause=cause, traceback=traceback.format_exc())
            return EX_BOOT
    return error.exit_status


def _report(pipe: int, **facts: Any) -> None:
    """Tell the arbiter how the boot went, as one line of JSON, and close the pipe."""
    text = json.dumps(facts).encode() + b"\n"
    try:
        while text:
            text = text[os.write(pipe, text) :]
    except BrokenPipeError:
        log.error("the arbiter did not wait for the end of the boot")
    finally:
        os.close(pipe)


# -- life and end -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Orders:
    """What signals ask of this worker. Handlers only note it down; the main greenlet wakes and acts on it.

    :ivar limit: seconds a graceful stop may take in all, however stuck the process is
    """

    limit: float
    stop: bool = False
    quick: bool = False
    reopen: bool = False
    _wake: Any = field(default=None)
    _watcher: Any = field(default=None)
    _pipe: tuple[int, int] = (-1, -1)

    def obey_during_boot(self) -> None:
        """Nothing is served yet: every stop is immediate, whatever the application's import is doing."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda *_: os._exit(0))
        signal.signal(signal.SIGUSR1, self._note)  # the logs may be open already, with the old files

    def obey(self) -> None:
        """From here on signals are noted down and wake the hub through a pipe, so that none is seen late."""
        import gevent
        from gevent.event import Event

        self._wake = Event()
        if self.reopen:
            self._wake.set()
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watcher = gevent.get_hub().loop.io(self._pipe[0], 1)
        self._watcher.start(self._woken)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, self._note)
            signal.siginterrupt(number, False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    def wait(self, seconds: float) -> None:
        """Let the hub run until a signal came or the time is over; logs are reopened here, in a drain too."""
        self._wake.wait(seconds)
        self._wake.clear()
        if self.reopen:
            from acme_wsgi import log as logs

            self.reopen = False
            logs.reopen_all()

    def _woken(self) -> None:
        # A byte a signal; Python ran their handlers, and so set the flags, before it entered this function.
        os.read(self._pipe[0], 512)
        self._wake.set()

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            self.reopen = True
        else:
            self.stop = True
            self.quick = self.quick or number != signal.SIGTERM
            # Should the process be stuck in a handler, the kernel ends it.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, STOP_MARGIN if self.quick else self.limit)


def _serve(task: Assignment, engine: Engine, service: Any, slot: Slot, orders: _Orders) -> None:
    """Serve until told to stop or orphaned, then let go of everything in the order that loses the least."""
    pid = os.getpid()
    while not orders.stop:
        orders.wait(_ORPHAN_CHECK)
        if os.getpid() != pid:
            continue  # a process that the application forked runs its copy of our loop: it is no worker
        if os.getppid() != task.arbiter and not orders.stop:
            log.error("the arbiter (pid %d) is gone: stopping", task.arbiter)
            os.kill(os.getpid(), signal.SIGTERM)
    if os.getpid() != pid:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    slot.state = DRAINING
    if service is not None:
        service.stop()
    if orders.quick:
        engine.stop_accepting()
    else:
        engine.drain()  # before the listeners close: who waits in their queues is still taken in
    for listener in task.listeners:
        listener.close()
    if not orders.quick:
        _drain(engine, orders, task.config.server.shutdown_timeout)
    engine.close_all()


def _drain(engine: Engine, orders: _Orders, seconds: float) -> None:
    """Let open requests finish. Idle connections get a moment to close, but never hold the stop up."""
    deadline = time.monotonic() + seconds
    while engine.open_requests and not orders.quick:
        if time.monotonic() >= deadline:
            log.warning(
                "%d requests still open after shutdown_timeout (%g s): cut off", engine.open_requests, seconds
            )
            return
        orders.wait(_DRAIN_STEP)
    deadline = min(deadline, time.monotonic() + _LINGER)
    while engine.connections and not orders.quick and time.monotonic() < deadline:
        orders.wait(_DRAIN_STEP)


def _finish(access_log: Any) -> None:
    """What the application registered with atexit runs, and the last lines reach the logs."""
    if access_log is not None:
        access_log.flush()
        access_log.close()
    atexit._run_exitfuncs()
