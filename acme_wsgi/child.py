"""A worker process as its arbiter sees it, and the place that processes take in turn.

Law: reads boot reports, stack files and wait statuses, puts them into words, and sends signals. Knows no
sockets, forks nothing, waits for nothing. Imports no gevent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field

from acme_wsgi.errors import AcmeError, BootError, ConfigError, Problem
from acme_wsgi.generation import Generation
from acme_wsgi.limits import ResourceError
from acme_wsgi.scoreboard import Slot
from acme_wsgi.stacks import Stacks

_MAX_REPORT = 256 * 1024
_BACKOFF_FIRST, _BACKOFF_MOST = 0.1, 30.0
_YOUNG = 1.0  # a worker that dies sooner after it got ready was never well

log = logging.getLogger("acme.arbiter")


@dataclass(slots=True)
class Child:
    """A worker process as its arbiter sees it. Times are monotonic seconds, 0 for "not yet".

    :ivar slot: its part of the scoreboard
    :ivar generation: what it serves
    :ivar number: from 1, for people
    :ivar stacks: what it writes its stacks to; its own, closed by `bury`
    :ivar report: reading end of the boot pipe, -1 once it has been read
    :ivar said: what came through it
    :ivar since_ns: since when it has stood still, as far as we looked into that; 0 after it went on
    :ivar asked: when it was asked for its stacks, 0 once they were read
    :ivar told: this standstill is in the log: what it did
    :ivar killed: why we killed it
    :ivar quota: it is replaced after so many requests, 0 = never
    :ivar leave_by: it was told to stop, and must be gone at this time
    :ivar before: what the slot counted for the processes that had it earlier
    """

    pid: int
    slot: Slot
    number: int
    generation: Generation
    stacks: Stacks
    forked: float
    report: int
    said: bytes = b""
    ready: float = 0.0
    since_ns: int = 0
    asked: float = 0.0
    told: str | None = None
    killed: str = ""
    quota: int = 0
    leave_by: float = 0.0
    before: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.slot.snapshot()

    @property
    def name(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    @property
    def sign_ns(self) -> int:
        """Its last sign of life, in nanoseconds: a heartbeat, or its birth while it is still starting."""
        return self.slot.heartbeat if self.ready else int(self.forked * 1e9)

    @property
    def starting(self) -> bool:
        """Whether what was found out about it is from its start, which may be over by now."""
        return self.since_ns == int(self.forked * 1e9)

    def read_report(self) -> None:
        """Take what it has said of its start; notes when it is ready."""
        with suppress(BlockingIOError):
            while self.report >= 0:
                said = os.read(self.report, 65536)
                self.said += said
                # The line's end, not the pipe's: what an application forks while it loads has that too.
                if not said or b"\n" in said or len(self.said) > _MAX_REPORT:
                    self.close_report()
        if self.report < 0 and not self.ready and self.said.startswith(b'{"ready"'):
            self.ready = time.monotonic()
            log.info("%s ready after %.1f s", self.name, self.ready - self.forked)

    def close_report(self) -> None:
        """The boot pipe isn't needed any more."""
        if self.report >= 0:
            os.close(self.report)
            self.report = -1

    def bury(self) -> None:
        """It is dead and told: let go of what the arbiter held for it."""
        self.close_report()
        self.stacks.close()

    def tell(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)  # a child not reaped yet always has its id

    def kill(self, why: str) -> None:
        """End it at once; `why` goes into the log when it is dead."""
        self.killed = why
        os.kill(self.pid, signal.SIGKILL)


@dataclass(slots=True)
class Place:
    """A worker's place: it outlives the processes that take it in turn.

    :ivar index: from 0; the worker's number counts from 1
    :ivar child: who serves, or is the only one to start
    :ivar successor: who starts to replace it
    :ivar failures: quick deaths in a row; the pause before the next start grows with them
    :ivar start_at: not before this time (monotonic seconds)
    """

    index: int
    child: Child | None = None
    successor: Child | None = None
    failures: int = 0
    start_at: float = 0.0

    def postpone(self) -> float:
        """After another failure: choose when to try again; returns the pause in seconds."""
        self.failures += 1
        pause = backoff(self.failures)
        self.start_at = time.monotonic() + pause
        return pause

    def mourn(self, child: Child, status: int, in_hand: int) -> None:
        """Its worker died on its own: say so, and decide when the next one starts.

        :param status: the wait status
        :param in_hand: requests that it was working on
        """
        now = time.monotonic()
        if child.ready and now - child.ready >= _YOUNG:
            self.failures, pause = 0, 0.0
        else:
            pause = self.postpone()
        why = f" ({child.killed})" if child.killed else ""
        # Who ended by itself left none: what is in the file was asked for earlier.
        crashed = os.WIFSIGNALED(status) and not child.killed
        stacks = child.stacks.read().threads if crashed else ""
        if not child.ready:
            error = start_error(child, status, stacks)
            why, stacks = f" ({error})", getattr(error, "traceback", "")
        end = f"{child.name} {ended_how(status)} after {now - child.forked:.1f} s"
        then = f"a new one starts {f'in {pause:g} s' if pause else 'now'}"
        # Somebody else may have told it to stop, and it did as it should.
        level = logging.WARNING if child.ready and status == 0 else logging.ERROR
        log_with_stacks(level, f"{end}, with {in_hand} requests in its hands{why}; {then}", stacks)


def backoff(failures: int) -> float:
    """Seconds to wait before the next start after so many quick deaths in a row: doubling, bounded."""
    return min(_BACKOFF_FIRST * 2 ** min(failures - 1, 20), _BACKOFF_MOST) if failures else 0.0


def start_error(child: Child, status: int, stacks: str) -> AcmeError:
    """What a worker said of its failed start, or what can be told of one that said nothing.

    :param status: its wait status
    :param stacks: what it wrote if it crashed
    """
    try:
        said = json.loads(child.said)
        if "problems" in said:
            return ConfigError(Problem(*problem) for problem in said["problems"])
        if "limit" in said:
            return ResourceError(str(said["limit"]))
        return BootError(str(said["where"]), str(said["cause"]), str(said["traceback"]))
    except (ValueError, TypeError, KeyError, RecursionError):  # nothing, "ready", or not by us
        when = "as soon as it was ready" if child.ready else "while starting"
        why = f" ({child.killed})" if child.killed else ""
        return BootError(f"worker {child.number}", f"{ended_how(status)} {when}{why}", stacks)


def ended_how(status: int) -> str:
    """A wait status in words: ``exited with status 3``, ``was ended by SIGSEGV``."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def log_with_stacks(level: int, text: str, stacks: str) -> None:
    """Log a line with stacks as its traceback, in whatever form the log gives a traceback."""
    if log.isEnabledFor(level):
        log.handle(log.makeRecord(log.name, level, __file__, 0, text, (), None, sinfo=stacks or None))
