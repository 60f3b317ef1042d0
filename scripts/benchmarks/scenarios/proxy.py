"""Requests that a backend answers: what passing one on costs, beside nginx and HAProxy.

This file: the scenario, and its first part, requests over kept connections on both sides. The others are
proxy_queue.py and proxy_body.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..load import HEADERS, wrk
from ..machine import MachineError
from ..origin import Origin, serving
from ..peers import Peer, Upstream
from ..report import Column, Table
from ..server import Server, running
from ..sizes import parse_sizes, write_size
from . import base, proxy_body, proxy_queue
from .base import (
    Context,
    Cost,
    Meter,
    Row,
    Scenario,
    ScenarioFailed,
    Turn,
    headers_argument,
    in_turn,
    kinds_of_headers,
    load_arguments,
    medians,
    noise_remark,
    progress,
)
from .entries import ask_often, in_full
from .static import some_of

PARTS = ("requests", "connections", "body")
FLOORS = ("nginx", "haproxy")
COLUMNS = (
    Column("peer", "server"),
    Column("size", "answer"),
    Column("headers", "request"),
    Column("rate", "requests/s", "{:,.0f}"),
    Column("p50_us", "p50 us", "{:,.0f}"),
    Column("p99_us", "p99 us", "{:,.0f}"),
    Column("core", "core used", "{:.0%}"),
    Column("cpu_us", "CPU us/request", "{:.2f}"),
    Column("to_nginx", "CPU to nginx", "{:.2f}"),
    Column("to_haproxy", "CPU to HAProxy", "{:.2f}"),
    Column("spread", "spread", "±{:.0%}"),
    Column("opened", "connections opened to the backend", "{:,}"),
)
_NEW = 0.01  # of the requests may open a connection: more, and it isn't keep-alive what is measured


@dataclass(frozen=True)
class Sample:
    """One measurement, and how many connections the backend got meanwhile."""

    cost: Cost
    opened: int


class Proxy(Scenario):
    """The backend runs on the clients' core; only the proxy's own CPU time counts."""

    name = "proxy"
    summary = "passing requests on: CPU per request, 10,000 clients over 32 connections, large bodies"
    peers = ("nginx", "haproxy", "acme")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Which parts, how long; then those of each part."""
        parser.add_argument(
            "--what", type=some_of(PARTS), default=PARTS, metavar="PART,...", help=f"of {', '.join(PARTS)}"
        )
        load_arguments(parser)
        parser.add_argument(
            "--sizes",
            type=parse_sizes,
            default=(13, 4 << 10, 100 << 10),
            metavar="SIZE,...",
            help="of the answers (default: 13,4KB,100KB)",
        )
        headers_argument(parser, "browser")
        parser.add_argument(
            "--forwarded",
            action="store_true",
            help="nginx and HAProxy too tell the backend who asked: X-Forwarded-For, -Proto, -Host",
        )
        proxy_queue.arguments(parser)
        proxy_body.arguments(parser)

    def run(self, context: Context) -> list[Table]:
        """A table for each part, all with the same origin."""
        options = context.options
        peers = [peer for peer in context.peers if peer.can_proxy]
        for peer in context.peers:
            if peer not in peers:
                progress(f"{peer.name}: is no proxy, left out")
        if not peers:
            raise MachineError("none of these peers is a proxy")
        large = options.bytes if "body" in options.what else 0
        with serving(context.base, context.cores.client, options.sizes, large) as origin:
            tables = []
            if "requests" in options.what:
                tables.append(_requests(context, peers, origin))
            if "connections" in options.what:
                tables.append(proxy_queue.table(context, peers, origin))
            if "body" in options.what:
                tables.append(proxy_body.table(context, peers, origin))
        return tables


def _requests(context: Context, peers: Sequence[Peer], origin: Origin) -> Table:
    """Rounds in turn over all peers and sizes."""
    options = context.options
    turns = [
        Turn(
            peer,
            {"peer": peer.name, "size": write_size(size), "headers": kind},
            partial(_measure, origin=origin, size=size, headers=HEADERS[kind]),
            lambda sample: f"{sample.cost.load.rate:10,.0f} req/s {sample.cost.cpu_us:8.2f} us CPU",
        )
        for size in options.sizes
        for kind in kinds_of_headers(options)
        for peer in peers
    ]
    forwarded = ", X-Forwarded-* added by all" if options.forwarded else ""
    table = Table(f"proxy: {options.connections} kept connections{forwarded}", COLUMNS)
    table.rows += [
        {**turn.cells, **summary(taken)} for turn, taken in in_turn(context, turns, options.rounds)
    ]
    compare(table.rows)
    table.remarks += noise_remark((row["foreign_cpu"] for row in table.rows), context.cores)
    return table


def _measure(context: Context, peer: Peer, *, origin: Origin, size: int, headers: dict[str, str]) -> Sample:
    """Start, check, warm up, load."""
    options, cores = context.options, context.cores
    with running(
        peer,
        cores,
        context.base,
        site="proxy",
        connections=options.connections,
        upstream=Upstream(origin.port, keep=options.connections, forwarded=options.forwarded),
    ) as server:
        _check(server, origin, size, headers)
        url = server.url.removesuffix("/") + origin.path(size)
        load = partial(wrk, url, cores.client, connections=options.connections, headers=headers)
        load(seconds=options.warm_up)
        with origin.watch() as watch:
            meter = Meter(server, cores)
            cost = meter.cost(load(seconds=options.seconds))
    in_full(cost.load, size)
    kept_alive(watch.opened, options.connections, cost.load.requests)
    return Sample(cost, watch.opened)


def _check(server: Server, origin: Origin, size: int, headers: dict[str, str]) -> None:
    """Raises ScenarioFailed when an answer isn't the origin's."""
    asked = {name: value for name, value in headers.items() if name != "Connection"}
    ask_often(server, origin.path(size), asked, "identity", origin.body(size))


def kept_alive(opened: int, clients: int, requests: int) -> None:
    """Raises ScenarioFailed when so many were opened that it isn't keep-alive what was measured."""
    if opened > max(clients, requests * _NEW):
        raise ScenarioFailed(f"no keep-alive to the backend: {opened} connections for {requests} requests")


def summary(samples: Sequence[Sample]) -> Row:
    """What a row says. `core`: how much of one core the proxy used; below 1, the other side was slower."""
    costs = [sample.cost for sample in samples]
    return {
        **medians(costs),
        "core": statistics.median(cost.cpu_us * cost.load.rate / 1e6 for cost in costs),
        "opened": max(sample.opened for sample in samples),
    }


def compare(rows: Sequence[Row]) -> None:
    """Each with nginx and with HAProxy, in the same answer to the same request."""
    for floor in FLOORS:
        base.compare(rows, "cpu_us", floor, f"to_{floor}", alike=("size", "headers"))
