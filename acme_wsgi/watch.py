"""What the arbiter concludes from heartbeats: who stands still, and where, and for how long that is borne.

Law: looks at scoreboard slots and stack files; all it does to a process is ask for its stacks and kill it.
Knows no sockets, forks nothing, waits for nothing. Imports no gevent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator

from acme_wsgi.child import Child, log_with_stacks
from acme_wsgi.log import escape
from acme_wsgi.stacks import Answer, place

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

_MAX_WHERE = 400  # characters of a route or a place in a log line
_RECORD_LINES = 180  # of stacks in one record: the log shortens what is longer
_CLOSE_LOOK = 0.1  # seconds between looks at a worker that stands still: its end shall be measured well
_GAP = 2.0  # the arbiter itself was stopped if a round took this long,
_AFTER_GAP = 5.0  # and for so long no heartbeat is judged

log = logging.getLogger("acme.arbiter")


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
        elif not child.starting and child.slot.in_flight and child.slot.current:
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
