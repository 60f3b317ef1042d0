"""The fields that a backend gets: which of the client's, what a route changes, whose account it is."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.upstream.shape import CHUNKED, learn_name
from acme_wsgi.upstream.target import Target
from tests.unit.upstream.heads import OURS, TRUSTED, apart, asked, sent, shaper

# -- the client's fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "HTTP_KEEP_ALIVE", "HTTP_PROXY_CONNECTION", "HTTP_PROXY_AUTHORIZATION", "HTTP_PROXY_AUTHENTICATE",
        "HTTP_TE", "HTTP_TRAILER", "HTTP_TRANSFER_ENCODING", "HTTP_UPGRADE", "HTTP_EXPECT",
        "HTTP_HTTP2_SETTINGS",
        "HTTP_CONTENT_LENGTH", "CONTENT_LENGTH", "HTTP_X_FORWARDED_PREFIX", "HTTP_X_FORWARDED_PORT",
        "HTTP_X_FORWARDED_SERVER", "REMOTE_PORT", "SERVER_SOFTWARE", "HTTPS", "PATH", "", "HTTP_", "HTTP_A B",
        "HTTP_A:", "HTTP_A\r\nB", "HTTP_\u00e9",
    ],
)  # fmt: skip
def test_what_stays_behind(key: str) -> None:
    assert sent(asked(**{key: "hidden"})).names == OURS


def test_connection_stays_behind() -> None:
    assert sent(asked(HTTP_CONNECTION="keep-alive")).names == OURS
    assert sent(asked(HTTP_CONNECTION="close, Upgrade,, ")).names == OURS


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("HTTP_ACCEPT", "Accept"),
        ("HTTP_X_REAL_IP", "X-Real-Ip"),
        ("HTTP_COOKIE", "Cookie"),
        ("HTTP_AUTHORIZATION", "Authorization"),
        ("CONTENT_TYPE", "Content-Type"),
        ("HTTP_MAX_FORWARDS", "Max-Forwards"),
        ("HTTP_IF_NONE_MATCH", "If-None-Match"),
        ("HTTP_RANGE", "Range"),
        ("HTTP_!#$%&'*+.^`|~1", "!#$%&'*+.^`|~1"),
    ],
)
@pytest.mark.parametrize("value", ["x", "", 'a\tb, c;d="e"', "caf\u00e9\xff"])
def test_what_is_passed_on(key: str, name: str, value: str) -> None:
    head = sent(asked(**{key: value}))
    assert head[name] == value
    assert sorted(head.names) == sorted([*OURS, name])


@pytest.mark.parametrize("options", ["{}", "close, {}", "{},keep-alive", " ,\t{} ,", "x-other, {}"])
def test_fields_that_connection_names_stay_behind(options: str) -> None:
    request = asked(HTTP_CONNECTION=options.format("X-Hop"), HTTP_X_HOP="1", HTTP_X_HOPE="2")
    assert sorted(sent(request).names) == sorted([*OURS, "X-Hope"])
    request = asked(HTTP_CONNECTION=options.format("Content-Type"), CONTENT_TYPE="text/plain")
    assert sent(request).names == OURS
    request = asked(HTTP_CONNECTION=options.format("cookie"), HTTP_COOKIE="a=b")
    assert sent(request).names == OURS


@pytest.mark.parametrize(
    "option",
    ["host", "x-forwarded-for", "X-Forwarded-Proto", "x-forwarded-host", "forwarded", "via", "x-request-id",
     "content-length", "transfer-encoding", "h\u00f6st", "", "a b", "_", "http_host", "x_forwarded_for"],
)  # fmt: skip
def test_what_we_say_is_not_the_clients_to_remove(option: str) -> None:
    head = sent(asked(HTTP_CONNECTION=option), length=5)
    assert head.names == [*OURS, "Content-Length"]
    assert sent(asked(HTTP_CONNECTION=option), length=CHUNKED).head.chunked
    added = shaper(add=(("X-Real-IP", "$remote_addr"),))
    head = sent(asked(HTTP_CONNECTION="X-Real-IP", HTTP_X_REAL_IP="6.6.6.6"), added)
    assert head["X-Real-IP"] == "192.0.2.1"


def test_what_is_learned_is_bounded() -> None:
    def attack() -> None:
        shape = shaper()
        for number in range(6000):
            sent(asked(**{f"HTTP_X_FORWARDED_{number}": "x", f"HTTP_X_{number}": "x"}), shape)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(6000, 12000):
            assert sent(asked(**{f"HTTP_X_{number}": "x"}), shape)[f"X-{number}"] == "x"
            assert sent(asked(**{f"HTTP_X_FORWARDED_{number}": "x"}), shape)[f"X-Forwarded-{number}"] is None
        assert tracemalloc.get_traced_memory()[0] - before < 100_000

    apart(attack)


@given(st.text(st.characters(max_codepoint=0x17F), max_size=12).map(lambda text: "HTTP_Z" + text.upper()))
def test_a_name_that_is_learned_is_a_token_without_an_underscore(key: str) -> None:
    try:
        before = learn_name(key)
    except UnicodeEncodeError:
        return
    if before is not None:
        assert before.endswith(b": ") and b"_" not in before
        assert sent(asked(**{key: "x"})).all(before[:-2].decode("ascii")) == ["x"]


# -- what the route adds and removes ----------------------------------------------------------------------


def test_added_fields() -> None:
    changes = shaper(
        add=(
            ("X-Real-IP", "$remote_addr"),
            ("X-Url", "$scheme://$host/"),
            ("X-Id", "$request_id"),
            ("X-Price", "5 $$"),
            ("X-Empty", ""),
        )
    )
    head = sent(asked(REMOTE_ADDR="2001:db8::1", HTTP_X_REAL_IP="6.6.6.6", HTTP_X_EMPTY="x"), changes)
    assert head["X-Real-IP"] == "2001:db8::1"
    assert head["X-Url"] == "http://example.test/"
    assert head["X-Id"] == "0123456789abcdef"
    assert head["X-Price"] == "5 $"
    assert head["X-Empty"] == ""


def test_an_added_field_replaces_the_clients_and_ours() -> None:
    added = {"X-Forwarded-For": "$remote_addr", "Via": "none", "content-type": "text/plain"}
    theirs = {"HTTP_X_FORWARDED_FOR": "6.6.6.6", "CONTENT_TYPE": "text/html", "acme.peer": TRUSTED}
    head = sent(asked(**theirs), shaper(add=tuple(added.items())))
    assert [head[name] for name in added] == ["192.0.2.1", "none", "text/plain"]


def test_removed_fields() -> None:
    changes = shaper(remove=("X-Debug", "cookie", "CONTENT-TYPE"))
    assert sent(asked(HTTP_X_DEBUG="1", HTTP_COOKIE="a=b", CONTENT_TYPE="text/html"), changes).names == OURS
    # Removed, then set.
    changes = shaper(remove=("X-Debug",), add=(("X-Debug", "off"),))
    assert sent(asked(HTTP_X_DEBUG="1"), changes)["X-Debug"] == "off"


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
