"""The command `acme-wsgi`: serve in the foreground until told to stop.

Law: turns a command line into a configuration, hands it to the arbiter, and turns whatever went wrong into
words on stderr and an exit status. Imports no gevent: this is the arbiter's process.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from acme_wsgi import __version__
from acme_wsgi.arbiter import Arbiter
from acme_wsgi.cli import add_config_arguments
from acme_wsgi.config import Config, load
from acme_wsgi.errors import EX_BOOT, EX_CONFIG, AcmeError, BootError, ConfigError
from acme_wsgi.handover import refuse

_EPILOG = f"""\
signals:
  TERM          stop gracefully: open requests may finish, for up to server.shutdown_timeout
  INT, QUIT     stop at once
  HUP           reload: read the configuration again, try it with one worker, replace the others one by one
  USR1          open the log files anew (for logrotate)
  USR2          upgrade: start this command line again on the same sockets; it takes over once it serves

exit status:
  0             stopped as asked
  1             an address can't be listened on, or the kernel refuses a limit
  2             wrong usage
  {EX_BOOT}             an application can't be loaded
  {EX_CONFIG}            the configuration is wrong

examples:
  acme-wsgi shop.wsgi:application
  acme-wsgi -c /etc/acme/conf.d
  acme-wsgi -c acme.yaml --set server.port=9000 --set server.workers=4
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `acme-wsgi`; its manual page is made from this."""
    parser = argparse.ArgumentParser(
        prog="acme-wsgi",
        description="Serve Python web applications. Runs in the foreground; systemd units use Type=notify.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "app",
        nargs="?",
        metavar="module:app",
        help="a WSGI application to serve at /*; module:factory() calls the factory."
        " No configuration is needed besides",
    )
    add_config_arguments(parser, default=None)
    parser.add_argument("--check", action="store_true", help="check the configuration and stop there")
    parser.add_argument("--version", action="version", version=f"acme-wsgi {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    :param arguments: the command line without the program's name; None takes the process's own
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.app is None and not options.config and not options.sets:
        parser.error("nothing to serve: name an application (module:app) or a configuration (-c PATH)")
    try:
        config = load(options.config, os.environ, options.sets, app=options.app)
        if options.check:
            return _checked(config)
        read = partial(load, options.config, os.environ, options.sets, app=options.app)
        sources = [str(Path(path).absolute()) for path in options.config]
        if options.app is not None:
            sources.append(options.app)
        return Arbiter(config, read, tuple(sources)).run()
    except AcmeError as error:
        refuse(os.environ, str(error))
        return _failed(error)
    except KeyboardInterrupt:  # before the arbiter has taken the signals over
        return 128 + signal.SIGINT


def _checked(config: Config) -> int:
    for warning in config.warnings:
        _say(f"warning: {warning}")
    print("the configuration is correct")
    return 0


def _failed(error: AcmeError) -> int:
    """Tell a person what went wrong; returns the exit status that the error knows."""
    match error:
        case ConfigError():
            for problem in error.problems:
                _say(str(problem))
        case BootError():
            _say(f"cannot start: {error}")
            if error.traceback:
                print(error.traceback.rstrip(), file=sys.stderr)
            if "ModuleNotFoundError" in error.cause or "no module" in error.cause:
                _say(f"modules are searched for in {Path.cwd()} and by {sys.executable}")
        case _:
            _say(str(error))
    status: int = getattr(error, "exit_status", 1)
    return status


def _say(text: str) -> None:
    print(f"acme-wsgi: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
