"""13 bytes over 64 keep-alive connections: what a request costs when the application does nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..load import HEADERS, wrk
from ..peers import Peer
from ..report import Column, Table
from ..server import running
from .base import (
    Context,
    Cost,
    Meter,
    Row,
    Scenario,
    compare,
    headers_argument,
    kinds_of_headers,
    load_arguments,
    medians,
    noise_remark,
    progress,
)

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


@dataclass(frozen=True)
class Sample:
    """One measurement; `logged` is the share of all requests that stand in the access log at the end."""

    cost: Cost
    logged: float | None


Samples = dict[tuple[str, str], list[Sample]]  # by kind of headers and peer


class Hello(Scenario):
    """Rounds in turn over all peers, so that a slow minute of the machine hits them all; medians."""

    name = "hello"
    summary = "a 13-byte answer on 64 keep-alive connections: rate, latency, CPU per request"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Length, headers, log."""
        load_arguments(parser)
        headers_argument(parser, "both")
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
        kinds = kinds_of_headers(options)
        peers = [peer for peer in context.peers if peer.can_log or not options.access_log]
        samples: Samples = {}
        for number in range(options.rounds):
            for kind in kinds:
                for peer in peers:
                    sample = context.attempt(peer, partial(_measure, headers=HEADERS[kind]))
                    if sample is None:
                        continue
                    samples.setdefault((kind, peer.name), []).append(sample)
                    progress(
                        f"round {number + 1}/{options.rounds} {kind:8}{peer.name:10}"
                        f"{sample.cost.load.rate:10,.0f} req/s {sample.cost.cpu_us:8.2f} us CPU"
                    )
        return [_table(context, kind, samples) for kind in kinds]


def _measure(context: Context, peer: Peer, *, headers: dict[str, str]) -> Sample:
    """Warm up, load, stop; then count the lines of the log."""
    options, cores = context.options, context.cores
    log = context.base / f"{peer.name}-access.log"
    with running(
        peer,
        cores,
        context.base,
        connections=options.connections,
        access_log=options.access_log,
        log_buffer=options.nginx_log_buffer,
    ) as server:
        load = partial(wrk, server.url, cores.client, connections=options.connections, headers=headers)
        warm = load(seconds=options.warm_up)
        meter = Meter(server, cores)
        cost = meter.cost(load(seconds=options.seconds))
        server.tree.stop()
        if server.launch.access_log is not None:
            server.launch.access_log.rename(log)
    if not options.access_log:
        return Sample(cost, None)
    try:
        return Sample(cost, _count_lines(log) / (cost.load.requests + warm.requests))
    finally:
        log.unlink()


def _table(context: Context, kind: str, samples: Samples) -> Table:
    """Medians over the rounds."""
    options = context.options
    log = ""
    if options.access_log:
        buffer = f", nginx's buffered {options.nginx_log_buffer}" if options.nginx_log_buffer else ""
        log = f", access log on{buffer}"
    fields = f"{len(HEADERS[kind]) + 1} header field{'s' if HEADERS[kind] else ''}"
    title = f"hello, {kind} request ({fields}), {options.connections} connections{log}"
    table = Table(title, (*COLUMNS, LOG_COLUMN) if options.access_log else COLUMNS)
    for peer in context.peers:
        if rounds := samples.get((kind, peer.name)):
            table.rows.append({"peer": peer.name, "headers": kind, **_medians(rounds)})
    compare(table.rows, "cpu_us", "nginx", "ratio")
    table.remarks += noise_remark((row["foreign_cpu"] for row in table.rows), context.cores)
    return table


def _medians(rounds: list[Sample]) -> Row:
    return {
        **medians([sample.cost for sample in rounds]),
        "logged": min((sample.logged for sample in rounds if sample.logged is not None), default=None),
    }


def _count_lines(path: Path) -> int:
    count = 0
    with open(path, "rb") as log:
        while block := log.read(1 << 20):
            count += block.count(b"\n")
    return count
