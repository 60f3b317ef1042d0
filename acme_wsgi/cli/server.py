"""How a verb finds the running server and asks it something: what all verbs that do so share.

Law: finds and asks; what the answers mean is each verb's own business. Nothing of an answer goes to a
terminal unescaped (:func:`client.shown`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from acme_wsgi.cli import add_config_arguments, client, load_config
from acme_wsgi.cli.client import NotRunning, Refused, shown
from acme_wsgi.control import ControlError, default_directory
from acme_wsgi.errors import AcmeError, ConfigError

__all__ = [
    "ControlError", "NotRunning", "Refused", "Waiting", "add_json_argument", "add_server_arguments",
    "answered", "ask", "find_directory", "say_progress", "shown", "tell",
]  # fmt: skip

_VARIABLE = "ACME_SERVER_RUNTIME_DIR"


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which server is meant."""
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        help="the server's runtime directory, where its control socket is; default: server.runtime_dir of the"
        " configuration",
    )
    add_config_arguments(parser)


def find_directory(options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """The runtime directory of the server that the command line means.

    A configuration that is wrong by now must not keep anybody from the server that runs: then the directory
    is looked for without it, and a warning says so.

    :raises ControlError: the directory that is left to look in is somebody else's
    """
    if options.runtime_dir:
        return os.path.abspath(str(options.runtime_dir))  # noqa: PTH100 - Path.absolute() leaves ".." standing
    try:
        directory = load_config(options, environ).server.runtime_dir
    except ConfigError as error:
        variable = environ.get(_VARIABLE, "")
        directory = variable if variable.startswith("/") else default_directory(environ)
        print(
            f"warning: the configuration can't be used ({shown(str(error.problems[0]))});"
            f" looking for the server in {directory} (--runtime-dir names another directory)",
            file=sys.stderr,
        )
    return directory or default_directory(environ)


def ask(
    options: argparse.Namespace,
    environ: Mapping[str, str],
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = client.TIMEOUT,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Find the server that the command line means, and ask it. Otherwise as :func:`client.call`."""
    directory = find_directory(options, environ)
    return client.call(directory, verb, arguments, timeout=timeout, on_progress=on_progress)


def say_progress(text: str) -> None:
    """Show how far it is, at once; on stderr, so that stdout has the result alone."""
    print(shown(text), file=sys.stderr, flush=True)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """The option that asks for an answer that programs read."""
    parser.add_argument("--json", action="store_true", help="answer with one JSON object on stdout")


def tell(options: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    """Print the result: `facts` with --json, else `text`."""
    print(json.dumps({"ok": True, **facts}, indent=2) if options.json else text)


def answered(options: argparse.Namespace, work: Callable[[], int]) -> int:
    """Do a verb's work and return its exit status; with --json its failure is answered in JSON too."""
    try:
        return work()
    except AcmeError as error:
        if not options.json:
            raise
        facts: dict[str, Any] = {"error": str(error)}
        if isinstance(error, Refused):
            facts |= {key: value for key, value in error.answer.items() if key != "acme"}
        elif isinstance(error, ConfigError):
            facts["problems"] = [str(problem) for problem in error.problems]
        print(json.dumps({**facts, "ok": False}, indent=2))
        return int(getattr(error, "exit_status", 1))


class Waiting:
    """On a terminal, a line that says what is waited for and for how long already; elsewhere nothing."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._live = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """How long it has been waited."""
        return time.monotonic() - self._began

    def show(self) -> None:
        """Bring the line up to date."""
        if self._live and self.seconds >= 1:
            print(f"\r{self._what} ({self.seconds:.0f} s)", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self.seconds >= 1:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
