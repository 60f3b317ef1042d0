"""The two commands: `acme-wsgi` serves, `acme-server` manages; one file per verb of the latter.

Law: this file holds what several verbs share and imports nothing of the server's upper floors. No file of
this room imports gevent.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from acme_wsgi.config import Config, load

#: The configuration that `acme-server` looks at when none is named, if it is there.
DEFAULT_CONFIG = "/etc/acme/conf.d"


class Verb(Protocol):
    """What the file of a verb of `acme-server` provides."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's options."""

    def run(self, options: argparse.Namespace, environ: Mapping[str, str]) -> int:
        """Do what the verb says; returns the exit status. May raise AcmeError."""


def add_config_arguments(parser: argparse.ArgumentParser, *, default: str | None = DEFAULT_CONFIG) -> None:
    """The options that say which configuration is meant; `default` is what the help says of none."""
    fallback = f"; default: {default} if it exists" if default else ""
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="PATH",
        help="a configuration file, or a directory whose *.yaml and *.yml are read in the order of their"
        f" names; may be given several times, later ones win{fallback}",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="set one key, over files and environment: --set server.port=9000; may be given several times",
    )


def config_paths(options: argparse.Namespace) -> list[str]:
    """The configuration files that the command line means."""
    if options.config:
        return list(options.config)
    return [DEFAULT_CONFIG] if Path(DEFAULT_CONFIG).is_dir() else []


def load_config(options: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """The configuration that the command line means. Raises ConfigError."""
    return load(config_paths(options), environ, options.sets)
