"""What goes through the proxy: requests byte for byte, and the fields that a proxy owes both sides.

The backend is a well-behaved rogue, which reads strictly and records everything. Streams, upgrades and other
ways to a backend, the pool, and balancing have files of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backends import Backends, closing_all
from tests.conversation import Conversation
from tests.proxying import Told, ask, config, elements, running
from tests.rogue import Rogue, reply, tell
from tests.server import Server
from tests.unit.http.corpus import Accept, Reject, accepts, rejects

pytestmark = pytest.mark.slow

CLIENT = "203.0.113.9"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: smuggled.test\r\n\r\n"
COOKIES = ["a=1; Path=/", "b=2, with a comma", "a=1; Path=/"]


def hops(c: Conversation) -> None:
    """Fields that are meant for the proxy alone, and one of each that isn't."""
    c.send(
        reply(
            b"hops", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5", "Upgrade: h2c",
            "Proxy-Connection: keep-alive", "X-End: 1", "Server: backend/1", "ETag: \"a\"",
            "Date: Mon, 02 Jan 2006 15:04:05 GMT", *(f"Set-Cookie: {cookie}" for cookie in COOKIES),
        )
    )  # fmt: skip


def refuses(c: Conversation) -> None:
    """Answers an expectation with a refusal, before a byte of the body."""
    c.send(reply(b"no", "Connection: close", status="403 Forbidden"))
    c.close()


SCRIPTS = {"hops": hops, "refuses": refuses}
READINGS = (h11.Request, h11.Data, h11.EndOfMessage, h11.ConnectionClosed)


def second_opinion(received: bytes) -> int:
    """How many requests h11 reads in these bytes, which must be nothing else."""
    reader, count = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), 0
    reader.receive_data(received)
    while (event := reader.next_event()) is not h11.NEED_DATA:
        if event is h11.PAUSED:
            reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            reader.send(h11.EndOfMessage())
            reader.start_next_cycle()
        else:
            assert isinstance(event, READINGS), event
            count += isinstance(event, h11.Request)
    return count


@pytest.fixture(scope="module")
def rogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rogue]:
    with closing_all(Backends(tmp_path_factory.mktemp("live"))) as backends:
        made = backends.rogue(SCRIPTS, default=tell)
        yield made
        for one in made.connections:
            if one.total == len(one.received) and all(request.complete for request in one.requests):
                assert second_opinion(bytes(one.received)) == len(one.requests)
        assert not made.asked("/smuggled")


ADDED = {
    "X-Real-IP": "$remote_addr",
    "X-Scheme": "$scheme",
    "X-Origin": "$scheme://$host",
    "X-ID": "$request_id",
    "X-Fixed": "set here",
}
REMOVED = ["X-Debug", "Authorization"]


def routes(url: str) -> dict[str, object]:
    made = config(url)
    made["routes"] += [
        {"path": "/fields/*", "type": "proxy", "backend": url, "headers": {"add": ADDED, "remove": REMOVED}},
        {
            "path": "/api/*",
            "type": "proxy",
            "backend": url,
            "rewrite": {"from": "^/api/v([0-9])/(.*)$", "to": r"/\2/of/\1"},
        },
    ]
    return made


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, rogue: Rogue) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("proxy"), routes(rogue.url)) as server:
        yield server


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory, rogue: Rogue) -> Iterator[Server]:
    """A server that believes what the test says of clients."""
    made = routes(rogue.url)
    made["server"] = {"trusted_proxies": ["127.0.0.0/8"]}
    with running(tmp_path_factory.mktemp("trusting"), made) as server:
        yield server


# ------------------------------------------------------------------- methods, targets, bodies


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get"])
def test_any_method_goes_through(proxy: Server, method: str) -> None:
    told = ask(proxy, "/m?q", "Content-Length: 0", method=method)
    assert (told.method, told.target, told.version, told.body) == (method, "/m?q", "HTTP/1.1", b"")


def test_head_gets_the_length_of_what_get_would_send(proxy: Server, rogue: Rogue) -> None:
    with proxy.connect() as wire:
        got = wire.request("/script/named", method="HEAD")
        assert (got.status, got.header("Content-Length")) == (200, str(len("/script/named")))
        assert wire.request("/script/named").text == "/script/named"
    assert rogue.asked("/script/named")[-2].method == "HEAD"


