"""What the arbiter knows of its workers, and what it concludes: how a start went, who stands still, who died.

Law: looks at scoreboard slots, boot reports and stack files; all it does to a process is ask for its stacks
and kill it. Knows no sockets, forks nothing, waits for nothing. Imports no gevent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from acme_wsgi.errors import AcmeError, BootError, ConfigError, Problem
from acme_wsgi.generation import Generation
from acme_wsgi.limits import ResourceError
from acme_wsgi.scoreboard import Slot
from acme_wsgi.stacks import Stacks

HEARTBEAT_MARGIN = 1.0
"""Seconds beyond `server.timeout` before a worker counts as hung: its loop beats at least twice a second."""

BLOCKED_AFTER = 5.0
"""A loop that has stood still this long (or half of `server.timeout`) is reported while it still does."""

BOOT_LIMIT = 600.0
"""Seconds after which a worker that is still loading its application is given up."""

STACK_DELAY = 0.3
"""Seconds between asking a process for its stacks and reading them."""

_MAX_REPORT = 256 * 1024
_BACKOFF_FIRST, _BACKOFF_MOST = 0.1, 30.0
_YOUNG = 1.0  # a worker that dies sooner after it got ready was never well
_GAP = 2.0  # the arbiter itself was stopped if a round took this long,
_AFTER_GAP = 5.0  # and for so long no heartbeat is judged

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
    :ivar reported: this standstill is in the log already
    :ivar asked: when it was asked for its stacks
    :ivar stood: how long it had stood still then
    :ivar killed: why we killed it
    :ivar quota: it is replaced after so many requests, 0 = never
    :ivar leave_by: it was told to stop, and must be gone at this time
    :ivar unwanted: it was killed because nobody needs it any more
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
    reported: bool = False
    asked: float = 0.0
    stood: float = 0.0
    killed: str = ""
    quota: int = 0
    leave_by: float = 0.0
    unwanted: bool = False

    @property
    def name(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    def read_report(self) -> None:
        """Take what it has said of its start; notes when it is ready."""
        with suppress(BlockingIOError):
            while self.report >= 0:
                said = os.read(self.report, 65536)
                self.said += said
                if not said or len(self.said) > _MAX_REPORT:
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
        stacks = "" if child.killed else child.stacks.read()
        if not child.ready:
            error = start_error(child, status, stacks)
            why, stacks = f" ({error})", getattr(error, "traceback", "")
        end = f"{child.name} {ended_how(status)} after {now - child.forked:.1f} s"
        then = f"a new one starts {f'in {pause:g} s' if pause else 'now'}"
        log_with_stacks(logging.ERROR, f"{end}, with {in_hand} requests in its hands{why}; {then}", stacks)


class Watch:
    """Looks at heartbeats, reports workers that stand still, and kills those that do for too long.

    :param timeout: server.timeout in seconds
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._last_round = time.monotonic()
        self._judge_from = 0.0

    def new_round(self) -> None:
        """Once a round of the arbiter's loop: notice if the arbiter itself, or the machine, was stopped."""
        now = time.monotonic()
        if now - self._last_round > _GAP:
            # Old heartbeats prove nothing now; whoever lives has beaten again in a moment.
            self._judge_from = now + _AFTER_GAP
            log.info("the arbiter was stopped for %.1f s", now - self._last_round)
        self._last_round = now

    def look(self, children: Iterable[Child]) -> None:
        """Judge every worker by its heartbeat, and a starting one by its age."""
        now = time.monotonic()
        if now < self._judge_from:
            return
        for child in children:
            if not child.killed:
                self._look_at(child, now)

    def _look_at(self, child: Child, now: float) -> None:
        if child.ready:
            still = now - child.slot.heartbeat / 1e9
            early, limit = min(BLOCKED_AFTER, self._timeout / 2), self._timeout + HEARTBEAT_MARGIN
        else:
            still = now - child.forked
            early, limit = max(BLOCKED_AFTER, self._timeout), max(BOOT_LIMIT, self._timeout)
        if child.asked:
            if now - child.asked >= STACK_DELAY:
                child.asked = 0.0
                self._judge(child, still, limit)
        elif still >= limit or (still >= early and not child.reported):
            child.stacks.ask(child.pid)
            child.asked, child.stood = now, still
        elif still < early:
            child.reported = False

    def _judge(self, child: Child, still: float, limit: float) -> None:
        """The stacks have been asked for and are here, as far as the process could write them."""
        doing = f"{'has stood still' if child.ready else 'has been starting'} for {child.stood:.1f} s"
        stacks = child.stacks.read() or "(it did not answer: stopped, or stuck in the kernel)"
        child.reported = True
        if still < child.stood:
            log_with_stacks(logging.WARNING, f"{child.name} {doing} and goes on now; it was here:", stacks)
        elif still < limit:
            log_with_stacks(logging.WARNING, f"{child.name} {doing}; it is here:", stacks)
        else:
            log_with_stacks(logging.ERROR, f"{child.name} {doing} and is replaced; it hung here:", stacks)
            child.kill(doing.removeprefix("has "))


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
    except ValueError:
        why = f" ({child.killed})" if child.killed else ""
        return BootError(f"worker {child.number}", f"{ended_how(status)} while starting{why}", stacks)
    if "problems" in said:
        return ConfigError(Problem(*problem) for problem in said["problems"])
    if "limit" in said:
        return ResourceError(said["limit"])
    return BootError(said["where"], said["cause"], said["traceback"])


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
