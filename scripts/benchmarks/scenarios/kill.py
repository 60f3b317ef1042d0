"""kill -9 of a random worker every second under load: who notices?"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import time

from ..answers import REFUSED
from ..closed_loop import ClosedLoop, Failure
from ..peers import Peer
from ..report import Column, Table
from ..server import running
from .base import Context, Row, Scenario, ScenarioFailed, progress

COLUMNS = (
    Column("peer", "server"),
    Column("kills", "kills"),
    Column("answered", "requests answered", "{:,}"),
    Column("in_hands", "in killed hands"),
    Column("failed", "failed"),
    Column("explained", "of killed workers"),
    Column("new", "on new connections"),
    Column("unexplained", "of living workers"),
    Column("refused", "refused"),
    Column("workers_seen", "workers seen"),
)


class Kill(Scenario):
    """Every client knows from its last answer which worker holds its connection.

    So each failure is one of: a request in a killed worker's hands; one on a new connection that a killed
    worker had accepted but not answered; a refused connection; or unexplained. The last two must not happen.
    """

    name = "kill"
    summary = "kill -9 of a random worker each second under load: failed requests, refused connections"
    peers = ("nginx", "acme", "gunicorn")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """How long, how many."""
        parser.add_argument("--seconds", type=float, default=60, help="length (default: 60)")
        parser.add_argument("--every", type=float, default=1, help="seconds between kills (default: 1)")
        parser.add_argument("--workers", type=int, default=4, help="worker processes (default: 4)")
        parser.add_argument("--clients", type=int, default=32, help="connections (default: 32)")

    def run(self, context: Context) -> list[Table]:
        """One table; what must not happen is told as a failure of the peer, with how it looked."""
        options = context.options
        table = Table(
            f"kill: {options.clients} clients, {options.workers} workers, a kill every {options.every:g} s",
            COLUMNS,
        )
        for peer in context.peers:
            if not peer.can_fork:
                progress(f"{peer.name}: has no worker processes, left out")
                continue
            row = context.attempt(peer, self._measure)
            if row is None:
                continue
            progress(f"{peer.name}: {row['failed']} failed, {row['refused']} refused")
            table.rows.append(row)
            if row["kinds"]:
                context.failures[peer.name] = f"failures that no kill excuses: {row['kinds']}"
        return [table]

    def _measure(self, context: Context, peer: Peer) -> Row:
        options = context.options
        with running(
            peer,
            context.cores,
            context.base,
            site="pid",
            workers=options.workers,
            connections=options.clients + 64,
        ) as server:
            loop = ClosedLoop(("127.0.0.1", server.launch.port), options.clients)
            try:
                began = time.monotonic()
                loop.run(began + options.every)
                killed: dict[int, float] = {}
                in_hands = 0
                while time.monotonic() < began + options.seconds:
                    living = [pid for pid in loop.workers() if pid in server.tree.pids()]
                    if not living:
                        raise ScenarioFailed(f"{peer.name}: no worker answers any more")
                    victim = random.choice(living)
                    in_hands += loop.clients_of(victim)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                    killed[victim] = time.monotonic()
                    loop.run(time.monotonic() + options.every)
                outcome = loop.outcome
            finally:
                loop.close()
        explained, new, unexplained, refused = sort_failures(outcome.failures, killed)
        kinds: dict[str, int] = {}
        for failure in unexplained + refused:
            kinds[failure.how] = kinds.get(failure.how, 0) + 1
        return {
            "peer": peer.name,
            "kills": len(killed),
            "answered": outcome.answered,
            "in_hands": in_hands,
            "failed": len(outcome.failures),
            "explained": len(explained),
            "new": len(new),
            "unexplained": len(unexplained),
            "refused": len(refused),
            "kinds": ", ".join(f"{kind} {count}" for kind, count in kinds.items()),
            "workers_seen": len(outcome.by_worker),
        }


def sort_failures(
    failures: list[Failure], killed: dict[int, float], window: float = 1.0
) -> tuple[list[Failure], list[Failure], list[Failure], list[Failure]]:
    """Into: of killed workers, on new connections at most `window` s after a kill, unexplained, refused."""
    explained: list[Failure] = []
    new: list[Failure] = []
    unexplained: list[Failure] = []
    refused: list[Failure] = []
    for failure in failures:
        if failure.how == REFUSED:
            refused.append(failure)
        elif failure.worker in killed:
            explained.append(failure)
        elif failure.worker == 0 and any(0 <= failure.when - when <= window for when in killed.values()):
            new.append(failure)
        else:
            unexplained.append(failure)
    return explained, new, unexplained, refused
