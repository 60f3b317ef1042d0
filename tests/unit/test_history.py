"""The history of the server: forged counters for rates, real processes for time and memory."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from acme_wsgi import history, procfs
from acme_wsgi.history import SECONDS, WORKER_SECONDS, History, percentiles
from acme_wsgi.procfs import Cpu, Memory
from acme_wsgi.scoreboard import DRAINING, NUMBERS, READY, Scoreboard, bucket_edges
from tests.unit.processes import python

OWN = os.getpid()


class Kernel:
    """Processes that only exist here: what the history reads of them, and how often."""

    def __init__(self) -> None:
        self.ticks: dict[int, int] = {}
        self.started: dict[int, int] = {}
        self.memory: dict[int, Memory] = {}
        self.measured: list[int] = []

    def cpu(self, pid: int) -> Cpu | None:
        return Cpu(self.ticks[pid], self.started.get(pid, pid)) if pid in self.ticks else None

    def measure(self, pid: int) -> Memory | None:
        self.measured.append(pid)
        return self.memory.get(pid)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setattr(procfs, "cpu", found.cpu)
    monkeypatch.setattr(procfs, "memory", found.measure)
    monkeypatch.setattr(procfs, "TICKS_PER_SECOND", 100)
    return found


def serve(board: Scoreboard, slot: int, requests: int, *, status: int = 200, took: float = 0.004) -> None:
    for _ in range(requests):
        board.slot(slot).observe(status, 1000, round(took * 1e9))


def take(board: Scoreboard, slot: int, pid: int, state: int = READY) -> None:
    """What a worker process does when it takes a slot."""
    board.slot(slot).reset_gauges()
    board.slot(slot).number, board.slot(slot).pid, board.slot(slot).state = slot + 1, pid, state


# -- the window


def test_nothing_is_known_before_the_second_sample(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    for _ in range(2):
        told = past.stats()
        assert told["requests_per_second"] == 0 and told["seconds"] == 0
        assert told["latency"] == {"p50": None, "p90": None, "p95": None, "p99": None, "mean": None}
        assert told["cpu_percent"] is None and past.stats(history=True)["history"] == []
        past.sample(100.0, {})
        serve(board, 0, 5)


def test_a_rate_is_the_difference_over_the_time_that_really_passed(kernel: Kernel) -> None:
    board = Scoreboard(2)
    past = History(board)
    past.sample(100.0, {0: 10, 1: 11})
    serve(board, 0, 300)
    serve(board, 1, 100, status=503)
    past.sample(104.0, {0: 10, 1: 11})
    told = past.stats(10)
    assert told["seconds"] == 4
    assert told["requests_per_second"] == 100
    assert told["bytes_out_per_second"] == 100_000
    assert told["statuses"] == {"1xx": 0, "2xx": 75, "3xx": 0, "4xx": 0, "5xx": 25}
    assert [worker["requests_per_second"] for worker in told["workers"]] == [75, 25]
    assert told["totals"]["requests"] == 400
    assert told["totals"]["statuses"] == {"200": 300, "503": 100}


@pytest.mark.parametrize(("window", "rate"), [(1, 20.0), (5, 18.0), (10, 15.5), (19, 11.0), (600, 11.0)])
def test_the_window_is_as_long_as_was_asked(kernel: Kernel, window: int, rate: float) -> None:
    board = Scoreboard(1)
    past = History(board)
    for second in range(21):
        serve(board, 0, second)  # 1 in the first second of the history, 20 in the last
        past.sample(1000.0 + second * 1.01, {0: 10})
    told = past.stats(window)
    assert told["requests_per_second"] == pytest.approx(rate / 1.01, rel=0.06)
    assert told["seconds"] == pytest.approx(min(window, 20) * 1.01, rel=0.06)


@pytest.mark.parametrize(("asked", "used"), [(-5, 1), (0, 1), (0.2, 1), (10**9, 30), (float("inf"), 30)])
def test_a_window_outside_of_the_possible_is_moved_into_it(kernel: Kernel, asked: float, used: int) -> None:
    past = History(Scoreboard(1))
    for second in range(31):
        past.sample(float(second), {})
    assert past.stats(asked)["seconds"] == used


@pytest.mark.parametrize("asked", ["10", None, [], True, {"a": "x" * 1000}])
def test_a_window_that_is_no_number_is_refused(kernel: Kernel, asked: Any) -> None:
    with pytest.raises(ValueError, match="number of seconds") as raised:
        History(Scoreboard(1)).stats(asked)
    assert len(str(raised.value)) < 100


def test_ten_minutes_are_kept_and_no_more(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    for second in range(SECONDS + 500):
        board.slot(0).observe(200, 1, 1000)
        past.sample(float(second), {0: 10})
    told = past.stats(10**6, history=True)
    assert told["seconds"] == SECONDS and len(told["history"]) == SECONDS
    assert {entry["requests_per_second"] for entry in told["history"]} == {1.0}
    assert told["workers"][0]["requests_per_second"] == 1.0
    assert len(past._workers[0].rows) == WORKER_SECONDS + 1


def test_a_stopped_arbiter_gives_averages(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    kernel.ticks = {10: 0}
    for second in (0, 1, 2, 62, 63):
        board_before = board.totals()["requests_total"] if board.used else 0
        serve(board, 0, second * 10 - board_before)
        kernel.ticks[10] = second * 50
        past.sample(float(second), {0: 10})
    told = past.stats(10, history=True)
    assert told["seconds"] == 61 and told["requests_per_second"] == 10
    assert [entry["requests_per_second"] for entry in told["history"]] == [10, 10, 10, 10]
    assert [entry["cpu_percent"] for entry in told["history"]] == [50, 50, 50, 50]


def test_two_samples_of_one_instant_count_once(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    for now in (5.0, 5.0, 4.0, 6.0, 6.0):
        serve(board, 0, 1)
        past.sample(now, {0: 10})
    told = past.stats(10, history=True)
    assert told["seconds"] == 1 and told["requests_per_second"] == 3 and len(told["history"]) == 1


def test_the_history_is_told_by_the_calendar_oldest_first(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    now = time.monotonic()
    for back in (2, 1, 0):
        serve(board, 0, 7 * (3 - back))
        past.sample(now - back, {0: 10})
    first, second = past.stats(history=True)["history"]
    assert second["t"] - first["t"] == pytest.approx(1, abs=0.01)
    assert second["t"] == pytest.approx(time.time(), abs=5)
    assert (first["requests_per_second"], second["requests_per_second"]) == (14, 21)
    assert second["p50"] == pytest.approx(0.004, rel=0.25)


def test_the_answer_is_json(kernel: Kernel) -> None:
    board = Scoreboard(2)
    past = History(board)
    for second in range(3):
        serve(board, 0, 5)
        past.sample(float(second), {0: 10, 1: 11})
    assert json.loads(json.dumps(past.stats(history=True), allow_nan=False))["requests_per_second"] == 5


# -- gauges


def test_gauges_are_those_of_this_moment(kernel: Kernel) -> None:
    board = Scoreboard(2)
    past = History(board)
    take(board, 0, 10)
    take(board, 1, 11, DRAINING)
    past.sample(1.0, {0: 10, 1: 11})
    told = past.stats()
    assert [worker["state"] for worker in told["workers"]] == ["ready", "draining"]
    assert [worker["number"] for worker in told["workers"]] == [1, 2]
    assert (told["connections"], told["in_flight"], told["idle"], told["queued"]) == (0, 0, 0, 0)
    assert told["oldest_queued"] == 0


def test_slots_that_nobody_took_are_not_looked_at(kernel: Kernel) -> None:
    board = Scoreboard(64, used=1)
    past = History(board)
    past.sample(1.0, {0: 10})
    board.used = 2
    serve(board, 1, 8)
    past.sample(2.0, {0: 10, 1: 11})
    told = past.stats()
    assert told["requests_per_second"] == 8 and len(told["workers"]) == 2


# -- one slot, several processes


def test_rates_of_a_worker_never_mix_two_processes(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    kernel.ticks = {10: 500, 20: 3}
    past.sample(1.0, {0: 10})
    serve(board, 0, 1000, took=0.5)
    kernel.ticks[10] = 600
    past.sample(2.0, {0: 10})
    assert past.cpu_percent(0) == 100
    serve(board, 0, 900, took=0.5)  # and then it dies; its successor takes the slot
    past.sample(3.0, {0: 20})
    worker = past.stats()["workers"][0]
    assert (worker["pid"], worker["requests_per_second"], worker["cpu_percent"]) == (20, 0, None)
    serve(board, 0, 10, took=0.001)
    kernel.ticks[20] = 13
    past.sample(4.0, {0: 20})
    told = past.stats()
    worker = told["workers"][0]
    assert (worker["requests_per_second"], worker["cpu_percent"]) == (10, 10)
    assert worker["latency"]["p99"] < 0.002
    # The server's own numbers go on over all of it.
    assert told["requests_per_second"] == pytest.approx(1910 / 3, abs=0.001)
    assert told["totals"]["requests"] == 1910
    assert told["cpu_percent"] == pytest.approx(110 / 3, abs=0.1)


def test_the_same_id_for_another_process_is_noticed(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    kernel.ticks, kernel.started = {10: 9000}, {10: 77}
    past.sample(1.0, {0: 10})
    serve(board, 0, 10)
    past.sample(2.0, {0: 10})
    kernel.ticks, kernel.started = {10: 2}, {10: 78}
    past.sample(3.0, {0: 10})
    worker = past.stats()["workers"][0]
    assert (worker["requests_per_second"], worker["cpu_percent"]) == (0, None)
    kernel.ticks[10] = 52
    past.sample(4.0, {0: 10})
    assert past.cpu_percent(0) == 50


def test_a_process_that_vanished_is_no_error(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    kernel.ticks = {10: 100}
    kernel.memory = {10: Memory(rss=5, pss=4)}
    past.sample(1.0, {0: 10})
    kernel.ticks[10] = 150
    past.sample(2.0, {0: 10})
    del kernel.ticks[10], kernel.memory[10]
    past.sample(3.0, {0: 10})  # dead, and the arbiter doesn't know yet
    assert past.cpu_percent(0) == 25
    past.sample(4.0, {})
    assert past.cpu_percent(0) is None and past.pss(0) is None and past.stats()["workers"] == []
    assert past.stats()["cpu_percent"] == pytest.approx(50 / 3, abs=0.1)


def test_memory_of_a_slot_is_taken_again(kernel: Kernel) -> None:
    board = Scoreboard(4)
    past = History(board)
    for generation in range(50):
        past.sample(float(generation), {generation % 4: 100 + generation})
    assert len(past._workers) + len(past._unused) <= 4


# -- memory


def test_memory_is_measured_every_five_seconds_and_not_of_all_at_once(kernel: Kernel) -> None:
    board = Scoreboard(9)
    past = History(board)
    pids = {slot: 10 + slot for slot in range(9)}
    kernel.memory = {pid: Memory(rss=300, pss=pid) for pid in (OWN, *pids.values())}
    rounds = []
    for second in range(20):
        before = len(kernel.measured)
        past.sample(second * 1.0, pids)
        rounds.append(len(kernel.measured) - before)
    assert set(rounds) == {2}  # ten processes in five seconds
    assert {kernel.measured.count(pid) for pid in (OWN, *pids.values())} == {4}
    assert past.pss(3) == 13
    assert past.stats()["pss"] == OWN + sum(pids.values()) and past.stats()["pss_exact"] is True


def test_processes_that_take_long_to_measure_wait_for_their_turn(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MEASURE_BUDGET", 0.0)  # whatever it takes, it is more
    past = History(Scoreboard(9))
    pids = {slot: 10 + slot for slot in range(9)}
    for second in range(10):
        past.sample(float(second), pids)
        assert len(kernel.measured) == second + 1
    assert sorted(kernel.measured) == sorted((OWN, *pids.values()))


def test_the_resident_size_stands_in_where_there_is_no_pss(kernel: Kernel) -> None:
    past = History(Scoreboard(1))
    kernel.memory = {OWN: Memory(rss=5, pss=4), 10: Memory(rss=70)}
    for second in range(3):
        past.sample(float(second), {0: 10})
    told = past.stats()
    assert past.pss(0) == 70 and told["pss"] == 74 and told["pss_exact"] is False


# -- percentiles


def test_no_requests_have_no_percentiles() -> None:
    assert percentiles([], (50, 99)) == [None, None]
    assert percentiles([0] * 120, (50, 99)) == [None, None]


def test_percentiles_lie_inside_their_bucket() -> None:
    board = Scoreboard(1)
    for duration in (1, 3, 4):
        serve(board, 0, 10, took=duration / 1000)
    edges = bucket_edges()
    p1, p50, p100 = percentiles(board.slot(0).latency(), (1, 50, 100))
    assert p1 is not None and p50 is not None and p100 is not None
    for value, truth in ((p1, 0.001), (p50, 0.003), (p100, 0.004)):
        upper = next(edge for edge in edges if edge > truth)
        lower = max(edge for edge in edges if edge <= truth)
        assert lower <= value <= upper
    assert p1 <= p50 <= p100


def test_percentiles_of_many_durations_are_close() -> None:
    generator = random.Random(1)
    taken = [generator.lognormvariate(-5, 1) for _ in range(20_000)]
    board = Scoreboard(1)
    for one in taken:
        serve(board, 0, 1, took=one)
    found = percentiles(board.slot(0).latency(), (50, 90, 95, 99))
    cuts = statistics.quantiles(taken, n=100)
    for value, percent in zip(found, (50, 90, 95, 99), strict=True):
        assert value == pytest.approx(cuts[percent - 1], rel=0.06)


def test_the_last_bucket_has_no_end() -> None:
    assert percentiles([0] * 119 + [3], (50, 99)) == [bucket_edges()[118]] * 2
    assert math.isinf(bucket_edges()[119])


def test_the_mean_comes_from_the_sum_and_not_from_the_buckets(kernel: Kernel) -> None:
    board = Scoreboard(1)
    past = History(board)
    past.sample(1.0, {})
    serve(board, 0, 3, took=0.0101)
    serve(board, 0, 1, took=0.0001)
    past.sample(2.0, {})
    assert past.stats()["latency"]["mean"] == 0.0076


# -- the scoreboard's numbers


def test_numbers_are_what_a_snapshot_says() -> None:
    board = Scoreboard(3)
    for slot in range(3):
        serve(board, slot, slot + 1, status=100 * slot + 100, took=0.01 * (slot + 1))
    words = memoryview(board.numbers(2)).cast("Q").tolist()
    snapshot = board.slot(2).snapshot()
    assert dict(zip(NUMBERS, words, strict=False)) == {name: snapshot[name] for name in NUMBERS}
    assert words[len(NUMBERS) :] == board.slot(2).latency()
    sums = memoryview(board.numbers()).cast("Q").tolist()
    totals = board.totals()
    assert dict(zip(NUMBERS, sums, strict=False)) == {name: totals[name] for name in NUMBERS}
    assert sums[len(NUMBERS) :] == board.latency()


@pytest.mark.parametrize("index", [-1, 3])
def test_there_are_no_numbers_outside_of_the_board(index: int) -> None:
    with pytest.raises(IndexError):
        Scoreboard(3).numbers(index)


# -- real processes


@pytest.fixture
def busy() -> Iterator[int]:
    """A process that computes and holds 64 MB."""
    with python("x = b'x' * (64 << 20)", "while True: sum(range(1000))") as pid:
        yield pid


def test_time_and_memory_of_a_real_process(busy: int) -> None:
    board = Scoreboard(1)
    past = History(board)
    begun = time.monotonic()
    past.sample(begun, {0: busy})
    while past.stats()["seconds"] < 0.8:
        past.sample(time.monotonic(), {0: busy})
        time.sleep(0.05)
    past._measure_some(begun + 100)
    percent, memory = past.cpu_percent(0), past.pss(0)
    assert percent is not None and 10 <= percent <= 110  # other tests want the processors too
    assert memory is not None and 64 << 20 < memory < 200 << 20
    told = past.stats()
    assert told["pss"] > memory and told["cpu_percent"] >= percent - 1


def test_a_child_gets_no_copy_of_the_rows() -> None:
    ring = history.Ring(3)
    ring.append(1.0, 5, Scoreboard(1).numbers())
    pid = os.fork()
    if pid == 0:
        os._exit(ring[0][1])  # a worker never looks; zeros prove that it carries nothing
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ring[0][1] == 5