TARGETS = {
    "/a%2Fb": "/a%2Fb",
    "/a%2Fb/c?d=%2F": "/a%2Fb/c?d=%2F",
    "/x/..%2fy": "/y",
    "/x/%2e%2e/y": "/y",
    "/a//b": "/a/b",
    "/a/./b/../c": "/a/c",
    "/a/b/..": "/a/",
    "/caf%C3%A9": "/caf%C3%A9",
    "/a%20b": "/a%20b",
    "/a%3Fb?c": "/a%3Fb?c",
    "/a%23b": "/a%23b",
    "/a%25b": "/a%25b",
    "/a%2520b": "/a%2520b",
    "/a%0D%0Ab": "/a%0D%0Ab",
    "/%FF": "/%FF",
    "/;a=1/@:b": "/;a=1/@:b",
    "/!$&'()*+,;=:@-._~": "/!$&'()*+,;=:@-._~",
    "/?q=100%": "/?q=100%",
    "/?a=%2F..%2F&b=+&c=/../": "/?a=%2F..%2F&b=+&c=/../",
    "/?": "/?",
    "/": "/",
    "http://other.test/p?x": "/p?x",
    "http://other.test": "/",
}


@pytest.mark.parametrize(("asked", "heard"), TARGETS.items(), ids=TARGETS)
def test_targets_arrive_as_they_are_or_normal(proxy: Server, asked: str, heard: str) -> None:
    told = ask(proxy, asked)
    assert told.target.replace("%2f", "%2F") == heard
    assert told.one("Host") == ("other.test" if asked.startswith("http:") else "test")


PIECES = st.lists(st.binary(min_size=1, max_size=3000), max_size=6)
SIZES = st.sampled_from([0, 1, 4095, 4096, 65535, 65536, 65537, 300_000])


