"""The head that a backend gets: which fields leave, what they say, where the target leads.

A head is read with the engine's own parser, which refuses whatever isn't exactly one request.
"""

from __future__ import annotations

import timeit
import tracemalloc
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
from tests.unit.processes import in_child, joined

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
    **options: Any,
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
        told = {"HTTP_X_FORWARDED_PREFIX": "/shop", "HTTP_X_FORWARDED_FOR": "192.0.2.7"}
        late = {"HTTP_X_LATE": "here", **told}
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


# -- fields -----------------------------------------------------------------------------------------------

OURS = [
    "Host",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "Forwarded",
    "Via",
    "X-Request-Id",
]


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


# -- who asks ---------------------------------------------------------------------------------------------

LISTS = {
    "HTTP_X_FORWARDED_FOR": "6.6.6.6, 192.0.2.9",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "evil.test",
    "HTTP_FORWARDED": 'for=6.6.6.6;host="evil.test"',
}


def test_an_untrusted_client_says_nothing_of_itself() -> None:
    head = sent(asked(**LISTS))
    assert head["X-Forwarded-For"] == "192.0.2.1"
    assert head["X-Forwarded-Proto"] == "http"
    assert head["X-Forwarded-Host"] == "example.test"
    assert head["Forwarded"] == 'for=192.0.2.1;host="example.test";proto=http'


def test_a_trusted_proxys_lists_go_on_with_its_address() -> None:
    believed = {"REMOTE_ADDR": "192.0.2.9", "wsgi.url_scheme": "https", "HTTP_HOST": "shop.test"}
    head = sent(asked(**LISTS, **believed, **{"acme.peer": TRUSTED}))
    assert head["X-Forwarded-For"] == f"6.6.6.6, 192.0.2.9, {TRUSTED}"
    assert head["X-Forwarded-Proto"] == "https"
    assert head["X-Forwarded-Host"] == "shop.test"
    assert head["Forwarded"] == f'for=6.6.6.6;host="evil.test", for={TRUSTED};host="shop.test";proto=https'


def test_a_trusted_proxy_that_says_nothing_is_the_client() -> None:
    head = sent(asked(**{"acme.peer": TRUSTED}, REMOTE_ADDR=TRUSTED))
    assert head["X-Forwarded-For"] == TRUSTED
    assert head["Forwarded"] == f'for={TRUSTED};host="example.test";proto=http'
    empty = asked(**{"acme.peer": TRUSTED}, HTTP_X_FORWARDED_FOR="", HTTP_FORWARDED="", HTTP_VIA="")
    head = sent(empty)
    assert (head["X-Forwarded-For"], head["Via"]) == (TRUSTED, "1.1 acme")


@pytest.mark.parametrize("peer", ["", "unix:"])
def test_a_peer_without_an_address(peer: str) -> None:
    head = sent(asked(REMOTE_ADDR=peer))
    assert head["X-Forwarded-For"] is None
    assert head["Forwarded"] == 'for=unknown;host="example.test";proto=http'
    head = sent(asked(REMOTE_ADDR="192.0.2.9", HTTP_X_FORWARDED_FOR="192.0.2.9", **{"acme.peer": peer}))
    assert head["X-Forwarded-For"] == "192.0.2.9"
    assert head["Forwarded"] == 'for=unknown;host="example.test";proto=http'


def test_ipv6_is_quoted_where_the_grammar_wants_it() -> None:
    head = sent(asked(REMOTE_ADDR="2001:db8::1", HTTP_HOST="[2001:db8::2]:8080"))
    assert head["X-Forwarded-For"] == "2001:db8::1"
    assert head["Forwarded"] == 'for="[2001:db8::1]";host="[2001:db8::2]:8080";proto=http'


def test_via_names_every_version_it_came_by() -> None:
    assert sent(asked(HTTP_VIA="1.0 a, 1.1 b"))["Via"] == "1.0 a, 1.1 b, 1.1 acme"
    assert sent(asked(SERVER_PROTOCOL="HTTP/1.0"))["Via"] == "1.0 acme"


def test_quotes_are_escaped() -> None:
    head = sent(asked(HTTP_HOST='a"b\\c'), shaper(add=(("Host", "a"),)))
    assert head["Forwarded"] == 'for=192.0.2.1;host="a\\"b\\\\c";proto=http'


def test_a_request_has_our_id() -> None:
    assert sent(asked(HTTP_X_REQUEST_ID="theirs"))["X-Request-Id"] == "0123456789abcdef"


def test_what_we_say_can_be_taken_out() -> None:
    names = tuple(name.lower() for name in OURS[1:])
    assert sent(asked(**LISTS, HTTP_VIA="1.1 a"), shaper(remove=names)).names == ["Host"]


# -- Host -------------------------------------------------------------------------------------------------


def test_host_is_the_clients() -> None:
    assert sent(asked(HTTP_HOST="Shop.Test:8080"))["Host"] == "Shop.Test:8080"


@pytest.mark.parametrize("host", [None, ""])
def test_without_one_it_is_the_backends(host: str | None) -> None:
    head = sent(asked(HTTP_HOST=host, SERVER_PROTOCOL="HTTP/1.0"))
    assert head["Host"] == "app1.internal:8000"
    assert head["X-Forwarded-Host"] is None
    assert head["Forwarded"] == "for=192.0.2.1;proto=http"
    local = Target.parse("unix:/run/app.sock")
    assert sent(asked(HTTP_HOST=host, SERVER_PROTOCOL="HTTP/1.0"), target=local)["Host"] == "localhost"


@pytest.mark.parametrize("name", ["Host", "host"])
def test_a_routes_own_wins(name: str) -> None:
    head = sent(asked(HTTP_HOST="shop.test"), shaper(add=((name, "app.internal"),)))
    assert head["Host"] == "app.internal"
    assert head["X-Forwarded-Host"] == "shop.test"


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


# -- framing ----------------------------------------------------------------------------------------------


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
     "HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PORT", "HTTP_UPGRADE", "acme.peer"],
)  # fmt: skip
def test_a_value_that_is_none_never_leaves(key: str, value: str) -> None:
    request = raw_request("/a%20b?c")
    request.environ |= {"acme.peer": TRUSTED, "HTTP_UPGRADE": "x", key: value}
    changes = shaper(add=(("X-Ip", "$remote_addr"), ("X-Host", "$host")))
    with pytest.raises(ValueError, match=r"field value"):
        changes.head(request, BACKEND, NO_BODY, upgrade=True)
    # And the next head has nothing of it.
    assert sent(asked()).names == OURS


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
