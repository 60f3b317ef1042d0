"""The head that a backend gets: which fields leave, what they say, where the target leads.

A head is read with the engine's own parser, which refuses whatever isn't exactly one request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeRequest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.config.schema.routes import Rewrite, RouteHeaders
from acme_wsgi.errors import HTTPError
from acme_wsgi.http.h1 import ParsedHead, ParseError, parse_head
from acme_wsgi.upstream.shape import CHUNKED, NO_BODY, Shaper, learn_name
from acme_wsgi.upstream.target import Target
from tests.unit.upstream.backends import in_child, joined

BACKEND = Target.parse("http://app1.internal:8000")
TRUSTED = "10.0.0.1"


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
    **options: bool,
) -> Sent:
    return Sent((shape or shaper()).head(request, target, length, **options))


def apart(work: Callable[[], None]) -> None:
    """In a process of its own: what it teaches the table of names is forgotten with it."""
    assert joined(in_child(work)) == 0


# -- the client's fields ----------------------------------------------------------------------------------


def test_a_trusted_proxys_fields_get_through_however_many_names_others_have_made_up() -> None:
    def attack() -> None:
        shape = shaper()
        for number in range(3000):
            sent(asked(**{f"HTTP_X_FORWARDED_{number}": "x", f"HTTP_X_{number}": "x"}), shape)
        late = {"HTTP_X_FORWARDED_PREFIX": "/shop", "HTTP_X_LATE": "here", "HTTP_X_FORWARDED_FOR": "192.0.2.7"}
        head = sent(asked(**late, **{"acme.peer": TRUSTED}), shape)
        assert head["X-Forwarded-Prefix"] == "/shop"
        assert head["X-Late"] == "here"
        assert head["X-Forwarded-For"] == f"192.0.2.7, {TRUSTED}"
        head = sent(asked(**late), shape)
        assert head["X-Forwarded-Prefix"] is None
        assert head["X-Late"] == "here"
        assert head["X-Forwarded-For"] == "192.0.2.1"

    apart(attack)


# -- the backend's account --------------------------------------------------------------------------------

ACCOUNT = Target.parse("http://acme:secret@app1.internal:8000")
BASIC = "Basic YWNtZTpzZWNyZXQ="


@pytest.mark.parametrize(
    ("client", "changes", "expected"),
    [
        (None, {}, BASIC),
        ("Bearer theirs", {}, "Bearer theirs"),
        ("Bearer theirs", {"remove": ("Authorization",)}, BASIC),
        (None, {"remove": ("Authorization",)}, BASIC),
        (None, {"add": (("Authorization", "Bearer ours"),)}, "Bearer ours"),
        ("Bearer theirs", {"add": (("authorization", "Bearer ours"),)}, "Bearer ours"),
    ],
)
def test_there_is_one_authorization(client: str | None, changes: dict[str, Any], expected: str) -> None:
    assert sent(asked(HTTP_AUTHORIZATION=client), shaper(**changes), ACCOUNT)["Authorization"] == expected


def test_an_account_stays_with_its_backend() -> None:
    assert sent(asked())["Authorization"] is None
    named = asked(HTTP_AUTHORIZATION="Bearer theirs", HTTP_CONNECTION="authorization")
    assert sent(named)["Authorization"] is None
    assert sent(named, target=ACCOUNT)["Authorization"] == BASIC


# -- where it leads ---------------------------------------------------------------------------------------


def raw_request(raw: str, method: str = "GET") -> FakeRequest:
    """A request with this target, as the engine would have it."""
    head = parse_head(f"{method} {raw} HTTP/1.1\r\nHost: example.test\r\n\r\n".encode("latin-1"), 1 << 20)
    assert head is not None
    request = FakeRequest(head.path, method, "example.test", head.query, target=raw)
    if head.path == raw:
        request.environ["REQUEST_URI"] = request.environ["PATH_INFO"]
    return request


def leads(raw: str, rewrite: tuple[str, str] | None = None, base: str = "") -> str:
    """The target sent for a target received."""
    return shaper(rewrite=rewrite).target(raw_request(raw).environ, base)


@pytest.mark.parametrize(
    "raw",
    ["/static../secret", "/static..", "/static./x", "/static.", "/static..%2Fsecret", "/static%2E./x", "/static../"],
)
def test_a_rewrite_leads_to_no_other_place(raw: str) -> None:
    with pytest.raises(HTTPError) as caught:
        leads(raw, ("^/static(.*)$", r"/files/\1"))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("/static/x", "/files/x"),  # no empty segment, which might be taken for the beginning of a host's name
        ("/static.../x", "/files/.../x"),
        ("/static.hidden", "/files/.hidden"),
        ("/static%2F..x", "/files/%2F..x"),
        ("/static", "/files/"),
    ],
)
def test_what_a_rewrite_makes_is_normal(raw: str, expected: str) -> None:
    assert leads(raw, ("^/static(.*)$", r"/files/\1")) == expected
    assert leads(raw, ("^/static(.*)$", r"//files//\1")) == expected
