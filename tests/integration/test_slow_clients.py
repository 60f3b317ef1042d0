"""Clients that send or take too slowly: they are cut in time, cost no greenlet, and keep nobody else out.

Knows the wire and tests/apps/protocol.py. The limits are set low here, so that a test waits a second or
two; how long something may take is asserted with room for a busy machine.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.server import Launcher, Server, wait_until
from tests.wire import Wire

pytestmark = pytest.mark.slow

APP = "tests.apps.protocol:app"
SLOW = {
    "server": {
        "timeout": "2s",
        "min_rate_grace": "1s",
        "body_min_rate": 1000,
        "send_min_rate": 1000,
        "max_body_size": "100MB",
        "lingering_timeout": "1s",
    }
}
MANY = 1000


@pytest.fixture
def server(acme: Launcher) -> Server:
    return acme(SLOW, app=APP)


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """A thousand connections need a thousand descriptors on our side too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * MANY)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def post(path: str, length: int, *fields: str) -> bytes:
    return "\r\n".join(
        (f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {length}", *fields, "", "")
    ).encode()


def events(server: Server) -> list[str]:
    noted: list[str] = json.loads(server.get("/events").text)
    return noted


def greenlets(server: Server) -> int:
    return int(server.get("/greenlets").text)


def readable(wires: list[Wire]) -> int:
    """On how many of the connections something has come, or the end."""
    poll = select.poll()
    for wire in wires:
        poll.register(wire.sock, select.POLLIN)
    return len(poll.poll(0))


# ------------------------------------------------------------------- the head


def test_a_head_that_does_not_come_whole_in_time_is_a_408(server: Server) -> None:
    with server.connect() as wire:
        begun = time.monotonic()
        reply = wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").reply()
        took = time.monotonic() - begun
        assert reply.status == 408
        assert reply.header("Connection") == "close"
        assert json.loads(reply.body)["error"]["code"] == "request_timeout"
        assert wire.closed()
    assert 1.5 < took < 5


def test_trickling_does_not_buy_time(server: Server) -> None:
    """The clock runs from the head's first byte to its last."""
    with server.connect() as wire:
        begun = time.monotonic()
        while time.monotonic() - begun < 8 and not readable([wire]):
            wire.send(b"GET / HTTP/1.1\r\n"[:1] if time.monotonic() - begun < 0.1 else b"A")
            time.sleep(0.05)
        assert time.monotonic() - begun < 6
        assert wire.rest().startswith(b"HTTP/1.1 408 ")


def test_a_client_that_sends_nothing_is_closed_without_a_word(server: Server) -> None:
    """There is no request that a 408 would answer; browsers open such connections ahead of need."""
    with server.connect() as wire:
        begun = time.monotonic()
        assert wire.closed()
        assert time.monotonic() - begun < 6


def test_a_408_comes_also_on_a_connection_that_was_in_use(server: Server) -> None:
    with server.connect() as wire:
        assert wire.request("/ignore").status == 200
        assert wire.send(b"GET / HT").reply().status == 408
        assert wire.closed()


def test_a_head_that_comes_within_the_time_is_answered(server: Server) -> None:
    with server.connect() as wire:
        assert wire.trickle(b"GET /ignore HTTP/1.1\r\nHost: a\r\n\r\n", pause=0.02).reply().text == "ignored"


# ------------------------------------------------------------------- the body


def test_a_small_body_that_comes_too_slowly_is_a_408_and_never_reaches_the_application(
    server: Server,
) -> None:
    with server.connect() as wire:
        wire.send(post("/read-or-note", 50_000) + b"x" * 100)
        begun = time.monotonic()
        while time.monotonic() - begun < 8 and not readable([wire]):
            wire.send(b"x")
            time.sleep(0.05)
        assert wire.rest().startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begun < 6
    assert events(server) == []


def test_a_large_body_that_comes_too_slowly_is_an_error_in_the_read(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post("/read-or-note", 10_000_000) + b"x" * 200_000)
        begun = time.monotonic()
        while time.monotonic() - begun < 8 and not readable([wire]):
            wire.send(b"x")
            time.sleep(0.05)
        assert wire.rest().startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begun < 6
    assert events(server) == ["read failed: BodyError"]


def test_a_client_that_is_told_to_continue_and_does_not_is_cut(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post("/read-or-note", 10, "Expect: 100-continue"))
        assert wire.reply().status == 100
        assert wire.reply().status == 408
    assert events(server) == ["read failed: BodyError"]


def test_a_body_of_more_than_the_minimum_rate_may_take_longer_than_the_timeout(server: Server) -> None:
    """An upload over a thin line is no attack: the time that a client takes is not the handler's."""
    with server.connect() as wire:
        wire.send(post("/digest", 100_000))
        for _ in range(40):
            wire.send(b"x" * 2500)
            time.sleep(0.1)
        assert wire.reply().text.startswith("100000 ")


# ------------------------------------------------------------------- the response


def slow_reader(server: Server, request: bytes) -> Wire:
    """A connection with a small receive window whose client sends a request and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect((server.host, server.port))
    return Wire(sock).send(request)


def test_a_client_that_does_not_take_its_stream_is_cut(server: Server) -> None:
    """The generator is closed: the application does not produce for nobody."""
    with slow_reader(server, b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n"):
        wait_until(lambda: "closed" in events(server), "the stream was closed")


def test_a_client_that_does_not_take_a_large_response_is_cut(server: Server) -> None:
    size = 30_000_000
    with slow_reader(server, b"GET /large?size=%d HTTP/1.1\r\nHost: a\r\n\r\n" % size):
        cut = server.wait_for_log(r'"GET /large\S* HTTP/1.1" 200 (\d+)')
        assert int(cut[1]) < size


def test_a_client_that_only_sips_is_cut(server: Server) -> None:
    """A few bytes now and then are no progress."""
    with slow_reader(server, b"GET /endless?size=1000 HTTP/1.1\r\nHost: a\r\n\r\n") as wire:
        begun = time.monotonic()
        while "closed" not in events(server):
            assert time.monotonic() - begun < 10
            wire.sock.recv(5)
            time.sleep(0.05)


def test_a_client_above_the_minimum_rate_gets_all_of_it(server: Server) -> None:
    size = 3_000_000
    with slow_reader(
        server, b"GET /large?size=%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % size
    ) as wire:
        received = 0
        begun = time.monotonic()
        while data := wire.sock.recv(20_000):
            received += len(data)
            if time.monotonic() - begun < 4:
                time.sleep(0.02)
        assert time.monotonic() - begun > 2
        assert received > size


# ------------------------------------------------------------------- many of them


def crowd(server: Server, raw: bytes, count: int = MANY) -> list[Wire]:
    return [server.connect().send(raw) for _ in range(count)]


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\nx",
        b"POST /digest HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\nx",
    ],
    ids=["head", "body", "chunked body"],
)
def test_a_thousand_slow_senders_keep_nobody_out(acme: Launcher, raw: bytes) -> None:
    server = acme({"server": {"timeout": "6s", "min_rate_grace": "6s", "body_min_rate": 1000}}, app=APP)
    before = greenlets(server)
    wires = crowd(server, raw)
    try:
        begun = time.monotonic()
        with server.connect() as wire:
            for _ in range(100):
                assert wire.request("/ignore").text == "ignored"
        for _ in range(20):
            assert server.get("/ignore").text == "ignored"
        assert time.monotonic() - begun < 4
        assert greenlets(server) < before + 20, "a slow sender costs a greenlet"
        assert readable(wires) == 0, "they were cut before their time"
        wait_until(lambda: readable(wires) == MANY, "all slow senders are cut", 20)
        assert all(wire.rest().startswith(b"HTTP/1.1 408 ") for wire in wires)
    finally:
        for wire in wires:
            wire.close()


def test_hundreds_of_slow_readers_keep_nobody_out(acme: Launcher) -> None:
    server = acme({"server": {"min_rate_grace": "6s", "send_min_rate": 1000}}, app=APP)
    before = greenlets(server)
    request = b"GET /large?size=5000000 HTTP/1.1\r\nHost: a\r\n\r\n"
    wires = [slow_reader(server, request) for _ in range(50)]
    try:
        with server.connect() as wire:
            for _ in range(50):
                assert wire.request("/ignore").text == "ignored"
        assert greenlets(server) < before + 20, "a slow reader costs a greenlet"
    finally:
        for wire in wires:
            wire.close()
