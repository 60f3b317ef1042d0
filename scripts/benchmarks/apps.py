"""The WSGI applications that every Python peer serves. Imports no server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

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
