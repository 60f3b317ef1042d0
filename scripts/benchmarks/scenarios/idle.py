"""Idle keep-alive connections: what one costs in the server's memory, and whether all still get an answer."""

from __future__ import annotations

import argparse
import math
import time

from ..holders import Holders, Tally, holders
from ..load import wrk
from ..peers import Peer
from ..processes import Memory
from ..report import Column, Table
from ..server import Server, running
from .base import Context, Row, Scenario, ScenarioFailed, progress

PER_WORKER = 14_000  # of its 20,000 descriptors: a shared listener spreads unevenly

COLUMNS = (
    Column("peer", "server"),
    Column("count", "connections", "{:,}"),
    Column("workers", "workers"),
    Column("private_each", "private bytes each", "{:,.0f}"),
    Column("pss_each", "PSS bytes each", "{:,.0f}"),
    Column("rss_each", "RSS bytes each", "{:,.0f}"),
    Column("pss_before", "server before, MB", "{:.1f}"),
    Column("open_seconds", "opened in s", "{:.1f}"),
    Column("answered", "then answered", "{:,}"),
    Column("ask_seconds", "in s", "{:.1f}"),
)


class Idle(Scenario):
    """The server is warmed first, so that its pools and caches aren't counted as connections."""

    name = "idle"
    summary = "memory per idle keep-alive connection (after one request each), then one more request on each"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """How many, over how many workers."""
        parser.add_argument("--count", type=int, default=5000, help="connections (default: 5000)")
        parser.add_argument(
            "--workers",
            type=int,
            help="worker processes (default: 1, and one more for each 14,000 connections)",
        )

    def run(self, context: Context) -> list[Table]:
        """One table."""
        count: int = context.options.count
        workers = self._workers(context)
        table = Table(f"idle: {count:,} keep-alive connections, {workers} worker(s)", COLUMNS)
        for peer in context.peers:
            if workers > 1 and not peer.can_fork:
                progress(f"{peer.name}: has no worker processes, left out")
                continue
            progress(f"{peer.name}: opening {count:,} connections")
            if row := context.attempt(peer, self._measure):
                table.rows.append(row)
        return [table]

    @staticmethod
    def _workers(context: Context) -> int:
        """As named, or enough for the connections, with room for workers that get more than their share."""
        named: int | None = context.options.workers
        return named or math.ceil(context.options.count / PER_WORKER)

    def _measure(self, context: Context, peer: Peer) -> Row:
        count, workers = context.options.count, self._workers(context)
        with (
            running(
                peer,
                context.cores,
                context.base,
                host="0.0.0.0",
                workers=workers,
                connections=count + count // 4 + 256,
            ) as server,
            holders(server.launch.port, count, context.cores.client) as clients,
        ):
            wrk(server.url, context.cores.client, seconds=2, connections=64 * workers)
            before = _settled(server)
            opened, open_seconds = _timed(clients, "open")
            _all_right(peer, "one request on each new connection", opened, count)
            after = _settled(server)
            asked, ask_seconds = _timed(clients, "ask")
            _all_right(peer, "a second request on each", asked, count)
        return {
            "peer": peer.name,
            "count": count,
            "workers": workers,
            "private_each": (after.private - before.private) / count,
            "pss_each": (after.pss - before.pss) / count,
            "rss_each": (after.rss - before.rss) / count,
            "pss_before": before.pss / 1e6,
            "pss_after": after.pss / 1e6,
            "open_seconds": open_seconds,
            "answered": asked.answered,
            "ask_seconds": ask_seconds,
        }


def _timed(clients: Holders, order: str) -> tuple[Tally, float]:
    began = time.monotonic()
    tally = clients.open() if order == "open" else clients.ask()
    return tally, time.monotonic() - began


def _all_right(peer: Peer, what: str, tally: Tally, count: int) -> None:
    if tally.answered != count or tally.failed:
        raise ScenarioFailed(
            f"{peer.name}: {what}: {tally.answered:,} of {count:,} answered, failed: {tally.failed}"
        )


def _settled(server: Server, patience: float = 10.0) -> Memory:
    """The tree's memory once two looks half a second apart agree within 0.1 %, or patience ends."""
    deadline = time.monotonic() + patience
    last = server.tree.memory()
    while True:
        time.sleep(0.5)
        now = server.tree.memory()
        if abs(now.private - last.private) <= last.private * 0.001 or time.monotonic() > deadline:
            return now
        last = now
