"""The command `acme-server`: one verb a file, listed here.

Law: finds the verb, runs it, turns what went wrong into words on stderr and an exit status. A new verb is a
module with NAME, HELP, add_arguments() and run(), and one more entry in VERBS.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from acme_wsgi import __version__
from acme_wsgi.cli import Verb, config, drain, logs, reload, restart, start, stats, status, stop, validate
from acme_wsgi.errors import EX_CONFIG, AcmeError

VERBS: tuple[Verb, ...] = (start, stop, restart, reload, drain, status, stats, logs, validate, config)

_EPILOG = f"""\
exit status:
  0             done; for status: it serves; for validate: the configuration can be used
  1             it could not be done; for status: it runs, but does not serve
  2             wrong usage
  3             for status, stats, logs: no server runs; for start, restart: an application can't be loaded
  {EX_CONFIG}            the configuration is wrong

examples:
  acme-server start --daemon -c /etc/acme/conf.d
  acme-server reload --wait
  acme-server drain http://app1.internal:8000 --wait
  acme-server stop
  acme-server stats --watch
  acme-server logs --follow
  acme-server validate --config /etc/acme/conf.d
  acme-server config --origins
  acme-server config --defaults --json
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `acme-server`; its manual page is made from this."""
    parser = argparse.ArgumentParser(
        prog="acme-server",
        description="Look after an ACME server and its configuration.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"acme-server {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_arguments(
            verbs.add_parser(verb.NAME, help=verb.HELP, description=_sentence(verb.HELP), allow_abbrev=False)
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    :param arguments: the command line without the program's name; None takes the process's own
    """
    options = build_parser().parse_args(arguments)
    verb = next(verb for verb in VERBS if options.verb == verb.NAME)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Marks and file names must not fail on a terminal that can't show them.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = verb.run(options, os.environ)
        sys.stdout.flush()
        return status
    except AcmeError as error:
        print(error, file=sys.stderr)
        return int(getattr(error, "exit_status", 1))
    except KeyboardInterrupt:  # what the server was told to do goes on
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing may be written at exit any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


if __name__ == "__main__":
    sys.exit(main())
