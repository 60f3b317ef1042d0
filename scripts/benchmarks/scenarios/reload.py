"""Reloads, recycled workers or whole new programs, one by one under full load: does anybody notice?"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from ..closed_loop import ClosedLoop, Outcome, going
from ..load import Load, wrk_going
from ..orders import order
from ..peers import Peer
from ..peers.acme import Acme
from ..processes import alive
from ..report import Column, Table
from ..server import Server, running
from .base import Context, Row, Scenario, ScenarioFailed, progress

KEPT, FRESH = 8, 4  # clients that check each answer, beside wrk's
COUNTS = {"reload": 200, "recycle": 0, "upgrade": 20}
CLOSE = {"Connection": "close"}

COLUMNS = (
    Column("peer", "server"),
    Column("done", "done"),
    Column("answered", "requests answered", "{:,}"),
    Column("checked", "of them checked", "{:,}"),
    Column("failed", "failed"),
    Column("kinds", "how"),
    Column("p50_s", "median s", "{:.2f}"),
    Column("max_s", "longest s", "{:.2f}"),
    Column("workers_seen", "workers seen"),
    Column("rate_before", "requests/s without", "{:,.0f}"),
    Column("rate", "requests/s", "{:,.0f}"),
    Column("ratio", "ratio", "{:.2f}"),
)


@dataclass
class Tally:
    """What all clients of one phase saw."""

    kept: Load
    fresh: Load
    checked: Outcome
    times: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests a second of both wrk."""
        return self.kept.rate + self.fresh.rate

    @property
    def answered(self) -> int:
        """Good answers that all clients got: wrk counts those with a wrong status among them."""
        bad = sum(load.errors.get("status", 0) for load in (self.kept, self.fresh))
        return self.kept.requests + self.fresh.requests - bad + self.checked.answered

    def kinds(self) -> dict[str, int]:
        """What failed, by kind and client; nothing means that nothing did."""
        found: Counter[str] = Counter()
        for name, load in (("wrk", self.kept), ("wrk, new connections", self.fresh)):
            found.update({f"{name}: {kind}": count for kind, count in load.errors.items()})
        found.update(self.checked.kinds())
        return dict(found)


class Reload(Scenario):
    """Three loads at the same time: wrk on kept connections, wrk with a new one for each request, and clients
    that check each answer. The first phase has no reloads, for the rate to compare with."""

    name = "reload"
    summary = "reloads (or recycled workers, or upgrades) one after the other under full load: failures, rate"
    peers = ("acme",)

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """What, how often, how much load."""
        parser.add_argument(
            "--what",
            choices=list(COUNTS),
            default="reload",
            help="reload (SIGHUP), recycle (max_requests), upgrade (SIGUSR2) (default: reload)",
        )
        parser.add_argument("--count", type=int, help="how many (default: 200 reloads, 20 upgrades)")
        parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
        parser.add_argument("--connections", type=int, default=32, help="of each wrk (default: 32)")
        parser.add_argument(
            "--seconds",
            type=float,
            default=10,
            help="length of the phase without, and of recycling (default: 10)",
        )
        parser.add_argument("--max-requests", type=int, default=500, help="for recycling (default: 500)")

    def run(self, context: Context) -> list[Table]:
        """One table; a single failed request fails the peer."""
        options = context.options
        load = f"2 x {options.connections} connections of wrk, {KEPT} + {FRESH} checking clients"
        table = Table(f"{options.what} under load: {load}, {options.workers} workers", COLUMNS)
        for peer in context.peers:
            if not isinstance(peer, Acme):
                progress(f"{peer.name}: has no control socket, left out")
                continue
            if (row := context.attempt(peer, _measure)) is None:
                continue
            table.rows.append(row)
            if row["failed"]:
                context.failures[peer.name] = f"{row['failed']} requests failed: {row['kinds']}"
        return [table]


