"""Listeners, limits over all connections, the clock, and the end."""

from __future__ import annotations

import os
import socket
from typing import Any

from acme_wsgi.http.writer import Response
from tests.unit.descriptors import descriptors, left_open
from tests.unit.engine_harness import OK, Rig, in_engine

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def tell_address(request: Any) -> Response:
    environ = request.environ
    told = [environ[name] for name in ("REMOTE_ADDR", "SERVER_NAME", "SERVER_PORT")]
    return Response(OK, [], " ".join([*told, environ.get("REMOTE_PORT", "none")]).encode())


@in_engine()
def test_an_ipv4_peer_is_named(rig: Rig) -> None:
    rig.dispatch = tell_address
    with rig.connect() as wire:
        own = wire.sock.getsockname()[1]
        assert wire.request("/").text == f"127.0.0.1 127.0.0.1 {rig.listener.getsockname()[1]} {own}"


@in_engine(family=socket.AF_INET6)
def test_an_ipv6_peer_is_named(rig: Rig) -> None:
    rig.dispatch = tell_address
    with rig.connect() as wire:
        own = wire.sock.getsockname()[1]
        assert wire.request("/").text == f"::1 ::1 {rig.listener.getsockname()[1]} {own}"


@in_engine(family=socket.AF_UNIX, directory=f"\0acme-test-engine-{os.getpid()}")
def test_a_peer_on_a_unix_socket_has_no_address(rig: Rig) -> None:
    rig.dispatch = tell_address
    with rig.connect() as wire:
        assert wire.request("/").text == " localhost 80 none"
        assert wire.send(GET * 3).reply().status == 200
        assert wire.reply().status == wire.reply().status == 200


@in_engine("server.max_connections=3")
def test_an_idle_connection_makes_room_but_not_one_whose_request_waits(rig: Rig) -> None:
    first, second, third = (rig.connect() for _ in range(3))
    for wire in (first, second, third):
        assert wire.request("/").status == 200
    # At once: a request of the idlest, and a newcomer. Whatever is seen first, no request is lost.
    first.send(GET * 2)
    fourth = rig.connect().send(GET)
    assert first.reply().status == first.reply().status == 200
    assert fourth.reply().status == 200
    assert rig.engine.connections == 3
    for wire in (first, second, third, fourth):
        wire.close()


@in_engine("server.max_connections=1")
def test_who_finds_no_room_waits_and_is_served_later(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        gevent.sleep(0.1)
        return Response(OK, [], b"done")

    rig.dispatch = dispatch
    wires = [rig.connect().send(GET) for _ in range(4)]
    for wire in wires:
        assert wire.reply().body == b"done"
        wire.close()


@in_engine("server.keep_alive_timeout=100ms")
def test_an_idle_connection_is_closed_after_its_time(rig: Rig) -> None:
    with rig.connect() as wire:
        assert wire.request("/").status == 200
        assert wire.closed()


@in_engine("server.timeout=150ms")
def test_a_head_that_does_not_come_is_answered_408_one_that_never_began_is_not(rig: Rig) -> None:
    with rig.connect() as silent, rig.connect() as begun:
        begun.send(GET[:10])
        assert begun.reply().status == 408
        assert begun.closed() and silent.closed()


@in_engine()
def test_a_drain_answers_what_is_open_and_closes(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        gevent.sleep(0.1)
        return Response(OK, [], b"done")

    rig.dispatch = dispatch
    idle, busy, begun = (rig.connect() for _ in range(3))
    assert idle.request("/").status == 200
    busy.send(GET)
    begun.send(GET[:-2])
    rig.until(lambda: rig.engine.open_requests == 2, "two open requests")
    rig.engine.drain()
    begun.send(GET[-2:])
    for wire in (busy, begun):
        reply = wire.reply()
        assert (reply.body, reply.header("Connection")) == (b"done", "close")
        assert wire.closed()
    assert idle.closed()


@in_engine()
def test_no_descriptor_is_left_behind(rig: Rig) -> None:
    with rig.connect() as wire:
        wire.request("/")
    rig.until(lambda: rig.engine.connections == 0, "gone")
    before = descriptors()
    for number in range(50):
        with rig.connect() as wire:
            wire.send((GET, b"garbage\r\n\r\n", GET[:9])[number % 3])
            if number % 3 < 2:
                wire.reply()
    rig.until(lambda: rig.engine.connections == 0, "gone")
    assert left_open(before) == {}


@in_engine()
def test_the_date_is_of_the_http_calendar_whatever_the_locale(rig: Rig) -> None:
    import re

    with rig.connect() as wire:
        date = wire.request("/").header("Date")
    days, months = "Mon|Tue|Wed|Thu|Fri|Sat|Sun", "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
    assert date and re.fullmatch(rf"({days}), \d\d ({months}) \d{{4}} \d\d:\d\d:\d\d GMT", date)


@in_engine()
def test_every_request_counts_once(rig: Rig) -> None:
    for _ in range(3):
        with rig.connect() as wire:
            wire.send(GET * 4)
            for _ in range(4):
                wire.reply()
            wire.send(b"bad\r\n\r\n")
            assert wire.reply().status == 400
    rig.until(lambda: rig.engine.connections == 0, "gone")
    counted = {
        name: rig.count(name) for name in ("requests_total", "status_2xx", "status_4xx", "connections_total")
    }
    assert counted == {"requests_total": 15, "status_2xx": 12, "status_4xx": 3, "connections_total": 3}


@in_engine()
def test_requests_whose_handlers_run_or_wait_can_be_listed(rig: Rig) -> None:
    from gevent.event import Event

    go = Event()
    seen: list[Any] = []

    def dispatch(request: Any) -> Response:
        if request.path == "/wait":
            go.wait()
        seen.append([(each is request, target) for _, each, target, _ in rig.engine.running()])
        return Response(OK, [], b"")

    rig.dispatch = dispatch
    with rig.connect() as first, rig.connect() as second, rig.connect() as third:
        first.send(b"GET /wait?1 HTTP/1.1\r\nHost: a\r\n\r\n")
        rig.until(rig.engine.running, "the first waits")
        [(greenlet, _, target, seconds)] = rig.engine.running()
        assert greenlet.gr_frame is not None and target == "/wait?1" and 0 <= seconds < 30
        assert third.send(b"BAD\r\n\r\n").reply().status == 400
        assert second.request("/now").status == 200
        assert seen == [[(False, "/wait?1"), (True, "/now")]]
        go.set()
        assert first.reply().status == 200
    assert rig.engine.running() == []
