"""`acme-server restart`: another program on the same sockets, or a start if nothing runs.

Law: asks the running server, which does it all itself; starts one only where there is none.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from acme_wsgi.cli import client, daemon, start
from acme_wsgi.cli.server import (
    NotRunning,
    Refused,
    add_json_argument,
    answered,
    find_directory,
    say_progress,
    shown,
    tell,
)

NAME = "restart"
HELP = (
    "have the running server replace itself by a newly started program, with its own command line and on the"
    " same sockets, which are never closed; if none runs, start one as a daemon"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    daemon.add_start_arguments(parser)
    add_json_argument(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Restart it; returns 0 once the new one serves."""
    return answered(options, lambda: _restart(options, environ))


def _restart(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    directory = find_directory(options, environ)
    try:
        # It gives up by itself if the new program doesn't get ready, and goes on serving.
        answer = client.call(directory, "restart", timeout=None, on_progress=say_progress)
    except NotRunning:
        wanted = daemon.program(options, environ)
        return start.report(options, daemon.launch(wanted, environ), wanted.directory)
    except Refused as error:
        reason = error.answer.get("error", "no reason given")
        raise Refused(f"not restarted, the old program goes on: {reason}", error.answer) from error
    pid = answer.get("pid")
    tell(options, {"pid": pid}, f"restarted: pid {shown(pid)} serves now; the old one ends its open requests")
    return 0
