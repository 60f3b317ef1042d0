"""Tunnels: bytes both ways, as fast as the slower end, and every way in which they can end."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from acme_wsgi.compression.wrapper import with_compression
from acme_wsgi.config.schema.content import Compression
from acme_wsgi.http.writer import Response, Tunnel
from tests.unit.descriptors import descriptors, left_open
from tests.unit.engine_harness import Rig, body_of, dialled, in_engine
from tests.wire import Wire

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets

SWITCHING = "101 Switching Protocols"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
FIELDS = [("Connection", "Upgrade"), ("Upgrade", "echo"), ("X-From", "backend")]
SMALL = 8192
MB = 1 << 20


class Ends:
    """A tunnel's two ends, seen from outside, after the client has read its 101."""

    def __init__(self, rig: Rig, *, behind: bytes = b"", buffers: int = 0, **options: Any) -> None:
        self.closed: list[int] = []
        self.stream, self.far = dialled(buffers=buffers)

        def dispatch(request: Any) -> Response:
            return Response(SWITCHING, FIELDS, Tunnel(self.stream, **options), lambda: self.closed.append(1))

        rig.dispatch = dispatch
        if buffers:
            rig.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            rig.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        self.wire = rig.connect(receive_buffer=buffers)
        self.wire.send(UPGRADE + behind)
        self.head = self.wire.reply()
        self.near = self.wire.sock
        if buffers:
            self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)

    def exactly(self, end: socket.socket, count: int) -> bytes:
        """The next bytes at one end; fewer if it ends before."""
        if end is self.near:
            return self.wire.exactly(count)
        seen = b""
        while len(seen) < count and (data := end.recv(count - len(seen))):
            seen += data
        return seen


@contextmanager
def ends(rig: Rig, **options: Any) -> Iterator[Ends]:
    """A tunnel; afterwards it must have ended by itself, with everything that belongs to it."""
    tunnel = Ends(rig, **options)
    try:
        yield tunnel
    finally:
        tunnel.near.close()
        tunnel.far.close()
    rig.until(lambda: tunnel.stream.closed and not rig.count("in_flight"), "the tunnel's end")
    assert tunnel.closed == [1]


def fill(sock: socket.socket, data: bytes = b"x" * 5000) -> int:
    """Send as long as anybody takes it; how much that was."""
    sent = 0
    sock.settimeout(0.3)
    try:
        while True:
            sent += sock.send(data)
    except TimeoutError:
        return sent


def ends_with_reset(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


# -- bytes ------------------------------------------------------------------------------------------------


@in_engine()
def test_bytes_pass_both_ways_and_no_greenlet_is_held(rig: Rig) -> None:
    with ends(rig) as tunnel:
        assert (tunnel.head.status, tunnel.head.reason) == (101, "Switching Protocols")
        names = [name for name, _ in tunnel.head.headers]
        assert names == ["Upgrade", "X-From", "X-Request-ID", "Connection"]
        assert tunnel.head.header("Connection") == "Upgrade" and tunnel.head.header("Upgrade") == "echo"
        assert rig.engine.running() == [] and rig.engine.open_requests == 1 and rig.count("in_flight") == 1
        for number in range(100):
            tunnel.near.sendall(b"ping %d" % number)
            assert tunnel.far.recv(100) == b"ping %d" % number
            tunnel.far.sendall(b"\0\xffpong")
            assert tunnel.wire.exactly(6) == b"\0\xffpong"


@in_engine()
def test_what_came_before_the_switch_goes_first(rig: Rig) -> None:
    for behind in (b"behind the head", body_of(40_000)):
        with ends(rig, behind=behind, first=b"the backend's first") as tunnel:
            assert tunnel.wire.exactly(19) == b"the backend's first"
            tunnel.near.sendall(b", then")
            assert tunnel.exactly(tunnel.far, len(behind) + 6) == behind + b", then"


@in_engine()
def test_what_follows_a_body_that_was_read_belongs_to_the_tunnel(rig: Rig) -> None:
    stream, far = dialled()

    def dispatch(request: Any) -> Response:
        assert request.body.read() == b"hello"
        return Response(SWITCHING, FIELDS, Tunnel(stream))

    rig.dispatch = dispatch
    with rig.connect() as wire:
        wire.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / "
        )
        assert wire.reply().status == 101
        assert far.recv(100) == b"GET / "
        far.close()
        assert wire.closed()


