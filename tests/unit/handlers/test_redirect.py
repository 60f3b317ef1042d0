"""Redirects: what the template means, and that no request can turn it into something else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeRequest, Received, receive
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.handlers import Context
from acme_wsgi.handlers.redirect import build


def make(target: str, status: int = 302, prefix: str | None = None, names: tuple[str, ...] = ()) -> Any:
    route: Any = SimpleNamespace(redirect_to=target, status_code=status)
    return build(route, Context("route /x", lambda spec: None, frozenset(names), prefix))


def location(target: str, request: FakeRequest | None = None, **params: str) -> str | None:
    request = request or FakeRequest("/a b", query="q=1&r=%20", target="/a%20b?q=1&r=%20")
    request.params = params
    return receive(make(target, names=tuple(params), prefix="/a")(request)).header("Location")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/new", "/new"),
        ("https://example.org:8443/x:y?a=b#c", "https://example.org:8443/x:y?a=b#c"),
        ("/grüß", "/gr%C3%BC%C3%9F"),
        ("/already%20there", "/already%20there"),
        ("/price$$", "/price$"),
        ("https://new.test$uri", "https://new.test/a%20b?q=1&r=%20"),
        ("https://new.test$request_uri", "https://new.test/a%20b?q=1&r=%20"),
        ("/new$path", "/new/a%20b"),
        ("/new?$query_string", "/new?q=1&r=%20"),
        ("$scheme://$host/x", "http://example.test/x"),
        ("/new$rest", "/new%20b"),
    ],
)
def test_templates(target: str, expected: str) -> None:
    assert location(target) == expected


@pytest.mark.parametrize(
    ("target", "params", "expected"),
    [
        ("/u/:id", {"id": "7"}, "/u/7"),
        ("/u/:id/edit", {"id": "ü/x?#"}, "/u/%C3%BC/x%3F%23/edit"),
        ("/u/$1-$name", {"1": "a", "name": "b"}, "/u/a-b"),
        ("/u?id=$id&x=1", {"id": "a&b=c+d"}, "/u?id=a%26b%3Dc%2Bd&x=1"),
        ("/:rest", {"rest": "/evil.test"}, "/evil.test"),
        ("$1", {"1": "//evil.test/x"}, "/evil.test/x"),
        ("$1", {"1": "https://evil.test"}, "https%3A//evil.test"),
        ("$1", {"1": "\\\\evil.test"}, "%5C%5Cevil.test"),
        ("https://good.test$1", {"1": "@evil.test"}, "https://good.test%40evil.test"),
    ],
)
def test_parameters_are_escaped_for_their_place(target: str, params: dict[str, str], expected: str) -> None:
    assert location(target, **params) == expected


def test_an_empty_query_leaves_no_question_mark() -> None:
    assert location("/new?$query_string", FakeRequest("/x")) == "/new"


def test_the_host_of_an_absolute_target_is_not_followed() -> None:
    request = FakeRequest("/a", query="q", target="http://evil.test/a?q")
    assert location("https://good.test$uri", request) == "https://good.test/a?q"


def test_two_slashes_in_the_target_do_not_become_a_host() -> None:
    assert location("$uri", FakeRequest("/evil.test", target="//evil.test")) == "/evil.test"


def test_without_a_host_header_the_servers_name_stands_in() -> None:
    assert (
        location("https://$host/", FakeRequest(host="", SERVER_NAME="fallback.test"))
        == "https://fallback.test/"
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_whole_response(status: int) -> None:
    received = receive(make("/a?b=1&c=<", status)(FakeRequest()))
    assert received.status.startswith(f"{status} ")
    assert received.headers == [("Location", "/a?b=1&c=%3C"), ("Content-Type", "text/html; charset=utf-8")]
    assert b'<a href="/a?b=1&amp;c=%3C">' in received.body


def test_responses_do_not_share_their_headers() -> None:
    handle = make("/a")
    handle(FakeRequest()).headers.append(("X", "1"))
    assert ("X", "1") not in handle(FakeRequest()).headers


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "needs redirect_to"),
        ("/u/:nobody", "no parameter :nobody"),
        ("/u/$nobody", r"no \$nobody here; there are \$1, "),
        ("/u/$2", r"no \$2 here"),
        ("/100$", "lone"),
        ("/a b", "no spaces"),
        ("/a\r\nX: 1", "control"),
        ("/x$rest", "path ends in"),
    ],
)
def test_bad_templates_fail_at_the_start(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(target, names=("1",))


_BYTES = st.text(st.characters(max_codepoint=255))  # as PEP 3333 has them


@given(path=_BYTES, query=_BYTES, value=st.text())
def test_nothing_leaves_the_template(path: str, query: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:  # params are UTF-8 text, never surrogates
        return
    request = FakeRequest("/a/" + path, query=query, target="/a/" + path + "?" + query)
    request.params = {"v": value}
    for template in ("/x/$v$path?$query_string", "$v", "/$v", "$uri", "$v$rest"):
        result: Received = receive(make(template, names=("v",), prefix="/a")(request))
        found = result.header("Location")
        assert found is not None
        assert found.isascii()
        assert found == "" or found.isprintable()
        assert not set(found) & set(' "<>\\^`{|}')
        assert not found.startswith("//")
        assert ":" not in found.partition("/")[0]
