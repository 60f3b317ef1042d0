"""Streams that may run ahead of their clients: what is held, how much of it, and what becomes of it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

from acme_wsgi.errors import ClientDisconnected
from acme_wsgi.http.writer import Response
from tests.unit.engine_harness import OK, Rig, body_of, in_engine
from tests.wire import Wire

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = body_of(400_000)


def slow_client(rig: Rig) -> Wire:
    """A client for whom the kernel holds little."""
    rig.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return rig.connect(receive_buffer=4096)


def pieces_of(body: bytes, size: int) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


# -- what the handler gains -------------------------------------------------------------------------------


@in_engine()
def test_a_stream_that_ends_before_its_client_has_taken_it_needs_no_greenlet(rig: Rig) -> None:
    ended: list[str] = []

    def stream() -> Iterator[bytes]:
        yield from pieces_of(LARGE, 7000)
        ended.append("stream")

    rig.dispatch = lambda request: Response(
        OK, [], stream(), lambda: ended.append("closed"), buffer=1_000_000
    )
    with slow_client(rig) as wire:
        wire.send(GET)
        rig.until(lambda: ended, "the stream's end")
        assert ended == ["stream"] and rig.engine.running() == [] and rig.engine.open_requests == 1
        assert wire.reply().body == LARGE
        rig.until(lambda: len(ended) == 2, "close")
        rig.dispatch = lambda request: Response(OK, [], b"next")
        assert wire.send(GET).reply().body == b"next"


@in_engine()
def test_no_more_is_held_than_the_response_allows(rig: Rig) -> None:
    import gevent

    produced = 0

    def endless() -> Iterator[bytes]:
        nonlocal produced
        while True:
            produced += 1000
            yield b"x" * 1000

    def run(buffer: int) -> int:
        nonlocal produced
        produced = 0
        rig.dispatch = lambda request: Response(OK, [], endless(), buffer=buffer)
        wire = slow_client(rig).send(GET)
        before = -1
        while before != produced:
            before = produced
            gevent.sleep(0.1)
        wire.reset()
        rig.until(lambda: not rig.count("in_flight"), "the end")
        return produced

    without = run(0)
    for buffer in (1, 3000, 100_000, 500_000):
        assert 0.8 * buffer - 2000 <= run(buffer) - without <= buffer + 1000, buffer


@in_engine()
def test_a_piece_larger_than_the_buffer_is_held_in_part(rig: Rig) -> None:
    rig.dispatch = lambda request: Response(OK, [], iter([LARGE, b"and", LARGE]), buffer=1000)
    with slow_client(rig) as wire:
        assert wire.send(GET).reply().body == LARGE + b"and" + LARGE


@in_engine()
def test_a_client_that_keeps_up_gets_each_piece_at_once_and_alone(rig: Rig) -> None:
    from gevent.event import Event

    taken = Event()

    def events() -> Iterator[bytes]:
        for number in range(5):
            taken.clear()
            yield b"data: %d\n\n" % number
            taken.wait()

    rig.dispatch = lambda request: Response(OK, [], events(), buffer=100_000)
    with rig.connect() as wire:
        wire.send(GET)
        assert wire.sock.recv(65536).endswith(b"\r\n\r\n9\r\ndata: 0\n\n\r\n")
        for number in range(1, 5):
            taken.set()
            assert wire.sock.recv(65536) == b"9\r\ndata: %d\n\n\r\n" % number
        taken.set()
        assert wire.sock.recv(65536) == b"0\r\n\r\n"


# -- when it leaves ---------------------------------------------------------------------------------------


@in_engine()
def test_what_is_held_leaves_when_there_is_room_though_no_piece_follows(rig: Rig) -> None:
    from gevent.event import Event

    more = Event()

    def stream() -> Iterator[bytes]:
        yield LARGE
        more.wait()
        yield b"the end"

    rig.dispatch = lambda request: Response(
        OK, [("Content-Length", str(len(LARGE) + 7))], stream(), buffer=1_000_000
    )
    with slow_client(rig) as wire:
        wire.send(GET)._until(b"\r\n\r\n")
        assert wire.exactly(len(LARGE)) == LARGE
        assert wire.silent(0.02)
        more.set()
        assert wire.exactly(7) == b"the end"


@in_engine()
def test_what_is_held_leaves_while_the_handler_waits_for_the_clients_body(rig: Rig) -> None:
    """A client that sends on only after it has seen the answer so far."""

    def dispatch(request: Any) -> Response:
        def stream() -> Iterator[bytes]:
            yield LARGE
            yield request.body.read()[-5:]

        return Response(OK, [("Content-Length", str(len(LARGE) + 5))], stream(), buffer=1_000_000)

    rig.dispatch = dispatch
    with slow_client(rig) as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"x" * 70000)
        wire._until(b"\r\n\r\n")
        assert wire.exactly(len(LARGE)) == LARGE
        wire.send(b"y" * 30000)
        assert wire.exactly(5) == b"yyyyy"


@in_engine()
def test_whatever_the_sizes_and_the_turns_the_bytes_are_the_same(rig: Rig) -> None:
    import gevent

    choose = random.Random(5)

    def stream(pieces: list[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if choose.random() < 0.2:
                gevent.sleep(choose.choice((0, 0.0005, 0.002)))
            yield piece

    def read_slowly(wire: Wire) -> bytes:
        seen = b""
        while data := wire.sock.recv(choose.choice((10, 500, 5000, 65536))):
            seen += data
            if choose.random() < 0.3:
                gevent.sleep(choose.choice((0, 0.0005, 0.002)))
        return seen

    for _ in range(60):
        largest = choose.choice((10, 1000, 20_000, 100_000))
        pieces = [
            choose.randbytes(choose.randint(0, largest))
            for _ in range(choose.randint(0, 400_000 // largest % 90))
        ]
        whole = b"".join(pieces)
        headers = [("Content-Length", str(len(whole)))] if choose.random() < 0.4 else []
        buffer = choose.choice((1, 100, 5000, 30_000, 1_000_000))
        rig.dispatch = lambda request, p=pieces, h=headers, b=buffer: Response(OK, h, stream(p), buffer=b)  # type: ignore[misc]
        version = choose.choice((b"1.0", b"1.1"))
        with slow_client(rig) as wire:
            wire.send(b"GET / HTTP/%s\r\nHost: a\r\nConnection: close\r\n\r\n" % version)
            wire._buffer = read_slowly(wire)
            wire.sock.shutdown(socket.SHUT_RDWR)
            assert wire.reply().body == whole, (largest, buffer, len(pieces))
            assert wire._buffer == b""


@in_engine()
def test_a_head_without_a_body_ends_where_it_should(rig: Rig) -> None:
    rig.dispatch = lambda request: Response(OK, [], iter([b"body"]), buffer=1000)
    with rig.connect() as wire:
        wire.request("/", method="HEAD")
        assert wire.silent(0.02)
        rig.dispatch = lambda request: Response(OK, [], iter([]), buffer=1000)
        assert wire.send(GET).reply().body == b""


@in_engine()
def test_pipelined_requests_follow_in_order(rig: Rig) -> None:
    rig.dispatch = lambda request: Response(OK, [], pieces_of(LARGE, 5000), buffer=1_000_000)
    with slow_client(rig) as wire:
        wire.send(GET * 3)
        for _ in range(3):
            assert wire.reply().body == LARGE


# -- clients that are too slow, or gone -------------------------------------------------------------------


@in_engine("server.send_min_rate=10000", "server.min_rate_grace=300ms")
def test_a_client_that_takes_nothing_is_cut_whatever_the_handler_waits_for(rig: Rig) -> None:
    from gevent.event import Event

    raised: list[str] = []

    def stalled() -> Iterator[bytes]:
        yield LARGE
        try:
            Event().wait()
        except ClientDisconnected:
            raised.append("in the handler")
            raise

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield LARGE
        except GeneratorExit:
            raised.append("above the limit")

    for stream, buffer in ((stalled, 1_000_000), (endless, 1_000_000), (lambda: iter([LARGE]), 1_000_000)):
        rig.dispatch = lambda request, s=stream, b=buffer: Response(OK, [], s(), buffer=b)  # type: ignore[misc]
        wire = slow_client(rig).send(GET)
        rig.until(lambda: rig.count("in_flight"), "the begin")
        rig.until(lambda: not rig.count("in_flight"), "the end")
        assert len(wire.rest()) < len(LARGE)
    assert raised == ["in the handler", "above the limit"] and rig.count("timeouts") == 3


@in_engine("server.send_min_rate=10000", "server.min_rate_grace=200ms")
def test_a_client_that_is_slow_but_fast_enough_is_not_cut(rig: Rig) -> None:
    import gevent

    def stream() -> Iterator[bytes]:
        yield LARGE[:200_000]
        gevent.sleep(1)

    rig.dispatch = lambda request: Response(OK, [], stream(), buffer=1_000_000)
    with slow_client(rig) as wire:
        wire.send(GET)
        for _ in range(40):
            wire._buffer += wire.sock.recv(4000)
            gevent.sleep(0.03)
        assert wire.reply().body == LARGE[:200_000]
    assert rig.count("timeouts") == 0


@in_engine("server.timeout=300ms")
def test_the_handlers_own_time_does_not_run_while_it_waits_for_the_client(rig: Rig) -> None:
    import gevent

    rig.dispatch = lambda request: Response(OK, [], iter([LARGE, LARGE]), buffer=1000)
    with slow_client(rig) as wire:
        wire.send(GET)
        gevent.sleep(0.8)
        assert wire.reply().body == LARGE * 2


@in_engine("server.timeout=300ms")
def test_a_handler_that_hangs_is_cut_with_all_that_is_held(rig: Rig) -> None:
    import gevent

    rig.errors_expected = True

    def stream() -> Iterator[bytes]:
        yield LARGE
        gevent.sleep(30)

    rig.dispatch = lambda request: Response(OK, [], stream(), buffer=1_000_000)
    with slow_client(rig) as wire:
        wire.send(GET)
        rig.until(lambda: rig.count("timeouts"), "the deadline")
        assert len(wire.rest()) < len(LARGE)


@in_engine()
def test_a_stream_that_fails_never_looks_whole(rig: Rig) -> None:
    rig.errors_expected = True

    def failing() -> Iterator[bytes]:
        yield LARGE
        raise RuntimeError("no more")

    for headers in ([], [("Content-Length", str(len(LARGE)))]):
        closed: list[int] = []
        rig.dispatch = lambda request, h=headers, c=closed: Response(  # type: ignore[misc]
            OK, h, failing(), lambda: c.append(1), buffer=1_000_000
        )
        with slow_client(rig) as wire:
            assert len(wire.send(GET).rest().partition(b"\r\n\r\n")[2]) < len(LARGE)
        assert closed == [1]


@in_engine()
def test_a_client_that_leaves_ends_what_is_held_for_it(rig: Rig) -> None:
    from gevent.event import Event

    gone, seen = Event(), []

    def writing() -> Iterator[bytes]:
        yield LARGE
        gone.wait()
        try:
            yield b"more"
            yield b"and more"
        finally:
            seen.append("ended")

    def over() -> Iterator[bytes]:
        yield LARGE
        gone.wait()
        seen.append("ended")

    for stream in (writing, over):
        gone.clear()
        rig.dispatch = lambda request, s=stream: Response(  # type: ignore[misc]
            OK, [("Content-Length", str(len(LARGE)))] if s is over else [], s(), buffer=1_000_000
        )
        wire = slow_client(rig).send(GET)
        wire.exactly(100)
        wire.reset()
        gone.set()
        rig.until(lambda: not rig.count("in_flight"), "the end")
    assert seen == ["ended", "ended"]


@in_engine()
def test_a_wait_above_the_limit_that_is_interrupted_ends_the_response(rig: Rig) -> None:
    import gevent

    rig.errors_expected = True

    def dispatch(request: Any) -> Response:
        write = request.start(OK, [])
        write(b"first")
        gevent.Timeout(0.1).start()
        return Response(OK, [], iter([LARGE]), buffer=1000)

    rig.dispatch = dispatch
    with slow_client(rig) as wire:
        wire.send(GET)
        rig.until(lambda: rig.count("in_flight"), "the begin")
        rig.until(lambda: not rig.count("in_flight"), "the end")
        assert not wire.rest().endswith(b"0\r\n\r\n")


@in_engine()
def test_a_shutdown_cuts_what_is_held(rig: Rig) -> None:
    from gevent.event import Event

    def stream() -> Iterator[bytes]:
        yield LARGE
        Event().wait()

    wires = []
    for body in (stream, lambda: iter([LARGE])):
        rig.dispatch = lambda request, b=body: Response(OK, [], b(), buffer=1_000_000)  # type: ignore[misc]
        wires.append(slow_client(rig).send(GET))
        wires[-1].exactly(100)
    assert rig.engine.open_requests == 2
    rig.engine.close_all()
    for wire in wires:
        assert len(wire.rest()) < len(LARGE)
