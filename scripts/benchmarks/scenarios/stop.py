"""A graceful stop with many idle clients and one long request: those go at once, this one is answered."""

from __future__ import annotations

import argparse
import threading
import time
from http.client import HTTPConnection, HTTPException

from ..apps import HELLO
from ..holders import holders
from ..peers import Peer
from ..report import Column, Table
from ..server import Server, running
from .base import Context, Row, Scenario, ScenarioFailed, progress

COLUMNS = (
    Column("peer", "server"),
    Column("idle", "idle clients", "{:,}"),
    Column("stopped_s", "down after s", "{:.2f}"),
    Column("long", "long request"),
    Column("long_stopped_s", "with it down after s", "{:.2f}"),
)


class Stop(Scenario):
    """Two stops: with idle clients alone, and with a request under way as well."""

    name = "stop"
    summary = "a graceful stop with idle clients, then with a long request too: how long, and is it answered?"
    peers = ("acme", "gunicorn")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """How many, how long."""
        parser.add_argument("--clients", type=int, default=1000, help="idle connections (default: 1000)")
        parser.add_argument("--request", type=float, default=20, help="the long request (default: 20 s)")
        parser.add_argument(
            "--within", type=float, default=3, help="seconds idle clients may cost (default: 3)"
        )

    def run(self, context: Context) -> list[Table]:
        """One table; a stop that takes too long, or cuts the request, fails ACME."""
        options = context.options
        table = Table(f"stop: {options.clients:,} idle clients, a request of {options.request:g} s", COLUMNS)
        for peer in context.peers:
            if not peer.can_fork:
                progress(f"{peer.name}: knows no graceful stop, left out")
                continue
            if (row := context.attempt(peer, _measure)) is None:
                continue
            table.rows.append(row)
            if peer.name == "acme" and (complaint := _complaint(row, options.within)):
                context.failures[peer.name] = complaint
        return [table]


def _complaint(row: Row, within: float) -> str | None:
    if row["stopped_s"] > within:
        return f"{row['idle']} idle clients held the stop up for {row['stopped_s']:.1f} s"
    if row["long"] != "answered":
        return f"the long request: {row['long']}"
    return None


def _measure(context: Context, peer: Peer) -> Row:
    options = context.options
    stopped, _ = _stop(context, peer, 0.0)
    long_stopped, how = _stop(context, peer, options.request)
    return {
        "peer": peer.name,
        "idle": options.clients,
        "stopped_s": stopped,
        "long": how,
        "long_stopped_s": long_stopped,
    }


def _stop(context: Context, peer: Peer, request: float) -> tuple[float, str]:
    """Seconds from the signal to the end of the last process, and what became of the long request."""
    count = context.options.clients
    patience = request + 15
    keys: dict[str, str | int | float] = {"shutdown_timeout": "30s" if request < 25 else f"{request + 5:g}s"}
    answer: list[str] = []
    with (
        running(peer, context.cores, context.base, site="sleep", connections=2 * count, keys=keys) as server,
        holders(server.launch.port, count, context.cores.client) as clients,
    ):
        opened = clients.open()
        if opened.answered != count:
            raise ScenarioFailed(f"{peer.name}: {opened.answered} of {count} clients, {opened.failed}")
        thread = threading.Thread(target=lambda: answer.append(_ask(server, request)), daemon=True)
        if request:
            thread.start()
            time.sleep(min(1.0, request / 2))  # it is in the handler
        began = time.monotonic()
        server.tree.stop(patience)
        seconds = time.monotonic() - began
        if request:
            thread.join(patience)
    progress(f"{peer.name}: down after {seconds:.2f} s {answer[0] if answer else ''}")
    return seconds, answer[0] if answer else "no end" if request else "none"


def _ask(server: Server, seconds: float) -> str:
    connection = HTTPConnection(server.connect, server.launch.port, timeout=seconds + 30)
    try:
        connection.request("GET", f"/?{seconds:g}")
        response = connection.getresponse()
        return "answered" if (response.status, response.read()) == (200, HELLO) else f"{response.status}"
    except (OSError, HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
