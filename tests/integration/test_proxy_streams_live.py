"""Streams through the proxy: events, large bodies, upgrades; and ways to a backend: TLS, UNIX sockets, names.

Real backends (nginx, gunicorn) beside rogues. Memory is the worker's, sampled while bytes flow.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from tests.backends import Backends, closing_all
from tests.conversation import Conversation
from tests.integration.test_uploads import MB, PIECE, Peak
from tests.proxying import Told, clients, config, running, slow_client
from tests.rogue import Rogue, reply, tell
from tests.server import Launcher, Server, wait_until
from tests.wire import Wire

pytestmark = pytest.mark.slow

SIZE = 300 * MB
ALLOWED = 30 * MB


def refuses(c: Conversation) -> None:
    """Answers an expectation with a refusal, before a byte of the body."""
    c.send(reply(b"no", "Connection: close", status="403 Forbidden"))
    c.close()


def digests(c: Conversation) -> None:
    """Reads a body of any size and answers its length and digest."""
    length, digest = 0, sha256()
    for piece in c.pieces():
        length += len(piece)
        digest.update(piece)
    c.send(reply(f"{length} {digest.hexdigest()}".encode()))


def floods(c: Conversation) -> None:
    """SIZE bytes by length; how far it got stands in FLOODED."""
    c.send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n" % SIZE)
    FLOODED[c.request.target] = 0
    for _ in range(SIZE // len(PIECE)):
        c.send(PIECE)
        FLOODED[c.request.target] += len(PIECE)


def floods_in_chunks(c: Conversation) -> None:
    """The same in chunks."""
    c.send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(SIZE // len(PIECE)):
        c.send(b"%x\r\n" % len(PIECE), PIECE, b"\r\n")
    c.send(b"0\r\n\r\n")


def page(c: Conversation) -> None:
    """2 MB at once."""
    c.send(reply(bytes(range(256)) * 8192, "Content-Type: image/png"))


def echoes(c: Conversation) -> None:
    """Says each piece of the body again before it takes the next one."""
    c.send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in c.pieces():
        c.send(b"%x\r\n" % len(piece), piece, b"\r\n")
    c.send(b"0\r\n\r\n")


FLOODED: dict[str, int] = {}
SCRIPTS = {
    "refuses": refuses, "digests": digests, "floods": floods, "chunks": floods_in_chunks, "page": page,
    "echoes": echoes,
}  # fmt: skip


@pytest.fixture(scope="module")
def rogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rogue]:
    with closing_all(Backends(tmp_path_factory.mktemp("streams"))) as backends:
        yield backends.rogue(SCRIPTS, default=tell)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, rogue: Rogue) -> Iterator[Server]:
    limits = {"max_body_size": "1GB", "timeout": "60s"}
    with running(tmp_path_factory.mktemp("proxy"), config(rogue.url, server=limits)) as server:
        yield server


def whole_digest() -> str:
    digest = sha256()
    for _ in range(SIZE // len(PIECE)):
        digest.update(PIECE)
    return digest.hexdigest()


# ------------------------------------------------------------------- 300 MB


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_an_upload_of_300_mb_takes_no_memory(proxy: Server, chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % SIZE
    with proxy.connect(timeout=60) as wire:
        wire.request("/warm")
        with Peak(proxy.worker_pids()[0]) as peak:
            wire.send(b"POST /script/digests HTTP/1.1\r\nHost: a\r\n", framing, b"\r\n\r\n")
            for _ in range(SIZE // len(PIECE)):
                if chunked:
                    wire.send(b"%x\r\n" % len(PIECE), PIECE, b"\r\n")
                else:
                    wire.send(PIECE)
            if chunked:
                wire.send(b"0\r\n\r\n")
            assert wire.reply().text == f"{SIZE} {whole_digest()}"
    assert peak.samples > 5 and peak.grown < ALLOWED


@pytest.mark.parametrize("script", ["floods", "chunks"])
def test_a_download_of_300_mb_takes_no_memory(proxy: Server, script: str) -> None:
    with proxy.connect(timeout=60) as wire:
        wire.request("/warm")
        with Peak(proxy.worker_pids()[0]) as peak:
            head = wire.send(f"GET /script/{script} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).reply(head=True)
            assert head.status == 200
            digest = sha256()
            if script == "floods":
                left = SIZE
                while left:
                    digest.update(wire.exactly(min(left, len(PIECE))))
                    left -= min(left, len(PIECE))
            else:
                while size := int(line(wire), 16):
                    digest.update(wire.exactly(size))
                    assert wire.exactly(2) == b"\r\n"
            assert digest.hexdigest() == whole_digest()
    assert peak.samples > 5 and peak.grown < ALLOWED


def line(wire: Wire) -> bytes:
    """The line of a chunk's size."""
    taken = b""
    while not taken.endswith(b"\r\n"):
        taken += wire.exactly(1)
    return taken[:-2]


