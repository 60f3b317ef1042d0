"""`acme-server config`: the effective configuration.

Law: prints what loading gives and checks nothing besides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from acme_wsgi.cli import add_config_arguments, load_config
from acme_wsgi.config import Config
from acme_wsgi.config.render import to_json, to_yaml

NAME = "config"
HELP = "print the effective configuration, secrets masked"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    add_config_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--defaults", action="store_true", help="print the defaults, whatever is configured")
    what.add_argument(
        "--origins",
        action="store_true",
        help="say with each value which file and line, variable or option it came from",
    )
    parser.add_argument(
        "--json", action="store_true", help="as JSON: seconds, bytes and fractions as numbers"
    )


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print it; returns 0. Raises ConfigError."""
    config = Config() if options.defaults else load_config(options, environ)
    show = to_json if options.json else to_yaml
    sys.stdout.write(show(config, origins=options.origins))
    return 0
