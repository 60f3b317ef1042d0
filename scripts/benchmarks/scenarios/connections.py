"""Ten thousand keep-alive clients: first as fast as the server can, then at 60 % of that rate."""

from __future__ import annotations

import argparse

from ..load import HEADERS, Load, h2load_paced, wrk
from ..peers import Peer
from ..report import Column, Table
from ..server import Server, running
from .base import Context, Meter, Row, Scenario, noise_remark, progress

COLUMNS = (
    Column("peer", "server"),
    Column("rate", "requests/s", "{:,.0f}"),
    Column("p50_ms", "p50 ms", "{:,.1f}"),
    Column("p99_ms", "p99 ms", "{:,.1f}"),
    Column("max_ms", "max ms", "{:,.1f}"),
    Column("cpu_us", "CPU us/request", "{:.2f}"),
    Column("rate_ratio", "rate to nginx", "{:.2f}"),
    Column("p99_ratio", "p99 to nginx", "{:.2f}"),
    Column("errors", "errors"),
    Column("paced_rate", "then requests/s", "{:,.0f}"),
    Column("paced_p50_ms", "p50 ms", "{:,.2f}"),
    Column("paced_p99_ms", "p99 ms", "{:,.2f}"),
)


class Connections(Scenario):
    """A closed loop of N clients waits N/throughput on average, so compare with nginx, don't fix a figure."""

    name = "connections"
    summary = "10,000 keep-alive clients: at saturation, then at 60 %% of the measured rate"
    peers = ("nginx", "acme")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """How many clients, how long."""
        parser.add_argument("--clients", type=int, default=10_000, help="connections (default: 10000)")
        parser.add_argument("--rounds", type=int, default=1, help="rounds; the best rate counts (default: 1)")
        parser.add_argument("--seconds", type=float, default=15, help="length at saturation (default: 15)")
        parser.add_argument(
            "--paced-seconds", type=float, default=10, help="length at the share (default: 10)"
        )
        parser.add_argument("--share", type=float, default=0.6, help="of the measured rate (default: 0.6)")
        parser.add_argument("--headers", choices=list(HEADERS), default="lean", help="(default: lean)")

    def run(self, context: Context) -> list[Table]:
        """One table. Errors and timeouts at saturation are counted; at the lower rate they fail the run."""
        options = context.options
        table = Table(f"connections: {options.clients:,} keep-alive clients", COLUMNS)
        best: dict[str, Row] = {}
        for _ in range(options.rounds):
            for peer in context.peers:
                row = context.attempt(peer, self._measure)
                if row and (peer.name not in best or row["rate"] > best[peer.name]["rate"]):
                    best[peer.name] = row
        table.rows += best.values()
        floor = best.get("nginx")
        for row in table.rows:
            row["rate_ratio"] = row["rate"] / floor["rate"] if floor else None
            row["p99_ratio"] = row["p99_ms"] / floor["p99_ms"] if floor else None
        table.remarks += noise_remark((row["foreign_cpu"] for row in table.rows), context.cores)
        return [table]

    def _measure(self, context: Context, peer: Peer) -> Row:
        options = context.options
        with running(peer, context.cores, context.base, connections=options.clients + 256) as server:
            wrk(server.url, context.cores.client, seconds=1)
            meter = Meter(server, context.cores)
            full = wrk(
                server.url,
                context.cores.client,
                seconds=options.seconds,
                connections=options.clients,
                headers=HEADERS[options.headers],
                count_errors=True,
            )
            cost = meter.cost(full)
            progress(f"{peer.name}: {full.rate:,.0f} requests/s, p99 {full.p99_us / 1000:,.1f} ms")
            paced = self._paced(context, server, full)
        errors = ", ".join(f"{kind} {count}" for kind, count in full.errors.items())
        return {
            "peer": peer.name,
            "rate": full.rate,
            "p50_ms": full.p50_us / 1000,
            "p99_ms": full.p99_us / 1000,
            "max_ms": full.max_us / 1000,
            "cpu_us": cost.cpu_us,
            "foreign_cpu": cost.foreign,
            "errors": errors or "none",
            "paced_rate": paced.rate,
            "paced_p50_ms": paced.p50_us / 1000,
            "paced_p99_ms": paced.p99_us / 1000,
            "paced_max_ms": paced.max_us / 1000,
        }

    @staticmethod
    def _paced(context: Context, server: Server, full: Load) -> Load:
        options = context.options
        return h2load_paced(
            server.url,
            context.cores.client,
            rate=full.rate * options.share,
            connections=options.clients,
            seconds=options.paced_seconds,
            base=context.base,
        )