def _measure(context: Context, peer: Peer) -> Row:
    options = context.options
    keys = {"max_requests": options.max_requests} if options.what == "recycle" else {}
    connections = 2 * options.connections + KEPT + FRESH
    launch = {"site": "mark", "workers": options.workers, "connections": 2 * connections}
    with running(peer, context.cores, context.base, **launch) as server:
        before = _under_load(context, server, lambda: _pass(options.seconds))
        progress(f"{peer.name}: {before.rate:,.0f} requests/s without")
        if before.kinds():
            raise ScenarioFailed(f"requests failed before anything was done: {before.kinds()}")
        if options.what != "recycle":
            during = _under_load(context, server, lambda: _orders(context, server))
            _await_end(server)
    if options.what == "recycle":
        with running(peer, context.cores, context.base, **launch, keys=keys) as server:
            during = _under_load(context, server, lambda: _pass(options.seconds))
        if len(during.checked.by_worker) <= options.workers:
            raise ScenarioFailed(f"no worker was recycled: {len(during.checked.by_worker)} answered")
    return _row(peer, options.workers, before, during)


def _row(peer: Peer, workers: int, before: Tally, during: Tally) -> Row:
    kinds = during.kinds()
    seen = len(during.checked.by_worker)
    return {
        "peer": peer.name,
        "done": len(during.times) or seen - workers,
        "answered": during.answered,
        "checked": during.checked.answered,
        "failed": sum(kinds.values()),
        "kinds": ", ".join(f"{kind} {count}" for kind, count in kinds.items()) or "none",
        "p50_s": statistics.median(during.times) if during.times else None,
        "max_s": max(during.times, default=None),
        "workers_seen": seen,
        "rate_before": before.rate,
        "rate": during.rate,
        "ratio": during.rate / before.rate,
        "first_failures": [str(failure) for failure in during.checked.failures[:10]],
    }


def _under_load(context: Context, server: Server, act: Callable[[], list[float]]) -> Tally:
    """Do something under all three loads; the times it tells go into the tally."""
    cores, connections = context.cores.client, context.options.connections
    loop = ClosedLoop((server.connect, server.launch.port), KEPT, fresh=FRESH, marks=True)
    with ExitStack() as stack:
        outcome = stack.enter_context(going(loop))
        kept = stack.enter_context(wrk_going(server.url, cores, connections=connections))
        fresh = stack.enter_context(wrk_going(server.url, cores, connections=connections, headers=CLOSE))
        _pass(1)  # both are on their way
        times = act()
        loads = kept.finish(), fresh.finish()
    return Tally(*loads, outcome, times)


def _pass(seconds: float) -> list[float]:
    time.sleep(seconds)
    return []


def _orders(context: Context, server: Server) -> list[float]:
    """Order the reloads or upgrades, each when the one before is done; how long each took."""
    what = context.options.what
    count = context.options.count or COUNTS[what]
    act = _reload if what == "reload" else _upgrade
    times = []
    for number in range(1, count + 1):
        began = time.monotonic()
        act(server, number)
        times.append(time.monotonic() - began)
        if number % 10 == 0 or number == count:
            progress(f"{server.peer.name}: {number} of {count}, {statistics.median(times):.2f} s each")
    return times


def _reload(server: Server, number: int) -> None:
    """Raises ScenarioFailed when the server's generation doesn't say that this was one."""
    generation = order(Acme.runtime_dir(server.launch), "reload")["generation"]
    if generation != number + 1:
        raise ScenarioFailed(f"generation {generation} after reload {number}")


def _upgrade(server: Server, _number: int) -> None:
    """Raises ScenarioFailed when the new program isn't another process."""
    old = server.tree.root
    new = order(Acme.runtime_dir(server.launch), "restart")["pid"]
    if new == old:
        raise ScenarioFailed(f"process {old} upgraded itself to itself")
    server.tree.follow(new)


def _await_end(server: Server, patience: float = 60.0) -> None:
    """Raises ScenarioFailed when predecessors stay: there is one arbiter with its workers in the end."""
    deadline = time.monotonic() + patience
    while (count := sum(map(alive, server.tree.pids()))) > 1 + server.launch.workers:
        if time.monotonic() > deadline:
            raise ScenarioFailed(f"{count} processes are still there after {patience:g} s")
        time.sleep(0.1)
