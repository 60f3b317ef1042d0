"""`acme-server drain`: take a backend out of the traffic, or in again.

Law: gives the order and shows the answer; which backend is meant and what draining does is the server's own
business.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from acme_wsgi.cli import client
from acme_wsgi.cli.server import (
    Refused,
    add_json_argument,
    add_server_arguments,
    answered,
    find_directory,
    say_progress,
    shown,
    tell,
)

NAME = "drain"
HELP = "take a backend out: it gets no new requests and finishes what it has; --undo takes it in again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument(
        "url", metavar="URL", help="the backend's URL, as it is configured or as status shows it"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--undo", action="store_true", help="let it have requests again")
    what.add_argument(
        "--wait",
        action="store_true",
        help="wait until no request is in flight on it; exits with 1 if some still are after"
        " connection_draining.timeout. Ctrl-C ends the waiting alone",
    )
    add_server_arguments(parser)
    add_json_argument(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Give the order; returns 0 once it is obeyed, or with --wait once the backend is empty."""
    return answered(options, lambda: _drain(options, environ))


def _drain(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    directory = find_directory(options, environ)
    arguments = {"url": options.url, "undo": options.undo, "wait": options.wait}
    # How long a silence may be is the server's to know: it looks at its clock while it has us wait.
    timeout = None if options.wait else client.TIMEOUT
    try:
        answer = client.call(directory, "drain", arguments, timeout=timeout, on_progress=say_progress)
    except Refused as error:
        if error.answer.get("draining") is True:
            raise Refused(f"drained, but {error.answer.get('error')}", error.answer) from error
        raise
    tell(options, client.facts(answer), "\n".join(_report(answer, waited=options.wait)))
    return 0


def _report(answer: Mapping[str, Any], *, waited: bool) -> Iterator[str]:
    """The end of it, for a person."""
    changed = answer.get("changed") is True
    for url in map(shown, client.items(answer.get("backends"))):
        if answer.get("draining") is not True:
            yield f"{url} takes requests again" if changed else f"{url} was not drained"
        elif waited:
            yield f"{url} is empty: it gets no new requests, and none is in flight"
        else:
            yield f"{url} gets no new requests" + ("" if changed else " already")
    if answer.get("draining") is True and not waited:
        count, patience = answer.get("in_flight"), answer.get("patience")
        if isinstance(count, int) and count and isinstance(patience, int | float):
            yield f"{count} in flight may take {patience:g} s; --wait follows them"
        yield from (f"warning: {shown(warning)}" for warning in client.items(answer.get("warnings")))
