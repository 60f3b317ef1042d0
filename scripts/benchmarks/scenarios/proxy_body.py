"""Third part of the scenario proxy: large bodies, down and up: bytes per CPU second, and flat memory."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..drain import compare as compare_file
from ..drain import drain
from ..load import Load
from ..origin import Origin
from ..peers import Peer, Upstream
from ..report import Column, Table
from ..server import Server, running
from ..sizes import parse_size, write_size
from ..upload import fill, verify
from . import base
from .base import Context, Cost, Meter, Row, Turn, in_turn, medians, noise_remark
from .entries import await_rest
from .static import some_of

DIRECTIONS = ("download", "upload")
COLUMNS = (
    Column("peer", "server"),
    Column("direction", "direction"),
    Column("gb_s", "GB/s", "{:.2f}"),
    Column("gb_cpu_s", "GB per CPU second", "{:.2f}"),
    Column("to_nginx", "to nginx", "{:.2f}"),
    Column("to_haproxy", "to HAProxy", "{:.2f}"),
    Column("spread", "spread", "±{:.0%}"),
    Column("pss_mb", "PSS before, MB", "{:.1f}"),
    Column("grown_mb", "peak above that, MB", "{:+.1f}"),
)
# As shipped a body may have 10 MB and a request half a minute: limits, not what is measured.
_KEYS: dict[str, str | int | float] = {"max_body_size": "1TB", "timeout": "1h"}


@dataclass(frozen=True)
class Sample:
    """One measurement. Bytes of memory: `pss` at rest before the first body; `grown`: how much more was
    resident at the highest."""

    cost: Cost
    pss: int
    grown: int


def arguments(parser: argparse.ArgumentParser) -> None:
    """How large, which way."""
    parser.add_argument(
        "--bytes", type=parse_size, default=1 << 30, metavar="SIZE", help="of a body (default: 1GB)"
    )
    parser.add_argument(
        "--directions",
        type=some_of(DIRECTIONS),
        default=DIRECTIONS,
        metavar="NAME,...",
        help=f"of a body: of {', '.join(DIRECTIONS)}",
    )
    parser.add_argument("--body-connections", type=int, default=2, help="clients of bodies (default: 2)")


def table(context: Context, peers: Sequence[Peer], origin: Origin) -> Table:
    """Rounds in turn over both directions; by bytes, so more is better."""
    options = context.options
    turns = [
        Turn(
            peer,
            {"peer": peer.name, "direction": direction},
            partial(_measure, origin=origin, direction=direction),
            lambda sample: (
                f"{_gb_cpu_s(sample.cost, options.bytes):8.2f} GB per CPU second "
                f"{sample.grown / 1e6:+8.1f} MB"
            ),
        )
        for direction in options.directions
        for peer in peers
    ]
    title = f"proxy: bodies of {write_size(options.bytes)}, {options.body_connections} at once"
    made = Table(title, COLUMNS)
    for turn, taken in in_turn(context, turns, options.rounds):
        made.rows.append({**turn.cells, **summary(taken, options.bytes)})
    compare(made.rows)
    made.remarks += noise_remark((row["foreign_cpu"] for row in made.rows), context.cores)
    return made


def _measure(context: Context, peer: Peer, *, origin: Origin, direction: str) -> Sample:
    """Start, measure memory, move one body and check each byte of it, load."""
    port = origin.port if direction == "download" else origin.sink
    with running(
        peer,
        context.cores,
        context.base,
        site="proxy",
        upstream=Upstream(port, forwarded=context.options.forwarded),
        keys=_KEYS,
    ) as server:
        await_rest(server.tree)
        pss, resident = server.tree.memory().pss, server.tree.reset_peak()
        _check(context, server, origin, direction)
        await_rest(server.tree)
        meter = Meter(server, context.cores)
        cost = meter.cost(_load(context, server, origin, direction))
        return Sample(cost, pss, server.tree.peak() - resident)


def _check(context: Context, server: Server, origin: Origin, direction: str) -> None:
    address, size = (server.connect, server.launch.port), context.options.bytes
    if direction == "download":
        compare_file(address, origin.path(size), origin.root / str(size))
    else:
        verify(address, origin.root / str(size))


def _load(context: Context, server: Server, origin: Origin, direction: str) -> Load:
    options = context.options
    address, size, count = (server.connect, server.launch.port), options.bytes, options.body_connections
    if direction == "download":
        return drain(address, origin.path(size), size=size, connections=count, seconds=options.seconds)
    return fill(address, origin.root / str(size), connections=count, seconds=options.seconds)


def _gb_cpu_s(cost: Cost, size: int) -> float:
    return size / 1e9 / (cost.cpu_us / 1e6)


def summary(samples: Sequence[Sample], size: int) -> Row:
    """What a row says; GB are 10^9 bytes, of bodies alone."""
    row = medians([sample.cost for sample in samples])
    return {
        **row,
        "gb_s": row["rate"] * size / 1e9,
        "gb_cpu_s": statistics.median(_gb_cpu_s(sample.cost, size) for sample in samples),
        "pss_mb": statistics.median(sample.pss for sample in samples) / 1e6,
        "grown_mb": max(sample.grown for sample in samples) / 1e6,
    }


def compare(rows: Sequence[Row]) -> None:
    """Each with nginx and with HAProxy, in the same direction."""
    for floor in ("nginx", "haproxy"):
        base.compare(rows, "gb_cpu_s", floor, f"to_{floor}", alike=("direction",))
