"""More requests than a server can answer, at a rate that no answer slows down: what is answered, and when?"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial

from ..apps import HELLO, SPIN, WAIT
from ..load import wrk
from ..open_loop import Offer, OpenLoop, percentile
from ..peers import Peer, Site
from ..report import Column, Table
from ..server import running
from .base import Context, Row, Scenario, progress

COLUMNS = (
    Column("peer", "server"),
    Column("multiple", "offered", "{:g}x"),
    Column("rate", "offered/s", "{:,.0f}"),
    Column("goodput", "goodput/s", "{:,.0f}"),
    Column("shed_share", "shed", "{:.0%}"),
    Column("p50_ms", "p50 ms", "{:,.0f}"),
    Column("p99_ms", "p99 ms", "{:,.0f}"),
    Column("shed_p99_ms", "p99 ms of shed", "{:,.0f}"),
    Column("failed", "failed"),
    Column("kinds", "how"),
    Column("late_p99_ms", "sent late, p99 ms", "{:,.1f}"),
)


@dataclass(frozen=True)
class Kind:
    """An application whose capacity is known to be small, and what limits it."""

    name: str
    site: Site
    service: float  # seconds that a request takes when it is alone
    max_concurrency: int
    about: str


KINDS = (
    Kind("cpu", "spin", SPIN, 0, "5 ms of the processor a request"),
    Kind("wait", "wait", WAIT, 20, "50 ms of waiting a request, 20 at the same time"),
)


class Overload(Scenario):
    """The capacity is measured first, by a closed loop.

    Peers other than ACME have no limit on what runs at the same time and shed nothing; they are measured with
    the application that computes, and fail nothing.
    """

    name = "overload"
    summary = (
        "requests at multiples of the capacity, at a fixed rate: goodput, what is shed, p99 of the answers"
    )
    peers = ("acme", "gunicorn")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """How much, how long, what counts as good enough."""
        parser.add_argument(
            "--multiples",
            type=lambda text: [float(part) for part in text.split(",")],
            default=[0.5, 1.0, 2.0, 5.0, 10.0],
            metavar="X,...",
            help="of the capacity (default: 0.5,1,2,5,10)",
        )
        parser.add_argument(
            "--kind", choices=[kind.name for kind in KINDS], help="one application alone (default: both)"
        )
        parser.add_argument("--seconds", type=float, default=8, help="measured at each rate (default: 8)")
        parser.add_argument("--settle", type=float, default=2, help="seconds before that (default: 2)")
        parser.add_argument(
            "--queue-timeout", type=float, default=0.5, help="ACME's, in seconds (default: 0.5)"
        )
        parser.add_argument(
            "--margin", type=float, default=0.25, help="seconds beyond it that p99 may have (default: 0.25)"
        )
        parser.add_argument("--limit", type=int, default=10_000, help="connections at once (default: 10000)")
        parser.add_argument("--patience", type=float, default=10, help="of a client (default: 10 s)")

    def run(self, context: Context) -> list[Table]:
        """A table for each application; ACME fails by its verdict."""
        chosen = context.options.kind
        tables = []
        verdicts: dict[str, list[str]] = {}
        for kind in KINDS:
            if chosen not in (None, kind.name):
                continue
            table = Table(f"overload: {kind.about}", COLUMNS)
            for peer in context.peers:
                if peer.name != "acme" and (kind.max_concurrency or not peer.can_fork):
                    progress(f"{peer.name}: left out of {kind.name!r}: no such limit, or no such workers")
                    continue
                rows = context.attempt(peer, partial(_measure, kind=kind))
                if not rows:
                    continue
                table.rows += rows
                complaints = verdict(rows, _bound(context, kind))
                table.remarks.append(f"{peer.name}: {'; '.join(complaints) or 'holds what it promises'}.")
                if peer.name == "acme" and complaints:
                    verdicts.setdefault(peer.name, []).extend(f"{kind.name}: {text}" for text in complaints)
            tables.append(table)
        context.failures.update({name: "; ".join(texts) for name, texts in verdicts.items()})
        return tables


def _bound(context: Context, kind: Kind) -> float:
    """Seconds within which an accepted request is answered."""
    bound: float = context.options.queue_timeout + kind.service + context.options.margin
    return bound


def _measure(context: Context, peer: Peer, *, kind: Kind) -> list[Row]:
    """One server for all rates, from the lowest to the highest."""
    options = context.options
    keys: dict[str, str | int | float] = {"queue_timeout": f"{options.queue_timeout:g}s"}
    if kind.max_concurrency:
        keys["max_concurrency"] = kind.max_concurrency
    rows = []
    with running(
        peer, context.cores, context.base, site=kind.site, connections=options.limit + 64, keys=keys
    ) as server:
        clients = max(8, 2 * kind.max_concurrency)
        capacity = wrk(server.url, context.cores.client, seconds=4, connections=clients).rate
        progress(f"{peer.name}: capacity of {kind.name!r}: {capacity:,.0f} requests/s")
        for multiple in options.multiples:
            loop = OpenLoop(
                (server.connect, server.launch.port), HELLO, limit=options.limit, patience=options.patience
            )
            try:
                offer = loop.offer(multiple * capacity, options.seconds, settle=options.settle)
            finally:
                loop.close()
            rows.append(_row(peer, kind, multiple, capacity, offer))
            progress(
                f"{peer.name}: {multiple:g}x: {offer.goodput:,.0f} good/s, {offer.shed_share:.0%} shed,"
                f" failed: {dict(offer.failures) or 'none'} {offer.details or ''}"
            )
    return rows


def _row(peer: Peer, kind: Kind, multiple: float, capacity: float, offer: Offer) -> Row:
    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * 1000

    failures = {how: count for how, count in offer.failures.items() if count}
    return {
        "peer": peer.name,
        "application": kind.name,
        "multiple": multiple,
        "capacity": capacity,
        "rate": offer.rate,
        "due": offer.due,
        "goodput": offer.goodput,
        "shed_share": offer.shed_share,
        "p50_ms": ms(percentile(offer.good, 0.5)),
        "p99_ms": ms(percentile(offer.good, 0.99)),
        "shed_p99_ms": ms(percentile(offer.shed, 0.99)),
        "failed": sum(failures.values()),
        "kinds": ", ".join(f"{how} {count}" for how, count in failures.items()) or "none",
        "details": offer.details,
        "late_p99_ms": ms(percentile(offer.late, 0.99)),
    }


def verdict(rows: list[Row], bound: float, share: float = 0.85) -> list[str]:
    """What a server that sheds load must hold, and didn't.

    That is `share` of its peak at the highest rate, answers within `bound` seconds at each, one to everybody.
    """
    complaints = []
    peak = max(row["goodput"] for row in rows)
    last = max(rows, key=lambda row: row["multiple"])
    if not peak:
        return ["no good answer at all"]
    if last["goodput"] < share * peak:
        complaints.append(f"at {last['multiple']:g}x the goodput is {last['goodput'] / peak:.0%} of the peak")
    for row in rows:
        if row["p99_ms"] is None or row["p99_ms"] > bound * 1000:
            said = "no answer" if row["p99_ms"] is None else f"p99 {row['p99_ms']:,.0f} ms"
            complaints.append(f"at {row['multiple']:g}x {said}, beyond {bound * 1000:,.0f} ms")
        if row["failed"]:
            complaints.append(f"at {row['multiple']:g}x {row['failed']} requests failed ({row['kinds']})")
    return complaints
