"""The bytes of a connection: who may wait for them, how slow a peer may be, how long others wait for one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from acme_wsgi.http.writer import Response
from tests.unit.engine_harness import OK, Rig, in_engine

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length


def read_all(request: Any) -> Response:
    return Response(OK, [], request.environ["wsgi.input"].read())


# -- greenlets of the application's own -------------------------------------------------------------------


@in_engine()
def test_a_greenlet_that_reads_on_after_the_response_gets_nothing_of_the_next_request(rig: Rig) -> None:
    import gevent

    outcomes: list[object] = []

    def reader(source: Any) -> None:
        try:
            while piece := source.read(10):
                outcomes.append(piece)
        except (ValueError, OSError) as error:
            outcomes.append(type(error).__name__)

    def dispatch(request: Any) -> Response:
        gevent.spawn(reader, request.environ["wsgi.input"])
        gevent.sleep(0.01)
        return Response(OK, [], b"answered")

    rig.dispatch = dispatch
    with rig.connect() as wire:
        wire.send(post(100000), b"x" * 70000)
        assert wire.reply().body == b"answered"
        rig.until(lambda: outcomes and not isinstance(outcomes[-1], bytes), "the reader's end")
        assert outcomes[-1] in ("ValueError", "ClientDisconnected")
        assert wire.closed()


@in_engine()
def test_two_greenlets_do_not_wait_for_one_connection(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        source = request.environ["wsgi.input"]
        first = gevent.spawn(source.read, 90000)
        gevent.sleep(0.01)
        with pytest.raises(RuntimeError, match="another greenlet"):
            source.read(90000)
        return Response(OK, [], b"%d" % len(first.get()))

    rig.dispatch = dispatch
    with rig.connect() as wire:
        wire.send(post(100000), b"x" * 70000)
        rig.until(lambda: rig.count("in_flight") == 1, "the handler's begin")
        gevent.sleep(0.05)
        wire.send(b"x" * 30000)
        assert wire.reply().body == b"90000"


# -- fairness ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@in_engine()
def test_an_endless_stream_to_a_fast_reader_lets_others_in(rig: Rig) -> None:
    """The reader is a process of its own: here it can always take what the handler sends."""

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 10

    rig.dispatch = lambda request: Response(OK, [], endless() if request.path == "/endless" else b"hello")
    address = rig.listener.getsockname()
    child = os.fork()
    if child == 0:
        try:
            plain = socket.create_connection(address)
            plain.sendall(GET.replace(b"/ ", b"/endless "))
            while plain.recv(1 << 20):
                pass
        finally:
            os._exit(0)
    rig.until(lambda: rig.count("in_flight") == 1, "the stream's begin")
    with rig.connect() as wire:
        for _ in range(5):
            assert wire.send(GET).reply().body == b"hello"
    os.kill(child, 9)
    os.waitpid(child, 0)


@in_engine()
def test_a_flood_of_pipelined_requests_does_not_keep_others_out(rig: Rig) -> None:
    flood = rig.connect()
    flood.send(GET * 2000)
    with rig.connect() as wire:
        wire.send(GET)
        assert wire.reply().body == b"hello"
        assert rig.count("requests_total") < 2000
    for _ in range(2000):
        assert flood.reply().status == 200
    flood.close()


# -- rates ------------------------------------------------------------------------------------------------


@in_engine("server.body_min_rate=1000", "server.min_rate_grace=200ms")
def test_a_trickled_body_is_an_error_in_the_read_that_waits_for_it(rig: Rig) -> None:
    import gevent

    rig.dispatch = read_all
    with rig.connect() as wire:
        wire.send(post(1_000_000), b"x" * 80000)
        for _ in range(200):
            wire.send(b"x")
            gevent.sleep(0.01)
            if rig.count("timeouts"):
                break
        assert wire.reply().status == 408


@in_engine("server.body_min_rate=1000", "server.min_rate_grace=200ms")
def test_a_handler_that_takes_its_time_between_reads_is_not_the_clients_fault(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        total = 0
        for _ in range(20):
            total += len(request.environ["wsgi.input"].read(5000))
            gevent.sleep(0.05)
        return Response(OK, [], b"%d" % total)

    rig.dispatch = dispatch
    with rig.connect() as wire:
        wire.send(post(100_000), b"x" * 70000)
        gevent.sleep(0.8)
        for _ in range(30):
            wire.send(b"x" * 1000)
            gevent.sleep(0.01)
        assert wire.reply().body == b"100000"
    assert rig.count("timeouts") == 0


@in_engine("server.timeout=200ms")
def test_a_handler_past_its_deadline_is_interrupted_and_answered_for(rig: Rig) -> None:
    import gevent

    rig.errors_expected = True
    ended: list[str] = []

    def dispatch(request: Any) -> Response:
        try:
            gevent.sleep(30)
        finally:
            ended.append("finally ran")
        raise AssertionError("unreachable")

    rig.dispatch = dispatch
    with rig.connect() as wire:
        assert wire.send(GET).reply().status == 503
    assert ended == ["finally ran"]


# -- sends that were interrupted --------------------------------------------------------------------------


@in_engine()
def test_after_a_send_that_was_interrupted_nothing_follows(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        write = request.start(OK, [])
        with gevent.Timeout(0.05, False):
            write(b"x" * 30_000_000)
        write(b"SECOND")
        return Response(OK, [], b"END")

    rig.dispatch = dispatch
    with rig.connect(receive_buffer=4096) as wire:
        wire.send(GET)
        gevent.sleep(0.2)
        seen = wire.rest()
        assert b"SECOND" not in seen and b"END" not in seen and not seen.endswith(b"0\r\n\r\n")
