"""A worker's rehearsal: one request, sent to its own engine before anybody else's is let in.

Law: the only part of the worker that is its own client. It runs in the worker's main greenlet, between the
building of the engine and its `start`, and knows of the engine that it adopts a socket.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import gevent.socket

from acme_wsgi.errors import BootError

MOST_HEAD = 65536
"""Bytes of an answer in which its status must stand."""

REST = 1.0
"""Seconds that are given to what follows the head."""

_SHOWN = 80


class Adopter(Protocol):
    """What the rehearsal needs of an engine."""

    def adopt(self, sock: Any) -> None: ...


def probe(engine: Adopter, what: str, timeout: float) -> None:
    """Have `engine` answer one request, and make sure that it can.

    :param what: a path, which is asked with GET; or ``*``, OPTIONS * (the engine alone)
    :param timeout: seconds that the status may take
    :raises BootError: no answer in time, or one of 500 or above
    """
    method = "OPTIONS" if what == "*" else "GET"
    where = f"the probe {method} {what}"
    deadline = time.monotonic() + timeout
    ours, theirs = gevent.socket.socketpair()
    with ours:
        engine.adopt(theirs)
        fields = ("Host: localhost", "User-Agent: acme-probe", "Connection: close")
        try:
            ours.settimeout(timeout)
            ours.sendall("\r\n".join([f"{method} {what} HTTP/1.1", *fields, "", ""]).encode("ascii"))
            status = _status(ours, deadline)
        except TimeoutError:
            raise BootError(where, f"no answer within {timeout:g} s") from None
        except OSError as error:
            raise BootError(where, f"no answer: {error}") from error
        if not status:
            raise BootError(where, "the connection was closed without an answer")
        if not status[:1].isdigit() or status >= "5":
            raise BootError(where, f"answered {status}")
        _take_rest(ours, min(deadline, time.monotonic() + REST))


def _status(sock: Any, deadline: float) -> str:
    """Status and reason of the final response ("200 OK"), printable; "" when there is none."""
    data = b""
    taken = 0
    while taken < MOST_HEAD and (more := _receive(sock, deadline)):
        data += more
        taken += len(more)
        while (end := data.find(b"\r\n\r\n")) >= 0 and data[9:10] == b"1":
            data = data[end + 4 :]  # an interim response (103)
        line, ended, _ = data.partition(b"\r\n")
        if ended and line[9:10] != b"1":
            text = line[9:].decode("ascii", "replace")
            return "".join(char if char.isprintable() else "?" for char in text)[:_SHOWN]
    return ""


def _take_rest(sock: Any, deadline: float) -> None:
    """Let a handler finish what it has begun, unless it streams for ever."""
    try:
        while time.monotonic() < deadline and _receive(sock, deadline):
            pass
    except OSError:
        return  # the status is all that counts


def _receive(sock: Any, deadline: float) -> bytes:
    # Never 0, which would not wait for the answer that a busy loop has ready by now.
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    data: bytes = sock.recv(65536)
    return data
