"""Active health checks: one worker asks the backends how they are, and tells all workers by the board.

    every worker, each quarter of a second     asks the board whether it is the one that checks
    that one                                   begins the checks that are due, at most sixteen at once
    a check                                    asks, within its timeout, and notes what came of it

A backend whose checks begin to say something else than before is asked more often, so that it is known soon.

Law: knows when to check and whom, not how: `probe` is the proxy's. What the results mean (thresholds, states)
is the board's business. A check that says nothing about the backend (we had no descriptor left, our own loop
stood still) is not noted: trouble of ours must not take all backends out.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import gevent
from gevent.event import Event

from acme_wsgi.errors import AcmeError
from acme_wsgi.units import format_duration

TICK = 0.25
"""Seconds between two questions to the board who checks: so soon a new one begins, and an old one stops."""

MAX_AT_ONCE = 16
"""Checks that run at the same time; others wait for their turn."""

QUICKEST, SLOWEST = 0.1, 1.0
"""Seconds: bounds of the interval while a backend's state is changing."""

JITTER = 0.05
"""Part of the interval by which the first check of a backend is put off at random, at most."""

LATE = 0.5
"""Seconds: a timeout that comes so much too late is our own loop's fault, and says nothing."""

MAX_TEXT = 200
"""Characters of a result that are noted."""

_SHORTEST = 0.01  # seconds that the loop sleeps at least
_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))

log = logging.getLogger("acme.upstream")


class Check(Protocol):
    """How a backend is checked: the configuration's `health_check`; times in seconds."""

    @property
    def enabled(self) -> bool: ...
    @property
    def interval(self) -> float: ...
    @property
    def timeout(self) -> float: ...


class Plan(Protocol):
    """A backend as the configuration has it."""

    @property
    def key(self) -> bytes: ...
    @property
    def shown(self) -> str: ...
    @property
    def check(self) -> Check: ...


class Peer(Protocol):
    """A backend on the board; `down`: taken out by checks."""

    @property
    def down(self) -> bool: ...
    def snapshot(self) -> Mapping[str, Any]: ...
    def note_check(self, ok: bool, text: str) -> str | None: ...


class Board(Protocol):
    """What all workers know of the backends."""

    def elect(self, pid: int, generation: int) -> bool: ...
    def resign(self, pid: int) -> None: ...
    def peer(self, key: bytes) -> Peer: ...


P = TypeVar("P", bound=Plan)


class _Subject(Generic[P]):
    """A backend under checks, as this worker sees it.

    :ivar due: when the next check may begin (monotonic seconds)
    :ivar down: whether it is taken out by checks
    :ivar down_since: since when (monotonic seconds), None if that isn't known
    :ivar last: whether the last check was good, None before the first one
    :ivar running: the check under way
    """

    __slots__ = ("down", "down_since", "due", "last", "plan", "running")

    def __init__(self, plan: P) -> None:
        self.plan = plan
        self.due = 0.0
        self.down = False
        self.down_since: float | None = None
        self.last: bool | None = None
        self.running: Any = None

    @property
    def changing(self) -> bool:
        """Whether the last check said something else than the state."""
        return self.last is not None and self.last == self.down