@in_engine()
def test_much_passes_both_ways_at_once(rig: Rig) -> None:
    import gevent

    data = body_of(10 * MB)

    def pump(sending: socket.socket) -> None:
        sending.sendall(data)
        sending.shutdown(socket.SHUT_WR)

    def take(receiving: socket.socket) -> bytes:
        seen = bytearray()
        while piece := receiving.recv(65536):
            seen += piece
        return bytes(seen)

    with ends(rig) as tunnel:
        both = (tunnel.near, tunnel.far)
        senders = [gevent.spawn(pump, end) for end in both]
        takers = [gevent.spawn(take, end) for end in both]
        assert [taker.get(timeout=30) == data for taker in takers] == [True, True]
        gevent.joinall(senders)
    entry = rig.log.last[-1] if rig.log.last else rig.log.entries[-1]
    assert (entry[6], entry[7]) == (101, 10 * MB)
    assert rig.count("bytes_in") == len(UPGRADE) + 10 * MB


@in_engine()
def test_an_end_that_takes_nothing_stops_the_other_and_only_64_kb_wait(rig: Rig) -> None:
    with ends(rig, buffers=SMALL) as tunnel:
        for sending, receiving in ((tunnel.near, tunnel.far), (tunnel.far, tunnel.near)):
            sent = fill(sending)
            assert SMALL < sent < 65536 + 20 * SMALL
            sending.settimeout(10)
            assert tunnel.exactly(receiving, sent) == (b"x" * 5000 * (sent // 5000 + 1))[:sent]
            sending.sendall(b"and on")
            assert tunnel.exactly(receiving, 6) == b"and on"


@in_engine()
def test_whatever_the_sizes_and_the_turns_the_bytes_are_the_same(rig: Rig) -> None:
    import gevent

    choose = random.Random(11)

    def pause() -> None:
        if choose.random() < 0.3:
            gevent.sleep(choose.choice((0, 0.0005, 0.002)))

    def pump(sending: socket.socket, pieces: list[bytes]) -> None:
        for piece in pieces:
            sending.sendall(piece)
            pause()
        sending.shutdown(socket.SHUT_WR)

    def take(receiving: socket.socket) -> bytes:
        seen = bytearray()
        while piece := receiving.recv(choose.choice((10, 3000, 100_000))):
            seen += piece
            pause()
        return bytes(seen)

    for _ in range(40):
        sizes = choose.choice((10, 3000, 50_000))
        ways = [
            [choose.randbytes(choose.randint(1, sizes)) for _ in range(choose.randint(0, 25))]
            for _ in range(2)
        ]
        with ends(rig, buffers=choose.choice((0, SMALL))) as tunnel:
            both = (tunnel.near, tunnel.far)
            for end, pieces in zip(both, ways, strict=True):
                gevent.spawn(pump, end, pieces)
            takers = [gevent.spawn(take, end) for end in (tunnel.far, tunnel.near)]
            for taker, pieces in zip(takers, ways, strict=True):
                assert taker.get(timeout=10) == b"".join(pieces)


# -- the end ----------------------------------------------------------------------------------------------


@in_engine()
def test_either_end_may_stop_sending_and_still_listen(rig: Rig) -> None:
    for first in ("near", "far"):
        with ends(rig, buffers=SMALL) as tunnel:
            ending: socket.socket = getattr(tunnel, first)
            other = tunnel.far if first == "near" else tunnel.near
            ending.sendall(b"the last of it")
            ending.shutdown(socket.SHUT_WR)
            assert tunnel.exactly(other, 14) == b"the last of it"
            assert other.recv(1) == b""
            assert rig.count("in_flight") == 1
            other.sendall(b"the answer")
            assert tunnel.exactly(ending, 10) == b"the answer"
            other.shutdown(socket.SHUT_WR)
            assert ending.recv(1) == b""
            rig.until(lambda: not rig.count("in_flight"), "the end, when both have ended")


@in_engine()
def test_an_end_that_closes_is_passed_on_after_its_last_byte(rig: Rig) -> None:
    data = body_of(60_000)
    with ends(rig, buffers=SMALL) as tunnel:
        tunnel.near.sendall(data)
        tunnel.near.close()
        assert tunnel.exactly(tunnel.far, len(data) + 1) == data
    with ends(rig, buffers=SMALL) as tunnel:
        tunnel.far.sendall(data)
        tunnel.far.close()
        assert tunnel.wire.rest() == data


@in_engine()
def test_a_reset_is_passed_on_as_one(rig: Rig) -> None:
    with ends(rig) as tunnel:
        tunnel.wire.reset()
        assert ends_with_reset(tunnel.far)
    with ends(rig) as tunnel:
        Wire(tunnel.far).reset()
        assert ends_with_reset(tunnel.near)


@in_engine()
def test_a_reset_counts_though_the_other_end_takes_nothing(rig: Rig) -> None:
    for sender in ("near", "far"):
        with ends(rig, buffers=SMALL) as tunnel:
            fill(getattr(tunnel, sender))
            Wire(getattr(tunnel, sender)).reset()
            rig.until(lambda: not rig.count("in_flight"), "the end")


@in_engine("server.keep_alive_timeout=60s", "server.timeout=60s", "server.min_rate_grace=60s")
def test_a_tunnel_without_a_byte_for_too_long_ends(rig: Rig) -> None:
    with ends(rig, idle_seconds=0.2) as tunnel:
        assert tunnel.wire.closed()
        assert tunnel.far.recv(1) == b""
        assert rig.count("timeouts") == 1
    with ends(rig, idle_seconds=0.2, buffers=SMALL) as tunnel:
        with pytest.raises(ConnectionResetError):
            tunnel.near.sendall(b"x" * MB)
        assert ends_with_reset(tunnel.far), "not all of it had arrived"


@in_engine()
def test_a_byte_either_way_keeps_it_open(rig: Rig) -> None:
    import gevent

    for sender in ("near", "far"):
        with ends(rig, idle_seconds=0.3) as tunnel:
            for _ in range(8):
                gevent.sleep(0.1)
                getattr(tunnel, sender).sendall(b"x")
            assert rig.count("in_flight") == 1 and rig.count("timeouts") == 0


@in_engine()
def test_a_shutdown_waits_for_tunnels_and_then_cuts_them(rig: Rig) -> None:
    import gevent

    tunnels = [Ends(rig), Ends(rig)]
    rig.engine.drain()
    gevent.sleep(0.7)
    assert rig.engine.open_requests == 2
    tunnels[0].near.sendall(b"still open")
    assert tunnels[0].far.recv(100) == b"still open"
    rig.engine.close_all()
    for tunnel in tunnels:
        assert tunnel.closed == [1] and tunnel.stream.closed
        assert ends_with_reset(tunnel.far)
        assert tunnel.wire.closed()
    assert sum("cut by the shutdown" in line for line in rig.records.lines) == 2


@in_engine()
def test_tunnels_leave_no_descriptors_however_they_end(rig: Rig) -> None:
    choose = random.Random(3)
    before = descriptors()

    def end(tunnel: Ends, sock: socket.socket) -> None:
        how = choose.randrange(3)
        if how == 0:
            fill(sock)
        if how == 1:
            Wire(sock).reset()
        else:
            sock.close()

    for _ in range(30):
        with ends(rig, buffers=SMALL) as tunnel:
            if choose.random() < 0.5:
                tunnel.near.sendall(b"x" * 3000)
            end(tunnel, choose.choice([tunnel.near, tunnel.far]))
    rig.until(lambda: not left_open(before), "all closed")


@in_engine()
def test_a_close_that_blocks_ends_the_tunnel_once(rig: Rig) -> None:
    import gevent

    closed: list[int] = []

    def close() -> None:
        gevent.sleep(0.2)
        closed.append(1)

    for gone_before in (False, True):
        closed.clear()
        stream, far = dialled()
        if gone_before:
            Wire(far).reset()
        rig.dispatch = lambda request, s=stream: Response(SWITCHING, FIELDS, Tunnel(s), close)  # type: ignore[misc]
        with rig.connect() as wire:
            wire.send(UPGRADE)
            if not gone_before:
                wire.reply()
                Wire(far).reset()
            rig.until(lambda s=stream: s.closed, "the tunnel's end")  # type: ignore[misc]
            wire.sock.send(b"while it closes")
            rig.until(lambda: not rig.count("in_flight"), "the request's end")
        assert closed == [1]


# -- what is refused --------------------------------------------------------------------------------------


def refused(rig: Rig, request: bytes, make: Callable[[Any, Any], Response], complaint: str) -> None:
    stream, far = dialled()
    rig.dispatch = lambda request: make(request, stream)
    rig.records.lines.clear()
    with rig.connect() as wire:
        assert wire.send(request).reply().status == 500
    assert stream.closed and ends_with_reset(far)
    assert any(complaint in line for line in rig.records.lines), rig.records.lines


@in_engine()
def test_only_a_proper_101_opens_a_tunnel(rig: Rig) -> None:
    rig.errors_expected = True
    for status, fields, complaint in (
        ("200 OK", FIELDS, "begins with status 101"),
        (SWITCHING, FIELDS[:1], "names the protocol"),
        (SWITCHING, [*FIELDS, ("Content-Length", "0")], "no Content-Length"),
        (SWITCHING, [*FIELDS, ("Transfer-Encoding", "chunked")], "Transfer-Encoding"),
        (SWITCHING, [*FIELDS, ("Connection", "close")], "other than upgrade"),
        (SWITCHING, [*FIELDS, ("X-Bad", "a\r\nb")], "control character"),
    ):
        refused(rig, UPGRADE, lambda _, stream, s=status, f=fields: Response(s, f, Tunnel(stream)), complaint)  # type: ignore[misc]

    def tunnel(_: Any, stream: Any) -> Response:
        return Response(SWITCHING, FIELDS, Tunnel(stream))

    refused(rig, UPGRADE.replace(b"1.1", b"1.0"), tunnel, "HTTP/1.0")
    refused(
        rig, UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"), tunnel, "has to be read"
    )


@in_engine()
def test_a_101_leads_nowhere_without_a_tunnel(rig: Rig) -> None:
    rig.errors_expected = True
    wrong: Any = "no stream"
    bodies: tuple[Any, ...] = (b"", iter([b"x"]), Tunnel(wrong))
    for body in bodies:
        rig.dispatch = lambda request, b=body: Response(SWITCHING, FIELDS, b)  # type: ignore[misc]
        with rig.connect() as wire:
            assert wire.send(UPGRADE).reply().status == 500
    with pytest.raises(ValueError, match="idle"):
        Tunnel(wrong, b"", -1)


@in_engine()
def test_a_tunnel_after_write_closes_its_stream(rig: Rig) -> None:
    rig.errors_expected = True
    stream, _ = dialled()

    def dispatch(request: Any) -> Response:
        request.start("200 OK", [])(b"begun")
        return Response(SWITCHING, FIELDS, Tunnel(stream))

    rig.dispatch = dispatch
    with rig.connect() as wire:
        assert wire.send(UPGRADE).rest().endswith(b"5\r\nbegun\r\n")
    assert stream.closed


@in_engine()
def test_the_error_page_after_a_refused_switch_is_an_ordinary_response(rig: Rig) -> None:
    rig.errors_expected = True
    stream, _ = dialled()
    rig.dispatch = lambda request: Response(SWITCHING, [("Upgrade", "x"), ("TE", "x")], Tunnel(stream))
    with rig.connect() as wire:
        reply = wire.send(UPGRADE).reply()
        assert reply.status == 500 and reply.header("Upgrade") is None
        assert reply.header("Content-Length") == str(len(reply.body))
        rig.dispatch = lambda request: Response("200 OK", [], b"next")
        assert wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").reply().body == b"next"


@in_engine()
def test_compression_leaves_a_tunnel_alone(rig: Rig) -> None:
    stream, far = dialled()
    fields = [*FIELDS, ("Content-Type", "text/html")]
    rig.dispatch = with_compression(
        lambda request: Response(SWITCHING, fields, Tunnel(stream)), Compression()
    )
    with rig.connect() as wire:
        wire.send(UPGRADE.replace(b"\r\n\r\n", b"\r\nAccept-Encoding: gzip\r\n\r\n"))
        assert wire.reply().status == 101
        far.sendall(b"as it is")
        assert wire.exactly(8) == b"as it is"
