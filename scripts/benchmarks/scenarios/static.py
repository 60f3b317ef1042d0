"""Files, small and large, as they are and compressed, and what applications answer, compressed."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ..documents import Directory, write_directory
from ..load import HEADERS
from ..machine import MachineError
from ..peers import Peer
from ..report import Column, Table
from . import compress
from .base import (
    Context,
    Cost,
    Row,
    Scenario,
    compare,
    headers_argument,
    kinds_of_headers,
    load_arguments,
    medians,
    noise_remark,
)
from .entries import Entry, Sample, Samples, measure_rounds

PARTS = ("small", "large", *compress.PARTS)
#: ACME's ways to send a file: its section `static`. What isn't named is as shipped.
WAYS: dict[str, dict[str, object]] = {
    "sendfile": {},
    "read": {"zero_copy": False},
    "mmap": {"mmap": {"enabled": True, "threshold": "16KB", "max_size": "64GB"}},
    "direct": {"direct_io": True, "direct_io_threshold": "64KB"},
}

SMALL_COLUMNS = (
    Column("peer", "server"),
    Column("way", "way"),
    Column("file", "file"),
    Column("headers", "request"),
    Column("rate", "requests/s", "{:,.0f}"),
    Column("p50_us", "p50 us", "{:,.0f}"),
    Column("p99_us", "p99 us", "{:,.0f}"),
    Column("cpu_us", "CPU us/request", "{:.2f}"),
    Column("ratio", "CPU to nginx", "{:.2f}"),
    Column("spread", "spread", "±{:.0%}"),
)
LARGE_COLUMNS = (
    Column("peer", "server"),
    Column("way", "way"),
    Column("gb_s", "GB/s", "{:.2f}"),
    Column("gb_cpu_s", "GB per CPU second", "{:.2f}"),
    Column("ratio", "to nginx", "{:.2f}"),
    Column("spread", "spread", "±{:.0%}"),
)


class Static(Scenario):
    """Rounds in turn over everything that is to be measured; medians."""

    name = "static"
    summary = "files of 4 KB, 100 KB and 1 GB, and 31 KB compressed: CPU time beside nginx's"
    peers = ("nginx", "acme")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Which parts, how long, which ways and levels."""
        parser.add_argument(
            "--what", type=some_of(PARTS), default=PARTS, metavar="PART,...", help=f"of {', '.join(PARTS)}"
        )
        load_arguments(parser)
        headers_argument(parser, "both", of_whom="the client of the small files")
        parser.add_argument(
            "--ways",
            type=some_of(WAYS),
            default=("sendfile",),
            metavar="WAY,...",
            help=f"how ACME sends files, of {', '.join(WAYS)} (default: sendfile, as shipped)",
        )
        parser.add_argument("--megabytes", type=int, default=1024, help="of the large file (default: 1024)")
        parser.add_argument(
            "--large-connections", type=int, default=2, help="clients of the large file (default: 2)"
        )
        compress.arguments(parser)

    def run(self, context: Context) -> list[Table]:
        """A table for the small files, one for the large one, one for what is compressed."""
        options = context.options
        peers = [peer for peer in context.peers if peer.can_serve_files]
        if not peers:
            raise MachineError("none of these peers serves files")
        large = options.megabytes << 20 if "large" in options.what else 0
        directory = write_directory(context.base / "files", large)
        small = _small(peers, directory, options) if "small" in options.what else []
        big = _large(peers, directory, options) if large else []
        compressed = compress.entries(peers, directory, options)
        samples = measure_rounds(context, [*small, *big, *compressed], directory.root)
        tables = []
        for entries, table in ((small, _small_table), (big, _large_table), (compressed, compress.table)):
            if entries:
                own = [(entry, taken) for entry, taken in samples if entry in entries]
                tables.append(table(options, own))
                shares = (cost.foreign for _, taken in own for cost in _costs(taken))
                tables[-1].remarks += noise_remark(shares, context.cores)
        return tables


def some_of(names: Sequence[str] | dict[str, Any]) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that takes some of `names`, with commas between."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(filter(None, text.split(",")))
        if not chosen or not set(chosen) <= set(names):
            raise argparse.ArgumentTypeError(f"{text!r}: give some of {', '.join(names)}")
        return chosen

    return parse


def _ways(peer: Peer, options: argparse.Namespace) -> list[tuple[str, dict[str, dict[str, object]]]]:
    """By which ways a peer sends files, each with the sections that ask for it. Others than ACME have one."""
    if peer.name != "acme":
        return [("sendfile", {})]
    return [(way, {"static": WAYS[way]} if WAYS[way] else {}) for way in options.ways]


def _small(peers: Sequence[Peer], directory: Directory, options: argparse.Namespace) -> list[Entry]:
    return [
        Entry(
            peer,
            {"peer": peer.name, "way": way, "file": name, "headers": kind},
            f"/{name}",
            directory.root / name,
            HEADERS[kind],
            sections=sections,
        )
        for name in directory.small
        for kind in kinds_of_headers(options)
        for peer in peers
        for way, sections in _ways(peer, options)
    ]


def _large(peers: Sequence[Peer], directory: Directory, options: argparse.Namespace) -> list[Entry]:
    return [
        Entry(
            peer,
            {"peer": peer.name, "way": way, "file": name},
            f"/{name}",
            directory.root / name,
            sections=sections,
            large=True,
        )
        for name in directory.large
        for peer in peers
        for way, sections in _ways(peer, options)
    ]


def _small_table(options: argparse.Namespace, samples: Samples) -> Table:
    """Each to nginx with the same file and the same request."""
    table = Table(f"files, {options.connections} connections", SMALL_COLUMNS)
    table.rows += [{**entry.cells, **medians(_costs(taken))} for entry, taken in samples]
    compare(table.rows, "cpu_us", "nginx", "ratio", alike=("file", "headers"))
    return table


def _large_table(options: argparse.Namespace, samples: Samples) -> Table:
    """Bytes, not requests: more is better."""
    title = f"a file of {options.megabytes} MB in the page cache, {options.large_connections} connections"
    table = Table(title, LARGE_COLUMNS)
    for entry, taken in samples:
        row: Row = {**entry.cells, **medians(_costs(taken))}
        loads = [sample.cost.load for sample in taken]
        row["gb_s"] = statistics.median(load.received / load.seconds / 1e9 for load in loads)
        row["gb_cpu_s"] = taken[0].size / 1e9 / (row["cpu_us"] / 1e6)
        table.rows.append(row)
    compare(table.rows, "gb_cpu_s", "nginx", "ratio")
    return table


def _costs(samples: Sequence[Sample]) -> list[Cost]:
    return [sample.cost for sample in samples]
