"""The asking end of the control socket.

Law: speaks the protocol of acme_wsgi/control.py and nothing else; prints nothing. It may wait, for as long as
its caller says. What it hands out came from another process: whoever shows it escapes it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from acme_wsgi.control import MAX_PENDING, PROTOCOL, QUESTIONS, SOCKET, peer
from acme_wsgi.log import escape
from acme_wsgi.rundir import ControlError

TIMEOUT = 10.0
"""Seconds that a server gets to answer a question, if nothing else is said."""

_CHUNK = 64 << 10
_RETRY = 0.05
_LIMIT = 2000


class NotRunning(ControlError):
    """No server answers in that directory."""


class _Unanswered(ControlError):
    """The server closed the connection before its last word."""


class Refused(ControlError):
    """The server answered that it can't or won't. Unlike the answer, the message can be shown as it is.

    :ivar answer: its whole last line
    """

    def __init__(self, reason: str, answer: dict[str, Any]) -> None:
        super().__init__("\n".join(map(shown, reason.splitlines())))
        self.answer = answer


def shown(value: object) -> str:
    """A text of the server's as a terminal may show it: in one line, not endless, without controls."""
    return escape.text(str(value), _LIMIT)


def facts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer says, without what belongs to the protocol."""
    return {key: value for key, value in answer.items() if key not in ("acme", "ok")}


def items(value: object) -> list[Any]:
    """A list of the server's; empty if it is none."""
    return value if isinstance(value, list) else []


def mappings(value: object) -> list[dict[str, Any]]:
    """The objects in a list of the server's; none if it is no list."""
    return [each for each in items(value) if isinstance(each, dict)]


def call(
    directory: str,
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = TIMEOUT,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Give an order and wait for its last answer, which is returned.

    :param timeout: the longest silence, in seconds; None waits as long as the server lives
    :param on_progress: called with each text that says how far it is
    :raises NotRunning: there is no server
    :raises Refused: the server says no
    :raises ControlError: it can't be reached, does not answer in time or ends before it answered
    """
    answer: dict[str, Any] = {}
    for answer in converse(directory, verb, arguments, timeout=timeout):
        if "ok" not in answer and on_progress is not None:
            on_progress(str(answer.get("progress", "")))
    if not answer["ok"]:
        raise Refused(str(answer.get("error", "no reason given")), answer)
    return answer


def converse(
    directory: str, verb: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = TIMEOUT
) -> Iterator[dict[str, Any]]:
    """Give an order and yield every line of the answer; the last one has ``ok``.

    Who stops listening early leaves the order under way. A question that a server on its way out leaves
    without a word is put to the one that takes its place. Parameters and errors as those of `call`, but for
    `Refused`.
    """
    request = {"acme": PROTOCOL, "verb": verb, "arguments": dict(arguments or {})}
    deadline = time.monotonic() + (TIMEOUT if timeout is None else timeout)
    while True:
        heard = False
        try:
            for answer in _ask(directory, request, timeout):
                heard = True
                yield answer
            return
        except _Unanswered:
            if heard or verb not in QUESTIONS or time.monotonic() >= deadline:
                raise
        time.sleep(_RETRY)


def _ask(directory: str, request: dict[str, Any], timeout: float | None) -> Iterator[dict[str, Any]]:
    """One connection's worth of `converse`."""
    sock = _connect(directory, timeout)
    try:
        # What a server that turns us away has said first is still to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(json.dumps(request).encode() + b"\n")
        for line in _lines(sock, timeout):
            answer = _parse(line, directory)
            yield answer
            if "ok" in answer:
                return
        raise _Unanswered(f"the server in {directory!r} went away before it answered")
    except TimeoutError as error:
        raise ControlError(f"the server in {directory!r} did not answer within {timeout:g} s") from error
    finally:
        sock.close()


def _connect(directory: str, timeout: float | None) -> socket.socket:
    """A connection to the server in that directory, and to nobody else."""
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotRunning(_nobody(directory, "there is no such directory")) from error
    except (OSError, ValueError) as error:
        raise _unreachable(directory, error) from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        # A link could lead to another server's socket, or to another program's.
        if not stat.S_ISSOCK(os.lstat(SOCKET, dir_fd=descriptor).st_mode):
            raise ControlError(f"{SOCKET} in {directory!r} is no socket")
        _dial(sock, f"/proc/self/fd/{descriptor}/{SOCKET}", timeout)
        if peer(sock)[1] not in (0, os.geteuid(), os.fstat(descriptor).st_uid):
            raise ControlError(f"what answers in {directory!r} is run by user {peer(sock)[1]}: not asked")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sock.close()
        raise NotRunning(_nobody(directory, "nobody listens there")) from error
    except TimeoutError:
        sock.close()
        raise ControlError(f"the server in {directory!r} takes no connection within {timeout} s") from None
    except OSError as error:
        sock.close()
        raise _unreachable(directory, error) from error
    except ControlError:
        sock.close()
        raise
    finally:
        os.close(descriptor)
    return sock


def _dial(sock: socket.socket, address: str, timeout: float | None) -> None:
    """Connect; where a full queue makes the kernel say "again" at once, wait for room."""
    deadline = time.monotonic() + (math.inf if timeout is None else timeout)
    while True:
        try:
            return sock.connect(address)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(_RETRY)


def _lines(sock: socket.socket, timeout: float | None) -> Iterator[bytes]:
    """The lines that come, up to the connection's end. A line that takes too long counts as silence."""
    received = bytearray()
    heard = time.monotonic()
    while True:
        line, end, rest = received.partition(b"\n")
        if end:
            received = rest
            yield bytes(line)
            heard = time.monotonic()
            continue
        if len(received) > MAX_PENDING:
            raise ControlError(f"an answer of over {MAX_PENDING} bytes: this is no server of ours")
        if timeout is not None:
            sock.settimeout(max(heard + timeout - time.monotonic(), 0.001))
        try:
            data = sock.recv(_CHUNK)
        except ConnectionResetError:
            return
        if not data:
            return
        received += data


def _parse(line: bytes, directory: str) -> dict[str, Any]:
    try:
        answer = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not ("progress" in answer or isinstance(answer.get("ok"), bool)):
        raise ControlError(f"what answers in {directory!r} does not speak our protocol")
    if answer.get("acme") != PROTOCOL:
        raise ControlError(
            f"the server in {directory!r} speaks version {answer.get('acme')!a:.40} of the protocol,"
            f" not {PROTOCOL}"
        )
    return answer


def _nobody(directory: str, reason: str) -> str:
    return f"no server runs with the runtime directory {directory!r}: {reason}"


def _unreachable(directory: str, error: Exception) -> ControlError:
    reason = getattr(error, "strerror", None) or str(error)
    hint = ""
    if isinstance(error, PermissionError):
        hint = "; only the user that started the server, and root, may give it orders"
    return ControlError(f"the server in {directory!r} can't be asked: {reason}{hint}")
