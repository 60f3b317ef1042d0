"""`acme-server stats`: what the running server does now, once or again and again.

Law: asks the server, and for `--memory` the kernel; changes nothing. Whatever the server said passes through
acme_wsgi/cli/display.py on its way to a terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from acme_wsgi import procfs
from acme_wsgi.cli import backends, client, display, server
from acme_wsgi.cli.display import Column
from acme_wsgi.units import parse_duration

NAME = "stats"
HELP = "show what the running server does: rates, latency, workers, memory"

NO_SERVER = 3
"""Exit status: no server runs there."""

_WINDOW_MOST = 600
_INTERVAL_LEAST, _INTERVAL_MOST = 0.1, 3600.0
_MEMORY = ("pss", "rss", "private", "shared", "swap")

Facts = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    server.add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON: seconds and bytes as numbers")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_interval,
        const=2.0,
        metavar="SECONDS",
        help="again and again until Ctrl-C, every 2 seconds unless told; with --json a line each time",
    )
    parser.add_argument(
        "--memory", action="store_true", help="the memory of each process in detail, instead of rates"
    )
    parser.add_argument(
        "--window",
        type=_window,
        default=10,
        metavar="SECONDS",
        help=f"the time that rates and percentiles are made of, 1 to {_WINDOW_MOST} seconds; default: 10",
    )
    parser.add_argument(
        "--history",
        action="store_true",
        help=f"every sample of the last {_WINDOW_MOST} seconds as well; as JSON",
    )


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show it; returns 0, or 3 when no server runs. Raises ControlError."""
    return server.answered(options, lambda: _run(options, environ))


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    directory = server.find_directory(options, environ)
    try:
        if options.watch is not None:
            return _watch(options, directory)
        answer = _look(options, directory)
    except server.NotRunning as error:
        if _wants_json(options):
            sys.stdout.write(_as_json({"ok": False, "error": str(error)}))
        print(error, file=sys.stderr)
        return NO_SERVER
    except KeyboardInterrupt:
        return 0 if options.watch is not None else 128 + signal.SIGINT
    sys.stdout.write(_as_json(answer, indent=2) if _wants_json(options) else _page(options, answer))
    return 0


def _wants_json(options: argparse.Namespace) -> bool:
    return bool(options.json or options.history)


def _as_json(answer: Facts, indent: int | None = None) -> str:
    return json.dumps(answer, indent=indent) + "\n"


def _page(options: argparse.Namespace, answer: Facts) -> str:
    show = memory_lines if options.memory else stats_lines
    return "\n".join(show(answer, display.room_of(sys.stdout)[0])) + "\n"


# -- asking -----------------------------------------------------------------------------------------------


def _look(options: argparse.Namespace, directory: str) -> dict[str, Any]:
    """What is to be shown. Raises ControlError."""
    return _memory(directory) if options.memory else _stats(options, directory)


def _stats(options: argparse.Namespace, directory: str) -> dict[str, Any]:
    arguments = {"seconds": options.window, "history": options.history}
    status = client.call(directory, "status")
    answer = client.call(directory, "stats", arguments)
    about = ("pid", "version", "state", "uptime", "generation", "addresses")
    return {
        "server": {name: status.get(name) for name in about},
        **client.facts(answer),
        "backends": status.get("backends", []),
    }


def _memory(directory: str) -> dict[str, Any]:
    """The memory of every process that the server says it has."""
    status = client.call(directory, "status")
    named = [("arbiter", status.get("pid"))]
    for kind, name in (("workers", "worker"), ("leaving", "leaving worker")):
        named += [
            (f"{name} {each.get('number')}", each.get("pid")) for each in client.mappings(status.get(kind))
        ]
    processes = [_memory_of(name, pid) for name, pid in named if type(pid) is int and pid > 0]
    sums: dict[str, int | None] = {}
    for kind in _MEMORY:
        known = [process[kind] for process in processes if process[kind] is not None]
        # A sum that lacks a process would be taken for the whole.
        alive = [process for process in processes if process["rss"] is not None]
        sums[kind] = sum(known) if known and len(known) == len(alive) else None
    return {"processes": processes, "total": sums}


def _memory_of(name: str, pid: int) -> dict[str, Any]:
    found = procfs.memory(pid)
    return {"name": name, "pid": pid, **{kind: getattr(found, kind, None) for kind in _MEMORY}}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# -- the page ---------------------------------------------------------------------------------------------

_WORKERS = (
    Column("worker"),
    Column("pid", spare=3),
    Column("state", left=True, spare=1),
    Column("requests/s"),
    Column("p50", spare=5),
    Column("p99"),
    Column("in flight", spare=4),
    Column("queued", spare=6),
    Column("connections", spare=7),
    Column("CPU"),
    Column("PSS", spare=2),
)


