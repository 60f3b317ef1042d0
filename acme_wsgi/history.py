"""The last ten minutes of the server, a sample a second: what rates and percentiles are made of.

Law: reads the scoreboard and /proc, keeps numbers in memory of fixed size, and changes nothing. Knows no
sockets, forks nothing, waits for nothing, imports no gevent. Every rate is a difference divided by the time
that really passed between its two samples, so an arbiter that was stopped for a while tells averages, never
jumps. What is said of a worker is said of its present process alone; the server's own counts outlive them.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from acme_wsgi import procfs
from acme_wsgi.scoreboard import DRAINING, NUMBERS, READY, Scoreboard, bucket_edges

SECONDS = 600
"""How far back the server's samples go."""

WORKER_SECONDS = 60
"""How far back the samples of one worker go; a longer window is cut to this for workers."""

WINDOW = 10
"""The window, in seconds, of numbers that nobody asked a window for."""

PSS_EVERY = 5.0
"""Seconds between two measurements of one process's memory: the kernel walks all its pages for it."""

MEASURE_BUDGET = 0.01
"""Seconds that one sample spends on measuring memory: where processes are huge, each gets its turn later."""

_STATES = {READY: "ready", DRAINING: "draining"}
_EDGES = bucket_edges()
_FAMILIES = ("1xx", "2xx", "3xx", "4xx", "5xx")

# The words of a row: when it was taken (monotonic ns), processor time (ticks), then Scoreboard.numbers().
_TIME, _CPU, _FIRST = 0, 1, 2
_AT = {name: _FIRST + index for index, name in enumerate(NUMBERS)}
_LATENCY = _FIRST + len(NUMBERS)
_WIDTH = _LATENCY + len(_EDGES)

_MADV_WIPEONFORK = 18  # <linux/mman.h>; the mmap module doesn't name it

Row = Sequence[int]


