"""Many requests, one server: does its memory stay flat?"""

from __future__ import annotations

import argparse

from ..load import HEADERS, wrk
from ..peers import Peer
from ..report import Column, Table
from ..server import running
from .base import Context, Scenario, progress

COLUMNS = (
    Column("requests", "million requests", "{:.2f}"),
    Column("rss", "RSS MB", "{:.2f}"),
    Column("pss", "PSS MB", "{:.2f}"),
)


class MemoryOverTime(Scenario):
    """Samples the tree between slices of load; the slope of the second half is what a leak would show."""

    name = "memory"
    summary = "memory of the server over millions of requests: flat or not"
    peers = ("acme",)

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """How many requests, how they look."""
        parser.add_argument("--million", type=float, default=10, help="requests in all (default: 10 million)")
        parser.add_argument("--slice", type=float, default=5, help="seconds between samples (default: 5)")
        parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
        parser.add_argument("--headers", choices=list(HEADERS), default="browser", help="(default: browser)")
        parser.add_argument("--access-log", action="store_true", help="with an access log to a file")

    def run(self, context: Context) -> list[Table]:
        """A table per peer."""
        tables = (context.attempt(peer, self._watch) for peer in context.peers)
        return [table for table in tables if table is not None]

    def _watch(self, context: Context, peer: Peer) -> Table:
        options = context.options
        table = Table(f"memory of {peer.name} over {options.million:g} million requests", COLUMNS)
        with running(
            peer,
            context.cores,
            context.base,
            workers=options.workers if peer.can_fork else 1,
            access_log=options.access_log and peer.can_log,
        ) as server:
            wrk(server.url, context.cores.client, seconds=1, headers=HEADERS[options.headers])
            done = 0
            while done < options.million * 1e6:
                load = wrk(
                    server.url, context.cores.client, seconds=options.slice, headers=HEADERS[options.headers]
                )
                done += load.requests
                memory = server.tree.memory()
                row = {"requests": done / 1e6, "rss": memory.rss / 1e6, "pss": memory.pss / 1e6}
                table.rows.append(row)
                progress(f"{peer.name}: {row['requests']:7.2f} million, PSS {row['pss']:.2f} MB")
        table.remarks.append(verdict([(row["requests"], row["pss"]) for row in table.rows]))
        return table


def verdict(samples: list[tuple[float, float]]) -> str:
    """What the second half of (million requests, MB) says: its least-squares slope and its range."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return "Too few samples to tell a slope."
    mean_x = sum(x for x, _ in half) / len(half)
    mean_y = sum(y for _, y in half) / len(half)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in half) / sum((x - mean_x) ** 2 for x, _ in half)
    low, high = min(y for _, y in half), max(y for _, y in half)
    return (
        f"Second half: {slope * 1000:+.1f} KB of PSS per million requests "
        f"(that is {slope:+.4f} bytes each), between {low:.2f} and {high:.2f} MB."
    )
