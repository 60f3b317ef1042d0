"""How much may be tried again: a bound on the load that retries add, and the pauses between them.

A request that fails is tried again elsewhere, and when everything fails every request would be sent three
times: to servers that fail because they have too much to do. So retries are paid for by requests, out of a
budget that each worker keeps for each group of backends.

Law: numbers and a clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

RATIO = 0.2
"""Retries a request: how much load they may add."""

FLOOR = 10
"""Retries that a window always allows, so that a quiet server can retry at all."""

WINDOW = 10.0
"""Seconds for which a request pays for retries."""

STEP = 0.025
"""Seconds: the most that the second retry of a request waits; doubled for each one after it."""

LONGEST = 0.25
"""Seconds: the most that any retry waits."""

_SPANS = 20  # parts of a window: what leaves it does so in such portions


class RetryBudget:
    """The requests and the retries of the last ten seconds.

    Both are counted in spans of half a second, so a window is up to half a second longer; the ratio is one of
    counts over the same spans, and exact.
    """

    __slots__ = ("_at", "_clock", "_deposited", "_deposits", "_ends", "_floor", "_ratio", "_span",
                 "_withdrawals", "_withdrawn")  # fmt: skip

    def __init__(
        self,
        ratio: float = RATIO,
        floor: int = FLOOR,
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with an empty window.

        :param ratio: retries allowed for each request of the window
        :param floor: retries that a window allows however few requests it has
        :param window: seconds
        :param clock: monotonic seconds
        """
        self._ratio = ratio
        self._floor = floor
        self._span = window / _SPANS
        self._clock = clock
        self._deposits = [0] * (_SPANS + 1)  # and the one that has just begun
        self._withdrawals = [0] * (_SPANS + 1)
        self._deposited = 0
        self._withdrawn = 0
        self._at = 0
        self._ends = clock() + self._span

    def deposit(self) -> None:
        """A request has come; not called again for its retries."""
        now = self._clock()
        if now >= self._ends:
            self._advance(now)
        self._deposits[self._at] += 1
        self._deposited += 1

    def withdraw(self) -> bool:
        """Take one retry out; False: there is none left, and the request fails as it stands."""
        now = self._clock()
        if now >= self._ends:
            self._advance(now)
        if self._withdrawn >= max(self._floor, int(self._deposited * self._ratio)):
            return False
        self._withdrawals[self._at] += 1
        self._withdrawn += 1
        return True

    def _advance(self, now: float) -> None:
        """Let go of the spans that have left the window: at most all of them, however long it has been."""
        passed = int((now - self._ends) / self._span) + 1
        for _ in range(min(passed, _SPANS + 1)):
            self._at = (self._at + 1) % (_SPANS + 1)
            self._deposited -= self._deposits[self._at]
            self._withdrawn -= self._withdrawals[self._at]
            self._deposits[self._at] = self._withdrawals[self._at] = 0
        self._ends += passed * self._span


def backoff(attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds to wait before a request's retry number `attempt`, which counts from 1.

    The first goes at once, to another server; the others wait a random part (full jitter) of 25 ms, 50 ms
    and so on, so that requests that failed together don't come again together.
    """
    if attempt <= 1:
        return 0.0
    return uniform(0.0, min(STEP * 2.0 ** min(attempt - 2, 16), LONGEST))