class Ring:
    """The last rows of numbers, in memory that is set aside once and that forked children get no copy of.

    :param rows: how many are kept
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        memory = mmap.mmap(-1, rows * _WIDTH * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):
            # A worker would keep every page that we overwrite after its fork. (Linux 4.14.)
            memory.madvise(_MADV_WIPEONFORK)
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._next = 0
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def __getitem__(self, age: int) -> Row:
        """A row by its age: 0 is the newest. Its memory is taken again when the ring has gone round."""
        if not 0 <= age < self._filled:
            raise IndexError(f"row {age} of {self._filled}")
        at = (self._next - 1 - age) % self._rows
        return self._words[at * _WIDTH : (at + 1) * _WIDTH]

    def append(self, now: float, ticks: int, numbers: bytes) -> None:
        """Keep one more row; the oldest goes when there is no room."""
        start = self._next * _WIDTH
        self._words[start + _TIME], self._words[start + _CPU] = int(now * 1e9), ticks
        self._bytes[(start + _FIRST) * 8 : (start + _WIDTH) * 8] = numbers
        self._next = (self._next + 1) % self._rows
        self._filled = min(self._filled + 1, self._rows)

    def clear(self) -> None:
        """Forget all rows."""
        self._filled = 0

    def span(self, seconds: float) -> tuple[Row, Row] | None:
        """The newest row and the one about `seconds` before it (or the oldest); None without two rows."""
        if self._filled < 2:
            return None
        new = self[0]
        until = new[_TIME] - (seconds - 0.5) * 1e9  # samples are a second apart, more or less
        low, high = 1, self._filled - 1
        while low < high:
            middle = (low + high) // 2
            if self[middle][_TIME] <= until:
                high = middle
            else:
                low = middle + 1
        return new, self[low]


@dataclass(slots=True)
class _Process:
    """What is measured of one process.

    :ivar started: tells it from an earlier process with the same id; 0 as long as it couldn't be read
    :ivar ticks: its processor time when it was looked at last
    :ivar memory: bytes; None before the first measurement and when there is nothing to measure
    :ivar exact: `memory` is PSS; else RSS, for want of it
    :ivar measured: when its memory was
    """

    pid: int
    started: int = 0
    ticks: int = 0
    memory: int | None = None
    exact: bool = True
    measured: float = float("-inf")

    def look(self) -> int | None:
        """Read the processor time; returns what was added since the last look, None for another process."""
        now = procfs.cpu(self.pid)
        if now is None:
            return 0
        if self.started and now.started != self.started:
            return None
        first = not self.started
        more = max(now.ticks - self.ticks, 0)
        self.started, self.ticks = now.started, max(now.ticks, self.ticks)
        return 0 if first else more

    def measure(self, now: float) -> None:
        found = procfs.memory(self.pid)
        self.measured = now
        self.exact = found is None or found.pss is not None
        self.memory = None if found is None else found.rss if found.pss is None else found.pss


@dataclass(slots=True)
class _Worker:
    """The process in one slot and its samples."""

    process: _Process
    rows: Ring = field(default_factory=lambda: Ring(WORKER_SECONDS + 1))


class History:
    """Samples of the whole server and of each slot's present process.

    :param board: the scoreboard; slots that nobody has ever taken aren't looked at
    """

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._rows = Ring(SECONDS + 1)
        self._workers: dict[int, _Worker] = {}
        self._unused: list[Ring] = []
        self._own = _Process(os.getpid())
        self._ticks = 0

    # -- sampling ----------

    def sample(self, now: float, processes: Mapping[int, int]) -> None:
        """Take one sample. To be called about once a second.

        :param now: monotonic seconds
        :param processes: slot index -> process id, of every worker process there is
        """
        if len(self._rows) and now * 1e9 <= self._rows[0][_TIME]:
            return  # two samples of one instant have no rate between them
        self._follow(processes)
        self._ticks += self._own.look() or 0
        for slot, worker in self._workers.items():
            more = worker.process.look()
            if more is None:  # the id went to another process since
                worker.process = _Process(worker.process.pid)
                worker.rows.clear()
                more = worker.process.look()
            self._ticks += more or 0
            worker.rows.append(now, worker.process.ticks, self._board.numbers(slot))
        self._rows.append(now, self._ticks, self._board.numbers())
        self._measure_some(now)

    def _follow(self, processes: Mapping[int, int]) -> None:
        """Give each slot the process that it has now; what was known of the one before goes."""
        for slot, worker in list(self._workers.items()):
            if processes.get(slot) == worker.process.pid:
                continue
            gone = self._workers.pop(slot)
            gone.rows.clear()
            self._unused.append(gone.rows)
        for slot, pid in processes.items():
            if slot not in self._workers:
                rows = self._unused.pop() if self._unused else Ring(WORKER_SECONDS + 1)
                self._workers[slot] = _Worker(_Process(pid), rows)

    def _measure_some(self, now: float) -> None:
        """Measure the memory of a fifth of the processes, those whose last measurement is oldest."""
        processes = [self._own, *(worker.process for worker in self._workers.values())]
        due = sorted((each for each in processes if now - each.measured > PSS_EVERY - 0.5), key=_measured)
        begun = time.monotonic()
        for process in due[: -(-len(processes) // int(PSS_EVERY))]:
            process.measure(now)
            if time.monotonic() - begun > MEASURE_BUDGET:
                break

    # -- answers ----------

    def cpu_percent(self, slot: int) -> float | None:
        """Processor use of a slot's process, 100 for one whole processor; None as long as it isn't known."""
        worker = self._workers.get(slot)
        return None if worker is None else _cpu_percent(worker.rows.span(WINDOW))

    def pss(self, slot: int) -> int | None:
        """Memory of a slot's process in bytes (PSS, or RSS where PSS can't be had); None when not known."""
        worker = self._workers.get(slot)
        return None if worker is None else worker.process.memory

    def stats(self, seconds: float = WINDOW, history: bool = False) -> dict[str, Any]:
        """What the server did in the last `seconds`, as far back as there are samples.

        :param seconds: the window, 1 to SECONDS; what lies outside is moved to the nearest
        :param history: also every sample that there is
        :raises ValueError: `seconds` is no number; it may have come from outside
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise ValueError(f"the window is a number of seconds, not {seconds!r:.40}")
        seconds = min(max(seconds, 1), SECONDS)
        answer = self._server(seconds)
        answer["totals"] = self._totals()
        answer["cpu_percent"] = _cpu_percent(self._rows.span(seconds))
        answer |= self._memory()
        answer["arbiter"] = {"pid": self._own.pid, "pss": self._own.memory}
        answer["workers"] = [self._worker(slot, seconds) for slot in sorted(self._workers)]
        if history:
            answer["history"] = self._history()
        return answer

    def _server(self, seconds: float) -> dict[str, Any]:
        span = self._rows.span(seconds)
        rate = _Rates(span)
        gauges = memoryview(self._board.numbers()).cast("Q")
        return {
            "seconds": round(rate.elapsed, 3),
            "requests_per_second": rate("requests_total"),
            "bytes_in_per_second": rate("bytes_in"),
            "bytes_out_per_second": rate("bytes_out"),
            "connections": gauges[_AT["connections"] - _FIRST],
            "connections_per_second": rate("connections_total"),
            "idle": gauges[_AT["idle"] - _FIRST],
            "in_flight": gauges[_AT["in_flight"] - _FIRST],
            "queued": gauges[_AT["queued"] - _FIRST],
            "oldest_queued": self._oldest_queued(),
            "shed_per_second": rate("shed"),
            "errors_per_second": rate("errors"),
            "statuses": {family: rate(f"status_{family}") for family in _FAMILIES},
            "latency": latency(span, (50, 90, 95, 99)),
        }

    def _oldest_queued(self) -> float:
        """For how many seconds the request that has waited longest has waited; 0 when none waits."""
        since = [
            snapshot["oldest_queued_ns"]
            for snapshot in (self._board.slot(index).snapshot() for index in range(self._board.used))
            if snapshot["queued"] > 0 and snapshot["oldest_queued_ns"]
        ]
        return round(max(time.monotonic_ns() - min(since), 0) / 1e9, 3) if since else 0.0

    def _totals(self) -> dict[str, Any]:
        """What was counted since the server's start."""
        sums = self._board.totals()
        names = ("bytes_in", "bytes_out", "errors", "timeouts", "rejected", "disconnects", "shed", "gone")
        totals: dict[str, Any] = {name: sums[f"{name}_total"] for name in ("requests", "connections")}
        totals |= {name: sums[name] for name in (*names, "stalls", "log_dropped")}
        statuses: dict[int, int] = {}
        for index in range(self._board.used):
            for status, count in self._board.slot(index).statuses().items():
                statuses[status] = statuses.get(status, 0) + count
        totals["statuses"] = {str(status): count for status, count in sorted(statuses.items())}
        return totals

    def _memory(self) -> dict[str, Any]:
        """The sum over arbiter and workers, and whether all of it is PSS."""
        processes = [self._own, *(worker.process for worker in self._workers.values())]
        known = [each for each in processes if each.memory is not None]
        return {
            "pss": sum(each.memory or 0 for each in known) if known else None,
            "pss_exact": all(each.exact for each in known),
        }

    def _worker(self, slot: int, seconds: float) -> dict[str, Any]:
        worker = self._workers[slot]
        span = worker.rows.span(min(seconds, WORKER_SECONDS))
        now = self._board.slot(slot).snapshot()
        return {
            "number": now["number"],
            "pid": worker.process.pid,
            "slot": slot,
            "state": _STATES.get(now["state"], "starting"),
            "generation": now["generation"],
            "requests_per_second": _Rates(span)("requests_total"),
            "in_flight": now["in_flight"],
            "queued": now["queued"],
            "connections": now["connections"],
            "latency": latency(span, (50, 99)),
            "cpu_percent": _cpu_percent(span),
            "pss": worker.process.memory,
        }

    def _history(self) -> list[dict[str, Any]]:
        """One entry for each second, the oldest first: what happened since the sample before it."""
        begun = time.time() - time.monotonic()  # the monotonic clock's zero on the calendar
        entries = []
        for age in range(len(self._rows) - 2, -1, -1):
            span = self._rows[age], self._rows[age + 1]
            rate = _Rates(span)
            entries.append(
                {
                    "t": round(begun + span[0][_TIME] / 1e9, 3),
                    "requests_per_second": rate("requests_total"),
                    **{name: value for name, value in latency(span, (50, 99)).items() if name != "mean"},
                    "in_flight": span[0][_AT["in_flight"]],
                    "queued": span[0][_AT["queued"]],
                    "connections": span[0][_AT["connections"]],
                    "errors_per_second": rate("errors"),
                    "cpu_percent": _cpu_percent(span),
                }
            )
        return entries


