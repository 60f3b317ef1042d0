"""Where a request leads: the path that was received, behind a base or in a rewrite."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.errors import HTTPError
from acme_wsgi.http.h1 import ParseError, parse_head
from tests.unit.upstream.heads import raw_request, shaper

# -- targets ----------------------------------------------------------------------------------------------


def leads(raw: str, rewrite: tuple[str, str] | None = None, base: str = "") -> str:
    """The target sent for a target received."""
    return shaper(rewrite=rewrite).target(raw_request(raw).environ, base)


def path_of(target: str) -> str:
    """What a server that reads like ours takes for the path of a target."""
    head = parse_head(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode("latin-1"), 1 << 20)
    assert head is not None and head.target == target.encode("latin-1")
    return head.path


_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_IN_PATHS = _UNRESERVED | frozenset("/!$&'()*+,;=:@")

# Bits of which hostile paths are made, and any character that a target may have.
_BITS = [
    "/", "//", ".", "..", "a", "%2e", "%2F", "%2f", "%25", "%252f", "%3F", "%23", "%41", "%c3%a9", "%ff",
    "%0a", "%0d%0a", "%20", "%7f", "[", '"', "<", "\\", "^", "|", "`", "{", ";x", "@", "*", "a.b", "...",
]  # fmt: skip
RAW_PATHS = st.lists(
    st.one_of(
        st.sampled_from(_BITS),
        st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#?%"),
        st.integers(1, 255).map(lambda byte: f"%{byte:02x}"),
    ),
    max_size=12,
).map(lambda bits: "/" + "".join(bits))
RAW_TARGETS = st.builds(
    lambda authority, path, query: authority + path + query,
    st.sampled_from(["", "", "http://example.test", "HTTPS://[::1]:8443"]),
    RAW_PATHS,
    st.sampled_from(["", "?", "?q=/a/../b%2f", "?a?b", "?//x"]),
)


@given(raw=RAW_TARGETS, base=st.sampled_from(["", "/base", "/b%20c/d"]))
def test_the_target_sent_means_the_path_received(raw: str, base: str) -> None:
    try:
        request = raw_request(raw)
    except ParseError:
        return
    target = shaper().target(request.environ, base)
    path, _, query = target.partition("?")
    assert target.startswith(base + "/")
    assert path_of(target) == path_of(base or "/").rstrip("/") + request.path
    assert query == request.environ["QUERY_STRING"]
    rest = path.removeprefix(base)
    given = raw.partition("?")[0]
    if rest == given:  # it was normal already: passed on as it came
        return
    assert set(rest.replace("%", "")) <= _IN_PATHS
    # Nobody who reads it in another order of decoding and climbing gets elsewhere.
    assert not {".", "..", ""} & set(rest.split("/")[1:-1])
    if "%2F" in rest:
        slashes = rest.replace("%2F", "/")
        assert path_of(slashes) == request.path and not {".", "..", ""} & set(slashes.split("/")[1:-1])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("/", "/"),
        ("/a/b?c=d&e=%2F", "/a/b?c=d&e=%2F"),
        ("/a?", "/a?"),
        ("/a?b?c", "/a?b?c"),
        ('/{a}|"b"', '/{a}|"b"'),  # normal: as it came
        ("/a%20b", "/a%20b"),
        ("/%61", "/a"),
        ("/%c3%A9", "/%C3%A9"),
        ("/%ff", "/%FF"),
        ("/a%3Fb%23c?d", "/a%3Fb%23c?d"),
        ("/a%25b", "/a%25b"),
        ("/a%252Fb", "/a%252Fb"),
        ("/a%0d%0aHost:b", "/a%0D%0AHost:b"),
        ("/%7e~", "/~~"),
        ("//a///b", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/a/%2e%2e/c", "/c"),
        ("/{%61}", "/%7Ba%7D"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%2fb%20c", "/a%2Fb%20c"),
        ("/a%2Fb%2F", "/a%2Fb%2F"),
        ("/a%2Fb%2F..", "/a/"),  # something else was normalised: a slash it is
        ("/a%2Fb//c", "/a/b/c"),
        ("/a%2F%2e%2e%2Fb", "/b"),
        ("/a%2F/b", "/a/b"),
        ("http://example.test", "/"),
        ("http://example.test?q=/a%2Fb", "/?q=/a%2Fb"),
        ("http://example.test/a%2Fb?c", "/a%2Fb?c"),
        ("https://example.test:443/a/../b?c", "/b?c"),
        ("HTTP://example.test//a?b", "/a?b"),
    ],
)
def test_targets(raw: str, expected: str) -> None:
    assert leads(raw) == expected
    path, mark, query = expected.partition("?")
    assert leads(raw, base="/base").startswith(f"/base{path}")
    # A rewrite that doesn't match changes nothing but that it is written anew.
    rewritten = leads(raw, ("^/nowhere$", "/"))
    assert path_of(rewritten) == path_of(expected)
    assert rewritten.partition("?")[2] == query or not mark


# -- rewrites ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "to", "raw", "expected"),
    [
        ("^/api/(.*)$", r"/\1", "/api/users/1?page=2", "/users/1?page=2"),
        ("^/api/(.*)$", r"/\1", "/other", "/other"),
        ("^/(?P<kind>[a-z]+)/", r"/v2/\g<kind>", "/user/1", "/v2/user"),
        ("^/a(b)?(c)?", r"/x\1\2", "/ac", "/xc"),  # a group that took no part
        ("^(/b)?", r"\1", "/a", "/"),
        ("^/(.*)$", r"\1", "/a/b", "/a/b"),  # no slash in front
        ("^/(.*)$", r"/\1", "/caf%C3%A9", "/caf%C3%A9"),
        ("^/(caf.)$", r"/\1/menu", "/caf%C3%A9", "/caf%C3%A9/menu"),  # it sees characters
        ("^/é$", "/è", "/%c3%a9", "/%C3%A8"),
        ("^/(.)$", r"/x\1", "/%ff", "/x%FF"),  # and bytes that are none
        ("^/(.*)$", r"/\1", "/%c3(%a9", "/%C3(%A9"),
        ("^/(.*)$", r"/\1", "/a%0d%0aX:%20b", "/a%0D%0AX:%20b"),
        ("^/(.*)$", r"/\1", "/a%3Fb%23c?d", "/a%3Fb%23c?d"),
        ("^/(.*)$", r"/x/\1", "/a%2Fb", "/x/a%2Fb"),
        ("^/([^/]*)$", r"/x/\1", "/a%2Fb", "/x/a%2Fb"),  # an escaped slash is none
        ("^/(.*)$", r"/x/\1", "/%c3%a9%2F%ff", "/x/%C3%A9%2F%FF"),
        ("^/a$", "/b c?d#e", "/a?q", "/b%20c%3Fd%23e?q"),
        ("^/a$", "/100%", "/a", "/100%25"),
        ("^/(.*)$", r"/\1", "http://h/a?b", "/a?b"),
    ],
)
def test_rewrites(pattern: str, to: str, raw: str, expected: str) -> None:
    assert leads(raw, (pattern, to)) == expected
    assert leads(raw, (pattern, to), "/base") == "/base" + expected


@pytest.mark.parametrize(
    "raw",
    [
        "/static../secret",
        "/static..",
        "/static./x",
        "/static.",
        "/static..%2Fsecret",
        "/static%2E./x",
        "/static../",
    ],
)
def test_a_rewrite_leads_to_no_other_place(raw: str) -> None:
    with pytest.raises(HTTPError) as caught:
        leads(raw, ("^/static(.*)$", r"/files/\1"))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("/static/x", "/files/x"),  # //x might be taken for a host
        ("/static.../x", "/files/.../x"),
        ("/static.hidden", "/files/.hidden"),
        ("/static%2F..x", "/files/%2F..x"),
        ("/static", "/files/"),
    ],
)
def test_what_a_rewrite_makes_is_normal(raw: str, expected: str) -> None:
    assert leads(raw, ("^/static(.*)$", r"/files/\1")) == expected
    assert leads(raw, ("^/static(.*)$", r"//files//\1")) == expected


@given(
    raw=RAW_PATHS,
    rewrite=st.sampled_from([
        ("^/a(.*)$", r"/b/\1"), ("^(.*)$", r"/x\1"), ("^/(.)?(.*)$", r"/\2/\1"), ("^/", "/é/"),
        ("([^/]+)/([^/]+)$", r"/\1.\2"),
    ]),
)  # fmt: skip
def test_what_a_rewrite_makes_is_a_normal_path(raw: str, rewrite: tuple[str, str]) -> None:
    try:
        request = raw_request(raw)
        target = shaper(rewrite=rewrite).target(request.environ, "")
    except ParseError:
        return
    except HTTPError as error:
        assert error.status == 400
        return
    assert target.startswith("/") and set(target.replace("%", "")) <= _IN_PATHS
    for reading in (target, target.replace("%2F", "/")):
        assert not {".", ".."} & set(reading.split("/")[1:])
    assert "" not in target.split("/")[1:-1]
