"""Starting `acme-wsgi` as a program of its own: in our place, or in the background.

Law: builds its command line and hears from it that it is ready, by the same word that systemd would get. What
the server does then is its own business. No double fork: a session of its own is all that a daemon is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from acme_wsgi.cli import add_config_arguments, client, config_paths
from acme_wsgi.cli.server import ControlError, NotRunning, Waiting, shown
from acme_wsgi.config import Config, load
from acme_wsgi.config.references import escape
from acme_wsgi.control import default_directory
from acme_wsgi.rundir import open_directory

LOG = "acme.log"
ACCESS_LOG = "access.log"
ROTATION = "100MB"
"""The size at which a daemon's logs are rotated if the configuration doesn't say anything about it."""

_LOG_MODE = 0o640
_NAME = "acme-wsgi: "  # what it says to people begins so
_TOLD = 16 << 10  # so much of what a server said last is shown when it could not start
_TICK = 0.5
_CREDENTIALS = struct.Struct("iII")
# Meant for this process alone: a server that took them over would listen on, or report to, somebody else's.
_OURS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_HANDOVER", "NOTIFY_SOCKET")


class NothingToServe(ControlError):
    """The command line names no application and no configuration."""

    exit_status = 2


class NotStarted(ControlError):
    """The server ended before it was ready; the message is what it said.

    :ivar exit_status: the server's own
    """

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.exit_status = status if status >= 0 else 128 - status


@dataclass(frozen=True, slots=True)
class Program:
    """A server that is to be started.

    :ivar command: its command line
    :ivar directory: its runtime directory
    """

    config: Config
    command: tuple[str, ...]
    directory: str


@dataclass(frozen=True, slots=True)
class Started:
    """A server in the background that is ready. `log` is where its output goes."""

    pid: int
    addresses: tuple[str, ...]
    log: str


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what to serve."""
    parser.add_argument(
        "app", nargs="?", metavar="module:app", help="a WSGI application to serve at /*, as for acme-wsgi"
    )
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        help="the server's runtime directory, as --set server.runtime_dir=DIR",
    )
    add_config_arguments(parser)


def program(options: argparse.Namespace, environ: Mapping[str, str]) -> Program:
    """The server that the command line describes.

    :raises ConfigError: it can't be configured so
    :raises NothingToServe: it names nothing
    :raises ControlError: there is no runtime directory to be had
    """
    paths, sets = config_paths(options), list(options.sets)
    if options.app is None and not paths and not sets:
        raise NothingToServe(
            "nothing to serve: name an application (module:app) or a configuration (-c PATH)"
        )
    if options.runtime_dir:
        directory = os.path.abspath(options.runtime_dir)  # noqa: PTH100 - absolute() leaves ".." standing
        sets.append(f"server.runtime_dir={escape(directory)}")
    config = load(paths, environ, sets, app=options.app)
    command = [sys.executable, "-m", "acme_wsgi"]
    for path in paths:
        command += ["-c", path]
    for each in sets:
        command += ["--set", each]
    if options.app is not None:
        command += ["--", options.app]
    return Program(config, tuple(command), config.server.runtime_dir or default_directory(environ))


def insist_on_none(directory: str) -> None:
    """Raise ControlError if a server runs there already, or if that can't be told."""
    with contextlib.suppress(NotRunning):
        status = client.call(directory, "status")
        where = shown(", ".join(map(str, status.get("addresses", ()))))
        raise ControlError(f"already running: pid {shown(status.get('pid'))} on {where}")


def become(wanted: Program, environ: Mapping[str, str]) -> NoReturn:
    """Be that server from now on, in the foreground. The process and its environment stay as they are."""
    sys.stdout.flush()
    os.execve(wanted.command[0], wanted.command, dict(environ))  # noqa: S606 - our own interpreter


