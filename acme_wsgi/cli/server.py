"""How a verb finds the running server and asks it something: what all verbs that do so share.

Law: finds and asks; what the answers mean is each verb's own business. Nothing of an answer goes to a
terminal unescaped (`shown`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from acme_wsgi.cli import add_config_arguments, client, load_config
from acme_wsgi.cli.client import NotRunning, Refused
from acme_wsgi.control import ControlError, default_directory
from acme_wsgi.errors import ConfigError
from acme_wsgi.log import escape

__all__ = [
    "ControlError", "NotRunning", "Refused", "add_server_arguments", "ask", "find_directory", "say_progress",
    "shown",
]  # fmt: skip

_VARIABLE = "ACME_SERVER_RUNTIME_DIR"
_LIMIT = 2000


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


def shown(value: object) -> str:
    """A text of the server's as a terminal may show it: in one line, not endless, without controls."""
    return escape.text(str(value), _LIMIT)


def say_progress(text: str) -> None:
    """Show how far it is, at once."""
    print(shown(text), file=sys.stderr, flush=True)
