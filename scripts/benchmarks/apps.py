"""The WSGI applications that every Python peer serves. Imports no server."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from . import documents

HELLO = b"Hello, World!"  # 13 bytes
_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))]

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def hello(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """The smallest honest application: status, two headers, 13 bytes."""
    start_response("200 OK", _HEADERS)
    return [HELLO]


def pid(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answers with the process id of the worker that ran it."""
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def mark(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answers with the worker's process id and the query: whose answer it is, and to what."""
    body = b"%d %b" % (os.getpid(), environ["QUERY_STRING"].encode("latin-1"))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


SPIN = 0.005
WAIT = 0.05


def spin(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Takes 5 ms of the processor, however long that lasts; then as hello."""
    end = time.thread_time() + SPIN
    while time.thread_time() < end:
        pass
    return hello(environ, start_response)


def wait(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Waits 50 ms, as for a database, and lets others run meanwhile; then as hello."""
    time.sleep(WAIT)
    return hello(environ, start_response)


def sleep(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answers after as many seconds as the query says, none without a query."""
    time.sleep(float(environ["QUERY_STRING"] or 0))
    return hello(environ, start_response)


def _numbered(kind: str) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
    """An application that makes its document anew for each request, with a number of its own in it."""
    document = documents.DOCUMENTS[kind]
    before, behind = documents.around_serial(document.make())
    length = str(len(before) + 10 + len(behind))
    headers = [("Content-Type", document.media_type), ("Content-Length", length)]
    serial = itertools.count(1)

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [b"%b%010d%b" % (before, next(serial), behind)]

    return application


def __getattr__(name: str) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
    """`page` and `records`: made when they are asked for, so that hello's server has nothing of them."""
    if name not in documents.DOCUMENTS:
        raise AttributeError(name)
    application = globals()[name] = _numbered(name)
    return application
