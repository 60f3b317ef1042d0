"""A head as a whole: one request with our framing or none at all, whatever the values, and soon done."""

from __future__ import annotations

import timeit
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.upstream.shape import CHUNKED, NO_BODY
from tests.unit.upstream.heads import BACKEND, OURS, TRUSTED, Sent, asked, raw_request, sent, shaper

# -- framing ----------------------------------------------------------------------------------------------


def test_a_plain_request() -> None:
    head = sent(asked("/a", query="b=c"))
    assert head.data == (
        b"GET /a?b=c HTTP/1.1\r\n"
        b"Host: example.test\r\n"
        b"X-Forwarded-For: 192.0.2.1\r\n"
        b"X-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: example.test\r\n"
        b'Forwarded: for=192.0.2.1;host="example.test";proto=http\r\n'
        b"Via: 1.1 acme\r\n"
        b"X-Request-Id: 0123456789abcdef\r\n"
        b"\r\n"
    )
    assert head.names == OURS


@pytest.mark.parametrize(
    ("length", "keep", "options", "end"),
    [
        (NO_BODY, True, {}, ""),
        (0, True, {}, "Content-Length: 0\r\n"),
        (1 << 40, True, {}, "Content-Length: 1099511627776\r\n"),
        (CHUNKED, True, {}, "Transfer-Encoding: chunked\r\n"),
        (5, False, {}, "Content-Length: 5\r\nConnection: close\r\n"),
        (5, True, {"expect": True}, "Expect: 100-continue\r\nContent-Length: 5\r\n"),
        (NO_BODY, False, {"upgrade": True}, "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ],
)
def test_framing(length: int, keep: bool, options: dict[str, Any], end: str) -> None:
    lies = {"CONTENT_LENGTH": "99", "HTTP_TRANSFER_ENCODING": "chunked", "HTTP_EXPECT": "100-continue"}
    request = asked(HTTP_UPGRADE="websocket", HTTP_CONNECTION="Upgrade", **lies)
    head = sent(request, shaper(keep=keep), length=length, **options)
    assert head.data.endswith(f"X-Request-Id: 0123456789abcdef\r\n{end}\r\n".encode())
    assert head.head.content_length == (length if length >= 0 else -1)


# -- what can't be sent -----------------------------------------------------------------------------------

UNFIT = [
    "a\r\nX-Evil: 1", "a\nb", "a\rb", "\0", "\x7f", "\x1f", "12345678\x0b", "caf\u0119", "\ud800",
    "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("value", UNFIT)
@pytest.mark.parametrize(
    "key",
    ["HTTP_ACCEPT", "HTTP_COOKIE", "CONTENT_TYPE", "HTTP_HOST", "HTTP_VIA", "REMOTE_ADDR", "wsgi.url_scheme",
     "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PORT", "HTTP_UPGRADE", "acme.peer"],
)  # fmt: skip
def test_a_value_that_is_none_never_leaves(key: str, value: str) -> None:
    request = raw_request("/a%20b?c")
    request.environ |= {"acme.peer": TRUSTED, "HTTP_UPGRADE": "x", key: value}
    changes = shaper(add=(("X-Ip", "$remote_addr"), ("X-Host", "$host")))
    with pytest.raises(ValueError, match=r"field value"):
        changes.head(request, BACKEND, NO_BODY, upgrade=True)
    # And the next head has nothing of it.
    assert sent(asked()).names == OURS


@pytest.mark.parametrize("value", UNFIT)
@pytest.mark.parametrize("form", ["{}", "for={}", 'for="{}"', "{}, for=192.0.2.9"])
def test_nor_does_a_forwarded_that_is_none(form: str, value: str) -> None:
    request = raw_request("/a%20b?c")
    request.environ |= {"acme.peer": TRUSTED, "HTTP_FORWARDED": form.format(value)}
    (kept,) = sent(request).all("Forwarded")
    assert kept.removeprefix("for=192.0.2.9, ") == f'for={TRUSTED};host="example.test";proto=http'


@pytest.mark.parametrize("value", [*UNFIT, "x HTTP/1.1", "\xe9", " ", "\t"])
def test_a_request_line_has_three_words(value: str) -> None:
    request = raw_request("/a%20b?c")
    request.environ["QUERY_STRING"] = value
    with pytest.raises(ValueError, match="request line"):
        shaper().head(request, BACKEND, NO_BODY)
    for method in ("GET /x", "", "G\xcbT", value):
        request = asked()
        request.method = method
        with pytest.raises(ValueError, match="request line"):
            shaper().head(request, BACKEND, NO_BODY)


def test_values_are_text() -> None:
    with pytest.raises(ValueError, match="not a field value"):
        shaper().head(asked(HTTP_ACCEPT=b"bytes"), BACKEND, NO_BODY)


@pytest.mark.parametrize("value", UNFIT)
def test_an_id_or_a_method_that_is_none_never_leaves(value: str) -> None:
    request = asked()
    request.method = value
    with pytest.raises(ValueError, match="request line"):
        shaper().head(request, BACKEND, NO_BODY)
    request = asked()
    request.request_id = value
    with pytest.raises(ValueError, match="field value"):
        shaper().head(request, BACKEND, NO_BODY)


# -- any request ------------------------------------------------------------------------------------------

_TOKENS = st.text(st.sampled_from("abcXYZ-0123456789!#$%&'*+.^`|~"), min_size=1, max_size=10)

_NAMES = st.one_of(
    _TOKENS,
    st.sampled_from([
        "Host", "Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Expect", "Te", "Trailer",
        "Cookie", "X-Forwarded-For", "X-Forwarded-Port", "Forwarded", "Via", "X-Request-Id", "Keep-Alive",
        "Content-Type",
    ]),
)  # fmt: skip

_VALUES = st.one_of(
    st.text(st.characters(max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=20).map(str.strip),
    st.lists(_NAMES, max_size=3).map(", ".join),
    st.text(st.characters(max_codepoint=0x200), max_size=6),
)


@given(
    fields=st.dictionaries(_NAMES, _VALUES, max_size=8),
    trusted=st.booleans(),
    length=st.sampled_from([NO_BODY, CHUNKED, 0, 7]),
    changed=st.booleans(),
)
def test_a_head_is_one_request_with_our_framing(
    fields: dict[str, str], trusted: bool, length: int, changed: bool
) -> None:
    request = asked("/a", method="POST")
    for name, value in fields.items():
        key = name.upper().replace("-", "_")
        request.environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key] = value
    if trusted:
        request.environ["acme.peer"] = TRUSTED
    # Others' words may not be a host: what the engine has checked isn't checked again.
    request.environ["HTTP_HOST"] = "example.test"
    try:
        data = shaper(remove=("A",) if changed else ()).head(request, BACKEND, length)
    except ValueError:
        said = "".join(fields.values())
        assert any(ord(char) > 0xFF or ord(char) < 0x20 or char == "\x7f" for char in said)
        return
    head = Sent(data).head
    assert (head.method, head.target, head.minor, head.host) == ("POST", b"/a", 1, "example.test")
    assert head.content_length == max(length, -1) and head.chunked == (length == CHUNKED)
    assert head.keep_alive and not head.expect_continue and not head.upgrade
    names = [name.lower() for name, _ in head.headers]
    assert len(set(names)) == len(names)
    assert not set(names) & {b"connection", b"upgrade", b"te", b"trailer", b"keep-alive", b"expect"}


# -- what it costs ----------------------------------------------------------------------------------------


def test_a_browsers_request_costs_microseconds() -> None:
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
    request = asked(
        "/shop/cart",
        query="a=1",
        HTTP_USER_AGENT=agent,
        HTTP_ACCEPT="text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        HTTP_ACCEPT_LANGUAGE="de,en-US;q=0.7,en;q=0.3",
        HTTP_ACCEPT_ENCODING="gzip, deflate, br, zstd",
        HTTP_CONNECTION="keep-alive",
        HTTP_COOKIE="session=0123456789abcdef0123456789abcdef",
        HTTP_UPGRADE_INSECURE_REQUESTS="1",
        HTTP_SEC_FETCH_DEST="document",
        HTTP_SEC_FETCH_MODE="navigate",
        HTTP_SEC_FETCH_SITE="same-origin",
    )
    shape = shaper()
    seconds = min(timeit.repeat(lambda: shape.head(request, BACKEND, NO_BODY), number=2000, repeat=5)) / 2000
    assert seconds < 30e-6  # 1.3 us on a quiet machine; this is for a busy one