def test_a_client_that_does_not_read_stops_the_backend(proxy: Server, rogue: Rogue) -> None:
    """The backend is held up by a full socket, not by the worker's memory."""
    target = "/script/floods?held"
    with Peak(proxy.worker_pids()[0]) as peak:
        wire = slow_client(proxy, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        with wire:
            wait_until(lambda: FLOODED.get(target, 0) > 0, "it begins")
            still = -1
            while still != (still := FLOODED[target]):
                assert wire.sock.fileno() >= 0 and not peak.ended.wait(0.3)
            assert still < SIZE / 4
    assert peak.grown < ALLOWED
    conversation = rogue.connections[rogue.asked(target)[-1].connection - 1]
    wait_until(conversation.ended.is_set, "the backend hears that the client left")
    assert proxy.get("/next").status == 200


# ------------------------------------------------------------------- responses as they come


def test_events_arrive_one_by_one(acme: Launcher, backends: Backends) -> None:
    def stream(c: Conversation) -> None:
        c.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            c.wait(f"event {number}")
            event = b"data: %d\n\n" % number
            c.send(b"%x\r\n%s\r\n" % (len(event), event))
        c.wait("end")
        c.send(b"0\r\n\r\n")

    rogue = backends.rogue({"events": stream})
    proxy = acme(config(rogue.url))
    with proxy.connect() as wire:
        wire.send(b"GET /script/events HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip, br\r\n\r\n")
        rogue.release("event 0")
        head = wire.reply(head=True)
        assert head.header("Content-Type") == "text/event-stream"
        assert head.header("Transfer-Encoding") == "chunked"
        if head.header("Content-Encoding") is None:
            for number in range(5):
                rogue.release(f"event {number}")
                assert wire.exactly(14) == b"9\r\ndata: %d\n\n\r\n" % number
            assert wire.silent(0.05)
            rogue.release("end")
            assert wire.exactly(5) == b"0\r\n\r\n"
        else:  # compressed, each must come out of the compressor at once all the same
            for number in range(5):
                rogue.release(f"event {number}")
                assert int(wire.exactly(1), 16) > 0
                while not wire.silent(0.1):
                    wire.exactly(1)
            rogue.release("end")
        wire.close()


def test_the_head_does_not_wait_for_the_body(acme: Launcher, backends: Backends) -> None:
    def late(c: Conversation) -> None:
        c.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        c.wait("body")
        c.send(b"2\r\nhi\r\n0\r\n\r\n")

    rogue = backends.rogue({"late": late})
    with acme(config(rogue.url)).connect() as wire:
        head = wire.send(b"GET /script/late HTTP/1.1\r\nHost: a\r\n\r\n").reply(head=True)
        assert head.status == 200
        rogue.release("body")
        assert wire.body(head) == b"hi"


def test_an_answer_may_begin_before_the_upload_ends(acme: Launcher, backends: Backends) -> None:
    """The backend gets the whole body all the same, and the client the whole answer."""

    def eager(c: Conversation) -> None:
        c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        count = str(sum(len(piece) for piece in c.pieces())).encode()
        c.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(count), count))

    rogue = backends.rogue({"eager": eager})
    piece = bytes(range(256)) * 256
    with acme(config(rogue.url, server={"max_body_size": "1GB"})).connect() as wire:
        length = b"Content-Length: %d\r\n\r\n" % (len(piece) * 100)
        wire.send(b"POST /script/eager HTTP/1.1\r\nHost: a\r\n", length)
        for _ in range(100):
            wire.sock.sendall(piece)
        assert wire.reply().text == f"first{len(piece) * 100}"