def stats_lines(answer: Facts, width: int | None) -> list[str]:
    """The answer as a page of lines, each no longer than `width`.

    :param answer: what the server said, and under "server" who it is
    """
    latency, statuses = _dict(answer.get("latency")), _dict(answer.get("statuses"))
    number = display.number
    lines = [display.cut(_headline(_dict(answer.get("server"))), width)]
    lines += _addresses(_dict(answer.get("server")), width)
    traffic = [
        f"{number(answer.get('requests_per_second'))}/s",
        f"in {display.size(answer.get('bytes_in_per_second'))}/s",
        f"out {display.size(answer.get('bytes_out_per_second'))}/s",
        f"errors {number(answer.get('errors_per_second'))}/s",
        f"(over {display.age(answer.get('seconds'))})",
    ]
    lines += display.facts("requests", traffic, width)
    percentiles = ("p50", "p90", "p95", "p99", "mean")
    took = [f"{one} {display.duration(latency.get(one))}" for one in percentiles]
    lines += display.facts("latency", took, width)
    families = [f"{name} {number(statuses[name])}/s" for name in _FAMILIES if statuses.get(name)]
    lines += display.facts("statuses", families or ["none"], width)
    lines += display.facts("waiting", _waiting(answer), width)
    held = [
        f"{number(answer.get('connections'))} open",
        f"{number(answer.get('idle'))} idle",
        f"{number(answer.get('connections_per_second'))}/s new",
    ]
    lines += display.facts("connections", held, width)
    used = [f"CPU {display.percent(answer.get('cpu_percent'))}", f"PSS {display.size(answer.get('pss'))}"]
    if answer.get("pss_exact") is False:
        used.append("(RSS where PSS is kept from us)")
    lines += display.facts("processes", used, width)
    rows = [_worker_row(worker) for worker in client.mappings(answer.get("workers"))]
    lines += ["", *display.table(_WORKERS, rows, width)]
    return [*lines, *backends.lines(answer.get("backends"), width)]


_FAMILIES = ("1xx", "2xx", "3xx", "4xx", "5xx")


def _headline(about: Facts) -> str:
    parts = [
        f"acme {display.text(about.get('version'))}",
        f"pid {display.text(about.get('pid'))}",
        display.text(about.get("state")),
        f"up {display.age(about.get('uptime'))}",
        f"generation {display.text(about.get('generation'))}",
    ]
    return "   ".join(parts)


def _addresses(about: Facts, width: int | None) -> list[str]:
    addresses = about.get("addresses")
    names = [display.text(each) for each in addresses] if isinstance(addresses, list) else []
    return display.facts("listens on", names, width) if names else []


def _waiting(answer: Facts) -> list[str]:
    oldest = answer.get("oldest_queued")
    longest = f" (longest {display.duration(oldest)})" if oldest else ""
    return [
        f"{display.number(answer.get('in_flight'))} in flight",
        f"{display.number(answer.get('queued'))} queued{longest}",
        f"shed {display.number(answer.get('shed_per_second'))}/s",
    ]


def _worker_row(worker: Facts) -> list[str]:
    latency = _dict(worker.get("latency"))
    return [
        display.text(worker.get("number")),
        display.text(worker.get("pid")),
        display.text(worker.get("state")),
        display.number(worker.get("requests_per_second")),
        display.duration(latency.get("p50")),
        display.duration(latency.get("p99")),
        display.number(worker.get("in_flight")),
        display.number(worker.get("queued")),
        display.number(worker.get("connections")),
        display.percent(worker.get("cpu_percent")),
        display.size(worker.get("pss")),
    ]


def memory_lines(answer: Facts, width: int | None) -> list[str]:
    """The memory of each process, and the sums."""
    columns = [Column("process", left=True), Column("pid", spare=2), Column("PSS"), Column("RSS", spare=1)]
    columns += [Column("private", spare=3), Column("shared", spare=4), Column("swap", spare=5)]
    processes = answer["processes"]
    rows = [
        [display.text(each["name"]), str(each["pid"]), *(display.size(each[kind]) for kind in _MEMORY)]
        for each in processes
    ]
    rows.append(["total", "", *(display.size(answer["total"][kind]) for kind in _MEMORY)])
    lines = display.table(columns, rows, width)
    if any(each["pss"] is None and each["rss"] is not None for each in processes):
        lines += ["", display.cut("PSS is shown to root and to the server's own user only", width)]
    return lines


# -- again and again --------------------------------------------------------------------------------------


def _watch(options: argparse.Namespace, directory: str) -> int:
    """Show what it is, and again every so often; returns 1 when the server went away. Raises ControlError."""
    answer = _look(options, directory)
    with _canvas(options) as show:
        due = time.monotonic()
        while True:
            show(answer)
            due = max(due + options.watch, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0))
            try:
                answer = _look(options, directory)
            except server.NotRunning as error:
                gone = error
                break
    print(f"the server has gone away: {gone}", file=sys.stderr)
    return 1


@contextmanager
def _canvas(options: argparse.Namespace) -> Iterator[Callable[[Facts], None]]:
    """How an answer is shown: in place of the one before on a terminal, else below it."""
    out = sys.stdout
    if _wants_json(options):
        yield lambda answer: _write(out, _as_json(answer))
    elif not out.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda answer: _write(out, _page(options, answer) + "\n")
    else:
        try:
            _write(out, "\x1b[?25l\x1b[2J")
            yield lambda answer: _redraw(out, _page(options, answer))
        finally:
            _write(out, "\x1b[?25h")


def _redraw(out: TextIO, page: str) -> None:
    """Write over the page before: home, each line and what is left of the old one, and what is below it."""
    lines = page.splitlines()
    height = display.room_of(out)[1]
    room = max(height - 1, 1) if height else len(lines)
    if len(lines) > room:
        lines[room - 1 :] = [f"... and {len(lines) - room + 1} more lines"]
    _write(out, "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")


def _write(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()


# -- options ----------------------------------------------------------------------------------------------


def _window(value: str) -> int:
    return int(_seconds(value, 1, _WINDOW_MOST))


def _interval(value: str) -> float:
    return _seconds(value, _INTERVAL_LEAST, _INTERVAL_MOST)


def _seconds(value: str, least: float, most: float) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not least <= seconds <= most:
        raise argparse.ArgumentTypeError(f"{value} is not between {least:g} and {most:g} seconds")
    return seconds
