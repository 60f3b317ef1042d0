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
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from acme_wsgi.errors import AcmeError, BootError, ConfigError, Problem
from acme_wsgi.generation import Generation
from acme_wsgi.limits import ResourceError
from acme_wsgi.log import escape
from acme_wsgi.scoreboard import Slot
from acme_wsgi.stacks import Answer, Stacks, place

HEARTBEAT_MARGIN = 1.0
"""Seconds beyond `server.timeout` before a worker counts as hung: its loop beats at least twice a second."""

BOOT_REPORT = 5.0
"""Seconds (or `server.timeout`, if that is longer) after which a start that isn't over is reported."""

BOOT_LIMIT = 600.0
"""Seconds after which a worker that is still loading its application is given up."""

STACK_DELAY = 0.1
"""Seconds between asking a process for its stacks and reading them,"""

STACK_PATIENCE = 0.6
"""and so many until what is there then has to do: C code may keep Python code from answering."""

TICK = 0.5
"""Longest time between two looks at the workers, in seconds."""

_MAX_REPORT = 256 * 1024
_MAX_WHERE = 400  # characters of a route or a place in a log line
_RECORD_LINES = 180  # of stacks in one record: the log shortens what is longer
_CLOSE_LOOK = 0.1  # seconds between looks at a worker that stands still: its end shall be measured well
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
    :ivar since_ns: since when it has stood still, as far as we looked into that; 0 after it went on
    :ivar asked: when it was asked for its stacks, 0 once they were read
    :ivar told: this standstill is in the log: what it did
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
    since_ns: int = 0
    asked: float = 0.0
    told: str | None = None
    killed: str = ""
    quota: int = 0
    leave_by: float = 0.0
    unwanted: bool = False

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
        stacks = "" if child.killed else child.stacks.read().threads
        if not child.ready:
            error = start_error(child, status, stacks)
            why, stacks = f" ({error})", getattr(error, "traceback", "")
        end = f"{child.name} {ended_how(status)} after {now - child.forked:.1f} s"
        then = f"a new one starts {f'in {pause:g} s' if pause else 'now'}"
        log_with_stacks(logging.ERROR, f"{end}, with {in_hand} requests in its hands{why}; {then}", stacks)


class Watch:
    """Looks at heartbeats, reports workers that stand still, and kills those that do for too long."""

    def __init__(self) -> None:
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

    def due(self, children: Iterable[Child]) -> float:
        """Seconds until `look` may find something, at most TICK."""
        now = time.monotonic()
        times = [self._due(child, now) for child in children if not child.killed]
        return min(max(min([max(at, self._judge_from) - now for at in times], default=TICK), 0.01), TICK)

    def _due(self, child: Child, now: float) -> float:
        if child.asked:
            return child.asked + STACK_DELAY
        if child.told is not None:
            return now + _CLOSE_LOOK
        return child.sign_ns / 1e9 + self._limits(child)[0]

    def look(self, children: Iterable[Child]) -> None:
        """Judge every worker by its heartbeat, and a starting one by its age."""
        now = time.monotonic()
        if now < self._judge_from:
            return
        for child in children:
            if not child.killed:
                self._look_at(child, now)

    def _limits(self, child: Child) -> tuple[float, float]:
        """Seconds of standing still after which it is reported, and after which it is given up."""
        server = child.generation.config.server
        if child.ready:
            # With a short timeout there is not much time for a first report.
            return min(server.blocked_after, server.timeout / 2), server.timeout + HEARTBEAT_MARGIN
        return max(BOOT_REPORT, server.timeout), max(BOOT_LIMIT, server.timeout)

    def _look_at(self, child: Child, now: float) -> None:
        sign = child.sign_ns
        still = now - sign / 1e9
        early, limit = self._limits(child)
        if child.asked:
            answer = child.stacks.read()
            if answer.whole or now - child.asked >= STACK_PATIENCE:
                child.asked = 0.0
                stood = still if sign == child.since_ns else (sign - child.since_ns) / 1e9
                self._judge(child, _Finding(child, answer, stood, still >= limit))
        elif child.told is not None and sign != child.since_ns:
            _goes_on(child)
        elif still >= limit or (still >= early and child.told is None):
            child.stacks.ask(child.pid)
            child.asked, child.since_ns = now, sign

    def _judge(self, child: Child, found: _Finding) -> None:
        """The stacks have been asked for and are here, as far as the process could write them."""
        first = child.told is None
        child.told = found.what
        if first and not child.starting:
            child.slot.note_stall(child.since_ns, found.route, found.where)
        if child.sign_ns != child.since_ns:
            if first:
                log_with_stacks(logging.WARNING, found.line, found.stack)
            _goes_on(child)
        elif not found.final:
            log_with_stacks(logging.WARNING, found.line, found.stack)
        else:
            self._replace(child, found)

    def _replace(self, child: Child, found: _Finding) -> None:
        log_with_stacks(logging.ERROR, f"{found.line}; it is replaced", found.stack)
        for part in records(found.answer.others()):
            log_with_stacks(logging.ERROR, f"{child.name}: its other stacks", part)
        if not child.starting:
            child.slot.end_stall(int(found.still * 1e9))
        child.kill(f"{'was starting' if child.starting else 'stood still'} for {found.still:.1f} s")


class _Finding:
    """What an answer says, in words.

    :ivar still: seconds that it stood still
    :ivar final: and that is too long
    :ivar line: for the log
    :ivar what: what it did, as a part of a line; may be empty
    :ivar stack: of what runs
    """

    def __init__(self, child: Child, answer: Answer, still: float, final: bool) -> None:
        self.answer, self.still, self.final = answer, still, final
        doing = answer.doing
        self.route = escape.text((doing.route if doing is not None else None) or "", _MAX_WHERE)
        self.where = escape.text(place(answer.frames), _MAX_WHERE)
        self.what, begun = "", ""
        if doing is not None:
            self.what = " in " + escape.text(str(doing), _MAX_WHERE)
        elif not child.starting and answer.running is not None:
            self.what = " in no request"
        elif not child.starting and child.slot.current:
            # It may be another one that woke up since; nobody could tell us.
            begun = f"; the request begun last is {child.slot.current}"
        at = f", at {self.where}" if self.where else ""
        stood = "has been starting" if child.starting else "has stood still"
        self.line = f"{child.name} {stood} for {still:.1f} s{self.what}{at}{begun}"
        self.stack = answer.handler() or "(it did not answer: stopped, or stuck in the kernel)"


def _goes_on(child: Child) -> None:
    """The end of a standstill, or of a start, that the log has told of."""
    if not child.starting:  # of the end of its start there is a line already
        seconds = (child.sign_ns - child.since_ns) / 1e9
        log.warning("%s goes on, after it stood still for %.1f s%s", child.name, seconds, child.told)
        child.slot.end_stall(child.sign_ns - child.since_ns)
    # Should it crash later, these are not its last stacks.
    child.stacks.forget()
    child.told, child.since_ns = None, 0


def records(stacks: Iterable[str]) -> Iterator[str]:
    """Put stacks together to texts that the log takes whole."""
    lines: list[str] = []
    for stack in stacks:
        for more in _in_parts(stack.split("\n")):
            if lines and len(lines) + len(more) > _RECORD_LINES:
                yield "\n".join(lines)
                lines = []
            lines += more
    if lines:
        yield "\n".join(lines)


def _in_parts(lines: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(lines), _RECORD_LINES):
        yield lines[start : start + _RECORD_LINES]


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
