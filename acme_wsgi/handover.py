"""Handing the listening sockets to the next program: a newer one, or the same with other modules.

Law: turns listeners into descriptors with a description, and back. Forks and executes nothing: the caller
does, and passes on what `Handover` needs. Exactly one process owns the path of a UNIX socket at any time that
matters: the predecessor until its successor has said that it serves, then the successor.

The predecessor::

    reading, writing = os.pipe2(os.O_CLOEXEC)
    descriptors, environ = handover.offer(listeners, writing, os.environ)
    ...fork; in the child: handover.let_pass(descriptors); os.execve(program, arguments, environ)...
    ...close(writing); when handover.SERVES is read: handover.surrender(listeners), stop
    gracefully

The successor::

    taken = handover.take(os.environ)       # None: started by somebody else, bind
    ...boot workers on taken.listeners...
    manager.ready(...)                      # first, or the service manager sees its main process end
    taken.serve()
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from acme_wsgi.sockets import UNIX, Listener, ListenError, file_identity, name_of

VARIABLE = "LISTEN_HANDOVER"
"""The environment variable that holds the description."""

SERVES = b"serving\n"
"""What a successor says when it serves. Anything else that it says is why it doesn't."""

_VERSION = 1
_MOST = 1024  # listeners; a name that resolves to more addresses is a mistake
_MOST_REASON = 4096
_FIRST = 3  # the descriptors before it are stdin, stdout and stderr


# -- the predecessor --------------------------------------------------------------------------------------


def offer(
    listeners: Sequence[Listener], ready: int, environ: Mapping[str, str]
) -> tuple[tuple[int, ...], dict[str, str]]:
    """What a successor needs to go on with these listeners.

    :param ready: writing end of the pipe through which the successor says that it serves
    :param environ: what its environment is made of
    :returns: the descriptors that it must inherit, under the same numbers; its environment
    """
    described = {
        "acme": _VERSION,
        "predecessor": os.getpid(),
        "ready": ready,
        "listeners": [_describe(listener) for listener in listeners],
    }
    descriptors = (*(listener.sock.fileno() for listener in listeners), ready)
    return descriptors, {**environ, VARIABLE: json.dumps(described)}


def _describe(listener: Listener) -> dict[str, Any]:
    return {
        "fd": listener.sock.fileno(),
        "name": listener.name,
        "path": listener.path,
        "identity": listener.identity,
        "wanted": listener.wanted,
    }


