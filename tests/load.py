"""Servers under load: the bench's clients, which account for each request, at the size of a test.

    with under_load(server) as outcome:
        server.order("reload")
    nothing_lost(outcome)

The application must be `MARK`: it answers the worker's process id and the request's own mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scripts.benchmarks.closed_loop import ClosedLoop, Outcome, going
from tests.server import Server, wait_until

MARK = "from scripts.benchmarks.apps import mark as app\n"


@contextmanager
def under_load(server: Server, *, kept: int = 6, fresh: int = 3, patience: float = 10.0) -> Iterator[Outcome]:
    """Clients on `kept` connections and `fresh` ones with a connection for each request, all the while."""
    loop = ClosedLoop((server.host, server.port), kept, fresh=fresh, marks=True, patience=patience)
    with going(loop) as outcome:
        more_answers(outcome)
        yield outcome


def more_answers(outcome: Outcome, count: int = 50) -> None:
    """Wait until so many more requests are answered: the load is there, and gets its answers."""
    before = outcome.answered
    wait_until(lambda: outcome.answered >= before + count, f"{count} more answers; failed: {outcome.kinds()}")


def nothing_lost(outcome: Outcome) -> None:
    """Every request that was sent has got its own answer."""
    assert outcome.failures == [], f"of {outcome.asked} requests failed: {outcome.kinds()}"
    assert outcome.asked == outcome.answered > 0
