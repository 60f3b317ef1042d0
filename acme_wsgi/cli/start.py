"""`acme-server start`: start a server, in the foreground or as a daemon.

Law: decides whether there is anything to start; how is acme_wsgi/cli/daemon.py's business.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from acme_wsgi.cli import daemon
from acme_wsgi.cli.server import add_json_argument, answered, shown, tell

NAME = "start"
HELP = "start a server; exits with 1 if one runs already"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    daemon.add_start_arguments(parser)
    parser.add_argument(
        "--daemon",
        action="store_true",
        help="start it in the background, with its output and its logs in the runtime directory unless the"
        " configuration names files for them, and wait until it is ready",
    )
    add_json_argument(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Start it. In the foreground this does not return: the process becomes the server."""
    return answered(options, lambda: _start(options, environ))


def _start(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    wanted = daemon.program(options, environ)
    daemon.insist_on_none(wanted.directory)
    if not options.daemon:
        daemon.become(wanted, environ)
    return report(options, daemon.launch(wanted, environ), wanted.directory)


def report(options: argparse.Namespace, started: daemon.Started, directory: str) -> int:
    """Tell what has been started; returns 0."""
    facts = {
        "pid": started.pid,
        "addresses": started.addresses,
        "runtime_dir": directory,
        "log": started.log,
    }
    where = shown(", ".join(started.addresses))
    tell(options, facts, f"started: pid {started.pid} on {where}; output in {shown(started.log)}")
    return 0
