"""A static route without a server: built over a directory, asked, and its answers read.

Knows the handler's public face; the directory is the `root` fixture's.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeRequest

from acme_wsgi.errors import HTTPError
from acme_wsgi.handlers import Context, static
from acme_wsgi.http.writer import FileBody, Parts

TEXT = "".join(f"line {number}\n" for number in range(300))
LARGE = bytes(range(256)) * 400
OLD = 1_000_000_000


def site(root: Path, *, prefix: str | None = "", where: dict[str, Any] | None = None, **named: Any) -> Any:
    route: Any = SimpleNamespace(
        root=str(root),
        index=("index.html",),
        try_files=(),
        directory_listing=False,
        extensions=(),
        cache_control=None,
        timeout=None,
    )
    for name, value in (where or {}).items():
        setattr(route, name, value)
    context = Context("route /x", lambda spec: None, frozenset(), prefix, **named)
    return static.build(route, context)


class Got:
    """A response with its body read."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.status = int(response.status.split()[0])
        self.fields = {name.lower(): value for name, value in response.headers}
        assert len(self.fields) == len(list(response.headers)), "a field stands there twice"
        pieces = response.body.pieces if isinstance(response.body, Parts) else [response.body]
        self.body = b"".join(map(_bytes, pieces))


def _bytes(piece: bytes | FileBody) -> bytes:
    if isinstance(piece, bytes):
        return piece
    return os.pread(piece.file.fileno(), piece.count, piece.offset)


def get(handler: Any, path: str, *, method: str = "GET", query: str = "", **fields: str) -> Got:
    environ = {f"HTTP_{name.upper()}": value for name, value in fields.items()}
    return Got(handler(FakeRequest(path, method, query=query, **environ)))


def refused(handler: Any, path: str, **named: Any) -> HTTPError:
    with pytest.raises(HTTPError) as caught:
        get(handler, path, **named)
    return caught.value
