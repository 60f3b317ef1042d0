"""13 bytes over 64 keep-alive connections: what a request costs when the application does nothing."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from ..load import HEADERS, wrk
from ..peers import Peer
from ..report import Column, Table
from ..server import running
from .base import Context, Cost, Meter, Scenario, progress

COLUMNS = (
    Column("peer", "server"),
    Column("rate", "requests/s", "{:,.0f}"),
    Column("p50_us", "p50 us", "{:,.0f}"),
    Column("p99_us", "p99 us", "{:,.0f}"),
    Column("cpu_us", "CPU us/request", "{:.2f}"),
    Column("ratio", "CPU to nginx", "{:.2f}"),
    Column("spread", "spread", "±{:.0%}"),
)
LOG_COLUMN = Column("logged", "requests logged", "{:.2%}")


class Hello(Scenario):
    """Rounds in turn over all peers, so that a slow minute of the machine hits them all; medians."""

    name = "hello"
    summary = "a 13-byte answer on 64 keep-alive connections: rate, latency, CPU per request"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Length, headers, log."""
        parser.add_argument("--rounds", type=int, default=3, help="rounds over all servers (default: 3)")
        parser.add_argument("--seconds", type=float, default=4, help="length of a measurement (default: 4)")
        parser.add_argument(
            "--warm-up", type=float, default=1, help="seconds of load before each (default: 1)"
        )
        parser.add_argument("--connections", type=int, default=64, help="keep-alive clients (default: 64)")
        parser.add_argument(
            "--headers",
            choices=[*HEADERS, "both"],
            default="both",
            help="what the client sends: Host alone, or a browser's twelve fields",
        )
        parser.add_argument(
            "--access-log",
            action="store_true",
            help="each server that can writes a combined access log to a file",
        )
        parser.add_argument(
            "--nginx-log-buffer",
            metavar="SIZE",
            help="let nginx buffer its log (`64k`); its default is a write per request",
        )

    def run(self, context: Context) -> list[Table]:
        """One table per kind of headers."""
        options = context.options
        kinds = list(HEADERS) if options.headers == "both" else [options.headers]
        peers = [peer for peer in context.peers if peer.can_log or not options.access_log]
        costs: dict[tuple[str, str], list[Cost]] = {}
        logged: dict[tuple[str, str], list[float]] = {}
        for number in range(options.rounds):
            for kind in kinds:
                for peer in peers:
                    cost, share = self._measure(context, peer, kind)
                    costs.setdefault((kind, peer.name), []).append(cost)
                    logged.setdefault((kind, peer.name), []).append(share)
                    progress(
                        f"round {number + 1}/{options.rounds} {kind:8}{peer.name:10}"
                        f"{cost.load.rate:10,.0f} req/s {cost.cpu_us:8.2f} us CPU"
                    )
        return [self._table(context, kind, peers, costs, logged) for kind in kinds]

    def _measure(self, context: Context, peer: Peer, kind: str) -> tuple[Cost, float]:
        """The cost, and the share of the requests that are in the access log when the server has ended."""
        options, headers = context.options, HEADERS[kind]
        log = context.base / f"{peer.name}-access.log"
        with running(
            peer,
            context.cores,
            context.base,
            connections=options.connections,
            access_log=options.access_log,
            log_buffer=options.nginx_log_buffer,
        ) as server:
            warm = wrk(
                server.url,
                context.cores.client,
                seconds=options.warm_up,
                connections=options.connections,
                headers=headers,
            )
            meter = Meter(server)
            load = wrk(
                server.url,
                context.cores.client,
                seconds=options.seconds,
                connections=options.connections,
                headers=headers,
            )
            cost = meter.cost(load)
            server.tree.stop()
            if server.launch.access_log is not None:
                server.launch.access_log.rename(log)
        if not options.access_log:
            return cost, 0.0
        try:
            return cost, _count_lines(log) / (load.requests + warm.requests)
        finally:
            log.unlink()

    @staticmethod
    def _table(
        context: Context,
        kind: str,
        peers: list[Peer],
        costs: dict[tuple[str, str], list[Cost]],
        logged: dict[tuple[str, str], list[float]],
    ) -> Table:
        options = context.options
        columns = (*COLUMNS, LOG_COLUMN) if options.access_log else COLUMNS
        log = ""
        if options.access_log:
            buffer = f", nginx's buffered {options.nginx_log_buffer}" if options.nginx_log_buffer else ""
            log = f", access log on{buffer}"
        fields = f"{len(HEADERS[kind]) + 1} header field{'s' if HEADERS[kind] else ''}"
        table = Table(f"hello, {kind} request ({fields}), {options.connections} connections{log}", columns)
        for peer in peers:
            rounds = costs[kind, peer.name]
            cpu = [cost.cpu_us for cost in rounds]
            table.rows.append(
                {
                    "peer": peer.name,
                    "headers": kind,
                    "rate": statistics.median(cost.load.rate for cost in rounds),
                    "p50_us": statistics.median(cost.load.p50_us for cost in rounds),
                    "p99_us": statistics.median(cost.load.p99_us for cost in rounds),
                    "cpu_us": statistics.median(cpu),
                    "spread": (max(cpu) - min(cpu)) / 2 / statistics.median(cpu),
                    "cpu_us_rounds": cpu,
                    "logged": min(logged[kind, peer.name]) if options.access_log else None,
                }
            )
        floor = next((row["cpu_us"] for row in table.rows if row["peer"] == "nginx"), None)
        for row in table.rows:
            row["ratio"] = row["cpu_us"] / floor if floor else None
        return table


def _count_lines(path: Path) -> int:
    count = 0
    with open(path, "rb") as log:
        while block := log.read(1 << 20):
            count += block.count(b"\n")
    return count
