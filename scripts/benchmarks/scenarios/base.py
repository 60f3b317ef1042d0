"""What a scenario is: options of its own, and a run over some peers that gives tables."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from ..errors import Failed
from ..load import HEADERS, Load
from ..machine import Cores, busy_seconds
from ..peers import Peer
from ..report import Table, Value
from ..server import Server

T = TypeVar("T")
Row = dict[str, Any]  # a table's row; its columns say what is in it


class ScenarioFailed(Failed):
    """What was measured is not what the scenario promises; the text says what went wrong."""


@dataclass(frozen=True)
class Context:
    """What every scenario is given."""

    peers: list[Peer]
    cores: Cores
    base: Path  # a directory for everything that is written
    options: argparse.Namespace
    failures: dict[str, str] = field(default_factory=dict)  # by peer, or by the name of what failed

    def attempt(self, peer: Peer, measure: Callable[[Context, Peer], T], name: str = "") -> T | None:
        """What `measure` gives; None when the peer fails, or has failed before; with a `name`, in just this.

        A failure is kept for the report and the exit status; the other figures stay good.
        """
        what = name or peer.name
        if what in self.failures:
            return None
        try:
            return measure(self, peer)
        except Failed as failure:
            self.failures[what] = str(failure)
            progress(f"FAILED: {what}: {failure}")
            return None


@dataclass(frozen=True)
class Turn(Generic[T]):
    """One measurement of a round. `cells` name it in the table; `tell`: what the progress shows of it."""

    peer: Peer
    cells: Mapping[str, Value]
    measure: Callable[[Context, Peer], T]
    tell: Callable[[T], str]

    @property
    def name(self) -> str:
        """For the progress and for failures."""
        return " ".join(str(value) for value in self.cells.values())


def in_turn(context: Context, turns: Sequence[Turn[T]], rounds: int) -> list[tuple[Turn[T], list[T]]]:
    """All of them, one after the other, `rounds` times; those that failed are left out."""
    results: list[tuple[Turn[T], list[T]]] = [(turn, []) for turn in turns]
    for number in range(rounds):
        for turn, taken in results:
            result = context.attempt(turn.peer, turn.measure, turn.name)
            if result is not None:
                taken.append(result)
                progress(f"round {number + 1}/{rounds} {turn.name:28}{turn.tell(result)}")
    return [(turn, taken) for turn, taken in results if taken]


class Scenario(ABC):
    """One subcommand. `peers` are those it visits when none are named."""

    name: ClassVar[str]
    summary: ClassVar[str]
    peers: ClassVar[tuple[str, ...]] = ("nginx", "acme", "bjoern", "granian", "gunicorn", "waitress")

    @abstractmethod
    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the scenario's own options."""

    @abstractmethod
    def run(self, context: Context) -> list[Table]:
        """Measure, each peer through `context.attempt`: a failed measurement has no figures."""


def load_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a scenario that puts the same load on each server, in rounds."""
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all (default: 3)")
    parser.add_argument("--seconds", type=float, default=4, help="length of a measurement (default: 4)")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds of load before each (default: 1)")
    parser.add_argument("--connections", type=int, default=64, help="keep-alive clients (default: 64)")


def headers_argument(parser: argparse.ArgumentParser, default: str, of_whom: str = "the client") -> None:
    """The option that says which header fields are sent; `kinds_of_headers` has what was chosen."""
    parser.add_argument(
        "--headers",
        choices=[*HEADERS, "both"],
        default=default,
        help=f"what {of_whom} sends: Host alone, or a browser's twelve fields (default: {default})",
    )


def kinds_of_headers(options: argparse.Namespace) -> list[str]:
    """The names in HEADERS that were chosen."""
    return list(HEADERS) if options.headers == "both" else [options.headers]


def compare(rows: Sequence[Row], figure: str, floor: str, into: str, alike: Sequence[str] = ()) -> None:
    """Each row's figure to that of the peer `floor` with the same cells `alike`; None where it has none."""
    floors = {tuple(row[key] for key in alike): row[figure] for row in rows if row["peer"] == floor}
    for row in rows:
        value = floors.get(tuple(row[key] for key in alike))
        row[into] = row[figure] / value if value else None


def progress(text: str) -> None:
    """A line about what is going on, on stderr: stdout holds the results."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Cost:
    """A load and what it cost the server.

    `cpu_us`: CPU microseconds per request, user and system, the whole tree. `foreign`: the share of the
    server's cores that went to others meanwhile; much of it makes the figure worth little.
    """

    load: Load
    cpu_us: float
    foreign: float


def medians(costs: Sequence[Cost]) -> Row:
    """What a row says of the same measurement over several rounds; `spread` is half the range."""
    cpu = [cost.cpu_us for cost in costs]
    middle = statistics.median(cpu)
    return {
        "rate": statistics.median(cost.load.rate for cost in costs),
        "p50_us": statistics.median(cost.load.p50_us for cost in costs),
        "p99_us": statistics.median(cost.load.p99_us for cost in costs),
        "cpu_us": middle,
        "spread": (max(cpu) - min(cpu)) / 2 / middle,
        "cpu_us_rounds": cpu,
        "foreign_cpu": max(cost.foreign for cost in costs),
    }


class Meter:
    """Reads the server's CPU clock, and its cores', around a load."""

    def __init__(self, server: Server, cores: Cores) -> None:
        self._server = server
        self._cores = cores
        self._clock, self._cpu, self._busy = self._read()

    def _read(self) -> tuple[float, float, float]:
        return time.monotonic(), self._server.tree.cpu_seconds(), busy_seconds(self._cores.server)

    def cost(self, load: Load) -> Cost:
        """The cost of `load`, which ran since the meter was made."""
        clock, cpu, busy = self._read()
        used = cpu - self._cpu
        cores = len(self._cores.server) if self._cores.server else os.cpu_count() or 1
        foreign = max(0.0, busy - self._busy - used) / ((clock - self._clock) * cores)
        return Cost(load, used * 1e6 / load.requests, foreign)


NOISE = 0.05  # of the server's cores


def noise_remark(shares: Iterable[float], cores: Cores) -> list[str]:
    """A remark for the table when others used the server's cores. Without pinning nothing can be told."""
    worst = max(shares, default=0.0)
    if cores.server is None or worst <= NOISE:
        return []
    return [f"Noisy: other processes used up to {worst:.0%} of the server's core during a measurement."]