@given(PIECES, SIZES, st.booleans(), st.sampled_from(["tell", "echo"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_body_arrives_byte_for_byte(
    proxy: Server, pieces: list[bytes], more: int, chunked: bool, script: str
) -> None:
    """There by length or in chunks; back by length (`tell`) or in chunks (`echo`)."""
    sent = [*pieces, *([bytes(range(256)) * (more // 256 + 1)] if more else [])]
    body = b"".join(sent)
    head = f"POST /script/{script} HTTP/1.1\r\nHost: a\r\n".encode()
    with proxy.connect() as wire:
        if chunked:
            wire.send(head, b"Transfer-Encoding: chunked\r\n\r\n")
            for piece in sent:
                wire.send(b"%x\r\n" % len(piece), piece, b"\r\n")
            wire.send(b"0\r\n\r\n")
        else:
            wire.send(head, b"Content-Length: %d\r\n\r\n" % len(body), body)
        got = wire.reply()
        assert (Told(got).body if script == "tell" else got.body) == body
        assert wire.request("/next").status == 200


def test_a_body_without_a_length_arrives_in_chunks_or_with_one(proxy: Server) -> None:
    with proxy.connect() as wire:
        wire.send(b"PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        told = Told(wire.send(b"0\r\nX-Trailer: 1\r\n\r\n").reply())
    assert told.body == b"abc"
    assert told.all("Transfer-Encoding") + told.all("Content-Length") in (["chunked"], ["3"])


def test_no_body_means_no_framing_for_get(proxy: Server) -> None:
    told = ask(proxy)
    assert not told.has("Transfer-Encoding") and not told.has("Content-Length")


def test_pipelined_requests_get_their_answers_in_order(proxy: Server) -> None:
    with proxy.connect() as wire:
        wire.send(*(b"GET /script/named?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(20)))
        assert [wire.reply().text for _ in range(20)] == [f"/script/named?{number}" for number in range(20)]


def test_http_1_0_clients_are_served(proxy: Server) -> None:
    data = proxy.raw(b"POST /script/echo HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and body == b"abc"
    assert b"chunked" not in head.lower(), "HTTP/1.0 doesn't know chunks"


# ------------------------------------------------------------------- fields


def test_the_backend_hears_who_asks_and_how(proxy: Server) -> None:
    told = ask(proxy, "/", "User-Agent: test", "Cookie: a=1", "Cookie: b=2", "X-Latin: caf\xe9")
    assert told.one("Host") == "test"
    assert told.one("X-Forwarded-For") == "127.0.0.1"
    assert told.one("X-Forwarded-Proto") == "http"
    assert told.one("X-Forwarded-Host") == "test"
    (hop,) = elements(told.one("Forwarded"))
    assert hop["for"] == "127.0.0.1" and hop["proto"] == "http" and hop.get("host", "test") == "test"
    assert told.one("Via") == "1.1 acme"
    assert told.one("User-Agent") == "test" and told.one("X-Latin") == "caf\xe9"
    assert "; ".join(told.all("Cookie")) in ("a=1; b=2", "a=1, b=2")


def test_a_via_is_added_to(proxy: Server) -> None:
    told = ask(proxy, "/", "Via: 1.0 first (a, comment)")
    assert ", ".join(told.all("Via")) == "1.0 first (a, comment), 1.1 acme"


FORGED = [
    f"X-Forwarded-For: {CLIENT}",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: forged.example",
    f"Forwarded: for={CLIENT};proto=https;host=forged.example",
]


def test_nobody_believes_a_client_that_nobody_trusts(proxy: Server) -> None:
    told = ask(proxy, "/fields/x", *FORGED)
    assert told.one("X-Forwarded-For") == "127.0.0.1"
    assert told.one("X-Forwarded-Proto") == "http"
    assert told.one("X-Forwarded-Host") == "test"
    (hop,) = elements(told.one("Forwarded"))
    assert hop["for"] == "127.0.0.1" and hop["proto"] == "http"
    assert (told.one("X-Real-IP"), told.one("X-Scheme")) == ("127.0.0.1", "http")
    assert not any("forged" in value or CLIENT in value for _, value in told.headers)


def test_a_trusted_peers_chain_is_added_to(trusting: Server) -> None:
    told = ask(trusting, "/fields/x", *FORGED)
    assert told.one("X-Forwarded-For") == f"{CLIENT}, 127.0.0.1"
    assert told.one("X-Forwarded-Proto") == "https"
    first, last = elements(", ".join(told.all("Forwarded")))
    assert first["for"] == CLIENT and last["for"] == "127.0.0.1"
    assert (told.one("X-Real-IP"), told.one("X-Scheme")) == (CLIENT, "https")


@pytest.mark.parametrize(
    "fields",
    [
        [FORGED[0], "Forwarded: for=192.0.2.66;proto=https;host=forged.example"],
        [f'Forwarded: for={CLIENT};"'],
    ],
    ids=["contradicted", "malformed"],
)
def test_what_is_not_believed_of_a_trusted_peer_goes_no_further(trusting: Server, fields: list[str]) -> None:
    (hop,) = elements(ask(trusting, "/", *fields).one("Forwarded"))
    assert hop["for"] == "127.0.0.1" and hop["proto"] == "http"


@pytest.mark.parametrize("name", ["X-Hop", "Keep-Alive", "Proxy-Connection", "TE", "Upgrade", "Trailer"])
def test_fields_for_this_connection_only_stay_here(proxy: Server, name: str) -> None:
    fields = ["Connection: X-Hop, keep-alive, TE", "X-Hop: 1", "Keep-Alive: 300", "Proxy-Connection: x",
              "TE: trailers", "Upgrade: h2c", "Trailer: X-Sum", "X-End: 1"]  # fmt: skip
    with proxy.connect() as wire:
        told = Told(wire.request("/", headers=fields))
    assert not told.has(name)
    assert told.one("X-End") == "1"
    assert [value.lower() for value in told.all("Connection")] in ([], ["keep-alive"])


def test_connection_cannot_name_what_the_backend_must_hear(proxy: Server) -> None:
    """Or a client could take away what tells of him."""
    names = "Host, X-Forwarded-For, Forwarded, Via, X-Real-IP, Content-Length"
    head = f"POST /fields/x HTTP/1.1\r\nHost: a\r\nConnection: {names}\r\nContent-Length: 2\r\n\r\n"
    with proxy.connect() as wire:
        told = Told(wire.send(head.encode(), b"ab").reply())
    assert told.one("Host") == "a" and told.body == b"ab"
    assert told.one("X-Forwarded-For") == told.one("X-Real-IP") == "127.0.0.1"
    assert told.has("Forwarded") and told.has("Via")


def test_a_responses_fields_for_this_connection_only_stay_here(proxy: Server) -> None:
    with proxy.connect() as wire:
        got = wire.request("/script/hops")
        assert got.text == "hops"
        for name in ("X-Hop", "Keep-Alive", "Upgrade", "Proxy-Connection"):
            assert got.header(name) is None, name
        assert (got.header("Connection") or "keep-alive").lower() == "keep-alive"
        assert got.header("X-End") == "1" and got.header("ETag") == '"a"'
        assert [value for name, value in got.headers if name.lower() == "set-cookie"] == COOKIES
        assert got.header("Date") == "Mon, 02 Jan 2006 15:04:05 GMT", "one, and the backend's"
        assert sum(name.lower() == "server" for name, _ in got.headers) <= 1
        assert wire.request("/next").status == 200


def test_fields_are_added_and_removed(proxy: Server) -> None:
    given = [
        "X-Debug: 1",
        "x-debug: 2",
        "Authorization: secret",
        "X-Fixed: the client's",
        "X-Real-IP: 9.9.9.9",
    ]
    got = proxy.get("/fields/a", headers=given)
    told = Told(got)
    assert not told.has("X-Debug") and not told.has("Authorization")
    assert told.one("X-Fixed") == "set here"
    assert told.one("X-Real-IP") == "127.0.0.1"
    assert told.one("X-Scheme") == "http" and told.one("X-Origin") == "http://test"
    assert told.one("X-ID") == got.header("X-Request-ID")


@pytest.mark.parametrize(
    ("asked", "heard"),
    [
        ("/api/v2/users?x=1", "/users/of/2?x=1"),
        ("/api/v1/a%20b", "/a%20b/of/1"),
        ("/api/other", "/api/other"),
    ],
)
def test_paths_are_rewritten(proxy: Server, asked: str, heard: str) -> None:
    assert ask(proxy, asked).target == heard


# ------------------------------------------------------------------- smuggling


def later(rogue: Rogue, before: int) -> list[tuple[str, str]]:
    return [(one.method, one.target) for one in rogue.requests[before:]]


@pytest.mark.parametrize("case", accepts(), ids=lambda case: case.name)
def test_one_request_in_is_one_request_out(proxy: Server, rogue: Rogue, case: Accept) -> None:
    before = len(rogue.requests)
    follows = not case.upgrade  # behind an upgrade there may be another protocol's bytes
    with proxy.connect() as wire:
        wire.send(case.raw)
        if follows:
            wire.send(b"GET /next HTTP/1.1\r\nHost: next.test\r\nConnection: close\r\n\r\n")
        got = wire.reply(head=case.method == "HEAD")
        while got.status < 200:
            got = wire.reply()
        if case.keep_alive and follows:
            assert Told(wire.reply()).target == "/next"
    if case.target == b"*":
        assert got.status == 204, "it is about the server itself"
        assert later(rogue, before) == [("GET", "/next")]
        return
    if case.method == "TRACE":
        assert got.status == 501, "its answer would show what is added to requests"
        assert later(rogue, before) == [("GET", "/next")]
        return
    assert got.status == 200
    first, *rest = rogue.requests[before:]
    assert [one.target for one in rest] == (["/next"] if case.keep_alive and follows else [])
    assert (first.method, first.body, first.complete) == (case.method, case.body, True)
    assert first.target.partition("?")[2] == case.query
    assert first.header("X-Forwarded-For") == "127.0.0.1"


@pytest.mark.parametrize("case", rejects(), ids=lambda case: case.name)
def test_nothing_of_a_refused_message_becomes_a_request(proxy: Server, rogue: Rogue, case: Reject) -> None:
    """Its body may show to be malformed when part of it has left: then the backend's request has no end."""
    before = len(rogue.requests)
    data = proxy.raw(case.raw + SMUGGLED + SMUGGLED)
    assert data.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert len(re.findall(rb"HTTP/1\.1 \d\d\d ", data)) == 1
    heard = rogue.requests[before:]
    assert len(heard) <= (case.where == "body")
    assert not any(one.complete for one in heard)
