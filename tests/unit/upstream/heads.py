"""Heads of requests to a backend: what a client asked, and what is sent for it.

A head is read with the engine's own parser, which refuses whatever isn't exactly one request.

    head = sent(asked("/a", HTTP_COOKIE="a=b"), shaper(remove=("Cookie",)))
    assert head["Cookie"] is None and head.names == OURS

Law: knows the shaper, the parser and a fake of the engine's request; nothing is connected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fakes import FakeRequest

from acme_wsgi.config.schema.routes import Rewrite, RouteHeaders
from acme_wsgi.http.h1 import ParsedHead, parse_head
from acme_wsgi.upstream.shape import NO_BODY, Shaper
from acme_wsgi.upstream.target import Target
from tests.unit.processes import in_child, joined

BACKEND = Target.parse("http://app1.internal:8000")
TRUSTED = "10.0.0.1"

# The fields of our own that a head has.
OURS = [
    "Host",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "Forwarded",
    "Via",
    "X-Request-Id",
]


def shaper(
    *,
    add: tuple[tuple[str, str], ...] = (),
    remove: tuple[str, ...] = (),
    rewrite: tuple[str, str] | None = None,
    keep: bool = True,
) -> Shaper:
    changes = RouteHeaders(add=add, remove=remove)
    return Shaper(changes, Rewrite(from_=rewrite[0], to=rewrite[1]) if rewrite is not None else None, keep)


def asked(path: str = "/", **environ: Any) -> FakeRequest:
    """A request without a body, from 192.0.2.1; an entry that is None isn't there."""
    request = FakeRequest(path, **environ)
    request.environ = {key: value for key, value in request.environ.items() if value is not None}
    if "CONTENT_LENGTH" not in environ:
        del request.environ["CONTENT_LENGTH"]
    return request


def raw_request(raw: str, method: str = "GET") -> FakeRequest:
    """A request with this target, as the engine would have it."""
    head = parse_head(f"{method} {raw} HTTP/1.1\r\nHost: example.test\r\n\r\n".encode("latin-1"), 1 << 20)
    assert head is not None
    request = FakeRequest(head.path, method, "example.test", head.query, target=raw)
    if head.path == raw:
        request.environ["REQUEST_URI"] = request.environ["PATH_INFO"]
    return request


class Sent:
    """A head as the backend reads it."""

    def __init__(self, data: bytes) -> None:
        head = parse_head(data, 1 << 20)
        assert head is not None and head.consumed == len(data), data
        self.head: ParsedHead = head
        self.data = data

    def all(self, name: str) -> list[str]:
        """A field's values, a line each."""
        return [
            value.decode("latin-1")
            for key, value in self.head.headers
            if key.decode("ascii").lower() == name.lower()
        ]

    def __getitem__(self, name: str) -> str | None:
        """The value of a field that is there once, None if it isn't there."""
        values = self.all(name)
        assert len(values) < 2, f"{name}: {values}"
        return values[0] if values else None

    @property
    def names(self) -> list[str]:
        return [name.decode("ascii") for name, _ in self.head.headers]


def sent(
    request: FakeRequest,
    shape: Shaper | None = None,
    target: Target = BACKEND,
    length: int = NO_BODY,
    **options: Any,
) -> Sent:
    return Sent((shape or shaper()).head(request, target, length, **options))


def apart(work: Callable[[], None]) -> None:
    """In a process of its own: what it teaches the table of names is forgotten with it."""
    assert joined(in_child(work)) == 0
