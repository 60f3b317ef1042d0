"""`acme-server logs`: the last lines of the server's log, and those that come, wherever it writes them.

Law: asks the server where its lines go and reads them there; changes nothing. Lines may hold what clients
sent and applications printed, so none reaches a terminal with its control characters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from acme_wsgi.cli import client, daemon, display, load_config, server, tail
from acme_wsgi.errors import AcmeError, ConfigError
from acme_wsgi.log import escape

NAME = "logs"
HELP = "show the last lines of the running server's log, and follow it"

NO_SERVER = 3
"""Exit status: no server runs there, and no file is known that it would have written to."""

_MOST_LINES = 100_000
_POLL = 0.2  # seconds between two looks at a file that is followed
_LEVELS = ("debug", "info", "warning", "error", "critical")
_LEVEL = re.compile(
    rb'(?:\d{4}-\d\d-\d\dT\S+Z |timestamp=\S+ level=|\{"timestamp": "[^"]*", "level": ")'
    rb"(debug|info|warning|error|critical)\b"
)
_CONTINUED = b"    | "  # how the text format writes a traceback's lines
_INVOCATION = re.compile(r"[0-9a-f]{32}")


class NoLines(AcmeError):
    """The lines go where they can't be read from."""

    exit_status = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    server.add_server_arguments(parser)
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="go on with what comes, through rotation, until Ctrl-C",
    )
    parser.add_argument(
        "-n",
        "--lines",
        type=_count,
        default=20,
        metavar="N",
        help="how many of the last lines; default: 20",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--access", action="store_true", help="the access log, not the server's own")
    which.add_argument(
        "--level",
        choices=_LEVELS,
        metavar="LEVEL",
        help="only what is debug, info, warning, error, critical or more; and what doesn't say what it is",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='each line as a JSON object: as it is, or {"line": ...}',
    )


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show them; returns the exit status. Raises AcmeError."""
    directory = server.find_directory(options, environ)
    try:
        status = client.call(directory, "status")
    except server.NotRunning as error:
        path = _configured_file(options, environ) or _left_by_a_daemon(options, directory)
        print(error, file=sys.stderr)
        if path is None:
            return NO_SERVER
        print(f"the last one's lines are in {display.text(path)}", file=sys.stderr)
        return _interruptible(options, path)
    return _of_server(options, status)


def _of_server(options: argparse.Namespace, status: Mapping[str, Any]) -> int:
    logs = status.get("logs")
    logs = logs if isinstance(logs, dict) else {}
    which = _which(options, logs)
    output = logs.get(which)
    if output is None:
        raise NoLines("the server writes no access log: logging.access.enabled turns it on")
    if str(output).startswith("/"):
        return _interruptible(options, str(output))
    path = _redirected(status.get("pid"), str(output))
    if path is not None:
        return _interruptible(options, path)
    invocation = status.get("systemd")
    if invocation is not None and _goes_to(status.get("pid"), str(output)) in ("a socket", "?"):
        return _interruptible(options, None, str(invocation))
    where = _goes_to(status.get("pid"), str(output)).replace("?", "not for us to look at")
    key = {"access": "logging.access.output", "error": "logging.output"}.get(which, "logging.error.output")
    raise NoLines(
        f"the server (pid {display.text(status.get('pid'))}) writes this log to its {display.text(output)},"
        f" which is {where}: what was written there can't be read back. {key}: /path/to/a/file keeps it"
    )


def _which(options: argparse.Namespace, logs: Mapping[str, Any]) -> str:
    """Which of the logs is asked for. Errors may have an output of their own, and stand nowhere else."""
    if options.access:
        return "access"
    errors = logs.get("errors")
    if errors in (None, logs.get("error")):
        return "error"
    if options.level in ("error", "critical"):
        return "errors"
    print(
        f"errors are not in this log but go to {display.text(errors)}: --level error shows them",
        file=sys.stderr,
    )
    return "error"


def _configured_file(options: argparse.Namespace, environ: Mapping[str, str]) -> str | None:
    """The file that a server would write to, or has; None when that is no file or can't be told."""
    try:
        config = load_config(options, environ)
    except ConfigError:
        return None  # a warning about it has been given
    logging = config.logging
    logs = {"access": logging.access.output, "error": logging.output, "errors": logging.error.output}
    output = logs[_which(options, logs)]
    return output if output is not None and output.startswith("/") else None


def _left_by_a_daemon(options: argparse.Namespace, directory: str) -> str | None:
    """The file that a daemon had in its runtime directory because the configuration named none."""
    path = Path(directory) / (daemon.ACCESS_LOG if options.access else daemon.LOG)
    return str(path) if path.is_file() else None


# -- where a standard stream goes -------------------------------------------------------------------------


def _link(pid: object, stream: str) -> str:
    return f"/proc/{pid if type(pid) is int else 0}/fd/{1 if stream == 'stdout' else 2}"


def _redirected(pid: object, stream: str) -> str | None:
    """The file that a process's standard stream goes to; None if it is none, or not for us to see."""
    link = Path(_link(pid, stream))
    try:
        found = link.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        path = link.readlink()
    except OSError:
        return None
    # By its name, rotation can be followed; a file without one can still be read through the process.
    try:
        same = os.path.samestat(path.stat(), found)
    except OSError:
        same = False
    return str(path if same else link)


def _goes_to(pid: object, stream: str) -> str:
    """In words, where a standard stream goes; "?" if we may not see that."""
    try:
        target = str(Path(_link(pid, stream)).readlink())
    except OSError:
        return "?"
    if target.startswith(("/dev/pts/", "/dev/tty", "/dev/console")):
        return f"the terminal {display.text(target)}"
    kind = target.partition(":")[0]
    return {"pipe": "a pipe", "socket": "a socket"}.get(kind, display.text(target))


# -- showing ----------------------------------------------------------------------------------------------


def _interruptible(options: argparse.Namespace, path: str | None, invocation: str = "") -> int:
    """Show a file, or without one the journal; Ctrl-C ends following as it should."""
    try:
        return _show_journal(options, invocation) if path is None else _show_file(options, path)
    except KeyboardInterrupt:
        return 0 if options.follow else 128 + signal.SIGINT


def _show_file(options: argparse.Namespace, path: str) -> int:
    sieve = _Sieve(options.level)
    descriptor = tail.open_file(path)
    end = os.fstat(descriptor).st_size
    if options.follow:
        end = _whole_lines(descriptor, end)  # what is still being written is shown when it is whole
    if options.lines:
        _print(options, tail.last_lines(descriptor, end, options.lines, sieve.verdict))
    if not options.follow:
        os.close(descriptor)
        return 0
    follower = tail.Follower(path, descriptor, end)
    try:
        while True:
            lines = follower.read()
            _print(options, filter(sieve.passes, lines))
            if not lines:
                time.sleep(_POLL)
    finally:
        follower.close()


def _whole_lines(descriptor: int, end: int) -> int:
    """The offset behind the last line end before an offset."""
    last = next(tail.lines_backward(descriptor, end), b"")
    return end - len(last)


def _show_journal(options: argparse.Namespace, invocation: str) -> int:
    """What this run of the service wrote into systemd's journal."""
    if not _INVOCATION.fullmatch(invocation):
        raise NoLines(f"{display.text(invocation)} is no invocation id of systemd's")
    if options.access:
        print("the journal keeps both logs together", file=sys.stderr)
    command = ["journalctl", f"_SYSTEMD_INVOCATION_ID={invocation}", "-n", str(options.lines)]
    command += ["-o", "cat", "--no-pager", *(["-f"] if options.follow else [])]
    sieve = _Sieve(options.level)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603
    except OSError as error:
        raise NoLines(f"the log is in systemd's journal, but journalctl: {error.strerror}") from error
    with process:
        assert process.stdout is not None
        try:
            while line := process.stdout.readline(tail.MAX_LINE):
                _print(options, filter(sieve.passes, [line.removesuffix(b"\n")]))
        finally:
            process.terminate()
    return 0 if process.returncode in (0, -signal.SIGTERM) else 1


class _Sieve:
    """Decides by their level which lines are shown."""

    def __init__(self, least: str | None) -> None:
        self._least = _LEVELS.index(least) if least else 0
        self._last = True

    def verdict(self, line: bytes) -> bool | None:
        """Whether a line is serious enough; None: as the one above it. What doesn't say is."""
        if line.startswith(_CONTINUED):
            return None
        match = _LEVEL.match(line)
        return match is None or _LEVELS.index(match[1].decode()) >= self._least

    def passes(self, line: bytes) -> bool:
        """The same for lines in their order."""
        decided = self.verdict(line)
        self._last = self._last if decided is None else decided
        return self._last


def _print(options: argparse.Namespace, lines: Iterable[bytes]) -> None:
    shape = _as_json if options.json else _as_text
    text = "".join(f"{shape(line)}\n" for line in lines)
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _as_text(line: bytes) -> str:
    """A line that drives no terminal; tabs stay."""
    parts = line.decode("utf-8", "replace").removesuffix("\r").split("\t")
    return "\t".join(escape.text(part, tail.MAX_LINE) for part in parts)


def _as_json(line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return json.dumps({"line": text})
    return text if text.isascii() and text.isprintable() else json.dumps(said)


def _count(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) > _MOST_LINES:
        raise argparse.ArgumentTypeError(f"a number of lines from 0 to {_MOST_LINES}")
    return int(value)
