"""Second part of the scenario proxy: many clients over few connections to the backend, so that requests wait.

nginx takes part with `max_conns`, which refuses with 502: its open source version has no queue. Its row says
how many it refused; it is not to be compared with those that answer all.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..load import HEADERS, Load, wrk
from ..origin import Origin
from ..peers import Peer, Upstream
from ..report import Column, Table
from ..server import running
from .base import Context, Cost, Meter, Row, ScenarioFailed, Turn, in_turn, noise_remark

COLUMNS = (
    Column("peer", "server"),
    Column("rate", "good answers/s", "{:,.0f}"),
    Column("p50_ms", "p50 ms", "{:,.1f}"),
    Column("p99_ms", "p99 ms", "{:,.1f}"),
    Column("max_ms", "max ms", "{:,.1f}"),
    Column("cpu_us", "CPU us/good answer", "{:.2f}"),
    Column("errors", "errors"),
    Column("most", "connections to the backend at most", "{:,}"),
    Column("opened", "opened", "{:,}"),
)
_REFUSING = (
    "nginx has no queue for a connection in its open source version: max_conns refuses with 502 (`status`), "
    "and its times are mostly those of refusals."
)


@dataclass(frozen=True)
class Sample:
    """One measurement; `most` and `opened` as the origin saw them."""

    cost: Cost
    most: int
    opened: int


def arguments(parser: argparse.ArgumentParser) -> None:
    """How many clients, over how many connections."""
    parser.add_argument("--clients", type=int, default=10_000, help="of `connections` (default: 10000)")
    parser.add_argument("--limit", type=int, default=32, help="connections to the backend (default: 32)")
    parser.add_argument(
        "--queue-seconds", type=float, default=10, help="length of `connections` (default: 10)"
    )


def table(context: Context, peers: Sequence[Peer], origin: Origin) -> Table:
    """Rounds in turn; medians, of errors the sum, of connections the most."""
    options = context.options
    turns = [
        Turn(
            peer,
            {"peer": peer.name, "what": "connections"},
            partial(_measure, origin=origin),
            lambda sample: f"{good(sample.cost.load):10,.0f} answers, {sample.most} connections at most",
        )
        for peer in peers
    ]
    title = f"proxy: {options.clients:,} kept clients over {options.limit} connections to the backend"
    made = Table(title, COLUMNS)
    for turn, taken in in_turn(context, turns, options.rounds):
        made.rows.append({**turn.cells, **summary(taken)})
    if any(not peer.can_queue for peer in peers):
        made.remarks.append(_REFUSING)
    made.remarks += noise_remark((row["foreign_cpu"] for row in made.rows), context.cores)
    return made


def good(load: Load) -> int:
    """Answers that aren't errors."""
    return load.requests - load.errors.get("status", 0)


def _measure(context: Context, peer: Peer, *, origin: Origin) -> Sample:
    """The watch begins with the server: also the warm-up must keep to the limit."""
    options, cores = context.options, context.cores
    load = partial(wrk, cores=cores.client, headers=HEADERS["browser"], count_errors=True)
    with (
        running(
            peer,
            cores,
            context.base,
            site="proxy",
            connections=options.clients + 256,
            upstream=Upstream(origin.port, limit=options.limit, forwarded=options.forwarded),
        ) as server,
        origin.watch() as watch,
    ):
        load(server.url, seconds=options.warm_up, connections=options.limit)
        meter = Meter(server, cores)
        cost = meter.cost(load(server.url, seconds=options.queue_seconds, connections=options.clients))
    if not good(cost.load):
        raise ScenarioFailed(f"not one good answer: {cost.load.errors}")
    return Sample(cost, watch.most, watch.opened)


def summary(samples: Sequence[Sample]) -> Row:
    """What a row says."""
    loads = [sample.cost.load for sample in samples]
    errors: Counter[str] = Counter()
    for load in loads:
        errors.update(load.errors)
    return {
        "rate": statistics.median(good(load) / load.seconds for load in loads),
        "p50_ms": statistics.median(load.p50_us for load in loads) / 1000,
        "p99_ms": statistics.median(load.p99_us for load in loads) / 1000,
        "max_ms": max(load.max_us for load in loads) / 1000,
        "cpu_us": statistics.median(
            sample.cost.cpu_us * sample.cost.load.requests / good(sample.cost.load) for sample in samples
        ),
        "errors": ", ".join(f"{kind} {count:,}" for kind, count in errors.items()) or "none",
        "answered": sum(good(load) for load in loads),
        "most": max(sample.most for sample in samples),
        "opened": max(sample.opened for sample in samples),
        "foreign_cpu": max(sample.cost.foreign for sample in samples),
    }