def let_pass(descriptors: Iterable[int]) -> None:
    """In the forked child, right before it executes the new program: let these survive that, alone."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)


def surrender(listeners: Iterable[Listener]) -> None:
    """The successor serves: the paths of these are its to remove."""
    for listener in listeners:
        listener.owner = 0


# -- the successor ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Handover:
    """What a predecessor handed over.

    :ivar listeners: with the names and the configuration that it had for them, so that `sockets.rebind` can
        tell what has changed. Nobody here owns them yet: should this process fail, it removes nothing
    :ivar predecessor: its process id; it serves until `serve` is called, and stops then
    :ivar ready: the pipe's end for that word; -1 once it is said
    """

    listeners: list[Listener]
    predecessor: int
    ready: int

    def serve(self) -> None:
        """This process serves: the sockets are its own now, and the predecessor is told to go.

        The service manager must have been told before: it stops everything when the process ends that it
        takes for the main one.
        """
        for listener in self.listeners:
            listener.owner = os.getpid()
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            os.write(self.ready, SERVES)
        self.close()

    def refuse(self, reason: str) -> None:
        """This process will not serve: the predecessor hears why, and goes on."""
        if self.ready >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self.ready, reason.encode(errors="replace")[:_MOST_REASON])
            self.close()

    def close(self) -> None:
        """In a forked child, or when this process gives up: the predecessor goes on if nobody serves."""
        if self.ready >= 0:
            os.close(self.ready)
            self.ready = -1


def take(environ: MutableMapping[str, str]) -> Handover | None:
    """What the process that started this one handed over to it.

    :param environ: the variable is taken out of it; and so are systemd's LISTEN_* if it was there, since they
        speak of the same sockets
    :returns: None if there was nothing
    :raises ListenError: what is handed over is not what is described
    """
    text = environ.pop(VARIABLE, None)
    if text is None:
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    described = _parse(text)
    numbers = [described["ready"], *(one["fd"] for one in described["listeners"])]
    if len(set(numbers)) != len(numbers):
        raise _wrong("one descriptor stands for two things")
    ready = _adopt_pipe(described["ready"])
    listeners: list[Listener] = []
    try:
        for one in described["listeners"]:
            listeners.append(_adopt(one))
    except ListenError:
        for listener in listeners:
            listener.sock.detach()  # as it was found
        raise
    return Handover(listeners, described["predecessor"], ready)


def refuse(environ: MutableMapping[str, str], reason: str) -> None:
    """Something went wrong before anybody asked for the sockets: tell a predecessor, if there is one."""
    with contextlib.suppress(ListenError):
        taken = take(environ)
        if taken is not None:
            taken.refuse(reason)


def _parse(text: str) -> dict[str, Any]:
    """The description, of the right shape; whether it is true is another matter."""
    try:
        described = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("it is not JSON") from None
    if not isinstance(described, dict) or described.get("acme") != _VERSION:
        raise _wrong("the other program hands over in a way that this one doesn't know; stop and start")
    listeners = described.get("listeners")
    if not isinstance(listeners, list) or not 0 < len(listeners) <= _MOST:
        raise _wrong("no listeners")
    if not _number(described.get("predecessor"), 1) or not _number(described.get("ready"), _FIRST):
        raise _wrong("no predecessor or no pipe to it")
    if not all(isinstance(one, dict) and _is_listener(one) for one in listeners):
        raise _wrong("a listener is not described")
    return described


def _is_listener(one: dict[str, Any]) -> bool:
    path, identity, wanted = one.get("path"), one.get("identity"), one.get("wanted")
    return (
        _number(one.get("fd"), _FIRST)
        and isinstance(one.get("name"), str)
        and (path is None or isinstance(path, str))
        and isinstance(identity, list)
        and len(identity) == 2
        and all(_number(part, 0) for part in identity)
        and (wanted is None or _is_address(wanted))
    )


def _is_address(wanted: object) -> bool:
    if not isinstance(wanted, list) or len(wanted) != 2:
        return False
    return isinstance(wanted[0], str) and _number(wanted[1], 0)


def _number(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 64


def _adopt_pipe(descriptor: int) -> int:
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise _wrong(f"descriptor {descriptor} is not a pipe")
        os.set_inheritable(descriptor, False)
    except (OSError, OverflowError) as error:
        raise _wrong(f"descriptor {descriptor}: {error}") from error
    return descriptor


def _adopt(one: dict[str, Any]) -> Listener:
    """One listener out of its description, which must fit the socket in every point that can be seen."""
    descriptor, name, path = one["fd"], one["name"], one["path"]
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except (OSError, OverflowError) as error:
        raise _wrong(f"descriptor {descriptor} ({name}): {error}") from error
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or name_of(sock) != name:
            raise _wrong(f"descriptor {descriptor} does not listen on {name}")
        identity = (one["identity"][0], one["identity"][1])
        if path is not None and not (name == UNIX + path and _still_there(path, identity)):
            raise ListenError(
                f"{name} is not the socket any more that was made there; stop and start the server"
            )
    except BaseException:
        sock.detach()
        raise
    sock.setblocking(False)
    wanted = one["wanted"] and (one["wanted"][0], one["wanted"][1])
    return Listener(sock, name, path, identity, owner=0, wanted=wanted)


def _still_there(path: str, identity: tuple[int, int]) -> bool:
    try:
        return file_identity(path) == identity
    except OSError:
        return False


def _wrong(why: str) -> ListenError:
    return ListenError(f"cannot take over the sockets described in {VARIABLE}: {why}")