def launch(wanted: Program, environ: Mapping[str, str]) -> Started:
    """Start that server in the background and wait until it is ready.

    :raises NotStarted: it ended instead
    :raises ControlError: its directory or its log can't be had
    """
    log = str(Path(wanted.directory) / LOG)
    with _log_file(wanted.directory) as output, _notices() as notices:
        before = os.fstat(output).st_size
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own arguments
            with_logs(wanted),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=_environ(environ, notices),
        )
        try:
            addresses = _wait_ready(process, notices)
        except BaseException:  # also Ctrl-C: nobody would know of it any more
            process.terminate()
            raise
        if addresses is None:
            raise NotStarted(_said(output, before), process.returncode)
    return Started(process.pid, addresses, log)


def with_logs(wanted: Program) -> list[str]:
    """Its command line, with what would be lost without a terminal sent to files that the server rotates."""
    logging, sets = wanted.config.logging, []
    directory = escape(wanted.directory)
    if logging.output in ("stdout", "stderr"):
        sets.append(f"logging.output={directory}/{LOG}")
    if logging.access.output in ("stdout", "stderr"):
        sets.append(f"logging.access.output={directory}/{ACCESS_LOG}")
    if sets and logging.rotation.size is None and logging.rotation.age is None:
        sets.append(f"logging.rotation.size={ROTATION}")
    command = list(wanted.command)
    end = command.index("--") if "--" in command else len(command)
    for each in sets:
        command[end:end] = ["--set", each]
        end += 2
    return command


@contextlib.contextmanager
def _log_file(directory: str) -> Iterator[int]:
    """The file for what the server writes besides its log: what is printed, and what ends it."""
    descriptor = open_directory(directory)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        output = os.open(LOG, flags, _LOG_MODE, dir_fd=descriptor)
    except OSError as error:
        raise ControlError(f"cannot write {directory}/{LOG}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    try:
        yield output
    finally:
        os.close(output)


@contextlib.contextmanager
def _notices() -> Iterator[socket.socket]:
    """A socket for sd_notify messages; each comes with who has sent it, since anybody could."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notices.bind("")  # a name of the kernel's choice: a path in the directory may be too long
        notices.setblocking(False)
        yield notices


def _environ(environ: Mapping[str, str], notices: socket.socket) -> dict[str, str]:
    name = notices.getsockname()
    kept = {key: value for key, value in environ.items() if key not in _OURS}
    return {**kept, "NOTIFY_SOCKET": "@" + name[1:].decode("ascii")}


def _wait_ready(process: subprocess.Popen[bytes], notices: socket.socket) -> tuple[str, ...] | None:
    """Where the server listens once it is ready; None if it has ended. It knows by itself when to give up."""
    end = os.pidfd_open(process.pid)
    try:
        with Waiting("starting") as waiting:
            while True:
                ready, _, _ = select.select([notices.fileno(), end], [], [], _TICK)
                if notices.fileno() in ready and (addresses := _heard(notices, process.pid)) is not None:
                    return addresses
                if end in ready:
                    process.wait()
                    return None
                waiting.show()
    finally:
        os.close(end)


def _heard(notices: socket.socket, pid: int) -> tuple[str, ...] | None:
    """The addresses in a message that says READY, if it is that process's own."""
    data, ancillary, _, _ = notices.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    senders = [_CREDENTIALS.unpack(each)[0] for _, kind, each in ancillary if kind == socket.SCM_CREDENTIALS]
    if senders != [pid]:
        return None
    said = dict(line.split("=", 1) for line in data.decode(errors="replace").splitlines() if "=" in line)
    if said.get("READY") != "1":
        return None
    return tuple(said.get("STATUS", "").removeprefix("serving on ").split(", "))


def _said(output: int, start: int) -> str:
    """What the server wrote, for a person: what it says on its end, or else the end of everything."""
    size = os.fstat(output).st_size
    start = max(start, size - _TOLD)
    text = os.pread(output, size - start, start).decode(errors="replace")
    lines = text.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith(_NAME)), 0)
    lines = lines[first:]
    # The same once more as a line of the log, which is written behind it, helps nobody.
    message = lines[0].removeprefix(_NAME) if lines else ""
    last = next((at for at, line in enumerate(lines[1:], 1) if message in line), len(lines))
    return "\n".join(map(shown, lines[:last])) or "the server ended without a word"
