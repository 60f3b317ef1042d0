"""`acme-server status`: how the running server is.

Law: asks one question and shows the answer; judges nothing but whether the server serves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from acme_wsgi.cli import backends, client, display
from acme_wsgi.cli.display import Column
from acme_wsgi.cli.server import (
    NotRunning,
    add_json_argument,
    add_server_arguments,
    answered,
    find_directory,
    shown,
)

NAME = "status"
HELP = "show how the running server is; exits with 0 if it serves, 1 if it runs but does not serve, 3 if none"

NOT_RUNNING = 3
"""Exit status if there is no server, as the LSB has it for init scripts."""

_SERVING = ("serving", "reloading", "upgrading")

# Each column of the table of workers, with the key and the form of its values.
_COLUMNS = (
    (Column("worker"), "number", "count"),
    (Column("pid"), "pid", "text"),
    (Column("state"), "state", "text"),
    (Column("gen", spare=5), "generation", "text"),
    (Column("uptime", spare=1), "uptime", "time"),
    (Column("requests"), "requests", "count"),
    (Column("errors"), "errors", "count"),
    (Column("in flight", spare=3), "in_flight", "count"),
    (Column("queued", spare=4), "queued", "count"),
    (Column("conns", spare=6), "connections", "count"),
    (Column("idle", spare=7), "idle", "count"),
    (Column("stalls", spare=2), "stalls", "count"),
    (Column("cpu"), "cpu_percent", "percent"),
    (Column("memory"), "pss", "size"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    add_server_arguments(parser)
    add_json_argument(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show it; returns 0, 1 or 3."""
    return answered(options, lambda: _status(options, environ))


def _status(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    directory = find_directory(options, environ)
    try:
        answer = client.call(directory, "status")
    except NotRunning as error:
        print(_json({"ok": False, "state": "stopped", "error": str(error)}) if options.json else error)
        return NOT_RUNNING
    healthy = serves(answer)
    if options.json:
        print(_json({**answer, "ok": healthy}))
    else:
        print("\n".join(_shown(answer)))
    return 0 if healthy else 1


def serves(answer: Mapping[str, Any]) -> bool:
    """Whether a server with that status answers requests: one worker is enough."""
    ready = any(worker.get("state") == "ready" for worker in client.mappings(answer.get("workers")))
    return ready and answer.get("state") in _SERVING


def _json(answer: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in answer.items() if key != "acme"}, indent=2)


# -- for a person -----------------------------------------------------------------------------------------


def _shown(answer: Mapping[str, Any]) -> Iterator[str]:
    """The whole answer, line by line."""
    version, state, pid, generation = (
        shown(answer.get(key)) for key in ("version", "state", "pid", "generation")
    )
    uptime = _form(answer.get("uptime"), "time")
    yield f"acme {version} is {state}: pid {pid}, up {uptime}, generation {generation}"
    logs = answer.get("logs")
    logs = logs if isinstance(logs, dict) else {}
    for title, value in (
        ("addresses", _joined(answer.get("addresses"))),
        ("configuration", _joined(answer.get("config")) or "none but the command line"),
        ("runtime dir", shown(answer.get("runtime_dir"))),
        ("log", shown(logs.get("error") or "-")),
        ("errors", shown(logs.get("errors") or "")),
        ("access log", shown(logs.get("access") or "none")),
        ("last reload", _reload(answer.get("last_reload"))),
        ("systemd", shown(answer.get("systemd") or "")),
    ):
        if value:
            yield f"  {title:<14} {value}"
    workers = [*client.mappings(answer.get("workers")), *client.mappings(answer.get("leaving"))]
    yield ""
    yield from _table(workers)
    yield from _stalled(workers)
    yield from backends.lines(answer.get("backends"), display.room_of(sys.stdout)[0])


def _table(workers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [[_form(worker.get(key), form) for _, key, form in _COLUMNS] for worker in workers]
    yield from display.table([column for column, _, _ in _COLUMNS], rows, display.room_of(sys.stdout)[0])
    if not workers:
        yield "no worker runs"


def _stalled(workers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Who stands still right now, and where."""
    for worker in workers:
        stalled = worker.get("stalled")
        if isinstance(stalled, dict):
            where = f"{shown(stalled.get('route'))} at {shown(stalled.get('where'))}"
            seconds = _form(stalled.get("seconds"), "time")
            yield f"worker {shown(worker.get('number'))} has stood still for {seconds}: {where}"


def _reload(last: object) -> str:
    if not isinstance(last, dict):
        return ""
    at = last.get("at")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else "-"
    if not last.get("ok"):
        return f"{when} failed, the old configuration stays: {shown(last.get('error'))}"
    left = _joined(last.get("left"))
    return f"{when} generation {shown(last.get('generation'))}" + (
        f"; left as it was: {left}" if left else ""
    )


def _form(value: object, form: str) -> str:
    """A value as the table shows it; what isn't known, or isn't what it should be, as well."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shown(value)
    match form:
        case "count":
            return f"{value:,.0f}"
        case "percent":
            return f"{value:.1f}%"
        case "size":
            return _size(value)
        case "time":
            return _time(value)
    return shown(value)


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"


def _time(seconds: float) -> str:
    """The two largest units that matter: ``3d 4h``, ``12m 5s``, ``2.5s``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, length, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length}{unit} {whole % length // smaller}{below}"
    return f"{whole}s"


def _joined(value: object) -> str:
    return ", ".join(map(shown, client.items(value)))
