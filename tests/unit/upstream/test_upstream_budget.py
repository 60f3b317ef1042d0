"""How much may be tried again. The clock is the test's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_wsgi.upstream.budget import FLOOR, LONGEST, RATIO, STEP, WINDOW, RetryBudget, backoff


class Clock:
    def __init__(self, now: float = 5000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def retries(budget: RetryBudget, wanted: int = 100_000) -> int:
    """How many of so many retries are allowed."""
    return sum(budget.withdraw() for _ in range(wanted))


def test_a_quiet_server_can_retry() -> None:
    assert retries(RetryBudget(clock=Clock())) == FLOOR


def test_a_fifth_of_the_requests_may_be_retried() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    for _ in range(1000):
        clock.now += 0.005
        budget.deposit()
    assert retries(budget) == 200


@pytest.mark.parametrize("rate", [32, 100, 5000])
def test_a_backend_lost_under_steady_load_has_all_its_requests_retried(rate: int) -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    for _ in range(rate * 30):
        clock.now += 1 / rate
        budget.deposit()
    assert retries(budget, 64) == 64


def test_when_everything_fails_the_load_grows_by_a_fifth_and_no_more() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    sent = again = 0
    for _ in range(60_000):
        clock.now += 0.001
        budget.deposit()
        sent += 1
        while budget.withdraw():
            again += 1
    assert sent * 0.19 < again <= sent * RATIO + FLOOR


def test_a_burst_after_a_long_silence_is_bounded() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    for _ in range(10_000):
        budget.deposit()
    clock.now += 3600.0
    for _ in range(100):
        budget.deposit()
    assert retries(budget) == 20


def test_requests_pay_for_a_whole_window_and_no_longer_than_a_span_more() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    for _ in range(1000):
        budget.deposit()
    clock.now += WINDOW - 0.001
    assert retries(budget, 100) == 100
    clock.now += WINDOW / 20 + 0.002
    assert retries(budget) == 0, "the requests are forgotten, the retries aren't"
    clock.now += WINDOW
    assert retries(budget) == FLOOR


def test_retries_come_back_as_they_leave_the_window() -> None:
    clock = Clock()
    budget = RetryBudget(ratio=0.0, floor=4, window=10.0, clock=clock)
    assert retries(budget, 2) == 2
    clock.now += 6.0
    assert retries(budget) == 2
    clock.now += 4.6
    assert retries(budget) == 2
    clock.now += 6.0
    assert retries(budget) == 2


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0.0, 25.0), st.integers(0, 40), st.integers(0, 40)), max_size=60),
    floor=st.integers(0, 12),
)
def test_no_window_has_more_retries_than_it_may(steps: list[tuple[float, int, int]], floor: int) -> None:
    clock = Clock()
    budget = RetryBudget(floor=floor, clock=clock)
    requests: list[float] = []
    granted: list[float] = []
    for pause, arriving, failing in steps:
        clock.now += pause
        for _ in range(arriving):
            budget.deposit()
            requests.append(clock.now)
        for _ in range(failing):
            if budget.withdraw():
                granted.append(clock.now)
        paying = sum(at >= clock.now - WINDOW * 21 / 20 for at in requests)
        if granted[-1:] == [clock.now]:
            assert sum(at > clock.now - WINDOW for at in granted) <= max(floor, paying * RATIO)


def test_the_first_retry_goes_at_once() -> None:
    assert [backoff(1), backoff(0)] == [0.0, 0.0]


def test_the_others_wait_longer_and_longer_up_to_a_bound() -> None:
    longest = [backoff(attempt, uniform=lambda low, high: high) for attempt in range(2, 8)]
    assert longest == [STEP, STEP * 2, STEP * 4, STEP * 8, LONGEST, LONGEST]
    assert backoff(10_000, uniform=lambda low, high: high) == LONGEST


def test_the_jitter_is_full() -> None:
    draw = random.Random(7).uniform
    waits = [backoff(3, uniform=draw) for _ in range(2000)]
    assert min(waits) < STEP * 0.1
    assert max(waits) > STEP * 1.9
    assert STEP * 0.9 < sum(waits) / len(waits) < STEP * 1.1