class _Rates:
    """Differences of counters per second between two rows; all 0 without rows."""

    def __init__(self, span: tuple[Row, Row] | None) -> None:
        self._span = span
        self.elapsed = (span[0][_TIME] - span[1][_TIME]) / 1e9 if span else 0.0

    def __call__(self, name: str) -> float:
        if self._span is None:
            return 0.0
        new, old = self._span
        return round((new[_AT[name]] - old[_AT[name]]) / self.elapsed, 3)


def latency(span: tuple[Row, Row] | None, wanted: Sequence[int]) -> dict[str, float | None]:
    """Percentiles of the requests between two rows, and their mean: ``{"p50": 0.004, ..., "mean": 0.005}``.

    :param span: the newer row and the older one
    :param wanted: percentiles, rising
    :returns: seconds; None where there was no request
    """
    counts: list[int] = []
    spent = 0
    if span is not None:
        new, old = span
        counts = [a - b for a, b in zip(new[_LATENCY:], old[_LATENCY:], strict=True)]
        spent = new[_AT["latency_sum_ns"]] - old[_AT["latency_sum_ns"]]
    names = [f"p{one}" for one in wanted]
    found: dict[str, float | None] = dict(zip(names, percentiles(counts, wanted), strict=True))
    total = sum(counts)
    return {**found, "mean": _seconds(spent / total / 1e9) if total else None}


