"""HTTP/1.1 as a running server speaks it: order, framing, persistence, interim responses, failures.

Knows the wire and tests/apps/protocol.py. What a message may look like is the corpus's business
(test_corpus_live.py); how bodies are read, test_bodies.py's.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.server import Launcher, Server
from tests.wire import Reply, Wire

SECRET = "a secret of the application"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here; the failures that they provoke stand in its log."""
    launcher = Launcher(tmp_path_factory.mktemp("protocol"))
    try:
        server = launcher(app="tests.apps.protocol:app")
        server.errors_expected = True
        yield server
        launcher.finish()
    finally:
        launcher.kill()


def get(path: str, *fields: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    """A request without a body. `fields` are whole lines."""
    return "\r\n".join((f"{method} {path} {version}", "Host: test", *fields, "", "")).encode("latin-1")


def post(path: str, body: bytes, *fields: str) -> bytes:
    """A request with a body of known length."""
    return get(path, f"Content-Length: {len(body)}", *fields, method="POST") + body


def saw(reply: Reply) -> dict[str, str]:
    """The environ that the application was given."""
    environ: dict[str, str] = json.loads(reply.body)["environ"]
    return environ


# ------------------------------------------------------------------- pipelining


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with server.connect() as wire:
        wire.send(b"".join(post(f"/item/{index}", b"b" * (index * 37 % 100)) for index in range(200)))
        for index in range(200):
            told = json.loads(wire.reply().body)
            assert told["environ"]["PATH_INFO"] == f"/item/{index}"
            assert len(told["body"]) == index * 37 % 100


def test_a_quick_request_does_not_overtake_a_slow_one(server: Server) -> None:
    with server.connect() as wire:
        wire.send(get("/sleep?ms=300"), get("/sleep?ms=0"), get("/stream?n=3"), get("/sleep?ms=1"))
        assert [wire.reply().text for _ in range(4)] == ["slept 300", "slept 0", "x" * 15, "slept 1"]


def test_pipelined_requests_of_all_framings(server: Server) -> None:
    chunked = get("/a", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\nT: x\r\n\r\n"
    requests = [
        post("/b", b"hello"),
        chunked,
        get("/status?code=204"),
        get("/c", method="HEAD"),
        get("/stream?n=2"),
    ]
    with server.connect() as wire:
        wire.send(b"".join(requests * 20))
        for _ in range(20):
            assert json.loads(wire.reply().body)["body"] == "hello"
            assert json.loads(wire.reply().body)["body"] == "abc"
            assert wire.reply().status == 204
            assert wire.reply(head=True).status == 200
            assert wire.reply().body == b"xxxxxxxxxx"


def test_a_flood_of_pipelined_requests_does_not_starve_others(server: Server) -> None:
    """One connection sends requests without pause; others are answered as if it weren't there."""
    flood = get("/ignore") * 200
    stop = threading.Event()
    answered = 0

    def drink(wire: Wire) -> None:
        nonlocal answered
        while not stop.is_set() and (data := wire.sock.recv(1 << 20)):
            answered += data.count(b"HTTP/1.1 200")

    def pour(wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):  # the test ends by shutting the connection down
            while not stop.is_set():
                wire.send(flood)

    with server.connect() as flooding, server.connect() as other:
        threads = [threading.Thread(target=work, args=(flooding,)) for work in (drink, pour)]
        for thread in threads:
            thread.start()
        try:
            deadline = time.monotonic() + 10
            while answered < 2000:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            waits = []
            for _ in range(50):
                begun = time.monotonic()
                assert other.request("/ignore").text == "ignored"
                waits.append(time.monotonic() - begun)
        finally:
            stop.set()
            flooding.sock.shutdown(2)
            for thread in threads:
                thread.join(10)
    assert sorted(waits)[25] < 0.2
    assert max(waits) < 2


# ------------------------------------------------------------------- persistence


def test_a_connection_is_kept_and_reused(server: Server) -> None:
    with server.connect() as wire:
        ports = {saw(wire.request("/x"))["REMOTE_PORT"] for _ in range(5)}
    assert len(ports) == 1


@pytest.mark.parametrize("fields", [(), ("Connection: x, y",), ("Connection: keep-alive",)])
def test_http_1_1_persists_without_saying_so(server: Server, fields: tuple[str, ...]) -> None:
    with server.connect() as wire:
        reply = wire.send(get("/ignore", *fields)).reply()
        assert reply.header("Connection") in (None, "keep-alive")
        assert wire.request("/ignore").status == 200


def test_close_is_obeyed_and_announced(server: Server) -> None:
    with server.connect() as wire:
        assert (
            wire.send(get("/ignore", "Connection: close") + get("/smuggled")).reply().header("Connection")
            == "close"
        )
        assert wire.closed()


@pytest.mark.parametrize("path", ["/ignore", "/stream?n=3", "/sleep?ms=100"])
def test_a_client_that_sends_no_more_is_answered_and_let_go(server: Server, path: str) -> None:
    """The end of what it sends may come in the same moment as its request."""
    with server.connect() as wire:
        assert wire.send(get(path)).end().reply().status == 200
        assert wire.closed()


@pytest.mark.parametrize("raw", [b"", b"\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_a_client_that_ends_inside_a_head_is_let_go(server: Server, raw: bytes) -> None:
    with server.connect() as wire:
        wire.send(raw).end()
        assert wire.rest().count(b"HTTP/1.1 200") == 0


def test_http_1_0_closes_unless_asked(server: Server) -> None:
    with server.connect() as wire:
        reply = wire.send(get("/ignore", version="HTTP/1.0")).reply()
        assert reply.version == "HTTP/1.1"
        assert reply.header("Connection") == "close"
        assert wire.closed()


def test_http_1_0_keep_alive(server: Server) -> None:
    with server.connect() as wire:
        for _ in range(3):
            reply = wire.send(get("/ignore", "Connection: keep-alive", version="HTTP/1.0")).reply()
            assert reply.header("Connection") == "keep-alive"
            assert reply.text == "ignored"


def test_http_1_0_never_sees_chunks(server: Server) -> None:
    """A body of unknown length ends with the connection, even when it was asked to stay."""
    with server.connect() as wire:
        reply = wire.send(get("/stream?n=4", "Connection: keep-alive", version="HTTP/1.0")).reply()
        assert reply.header("Transfer-Encoding") is None
        assert reply.header("Content-Length") is None
        assert reply.header("Connection") == "close"
        assert reply.body == b"x" * 20


# ------------------------------------------------------------------- framing of responses


def test_a_body_of_unknown_length_is_chunked(server: Server) -> None:
    with server.connect() as wire:
        reply = wire.send(get("/stream?n=1000&size=100")).reply()
        assert reply.header("Transfer-Encoding") == "chunked"
        assert reply.header("Content-Length") is None
        assert reply.body == b"x" * 100_000
        assert wire.request("/ignore").status == 200


@pytest.mark.parametrize("path", ["/ignore", "/stream?n=3", "/large?size=1000000", "/sized?promise=3&size=3"])
def test_head_has_the_fields_of_get_and_no_body(server: Server, path: str) -> None:
    def fields(reply: Reply) -> dict[str, str]:
        own = {"date", "x-request-id"}
        return {name.lower(): value for name, value in reply.headers if name.lower() not in own}

    with server.connect() as wire:
        wire.send(get(path, method="HEAD"), get(path))
        head = wire.reply(head=True)
        full = wire.reply()
        assert full.body
        assert head.status == full.status
        # RFC 9110 9.3.2: fields that only the body's making would tell may be missing.
        assert {**fields(full), **fields(head)} == fields(full)
        assert fields(head).get("content-length") == fields(full).get("content-length")


@pytest.mark.parametrize("code", [204, 304])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_responses_that_have_no_body(server: Server, code: int, method: str) -> None:
    with server.connect() as wire:
        wire.send(get(f"/status?code={code}", method=method), get("/ignore"))
        reply = wire.reply()
        assert reply.status == code
        assert reply.header("ETag") == '"a"'
        assert reply.header("Transfer-Encoding") is None
        if code == 204:
            assert reply.header("Content-Length") is None
        assert wire.reply().text == "ignored"


def test_the_server_adds_its_fields_once(server: Server) -> None:
    reply = server.get("/ignore")
    names = [name.lower() for name, _ in reply.headers]
    for name in ("date", "server", "x-request-id", "content-length", "content-type", "connection"):
        assert names.count(name) == 1, name
    assert re.fullmatch(
        r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT",
        reply.header("Date") or "",
    )


def test_request_ids_differ(server: Server) -> None:
    with server.connect() as wire:
        identifiers = [wire.request("/ignore").header("X-Request-ID") for _ in range(100)]
    assert None not in identifiers
    assert len(set(identifiers)) == 100


# ------------------------------------------------------------------- lengths that the application gets wrong


@pytest.mark.parametrize("how", ["", "&join=1"])
def test_never_more_bytes_than_promised(server: Server, how: str) -> None:
    """The surplus is dropped and the connection not used again."""
    data = server.raw(get(f"/sized?promise=5&size=3&n=4{how}") + get("/smuggled"))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"Content-Length: 5" in head
    assert body == b"xxxxx"
    server.wait_for_log("more than its Content-Length")


@pytest.mark.parametrize("how", ["", "&join=1"])
def test_fewer_bytes_than_promised_end_the_connection(server: Server, how: str) -> None:
    data = server.raw(get(f"/sized?promise=50&size=3&n=4{how}") + get("/smuggled"))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"Content-Length: 50" in head
    assert body == b"x" * 12
    server.wait_for_log("less than its Content-Length")


def test_the_promised_length_is_no_failure(server: Server) -> None:
    with server.connect() as wire:
        assert wire.send(get("/sized?promise=12&size=3&n=4")).reply().body == b"x" * 12
        assert wire.request("/ignore").status == 200


# ------------------------------------------------------------------- interim responses


def test_100_continue_when_the_application_reads(server: Server) -> None:
    with server.connect() as wire:
        wire.send(get("/digest", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        assert wire.reply() == Reply("HTTP/1.1", 100, "Continue", (), b"")
        assert wire.send(b"hello").reply().text.startswith("5 ")
        assert wire.request("/ignore").status == 200


def test_100_continue_before_a_chunked_body(server: Server) -> None:
    with server.connect() as wire:
        wire.send(get("/digest", "Transfer-Encoding: chunked", "Expect: 100-continue", method="POST"))
        assert wire.reply().status == 100
        assert wire.send(b"5\r\nhello\r\n0\r\n\r\n").reply().text.startswith("5 ")
        assert wire.request("/ignore").status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_no_100_continue_when_the_application_does_not_read(server: Server, framing: str) -> None:
    """The final response comes alone, and the last: nobody can know whether the body comes now."""
    with server.connect() as wire:
        reply = wire.send(get("/ignore", framing, "Expect: 100-continue", method="POST")).reply()
        assert reply.status == 200
        assert reply.header("Connection") == "close"
        assert wire.closed()


def test_no_100_continue_after_all_bytes_came(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post("/digest", b"hello", "Expect: 100-continue"))
        assert wire.reply().text.startswith("5 ")


def test_no_100_continue_to_http_1_0(server: Server) -> None:
    with server.connect() as wire:
        wire.send(
            get("/digest", "Content-Length: 5", "Expect: 100-continue", method="POST", version="HTTP/1.0")
        )
        assert wire.silent(0.3)
        assert wire.send(b"hello").reply().status == 200


def test_early_hints(server: Server) -> None:
    with server.connect() as wire:
        wire.send(get("/hints"))
        first, second, final = wire.reply(), wire.reply(), wire.reply()
        assert (first.status, first.headers) == (103, (("Link", "</a.css>; rel=preload"),))
        assert second.status == 103
        assert second.header("Link") == "</b.js>; rel=preload, </c.js>; rel=preload"
        assert final.text == "hinted"
        assert wire.request("/ignore").status == 200


def test_no_early_hints_to_http_1_0(server: Server) -> None:
    with server.connect() as wire:
        assert wire.send(get("/hints", version="HTTP/1.0")).reply().text == "hinted"


# ------------------------------------------------------------------- responses that would be split


@pytest.mark.parametrize(
    "field",
    [
        r"X-Value: a\r\nX-Injected: yes",
        r"X-Value: a\nX-Injected: yes",
        r"X-Value: a\rX-Injected: yes",
        r"X-Value: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        r"X-Value: a\x00b",
        r"X-Value: a\x01b",
        r"X-Value: a\x7fb",
        r"X-Value: \u20ac",
        r"X-Name: X-A: b\r\nX-Injected",
        r"X-Name: X Injected",
        r"X-Name: X\x00A",
        r"X-Name: X\u00e9",
        r"X-Name:",
        r"X-Status: 200 OK\r\nX-Injected: yes",
        r"X-Status: 200 OK\nX-Injected: yes",
        r"X-Status: 200 O\x00K",
        r"X-Status: 20 OK",
        r"X-Status: 2000 OK",
        r"X-Status: OK",
        r"X-Status: +20 OK",
    ],
)
def test_a_response_can_not_be_split(server: Server, field: str) -> None:
    data = server.raw(get("/bad-header", field, "Connection: close"))
    assert data.startswith(b"HTTP/1.1 500 "), data
    assert data.count(b"HTTP/1.1 ") == 1
    assert b"Injected" not in data
    assert b"the body" not in data
    identifier = re.search(rb"X-Request-ID: (\S+)", data)
    assert identifier is not None
    server.wait_for_log(identifier[1].decode())


@pytest.mark.parametrize(
    "field",
    [
        "X-Name: Transfer-Encoding",
        "X-Name: Upgrade",
        "X-Name: Trailer",
        "X-Name: Content-Length\r\nX-Value: abc",
        "X-Name: Content-Length\r\nX-Value: -1",
        "X-Name: Content-Length\r\nX-Value: +8",
        "X-Name: Content-Length\r\nX-Value: 8, 8",
        "X-Name: Content-Length\r\nX-Value: 99999999999999999999",
        "X-Status: 100 Continue",
        "X-Status: 101 Switching Protocols",
        "X-Status: 600 Unheard",
    ],
)
def test_framing_is_the_servers_business(server: Server, field: str) -> None:
    """Hop-by-hop fields and interim statuses from an application, lengths that are none: 500 (PEP 3333)."""
    data = server.raw(get("/bad-header", field, "Connection: close"))
    assert data.startswith(b"HTTP/1.1 500 ")
    assert data.count(b"HTTP/1.1 ") == 1


def test_an_application_may_ask_for_the_end_of_the_connection(server: Server) -> None:
    with server.connect() as wire:
        reply = wire.send(
            get("/bad-header", "X-Name: Connection", "X-Value: close") + get("/smuggled")
        ).reply()
        assert (reply.status, reply.header("Connection")) == (200, "close")
        assert wire.closed()


@pytest.mark.parametrize("name", ["Date", "Server", "X-Request-ID"])
def test_an_applications_own_field_replaces_the_servers(server: Server, name: str) -> None:
    assert server.get("/bad-header", headers=[f"X-Name: {name}", "X-Value: mine"]).header(name) == "mine"


def test_early_hints_can_not_split_either(server: Server) -> None:
    data = server.raw(get("/bad-hints", "Connection: close"))
    assert data.startswith(b"HTTP/1.1 500 ")
    assert b"injected" not in data


def test_good_fields_of_all_kinds_get_through(server: Server) -> None:
    reply = server.get(
        "/bad-header", headers=[r"X-Name: X-Caf", r"X-Value: caf\xe9\t \x80", "X-Status: 299 Fine: really"]
    )
    assert (reply.status, reply.reason) == (299, "Fine: really")
    assert reply.header("X-Caf") == "caf\xe9\t \x80"


# ------------------------------------------------------------------- failures of the application


@pytest.mark.parametrize("path", ["/fail", "/fail-after-start"])
def test_an_exception_before_the_head_is_a_500(server: Server, path: str) -> None:
    with server.connect() as wire:
        reply = wire.request(path)
        assert reply.status == 500
        assert reply.header("X-Never") is None
        error = json.loads(reply.body)["error"]
        assert (error["status"], error["code"]) == (500, "internal_error")
        assert error["request_id"] == reply.header("X-Request-ID")
        assert SECRET not in reply.text
        # The application failed, not the connection.
        assert wire.request("/ignore").status == 200
    server.wait_for_log(error["request_id"])
    server.wait_for_log(rf"RuntimeError: {SECRET}")


def test_an_exception_after_the_head_cuts_a_chunked_response(server: Server) -> None:
    data = server.raw(get("/fail-midway") + get("/smuggled"))
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b"5\r\nfirst\r\n", "no last chunk: the client must see that something is missing"


def test_an_exception_after_the_head_cuts_a_sized_response(server: Server) -> None:
    data = server.raw(get("/fail-midway?promise=10") + get("/smuggled"))
    assert data.endswith(b"\r\n\r\nfirst")


def test_an_exception_after_the_head_is_seen_by_http_1_0(server: Server) -> None:
    """Where only the connection's end delimits the body, it must be a reset: a clean end would look whole."""
    with server.connect() as wire:
        wire.send(get("/fail-midway", version="HTTP/1.0"))
        with pytest.raises(ConnectionResetError):
            while wire.sock.recv(65536):
                pass


# ------------------------------------------------------------------- error bodies


def test_an_error_is_json_unless_asked_otherwise(server: Server) -> None:
    for accept in ((), ("Accept: */*",), ("Accept: application/json, text/html;q=0.5",)):
        reply = server.get("/fail", headers=accept)
        assert reply.header("Content-Type") == "application/json"
        error = json.loads(reply.body)["error"]
        assert set(error) == {"code", "message", "status", "timestamp", "request_id"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", error["timestamp"])


def test_an_error_is_html_for_a_browser(server: Server) -> None:
    reply = server.get("/fail", headers=["Accept: text/html,application/xhtml+xml,*/*;q=0.8"])
    assert (reply.header("Content-Type") or "").startswith("text/html")
    assert "500" in reply.text
    assert (reply.header("X-Request-ID") or "?") in reply.text


def test_a_refusal_obeys_accept_too(server: Server) -> None:
    data = server.raw(b"GET / HTTP/1.1\r\nAccept: text/html\r\nHost: a\r\nBad Field: x\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 400 ")
    assert b"text/html" in data


def test_head_of_an_error_has_no_body(server: Server) -> None:
    with server.connect() as wire:
        wire.send(get("/fail", method="HEAD"), get("/ignore"))
        assert wire.reply(head=True).status == 500
        assert wire.reply().text == "ignored"


# ------------------------------------------------------------------- what the application is told


def test_fields_with_underscores_never_reach_the_environ(server: Server) -> None:
    """X_Forwarded_For and X-Forwarded-For would get one name in the environ: the first is dropped."""
    environ = saw(
        server.get(
            "/x", headers=["X_Real_Name: evil", "X-Real-Name: good", "X_Only: evil", "CONTENT_LENGTH: 5"]
        )
    )
    assert environ["HTTP_X_REAL_NAME"] == "good"
    assert "evil" not in environ.values()
    assert "HTTP_CONTENT_LENGTH" not in environ
    assert environ.get("CONTENT_LENGTH", "") == ""


def test_repeated_fields_are_joined(server: Server) -> None:
    environ = saw(server.get("/x", headers=["X-A: 1", "x-a: 2", "X-A: 3", "Cookie: a=1", "Cookie: b=2"]))
    assert [part.strip() for part in environ["HTTP_X_A"].split(",")] == ["1", "2", "3"]
    assert [part.strip() for part in environ["HTTP_COOKIE"].split(";")] == ["a=1", "b=2"]


def test_bytes_beyond_ascii_arrive_in_every_place(server: Server) -> None:
    """As PEP 3333 asks: each byte a character of latin-1."""
    given = {place: "a" * place + "\xe9" + "b" * (24 - place) for place in range(25)}
    environ = saw(server.get("/x", headers=[f"X-{place}: {value}" for place, value in given.items()]))
    assert {place: environ[f"HTTP_X_{place}"] for place in given} == given


def test_length_and_type_have_their_cgi_names(server: Server) -> None:
    with server.connect() as wire:
        environ = saw(wire.send(post("/x", b"hello", "Content-Type: text/x")).reply())
    assert (environ["CONTENT_LENGTH"], environ["CONTENT_TYPE"]) == ("5", "text/x")
    assert "HTTP_CONTENT_LENGTH" not in environ
    assert "HTTP_CONTENT_TYPE" not in environ


def test_hop_by_hop_framing_is_not_told_as_fact(server: Server) -> None:
    """With a chunked body there is no CONTENT_LENGTH: its length isn't known."""
    with server.connect() as wire:
        chunked = (
            get("/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\nX-T: evil\r\n\r\n"
        )
        reply = wire.send(chunked).reply()
    assert json.loads(reply.body)["body"] == "abc"
    assert saw(reply).get("CONTENT_LENGTH", "") == ""
    assert "evil" not in saw(reply).values()


def test_the_authority_of_an_absolute_target_replaces_host(server: Server) -> None:
    with server.connect() as wire:
        environ = saw(wire.send(get("http://Other.Test:81/a?b")).reply())
    assert environ["HTTP_HOST"].lower() == "other.test:81"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/a", "b")


def test_options_asterisk_is_about_the_server(server: Server) -> None:
    with server.connect() as wire:
        wire.send(get("*", method="OPTIONS"), get("/ignore"))
        assert wire.reply().status in (200, 204)
        assert wire.reply().text == "ignored"


def test_the_answer_is_http_1_1_whatever_minor_version_was_asked(server: Server) -> None:
    for version in ("HTTP/1.0", "HTTP/1.1", "HTTP/1.2", "HTTP/1.9"):
        with server.connect() as wire:
            assert (
                wire.send(get("/ignore", "Connection: close", version=version)).reply().version == "HTTP/1.1"
            )
