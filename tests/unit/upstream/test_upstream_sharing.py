"""The board under several processes at once, and under processes that end or stop in the middle of a pick."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from acme_wsgi.upstream.board import LEAST_CONN, Board, Group
from tests.server import wait_until
from tests.unit.processes import in_child, joined
from tests.unit.upstream.backends import group_of

# Two cores may be shared by many: what takes milliseconds is given this long before it is called hanging.
AT_ONCE = 0.5


def read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        assert more, "the other end has ended"
        data += more
    return data


# -- shares


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("weights", [(5, 3, 2), (5, 1, 1), (1, 1, 1), (7, 2, 1)])
def test_shares_are_exact_over_all_processes(processes: int, weights: tuple[int, ...]) -> None:
    _, group = group_of(weights)
    each = sum(weights) * 2000
    start, results = os.pipe(), os.pipe()

    def work() -> None:
        os.close(start[1])
        os.read(start[0], 1)
        counts = Counter(group.pick() for _ in range(each))
        os.write(results[1], struct.pack("3q", *(counts[member] for member in range(3))))

    children = [in_child(work) for _ in range(processes)]
    os.close(start[1])
    rows = [struct.unpack("3q", read_exactly(results[0], 24)) for _ in children]
    assert [joined(pid) for pid in children] == [0] * processes
    for descriptor in (start[0], *results):
        os.close(descriptor)
    assert [sum(column) for column in zip(*rows, strict=True)] == [
        weight * 2000 * processes for weight in weights
    ]


@contextmanager
def pickers(group: Group, count: int) -> Iterator[list[Callable[[], int]]]:
    """Processes that each pick once when told to."""
    pipes = [(os.pipe(), os.pipe()) for _ in range(count)]

    def serve(orders: tuple[int, int], answers: tuple[int, int]) -> None:
        for one in pipes:
            os.close(one[0][1])
        while os.read(orders[0], 1):
            os.write(answers[1], bytes([group.pick()]))

    def pick(orders: tuple[int, int], answers: tuple[int, int]) -> int:
        os.write(orders[1], b"?")
        return os.read(answers[0], 1)[0]

    children = [in_child(lambda pair=pair: serve(*pair)) for pair in pipes]
    try:
        yield [lambda pair=pair: pick(*pair) for pair in pipes]
    finally:
        for pair in pipes:
            for descriptor in (*pair[0], *pair[1]):
                os.close(descriptor)
        assert [joined(pid) for pid in children] == [0] * count


def test_with_few_requests_workers_take_turns_in_one_round() -> None:
    """Two requests a second, each at another worker: with rounds of their own, both would begin alike."""
    _, group = group_of((1, 1))
    with pickers(group, 2) as (one, other):
        assert [pick() for _ in range(10) for pick in (one, other)] == [0, 1] * 10
        assert [pick() for _ in range(10) for pick in (one, one, other)] == [0, 1] * 15


def test_the_sequence_over_workers_is_that_of_one() -> None:
    _, group = group_of((5, 1, 1))
    with pickers(group, 4) as picks:
        assert "".join("abc"[picks[at % 4]()] for at in range(14)) == "aabacaaaabacaa"


# -- the lock


@contextmanager
def holder(group: Group, then: Callable[[], None] = signal.pause) -> Iterator[int]:
    """A process that has taken the lock of the group and does something else with it."""
    ready = os.pipe()

    def work() -> None:
        group.hold_lock()
        os.write(ready[1], b"!")
        then()

    pid = in_child(work)
    try:
        read_exactly(ready[0], 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        joined(pid)
        os.close(ready[0])
        os.close(ready[1])


def timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def test_a_process_killed_with_the_lock_stops_nobody() -> None:
    _, group = group_of((1, 1))
    with holder(group):
        pass
    assert timed(group.pick) < AT_ONCE
    assert [group.pick() for _ in range(4)] == [1, 0, 1, 0]


def test_nor_before_anybody_has_noticed_its_death() -> None:
    _, group = group_of((1, 1))
    with holder(group) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert timed(group.pick) < AT_ONCE


def stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def test_a_process_stopped_with_the_lock_stops_nobody() -> None:
    _, group = group_of((1, 1))
    with holder(group) as pid:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: stopped(pid), "it stands still")
        first = timed(group.pick)
        assert 0.004 < first < AT_ONCE
        # Who waits takes it over: only the first waits.
        assert timed(lambda: [group.pick() for _ in range(100)]) < AT_ONCE
        assert timed(lambda: group.failed(0, True)) < AT_ONCE


def test_who_comes_back_to_a_lost_lock_does_no_harm() -> None:
    _, group = group_of((5, 3, 2))

    def stand_still_and_pick() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        for _ in range(1000):
            group.pick()
        signal.pause()

    with holder(group, stand_still_and_pick) as pid:
        wait_until(lambda: stopped(pid), "it stands still")
        counts = Counter(group.pick() for _ in range(1000))
        os.kill(pid, signal.SIGCONT)
        counts += Counter(group.pick() for _ in range(1000))
    assert counts.total() == 2000
    assert abs(counts[0] - 1000) < 100 and abs(counts[2] - 400) < 100


def test_shares_survive_processes_that_are_stopped_and_go_on() -> None:
    """Who lost the lock decides again: only a stop within the few stores of the result could cost a turn."""
    _, group = group_of((5, 3, 2))
    each, results = 300_000, os.pipe()

    def work() -> None:
        counts = Counter(group.pick() for _ in range(each))
        os.write(results[1], struct.pack("3q", *(counts[member] for member in range(3))))

    children = [in_child(work) for _ in range(3)]
    own: Counter[int] = Counter()
    for turn in range(30):
        pid = children[turn % 3]
        os.kill(pid, signal.SIGSTOP)
        own.update(group.pick() for _ in range(2000))
        os.kill(pid, signal.SIGCONT)
    rows = [struct.unpack("3q", read_exactly(results[0], 24)) for _ in children]
    assert [joined(pid) for pid in children] == [0] * 3
    os.close(results[0])
    os.close(results[1])
    totals = [sum(column) + own[member] for member, column in enumerate(zip(*rows, strict=True))]
    for total, tenths in zip(totals, (5, 3, 2), strict=True):
        assert abs(total - sum(totals) // 10 * tenths) <= 3


def test_deaths_in_the_middle_of_picks_leave_the_round_sound() -> None:
    board, group = group_of((5, 3, 2), LEAST_CONN)
    ready = os.pipe()

    def work() -> None:
        os.write(ready[1], b"!")
        while True:
            member = group.pick()
            group.begin(member, 1)
            group.end(member, 1, True, 1000)

    for _ in range(20):
        children = [in_child(work) for _ in range(2)]
        read_exactly(ready[0], 2)
        group.pick()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        assert [joined(pid) for pid in children] == [-signal.SIGKILL] * 2
        board.release(1)
    assert timed(group.pick) < AT_ONCE
    assert [group.active(member) for member in range(3)] == [0, 0, 0]
    counts = Counter(group.pick() for _ in range(1000))
    for member, expected in enumerate((500, 300, 200)):
        assert abs(counts[member] - expected) <= 2


def test_the_trial_is_one_over_all_processes() -> None:
    board, group = group_of((1, 1))
    start, results = os.pipe(), os.pipe()

    def work() -> None:
        os.close(start[1])
        os.read(start[0], 1)
        os.write(results[1], bytes([[group.pick() for _ in range(1000)].count(0)]))

    for _ in range(3):
        group.failed(0, True)
    board.clock_ns += 1_000_000_000
    children = [in_child(work) for _ in range(3)]
    os.close(start[1])
    assert sum(read_exactly(results[0], 3)) == 1
    assert [joined(pid) for pid in children] == [0] * 3
    for descriptor in (start[0], *results):
        os.close(descriptor)


def test_one_process_is_elected() -> None:
    board = Board(1)
    answers = os.pipe()

    def work() -> None:
        os.write(answers[1], bytes([board.elect(os.getpid(), 1)]))
        signal.pause()

    children = [in_child(work) for _ in range(4)]
    assert sum(read_exactly(answers[0], 4)) == 1
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        joined(pid)
    assert board.elect(os.getpid(), 1)
    os.close(answers[0])
    os.close(answers[1])