class Checker(Generic[P]):
    """The checks of one worker. `run` is a greenlet's whole life; `stop` ends it."""

    def __init__(
        self,
        board: Board,
        peers: Iterable[P],
        probe: Callable[[P, float], tuple[bool, str]],
        pid: int,
        generation: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Check nothing yet.

        :param peers: those whose checks are disabled are left out; of those with one key the first counts
        :param probe: called in a greenlet with a backend and its timeout in seconds; returns whether it is
            well, and a few words for people; OSError and AcmeError mean that it isn't
        :param pid: this worker's
        :param generation: of the configuration: the board prefers the highest
        :param clock: the monotonic one that the board uses
        :param jitter: a number from 0 to 1
        """
        chosen = {plan.key: plan for plan in reversed(list(peers)) if plan.check.enabled}
        self._subjects = [_Subject(plan) for plan in reversed(chosen.values())]
        self._board = board
        self._probe = probe
        self._pid = pid
        self._generation = generation
        self._clock = clock
        self._jitter = jitter
        self._elected = False
        self._stopped = False
        self._running = 0
        self._wake = Event()

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Check, whenever this worker is the one that does, until `stop`; with nobody to check, return."""
        try:
            while self._subjects and not self._stopped:
                pause = self._step()
                self._wake.clear()
                self._wake.wait(pause)
        finally:
            self._leave()

    def stop(self) -> None:
        """End `run` and the checks under way, and let another worker take over; doesn't wait."""
        self._stopped = True
        self._wake.set()
        self._leave()

    def forget(self) -> None:
        """In a forked child: the checks are the parent's, and so is the say on the board."""
        self._stopped = True
        self._elected = False
        for subject in self._subjects:
            subject.running = None

    def _step(self) -> float:
        """Do what is due; returns the seconds until something else may be."""
        elected = self._board.elect(self._pid, self._generation)
        now = self._clock()
        if elected and not self._elected:
            self._take_over(now)
        elif self._elected and not elected:
            self._abandon()
        self._elected = elected
        return self._begin_due(now) if elected else TICK

    def _begin_due(self, now: float) -> float:
        waiting = sorted(
            (subject for subject in self._subjects if subject.running is None),
            key=lambda subject: subject.due,
        )
        for subject in waiting:
            if subject.due > now:
                return min(max(subject.due - now, _SHORTEST), TICK)
            if self._running >= MAX_AT_ONCE:
                break  # the next check that ends wakes us
            self._begin(subject)
        return TICK

    def _leave(self) -> None:
        self._abandon()
        if self._elected:
            self._elected = False
            self._board.resign(self._pid)

    def _abandon(self) -> None:
        """End the checks under way; what they find is somebody else's to note."""
        for subject in self._subjects:
            check, subject.running = subject.running, None
            if check is not None:
                check.kill(block=False)
        self._running = 0

    def _take_over(self, now: float) -> None:
        """Begin where the one before us left off; whom nobody has checked yet is spread over the interval."""
        for index, subject in enumerate(self._subjects):
            interval = subject.plan.check.interval
            subject.due = now + interval * (index / len(self._subjects) + JITTER * self._jitter())
            subject.last = None
            self._find(subject, now)

    def _find(self, subject: _Subject[P], now: float) -> None:
        """What the board says of a backend: did checks take it out, and when; when is the next one due?"""
        subject.down, subject.down_since = False, None
        peer = self._peer(subject.plan.key)
        if peer is None:
            return
        known = peer.snapshot()
        checked, since = known.get("checked_ns"), known.get("since_ns")
        if checked:
            # Workers come and go: were each to begin anew, the last in the list might never be checked.
            subject.due = min(subject.due, max(now, checked / 1e9 + subject.plan.check.interval))
        if peer.down:
            subject.down, subject.down_since = True, since / 1e9 if since else None

    def _peer(self, key: bytes) -> Peer | None:
        """The backend's entry, looked up each time: it may be given to another backend after a reload."""
        try:
            return self._board.peer(key)
        except KeyError:
            return None

    # -- one check -----------------------------------------------------------------------------------------

    def _begin(self, subject: _Subject[P]) -> None:
        self._running += 1
        subject.running = gevent.spawn(self._check, subject)

    def _check(self, subject: _Subject[P]) -> None:
        begun = self._clock()
        subject.due = begun + subject.plan.check.interval  # should the check itself break
        me = gevent.getcurrent()
        try:
            if self._peer(subject.plan.key) is not None:
                result = self._ask(subject.plan)
                if result is not None and subject.running is me:
                    self._note(subject, *result)
        finally:
            if subject.running is me:  # else it was abandoned
                subject.running = None
                subject.due = begun + pace(subject.plan.check.interval, subject.changing)
                self._running -= 1
                self._wake.set()

    def _ask(self, plan: P) -> tuple[bool, str] | None:
        """What the probe says, or what its failure means; None if that says nothing about the backend."""
        timeout = plan.check.timeout
        begun = self._clock()
        try:
            with gevent.Timeout(timeout):
                return self._probe(plan, timeout)
        except gevent.Timeout:
            if self._clock() - begun > timeout + LATE:
                return None
            return False, f"no answer within {format_duration(timeout)}"
        except (OSError, AcmeError) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                log.warning("backend %s can't be checked: %s", plan.shown, error.strerror)
                return None
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return False, text
        except Exception:
            # A fault of the probe's is none of the backend's: it would take all of them out.
            log.exception("backend %s can't be checked", plan.shown)
            return None

    def _note(self, subject: _Subject[P], ok: bool, text: str) -> None:
        peer = self._peer(subject.plan.key)
        if peer is None:
            return
        text = text[:MAX_TEXT]
        subject.last = ok
        changed = peer.note_check(ok, text)
        if changed == "down":
            subject.down, subject.down_since = True, self._clock()
            log.warning("backend %s is down: %s", subject.plan.shown, text)
        elif changed == "up":
            self._say_up(subject)
            subject.down, subject.down_since = False, None

    def _say_up(self, subject: _Subject[P]) -> None:
        if subject.down_since is None:
            log.info("backend %s is up again", subject.plan.shown)
            return
        seconds = max(round(self._clock() - subject.down_since), 1)
        log.info("backend %s is up again after %s", subject.plan.shown, format_duration(seconds))


def pace(interval: float, changing: bool) -> float:
    """Seconds from the beginning of a check to the next one's.

    While the state is changing it is a quarter of the interval, from 0.1 s to 1 s: with the usual thresholds
    a backend is out, or back, two seconds after the first check that says so, however rare checks are. Never
    longer than the interval itself.
    """
    if not changing:
        return interval
    return min(interval, max(QUICKEST, min(SLOWEST, interval / 4)))
