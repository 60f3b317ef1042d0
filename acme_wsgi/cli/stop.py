"""`acme-server stop`: stop the running server and wait until it is gone.

Law: gives the order and watches the process; how a server stops is the server's own business.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
from collections.abc import Iterator, Mapping

from acme_wsgi.cli import client, load_config
from acme_wsgi.cli.server import (
    ControlError,
    Waiting,
    add_json_argument,
    add_server_arguments,
    answered,
    find_directory,
    tell,
)
from acme_wsgi.config import Server
from acme_wsgi.errors import ConfigError

NAME = "stop"
HELP = "stop the running server and wait until it is gone; exits with 1 if none runs"

MARGIN = 10.0
"""Seconds that a server gets beyond the time that it gives its open requests."""

_TICK = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    add_server_arguments(parser)
    parser.add_argument(
        "--quick", action="store_true", help="at once: open requests are cut instead of finished"
    )
    add_json_argument(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Stop it; returns 0 once it is gone."""
    return answered(options, lambda: _stop(options, environ))


def _stop(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    directory = find_directory(options, environ)
    pid = client.call(directory, "status").get("pid")
    if not isinstance(pid, int) or pid <= 0:
        raise ControlError(f"the server in {directory!r} does not say which process it is")
    with _watch(pid) as end:  # before the order: afterwards its number could be another process's
        answer = client.call(directory, "stop", {"quick": options.quick})
        patience = 0.0 if options.quick else _patience(answer.get("patience"), options, environ)
        _wait_for(end, pid, patience + MARGIN)
    tell(options, {"pid": pid}, f"stopped: pid {pid}")
    return 0


@contextlib.contextmanager
def _watch(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable with the process's end."""
    try:
        end = os.pidfd_open(pid)
    except OSError as error:
        raise ControlError(f"the server's process {pid} can't be watched: {error.strerror}") from error
    try:
        yield end
    finally:
        os.close(end)


def _wait_for(end: int, pid: int, limit: float) -> None:
    with Waiting(f"waiting for pid {pid} to end") as waiting:
        while not select.select([end], [], [], min(_TICK, limit))[0]:
            if waiting.seconds >= limit:
                raise ControlError(f"pid {pid} has not ended within {limit:g} s; --quick stops it at once")
            waiting.show()


def _patience(said: object, options: argparse.Namespace, environ: Mapping[str, str]) -> float:
    """How long the server lets open requests finish: as it says itself, else as it is configured."""
    if isinstance(said, int | float):
        return float(said)
    try:
        return load_config(options, environ).server.shutdown_timeout
    except ConfigError:
        return Server().shutdown_timeout
