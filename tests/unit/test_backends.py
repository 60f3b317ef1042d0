"""The benches for tests of the proxy: what a rogue records and does; that real backends go and come back."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from pathlib import Path

import pytest

from tests.backends import Backends
from tests.conversation import Conversation, Gone, Malformed, read_head
from tests.rogue import Rogue, reply
from tests.server import wait_until
from tests.wire import DEADLINE, Wire


def dial(rogue: Rogue) -> Wire:
    return Wire(socket.create_connection(("127.0.0.1", rogue.port), DEADLINE))


def test_by_default_each_request_is_answered_with_its_own_target(backends: Backends) -> None:
    rogue = backends.rogue()
    with dial(rogue) as wire:
        assert wire.request("/one").text == "/one"
        assert wire.request("/two", method="HEAD").header("Content-Length") == "4"
        assert wire.request("/three").header("X-Connection") == "1"
    wait_until(lambda: rogue.connections[0].ending == "eof", "the end of the connection")
    assert [request.target for request in rogue.requests] == ["/one", "/two", "/three"]
    assert len(rogue.connections) == 1 and not rogue.open


def test_every_byte_is_recorded(backends: Backends) -> None:
    rogue = backends.rogue()
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = head + b"3;x=1\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
    with dial(rogue) as wire:
        assert wire.send(sent).reply().status == 200
    one = rogue.connections[0]
    assert bytes(one.received) == sent and one.total == len(sent)
    assert one.request.body == b"abc" and one.request.complete
    assert one.request.head == head


def test_bodies_by_length_and_by_chunks_are_told_and_echoed(backends: Backends) -> None:
    rogue = backends.rogue()
    with dial(rogue) as wire:
        head = b"PUT /script/%s HTTP/1.1\r\nHost: a\r\n"
        chunks = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        told = json.loads(wire.send(head % b"tell", b"Content-Length: 2\r\n\r\n\xff\x00").reply().text)
        assert (told["method"], told["body"], told["connection"]) == ("PUT", "\xff\0", 1)
        assert json.loads(wire.send(head % b"tell", chunks).reply().text)["body"] == "hello"
        assert wire.send(head % b"echo", chunks).reply().text == "hello"
        wire.send(head % b"tell", b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert wire.reply().status == 100
        assert json.loads(wire.send(b"x").reply().text)["body"] == "x"
    assert rogue.calls == {"tell": 3, "echo": 1}


def test_a_script_is_chosen_by_the_path_and_what_it_left_unread_is_dropped(backends: Backends) -> None:
    rogue = backends.rogue({"refuse": lambda c: c.send(reply(b"no", status="413 Too Large")) and None})
    with dial(rogue) as wire:
        wire.send(b"POST /deep/script/refuse?q=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        assert wire.reply().status == 413
        assert wire.request("/next").text == "/next"
    assert rogue.asked("refuse")[0].body == b"", "the script didn't read it"


def test_scripts_can_stall_until_they_are_released(backends: Backends) -> None:
    def stalling(c: Conversation) -> None:
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        c.wait("rest")
        c.send(b"cd")

    rogue = backends.rogue({"stall": stalling})
    with dial(rogue) as wire:
        wire.send(b"GET /script/stall HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.reply(head=True).status == 200
        assert wire.exactly(2) == b"ab" and wire.silent(0.1)
        rogue.release("rest")
        assert wire.exactly(2) == b"cd"


def test_scripts_can_reset_close_half_close_and_drip(backends: Backends) -> None:
    rogue = backends.rogue(
        {
            "reset": Conversation.reset,
            "close": Conversation.close,
            "half": Conversation.half_close,
            "drip": lambda c: c.drip(reply(b"drop"), 0.001),
        }
    )
    request = b"GET /script/%s HTTP/1.1\r\nHost: a\r\n\r\n"
    with dial(rogue) as wire, pytest.raises(ConnectionResetError):
        wire.send(request % b"reset").sock.recv(1)
    for name in (b"close", b"half"):
        with dial(rogue) as wire:
            assert wire.send(request % name).closed()
    with dial(rogue) as wire:
        assert wire.send(request % b"drip").reply().text == "drop"


def test_an_upgraded_connection_returns_what_comes(backends: Backends) -> None:
    rogue = backends.rogue()
    with dial(rogue) as wire:
        switched = wire.request("/script/upgrade", headers=["Connection: Upgrade", "Upgrade: echo"])
        assert switched.status == 101 and switched.header("Upgrade") == "echo"
        assert wire.send(b"\x00\xffraw").exactly(5) == b"\x00\xffraw"


def test_malformed_requests_are_faults(tmp_path: Path) -> None:
    backends = Backends(tmp_path)
    rogue = backends.rogue()
    with dial(rogue) as wire:
        assert wire.send(b"GET / HTTP/1.1\nHost: a\r\n\r\n").closed()
    with pytest.raises(AssertionError, match="malformed requests"):
        backends.finish()


def test_a_request_cut_off_is_a_fault_within_its_head_only(tmp_path: Path) -> None:
    rogue = Rogue()
    with dial(rogue) as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nshort")
    wait_until(lambda: rogue.connections and rogue.connections[0].ended.is_set(), "its end")
    rogue.check()
    assert not rogue.requests[0].complete
    with dial(rogue) as wire:
        wire.send(b"GET / HT")
    wait_until(lambda: rogue.faults, "the fault")
    rogue.stop()


def test_an_error_of_a_script_is_told() -> None:
    def broken(_: Conversation) -> None:
        raise LookupError("a mistake of the test")

    with Rogue({"broken": broken}) as rogue, dial(rogue) as wire:
        assert wire.send(b"GET /script/broken HTTP/1.1\r\nHost: a\r\n\r\n").closed()
    with pytest.raises(AssertionError, match="a mistake of the test"):
        rogue.check()


MALFORMED = [
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
]


@pytest.mark.parametrize("head", MALFORMED)
def test_heads_are_read_strictly(head: bytes) -> None:
    with pytest.raises(Malformed):
        read_head(head)


def test_killed_refusing_and_back_on_the_same_port(backends: Backends) -> None:
    rogue = backends.rogue()
    port = rogue.port
    with dial(rogue) as wire:
        assert wire.request("/").status == 200
        rogue.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(rogue)
        assert wire.request("/still").text == "/still"
        rogue.kill()
        with pytest.raises(ConnectionResetError):
            wire.sock.recv(1)
    rogue.start()
    assert rogue.port == port
    with dial(rogue) as wire:
        assert wire.request("/again").text == "/again"
        rogue.stop()
        assert wire.closed()
    assert not rogue.open


def test_mute_takes_a_request_and_never_answers(backends: Backends) -> None:
    rogue = backends.rogue()
    with dial(rogue) as wire:
        assert wire.send(b"GET /script/mute HTTP/1.1\r\nHost: a\r\n\r\n").silent(0.1)
    wait_until(lambda: rogue.calls["mute"] and not rogue.open, "it sees that we left")


def test_something_can_happen_before_the_first_request(backends: Backends) -> None:
    rogue = backends.rogue(on_connect=lambda c: c.send(b"220 hello\r\n") and None)
    with dial(rogue) as wire:
        assert wire.exactly(11) == b"220 hello\r\n"


def test_a_unix_socket(backends: Backends, tmp_path: Path) -> None:
    rogue = backends.rogue(path=tmp_path / "s")
    assert rogue.url == f"unix:{tmp_path}/s"
    for _ in range(2):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(rogue.path))
        with Wire(sock) as wire:
            assert wire.request("/unix").text == "/unix"
        rogue.kill()
        rogue.start()


def test_nobody_reaches_the_unreachable(backends: Backends) -> None:
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", backends.unreachable().port), 0.2)


def test_gone_says_when_the_peer_has_left(backends: Backends) -> None:
    seen: list[str] = []

    def watching(c: Conversation) -> None:
        try:
            c.gone()
        except Gone:
            seen.append("gone")

    rogue = backends.rogue({"watch": watching})
    with dial(rogue) as wire:
        wire.send(b"GET /script/watch HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: seen == ["gone"], "it was told")


@pytest.mark.slow
def test_tls_with_certificates_and_the_name_asked_for(backends: Backends) -> None:
    authority = backends.authority()
    rogue = backends.rogue(context=authority.context("localhost", "IP:127.0.0.1"))
    trusting = ssl.create_default_context(cafile=str(authority.bundle))
    for name, told in (("localhost", "localhost"), ("127.0.0.1", None)):
        client = http.client.HTTPSConnection(name, rogue.port, timeout=DEADLINE, context=trusting)
        client.request("GET", "/secret")
        assert client.getresponse().read() == b"/secret"
        client.close()
        assert rogue.connections[-1].sni == told
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection("localhost", rogue.port, timeout=DEADLINE).request("GET", "/")
    wait_until(lambda: rogue.connections[-1].ending.startswith("handshake"), "it heard of that")


@pytest.mark.slow
def test_gunicorn_can_be_killed_and_comes_back(backends: Backends) -> None:
    gunicorn = backends.gunicorn()
    port, pid = gunicorn.port, gunicorn.get("/pid").text
    assert gunicorn.get("/").text == "hello\n"
    gunicorn.kill()
    with pytest.raises(ConnectionRefusedError):
        gunicorn.get("/")
    gunicorn.start()
    assert gunicorn.port == port and gunicorn.get("/pid").text != pid


@pytest.mark.slow
def test_nginx_serves_the_blocks_that_it_is_given(backends: Backends) -> None:
    nginx = backends.nginx("location / { return 200 $scheme$request_uri; } location /dav { return 405; }")
    assert nginx.get("/a?b=c").text == "http/a?b=c"
    assert nginx.get("/dav").status == 405
    nginx.kill()
    with pytest.raises(ConnectionRefusedError):
        nginx.get("/")
    nginx.start()
    assert nginx.get("/again").status == 200