def test_client_and_backend_may_talk_in_turn(proxy: Server) -> None:
    """The head leaves before the upload has ended, and each piece of the answer as it comes."""
    with proxy.connect() as wire:
        wire.send(b"POST /script/echoes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.send(b"40000\r\n", PIECE, b"\r\n")  # more than is awaited before a backend is asked
        assert wire.reply(head=True).status == 200
        assert gathered(wire, len(PIECE)) == PIECE
        for word in (b"one", b"two", b"three"):
            wire.send(b"%x\r\n%b\r\n" % (len(word), word))
            assert gathered(wire, len(word)) == word
        wire.send(b"0\r\n\r\n")
        assert wire.exactly(5) == b"0\r\n\r\n"
        assert wire.request("/next").status == 200


def gathered(wire: Wire, length: int) -> bytes:
    """The data of chunks until so many bytes are here."""
    seen = b""
    while len(seen) < length:
        size = b""
        while not size.endswith(b"\r\n"):
            size += wire.exactly(1)
        seen += wire.exactly(int(size, 16) + 2)[:-2]
    return seen


def echo(wire: Wire, pieces: int) -> str:
    """Upload so many pieces and download them at the same time; the digest of what comes back."""
    length = pieces * len(PIECE)
    wire.send(b"POST /script/echoes HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [wire.sock.sendall(PIECE) for _ in range(pieces)])
        reply = wire.reply()
        sending.result()
    assert (reply.status, len(reply.body), reply.header("Connection")) == (200, length, None)
    return sha256(reply.body).hexdigest()


def test_a_body_comes_back_while_it_is_sent_without_memory(proxy: Server) -> None:
    pieces = 60 * MB // len(PIECE)
    with proxy.connect(timeout=60) as wire, Peak(proxy.worker_pids()[0]) as peak:
        assert echo(wire, pieces) == sha256(PIECE * pieces).hexdigest()
    assert peak.grown < ALLOWED


def test_a_refusal_behind_a_100_is_heard_while_the_client_pauses(acme: Launcher, backends: Backends) -> None:
    """Both in one segment."""

    def both(c: Conversation) -> None:
        c.send(b"HTTP/1.1 100 Continue\r\n\r\n", reply(b"no", status="413 Content Too Large"))
        c.gone()

    rogue = backends.rogue({"both": both})
    with acme(config(rogue.url)).connect() as wire:
        wire.send(b"POST /script/both HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n")
        wire.send(b"Expect: 100-continue\r\n\r\n")
        assert wire.reply().status == 413


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
def test_who_pauses_amid_an_upload_hears_that_its_backend_is_cut_off(
    acme: Launcher, backends: Backends, said: bytes
) -> None:
    def waits(c: Conversation) -> None:
        c.send(said)
        c.gone()

    rogue = backends.rogue({"waits": waits})
    balancing = {"connection_draining": {"enabled": False}}
    server = acme(config(rogue.url, load_balancing=balancing, server={"body_min_rate": 0}))
    with server.connect() as wire:
        wire.send(
            b"POST /script/waits HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", bytes(100_000)
        )
        wait_until(lambda: rogue.asked("/script/waits"), "the backend has the request")
        if said:
            assert wire.reply(head=True).status == 200
        assert server.order("drain", {"url": rogue.url})["ok"]
        if said:
            assert wire.rest().endswith(b"hello\r\n")
        else:
            assert wire.reply().status == 502


@pytest.mark.parametrize("framing", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
def test_a_refusal_is_heard_while_the_client_pauses(acme: Launcher, backends: Backends, framing: str) -> None:
    def stranger(c: Conversation) -> None:
        c.send(reply(b"who are you", status="401 Unauthorized"))
        c.gone()

    rogue = backends.rogue({"stranger": stranger})
    with acme(config(rogue.url, server={"max_body_size": "1GB"})).connect() as wire:
        wire.send(f"POST /script/stranger HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
        wire.send(PIECE if framing.startswith("C") else b"40000\r\n" + PIECE + b"\r\n")
        got = wire.reply()
        assert (got.status, got.text) == (401, "who are you")


def test_a_client_is_told_to_continue(proxy: Server) -> None:
    with proxy.connect() as wire:
        wire.send(b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert wire.reply().status == 100
        assert Told(wire.send(b"abc").reply()).body == b"abc"


def test_an_expectation_may_be_refused(proxy: Server) -> None:
    """Who asks before sending a body gets the backend's answer, whether told to continue before or not."""
    with proxy.connect() as wire:
        wire.send(
            b"POST /script/refuses HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        got = wire.reply()
        if got.status == 100:
            got = wire.send(b"abc").reply()
        assert (got.status, got.text) == (403, "no")


@pytest.mark.parametrize("size", [3, 100_000])
def test_where_a_route_takes_the_expectation_out_it_is_our_own_affair(
    acme: Launcher, rogue: Rogue, size: int
) -> None:
    made = config(rogue.url, headers={"remove": ["Expect"]})
    with acme(made).connect() as wire:
        wire.send(b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size)
        assert wire.reply().status == 100
        told = Told(wire.send(b"x" * size).reply())
    assert told.body == b"x" * size and not told.has("Expect")


# ------------------------------------------------------------------- upgrades


UPGRADE = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
           "Sec-WebSocket-Version: 13"]  # fmt: skip


def frame(payload: bytes) -> bytes:
    """A masked binary frame of a client (RFC 6455 5.2), its mask all zeros."""
    return b"\x82" + bytes([0x80 | 127]) + len(payload).to_bytes(8, "big") + bytes(4) + payload


def test_an_upgraded_connection_carries_bytes_both_ways(proxy: Server, rogue: Rogue) -> None:
    with proxy.connect() as wire:
        switched = wire.request("/script/upgrade", headers=UPGRADE)
        assert switched.status == 101
        assert switched.header("Upgrade") == "websocket"
        assert (switched.header("Connection") or "").lower() == "upgrade"
        heard = rogue.asked("/script/upgrade")[-1]
        assert heard.header("Sec-WebSocket-Version") == "13"
        assert (heard.header("Connection") or "").lower() == "upgrade"
        for payload in (b"", b"hello", bytes(range(256))):
            sent = frame(payload)
            assert wire.send(sent).exactly(len(sent)) == sent
        large = frame(bytes(range(256)) * 4096)
        sender = threading.Thread(target=wire.sock.sendall, args=(large,))
        sender.start()
        assert wire.exactly(len(large)) == large
        sender.join()
    wait_until(rogue.connections[heard.connection - 1].ended.is_set, "the backend hears that the client left")


def test_an_upgraded_connection_ends_with_the_backend(proxy: Server, rogue: Rogue) -> None:
    with proxy.connect() as wire:
        assert wire.request("/script/upgrade", headers=UPGRADE).status == 101
        rogue.connections[rogue.asked("/script/upgrade")[-1].connection - 1].disconnect(reset=False)
        assert wire.closed()


def test_a_backend_may_decline_an_upgrade(proxy: Server) -> None:
    with proxy.connect() as wire:
        assert wire.request("/script/named", headers=UPGRADE).text == "/script/named"
        assert wire.request("/script/named").status == 200


def test_where_a_route_takes_the_upgrade_out_it_is_a_plain_request(acme: Launcher, rogue: Rogue) -> None:
    with acme(config(rogue.url, headers={"remove": ["Upgrade"]})).connect() as wire:
        told = Told(wire.request("/w", headers=UPGRADE))
        assert not told.has("Upgrade") and told.one("Sec-WebSocket-Version") == "13"
        assert wire.request("/script/named").status == 200


@pytest.mark.parametrize("protocol", ["h2c", "websocket, H2C", "TLS/1.3", "HTTP/2.0"])
def test_http_is_no_protocol_to_switch_to(proxy: Server, protocol: str) -> None:
    """Requests in such a tunnel would pass by routes and limits."""
    fields = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMAAABk"]
    with proxy.connect() as wire:
        told = Told(wire.request("/", headers=fields))
    assert not told.has("Upgrade") and not told.has("Connection") and not told.has("HTTP2-Settings")


def test_a_tunnel_ends_with_the_time_of_its_backend(acme: Launcher, backends: Backends) -> None:
    """Also where the client doesn't take the hint, and with one line in the log."""
    rogue = backends.rogue()
    server = acme(config(rogue.url, load_balancing={"connection_draining": {"timeout": "300ms"}}))
    with server.connect() as wire:
        assert wire.request("/script/upgrade", headers=UPGRADE).status == 101
        server.order("drain", {"url": rogue.url})
        wait_until(lambda: clients(server) == 0, "it is cut")
    assert not rogue.open
    assert server.stderr.count("its time is over") == 1


def test_bytes_behind_the_switch_are_not_lost(acme: Launcher, backends: Backends) -> None:
    def greets(c: Conversation) -> None:
        c.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello from x")
        c.gone()

    rogue = backends.rogue({"greets": greets})
    with acme(config(rogue.url)).connect() as wire:
        assert wire.request("/script/greets", headers=["Connection: upgrade", "Upgrade: x"]).status == 101
        assert wire.exactly(12) == b"hello from x"


# ------------------------------------------------------------------- other ways to a backend


def test_tls_is_verified_named_and_reused(acme: Launcher, backends: Backends) -> None:
    authority = backends.authority()
    rogue = backends.rogue(SCRIPTS, default=tell, context=authority.context("localhost"))
    made = config(f"https://localhost:{rogue.port}", server={"max_body_size": "1GB"})
    proxy = acme(made, env={"SSL_CERT_FILE": str(authority.bundle)})
    body = bytes(range(256)) * 8192
    with proxy.connect() as wire:
        for _ in range(5):
            assert Told(wire.request("/secret")).one("X-Forwarded-Proto") == "http"
        wire.send(b"POST /script/digests HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body), body)
        assert wire.reply().text == f"{len(body)} {sha256(body).hexdigest()}"
        assert wire.request("/script/page").body == body
        assert echo(wire, 16) == sha256(PIECE * 16).hexdigest()
    assert [one.sni for one in rogue.connections] == ["localhost"]


def speaks_plainly(c: Conversation) -> None:
    """What a server without TLS says to a handshake."""
    c.send(reply(b"", "Connection: close", status="400 Bad Request"))
    c.close()


@pytest.mark.parametrize("fault", ["name", "authority", "plain"])
def test_a_backend_that_cannot_prove_who_it_is_gets_nothing(
    acme: Launcher, backends: Backends, fault: str
) -> None:
    authority, other = backends.authority(), backends.authority()
    names = "other.example" if fault == "name" else "localhost"
    issuer = other if fault == "authority" else authority
    if fault == "plain":
        rogue = backends.rogue(on_connect=speaks_plainly)
    else:
        rogue = backends.rogue(context=issuer.context(names))
    made = config(f"https://localhost:{rogue.port}", server={"max_body_size": "1GB"})
    proxy = acme(made, env={"SSL_CERT_FILE": str(authority.bundle)})
    proxy.errors_expected = True
    assert proxy.get("/").status == 502
    assert rogue.requests == []


def test_a_tls_backend_that_ends_without_saying_so_has_cut_its_body(
    acme: Launcher, backends: Backends
) -> None:
    def cut(c: Conversation) -> None:
        c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        c.wait("seen")
        c.reset()

    authority = backends.authority()
    rogue = backends.rogue({"cut": cut}, context=authority.context("localhost"))
    made = config(f"https://localhost:{rogue.port}", server={"max_body_size": "1GB"})
    proxy = acme(made, env={"SSL_CERT_FILE": str(authority.bundle)})
    proxy.errors_expected = True
    with proxy.connect() as wire:
        assert wire.send(b"GET /script/cut HTTP/1.1\r\nHost: a\r\n\r\n").reply(head=True).status == 200
        rogue.release("seen")
        assert not wire.rest().endswith(b"0\r\n\r\n")
    assert proxy.get("/next").text == "/next"


def test_a_tls_backend_that_resets_amid_the_handshake_is_a_502(acme: Launcher, backends: Backends) -> None:
    authority = backends.authority()
    context = authority.context("localhost")

    def serve(listener: socket.socket) -> None:
        """Its part of the handshake, and a reset in place of waiting for the other one's."""
        with contextlib.suppress(OSError):  # the listener was shut
            while True:
                with listener.accept()[0] as sock:
                    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                    tls = context.wrap_bio(incoming, outgoing, server_side=True)
                    incoming.write(sock.recv(65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        tls.do_handshake()
                    sock.sendall(outgoing.read())
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        serving = threading.Thread(target=serve, args=(listener,), daemon=True)
        serving.start()
        proxy = acme(config(url), env={"SSL_CERT_FILE": str(authority.bundle)})
        assert {proxy.get("/").status for _ in range(10)} == {502}
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


def test_a_tls_backend_that_resets_amid_an_upload_is_a_502(acme: Launcher, backends: Backends) -> None:
    """Wherever in its records each of the uploads stands just then."""

    def resets(c: Conversation) -> None:
        c.wait("reset")
        c.reset()

    authority = backends.authority()
    rogue = backends.rogue({"resets": resets}, context=authority.context("localhost"))
    proxy = acme(
        config(f"https://localhost:{rogue.port}", server={"max_body_size": "1GB"}),
        env={"SSL_CERT_FILE": str(authority.bundle)},
    )

    def upload(number: int) -> int:
        size = 40 * MB + number * 5000
        head = b"POST /script/resets HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        with proxy.connect() as wire:
            sending = threading.Thread(target=send, args=(wire.send(head), size))
            sending.start()
            status = wire.reply().status
        sending.join()
        return status

    def send(wire: Wire, size: int) -> None:
        with contextlib.suppress(OSError):  # the refusal may come amid it
            wire.sock.sendall(bytes(size))

    with ThreadPoolExecutor(12) as pool:
        statuses = pool.map(upload, range(12))
        wait_until(lambda: len(rogue.asked("resets")) == 12, "all are under way")
        rogue.release("reset")
        assert set(statuses) == {502}


def test_a_backend_on_a_unix_socket(acme: Launcher, backends: Backends) -> None:
    rogue = backends.rogue(default=tell, path=backends.directory / "backend.sock")
    with acme(config(rogue.url)).connect() as wire:
        for _ in range(3):
            assert Told(wire.request("/u")).one("Host") == "test"
    assert len(rogue.connections) == 1


def test_a_backend_by_name(acme: Launcher, backends: Backends) -> None:
    """Whatever addresses `localhost` has: one of them answers."""
    rogue = backends.rogue()
    proxy = acme(config(f"http://localhost:{rogue.port}"))
    assert proxy.get("/by-name").text == "/by-name"


def test_a_name_that_does_not_exist_is_a_502(acme: Launcher) -> None:
    proxy = acme(config("http://no-such-host.invalid:80"))
    proxy.errors_expected = True
    assert proxy.get("/").status == 502


def test_files_of_nginx(acme: Launcher, backends: Backends) -> None:
    content = bytes(range(256)) * 8000
    (backends.directory / "file.bin").write_bytes(content)
    nginx = backends.nginx(f"root {backends.directory}; sendfile on;")
    with acme(config(nginx.url)).connect() as wire:
        whole = wire.request("/file.bin")
        assert sha256(whole.body).digest() == sha256(content).digest()
        part = wire.request("/file.bin", headers=["Range: bytes=100-199"])
        assert (part.status, part.body) == (206, content[100:200])
        assert part.header("Content-Range") == f"bytes 100-199/{len(content)}"
        same = wire.request("/file.bin", headers=[f"If-None-Match: {whole.header('ETag')}"])
        assert (same.status, same.body) == (304, b"")
        assert wire.request("/file.bin", method="HEAD").header("Content-Length") == str(len(content))
        assert wire.request("/none").status == 404


def test_an_application_under_gunicorn(acme: Launcher, backends: Backends) -> None:
    gunicorn = backends.gunicorn("tests.apps.protocol:app")
    with acme(config(gunicorn.url)).connect() as wire:
        assert wire.request("/stream?n=50&size=1000").body == b"x" * 50_000
        wire.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n", b"z" * 300_000)
        assert wire.reply().text == f"300000 {sha256(b'z' * 300_000).hexdigest()}"
        environ = json.loads(wire.request("/saw?q=1").body)["environ"]
        assert environ["HTTP_X_FORWARDED_FOR"] == "127.0.0.1" and environ["QUERY_STRING"] == "q=1"