def percentiles(counts: Sequence[int], wanted: Sequence[int]) -> list[float | None]:
    """Percentiles out of a histogram, as if each bucket's durations lay evenly between its edges.

    :param counts: per bucket of the scoreboard; may be empty
    :param wanted: percentiles, rising
    :returns: seconds; None for each when nothing was counted
    """
    total = sum(counts)
    if not total:
        return [None] * len(wanted)
    found: list[float | None] = []
    below, bucket = 0, 0
    for one in wanted:
        rank = total * one / 100
        while below + counts[bucket] < rank:
            below += counts[bucket]
            bucket += 1
        found.append(_inside(bucket, (rank - below) / counts[bucket] if counts[bucket] else 0.0))
    return found


def _inside(bucket: int, part: float) -> float:
    """The duration at this part of a bucket. The last one has no end: its beginning stands for all of it."""
    lower = _EDGES[bucket - 1] if bucket else 0.0
    if bucket == len(_EDGES) - 1:
        return lower
    return _seconds(lower + (_EDGES[bucket] - lower) * part)


def _seconds(value: float) -> float:
    """A duration in whole tenths of a microsecond: more digits would claim what no bucket knows."""
    return round(value, 7)


def _cpu_percent(span: tuple[Row, Row] | None) -> float | None:
    if span is None:
        return None
    new, old = span
    used = (new[_CPU] - old[_CPU]) / procfs.TICKS_PER_SECOND
    return round(used / ((new[_TIME] - old[_TIME]) / 1e9) * 100, 1)


def _measured(process: _Process) -> float:
    return process.measured
