"""The leaders: handlers that block or don't, in any mixture, each get their turn and nobody else's."""

from __future__ import annotations

import contextvars
import socket
import time
from typing import Any

import pytest

from acme_wsgi.errors import BackendError
from acme_wsgi.http.writer import Response
from tests.unit.engine_harness import OK, Rig, dialled, in_engine
from tests.wire import DEADLINE

CLIENTS = 60
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="clean")


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


@in_engine()
def test_many_that_block_amid_one_batch_all_come_back_to_their_own_request(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        number = int(request.path[1:])
        for _ in range(number % 4):
            gevent.sleep(0.001 * (number % 7))
        return Response(OK, [], request.path.encode())

    rig.dispatch = dispatch
    wires = [rig.connect() for _ in range(CLIENTS)]
    for turn in range(5):
        for number, wire in enumerate(wires):
            wire.send(get(f"/{number + turn}"))
        for number, wire in enumerate(wires):
            assert wire.reply().body == b"/%d" % (number + turn)
    assert rig.engine.greenlets <= CLIENTS
    for wire in wires:
        wire.close()


@in_engine()
def test_handlers_that_never_block_share_one_greenlet(rig: Rig) -> None:
    wires = [rig.connect() for _ in range(CLIENTS)]
    for wire in wires:
        wire.send(get("/"))
    for wire in wires:
        assert wire.reply().body == b"hello"
        wire.close()
    assert rig.engine.greenlets == 1


@in_engine()
def test_handlers_that_wait_for_each_other_get_there(rig: Rig) -> None:
    """Each handler but the last waits for the next one's event: the last one of the batch frees all."""
    from gevent.event import Event

    events = [Event() for _ in range(CLIENTS)]

    def dispatch(request: Any) -> Response:
        number = int(request.path[1:])
        if number + 1 < CLIENTS:
            events[number + 1].wait()
        events[number].set()
        return Response(OK, [], request.path.encode())

    rig.dispatch = dispatch
    wires = [rig.connect() for _ in range(CLIENTS)]
    for number, wire in enumerate(wires):
        wire.send(get(f"/{number}"))
    for number, wire in enumerate(wires):
        assert wire.reply().body == b"/%d" % number
        wire.close()


@in_engine()
def test_a_handler_may_call_its_own_server(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        depth = int(request.path[1:])
        if depth:
            with rig.connect() as inner:
                return Response(OK, [], b"%d " % depth + inner.request(f"/{depth - 1}").body)
        return Response(OK, [], b"end")

    rig.dispatch = dispatch
    with rig.connect() as wire:
        assert wire.request("/5").body == b"5 4 3 2 1 end"


@in_engine()
def test_other_greenlets_get_their_turn_while_a_batch_of_busy_handlers_runs(rig: Rig) -> None:
    import gevent

    gaps: list[float] = []

    def ticker() -> None:
        while True:
            before = time.thread_time()  # what other processes take is not the batch's doing
            gevent.sleep(0)
            gaps.append(time.thread_time() - before)

    def dispatch(request: Any) -> Response:
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        gevent.sleep(0.001)  # blocks as well: each has its own greenlet
        return Response(OK, [], b"busy")

    rig.dispatch = dispatch
    wires = [rig.connect() for _ in range(CLIENTS)]
    rig.until(lambda: rig.engine.connections == CLIENTS, "all accepted")
    for wire in wires:
        wire.send(get("/"))
    other = gevent.spawn(ticker)
    for wire in wires:
        assert wire.reply().body == b"busy"
        wire.close()
    other.kill()
    assert max(gaps) < 0.01 * CLIENTS / 3, "the whole batch ran before anybody else"


@in_engine()
def test_each_request_has_a_fresh_context(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        seen = VARIABLE.get()
        VARIABLE.set(request.path)
        gevent.sleep(0.001)
        assert VARIABLE.get() == request.path
        return Response(OK, [], seen.encode(), lambda: VARIABLE.set("closed"))

    rig.dispatch = dispatch
    wires = [rig.connect() for _ in range(20)]
    for _ in range(3):
        for number, wire in enumerate(wires):
            wire.send(get(f"/{number}"))
        assert {wire.reply().body for wire in wires} == {b"clean"}
    for wire in wires:
        wire.close()


@in_engine()
def test_whatever_a_handler_raises_ends_its_request_alone(rig: Rig) -> None:
    import gevent
    from greenlet import GreenletExit

    rig.errors_expected = True
    errors = (RuntimeError(), SystemExit(3), KeyboardInterrupt(), GreenletExit(), gevent.Timeout(1))

    def dispatch(request: Any) -> Response:
        gevent.sleep(0)
        raise errors[int(request.path[1:])]

    rig.dispatch = dispatch
    with rig.connect() as wire:
        for number in range(len(errors)):
            assert wire.request(f"/{number}").status == 500
    assert rig.count("errors") == len(errors)


# -- waits with a deadline --------------------------------------------------------------------------------


def after(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


@in_engine()
def test_a_wait_ends_with_what_it_waits_for_or_with_its_deadline(rig: Rig) -> None:
    import gevent

    rig.engine.need_tick(0.1)
    stream, other = dialled()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="sent nothing"):
        stream.receive(10, after(0.1))
    assert 0.1 <= time.monotonic() - started < 1
    gevent.spawn_later(0.02, other.sendall, b"late")
    assert stream.receive(10, after(DEADLINE)) == b"late"
    with pytest.raises(TimeoutError, match="took nothing"):
        stream.send(b"x" * 10_000_000, after(0.1))
    other.close()
    with pytest.raises(ConnectionError):
        stream.send(b"x", after(1))
    stream.close()
    assert stream.closed


@in_engine()
def test_a_deadline_that_has_passed_counts_unless_there_is_something_to_read(rig: Rig) -> None:
    stream, other = dialled()
    with pytest.raises(TimeoutError):
        stream.receive(10, after(-1))
    other.sendall(b"here")
    assert stream.receive(10, after(-1)) == b"here"
    other.shutdown(socket.SHUT_WR)
    assert stream.receive(10, after(-1)) == b""
    stream.close()


@in_engine()
def test_without_a_deadline_a_wait_lasts(rig: Rig) -> None:
    import gevent

    rig.engine.need_tick(0.1)
    stream, other = dialled()
    gevent.spawn_later(0.3, other.sendall, b"late")
    assert stream.receive(10) == b"late"
    stream.close()


@in_engine()
def test_deadlines_of_many_waits_are_each_their_own(rig: Rig) -> None:
    import gevent

    rig.engine.need_tick(0.1)
    pairs = [dialled() for _ in range(30)]
    ends: dict[int, float] = {}
    begun = time.monotonic()

    def wait(number: int) -> None:
        stream = pairs[number][0]
        try:
            stream.receive(10, after(0.01 * (30 - number)))
        except TimeoutError:
            ends[number] = time.monotonic() - begun
            gevent.sleep(0.005)  # the clock goes on with the others meanwhile
        stream.close()

    waiting = [gevent.spawn(wait, number) for number in range(30)]
    pairs[7][1].sendall(b"in time")
    gevent.joinall(waiting, timeout=DEADLINE)
    assert set(ends) == set(range(30)) - {7}
    assert all(0.01 * (30 - number) <= ends[number] < 1 for number in ends)


@in_engine()
def test_who_waits_for_a_stream_that_is_closed_hears_of_it(rig: Rig) -> None:
    import gevent

    stream, _ = dialled()
    gevent.spawn_later(0.02, stream.close)
    with pytest.raises(ConnectionError):
        stream.receive(10, after(DEADLINE))


@in_engine("server.keep_alive_timeout=60s", "server.min_rate_grace=60s", "server.timeout=60s")
def test_the_tick_gets_finer_and_never_coarser(rig: Rig) -> None:
    before = rig.engine.tick_seconds
    rig.engine.need_tick(1000)
    assert rig.engine.tick_seconds == before
    rig.engine.need_tick(0.4)
    assert rig.engine.tick_seconds == 0.05
    rig.engine.need_tick(0.0001)
    rig.engine.need_tick(10)
    assert rig.engine.tick_seconds == 0.02


@in_engine()
def test_nobody_waits_on_what_was_closed(rig: Rig) -> None:
    """When a client leaves, its backend's connection is closed, wherever the greenlet is just then."""
    import gevent

    from acme_wsgi.upstream.link import Link

    link = Link()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link.connect(socket.AF_INET, listener.getsockname(), time.monotonic_ns() + 10**9)
        other = listener.accept()[0]
    link.begin()
    other.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert link.read_head(False, time.monotonic_ns() + 10**9)[0] == "200 OK"
    link.close()
    with gevent.Timeout(5), pytest.raises(BackendError):
        link.read_piece(time.monotonic_ns() + 10**9)
    other.close()
