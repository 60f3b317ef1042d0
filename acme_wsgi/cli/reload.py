"""`acme-server reload`: have the running server read its configuration anew.

Law: gives the order and shows the answer; what a reload changes is the server's own business.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from acme_wsgi.cli import client
from acme_wsgi.cli.server import (
    ControlError,
    Refused,
    add_json_argument,
    add_server_arguments,
    answered,
    find_directory,
    say_progress,
    shown,
    tell,
)

NAME = "reload"
HELP = "have the running server read its configuration anew and replace its workers, one by one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    add_server_arguments(parser)
    parser.add_argument(
        "--wait",
        action="store_true",
        help="wait for the end, and say what changed and what only a restart changes; exits with 1 and the"
        " reason if the old configuration stays",
    )
    add_json_argument(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Give the order; returns 0 once it is accepted, or with --wait once it is done."""
    return answered(options, lambda: _reload(options, environ))


def _reload(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    directory = find_directory(options, environ)
    if not options.wait:
        return _accepted(options, directory)
    try:
        answer = client.call(directory, "reload", timeout=None, on_progress=say_progress)
    except Refused as error:
        raise _refused(error.answer) from error
    tell(options, client.facts(answer), "\n".join(_report(answer)))
    return 0


def _accepted(options: argparse.Namespace, directory: str) -> int:
    """Hear the server's first word and leave it to its work."""
    for answer in client.converse(directory, "reload"):
        if answer.get("ok") is False:
            raise _refused(answer)
        done = answer.get("ok") is True
        tell(options, {"done": done}, "reloaded" if done else "reloading; the log tells how it goes")
        break
    return 0


def _refused(answer: dict[str, Any]) -> ControlError:
    reason = answer.get("error", "no reason given")
    # A single problem is the reason already.
    problems = "".join(f"\n  {each}" for each in client.items(answer.get("problems")) if each != reason)
    return Refused(f"not reloaded, the old configuration stays: {reason}{problems}", answer)


def _report(answer: Mapping[str, Any]) -> list[str]:
    """The end of a reload, for a person."""
    workers, generation = shown(answer.get("workers")), shown(answer.get("generation"))
    noun = "worker" if answer.get("workers") == 1 else "workers"
    lines = [f"reloaded: generation {generation}, {workers} {noun}"]
    changed = [shown(each) for each in client.items(answer.get("changed"))]
    lines.append("changed: " + (", ".join(changed) or "nothing"))
    left = [shown(each) for each in client.items(answer.get("left"))]
    if left:
        lines += ["left as it was:", *(f"  {each}" for each in left)]
    return lines
