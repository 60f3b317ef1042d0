"""Overload: who runs, who waits, in what order and how long, and what it costs to be turned away."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from acme_wsgi.http.writer import Response
from tests.unit.descriptors import descriptors, left_open
from tests.unit.engine_harness import OK, Rig, in_engine
from tests.wire import Reply, Wire

pytestmark = pytest.mark.slow  # busy loops and time limits: seconds in all

BUSY = 0.02


def get(target: str, *lines: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} {version}", "Host: a", *lines, "", ""]).encode()


def post(target: str, length: int, *lines: str) -> bytes:
    return get(target, f"Content-Length: {length}", *lines, method="POST")


class Gate:
    """Handlers stand before it until it is opened for so many; `begun` and `most` tell who ran."""

    def __init__(self, rig: Rig) -> None:
        from gevent.lock import Semaphore

        self.semaphore = Semaphore(0)
        self.begun: list[str] = []
        self.inside = self.most = 0
        rig.dispatch = self.dispatch

    def dispatch(self, request: Any) -> Response:
        self.begun.append(request.path)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if request.path != "/free":
                self.semaphore.acquire()
        finally:
            self.inside -= 1
        body = request.environ["wsgi.input"].read() or request.path.encode()
        return Response(OK, [], body)

    def open(self, count: int = 1_000_000) -> None:
        for _ in range(min(count, 2000)):
            self.semaphore.release()


def keep_busy(rig: Rig, seconds: float = BUSY) -> list[str]:
    """Every handler computes for so long, without ever letting others run. Returns who begins, in order."""
    begun: list[str] = []

    def dispatch(request: Any) -> Response:
        begun.append(request.path)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        return Response(OK, [], request.path.encode())

    rig.dispatch = dispatch
    return begun


def connect(rig: Rig, count: int) -> list[Wire]:
    """Clients that are taken in, and of whom nothing is left to be noticed."""
    wires = [rig.connect() for _ in range(count)]
    rig.until(lambda: rig.engine.connections == count, "all are taken in")
    wires[-1].request("/")
    return wires


def queue(rig: Rig, count: int, *, running: int = 1, prefix: str = "/q") -> list[Wire]:
    """Clients whose requests wait, one after the other, behind `running` that run."""
    wires = []
    for number in range(count):
        waiting = rig.engine.open_requests + 1
        wires.append(rig.connect().send(get(f"{prefix}{number}")))
        rig.until(lambda: rig.engine.open_requests == waiting, "the request is here")  # noqa: B023
    return wires


def told(rig: Rig, status: int) -> list[tuple[Any, ...]]:
    """Entries of the access log with this status."""
    rig.log.flush()
    return [entry for entry in rig.log.last if entry[6] == status]


def is_shed(reply: Reply, *, connection: str | None = None) -> bool:
    assert reply.status == 503 and reply.text == "overloaded\n", reply
    assert reply.header("Retry-After") == "1"
    assert reply.header("Content-Type") == "text/plain"
    assert reply.header("Server") == "acme"
    assert "GMT" in (reply.header("Date") or "")
    assert len(reply.header("X-Request-ID") or "") == 32
    assert reply.header("Connection") == connection
    return True


# -- as many as may run -----------------------------------------------------------------------------------


@in_engine("server.max_concurrency=3")
def test_no_more_run_than_may_and_all_are_served_in_order(rig: Rig) -> None:
    gate = Gate(rig)
    wires = queue(rig, 12)
    assert gate.begun == ["/q0", "/q1", "/q2"]
    assert rig.count("in_flight") == 3
    for served in range(4, 13):
        gate.open(1)
        rig.until(lambda: len(gate.begun) == served, "the next one's begin")  # noqa: B023
    gate.open()
    for number, wire in enumerate(wires):
        assert wire.reply().text == f"/q{number}"
        wire.close()
    assert gate.begun == [f"/q{number}" for number in range(12)]
    assert gate.most == 3
    assert rig.count("shed") == rig.count("gone") == 0


@in_engine("server.max_concurrency=1")
def test_nobody_overtakes_who_waits(rig: Rig) -> None:
    gate = Gate(rig)
    first, second = queue(rig, 2)
    first.send(get("/q0-again"))
    gate.open(1)
    assert first.reply().text == "/q0"
    rig.until(lambda: len(gate.begun) == 2, "the second's begin")
    # Room is made and a newcomer is here at the same moment: it stands behind who waited.
    third = rig.connect().send(get("/new"))
    gate.open()
    for wire, text in ((second, "/q1"), (first, "/q0-again"), (third, "/new")):
        assert wire.reply().text == text
        wire.close()
    assert gate.begun[:2] == ["/q0", "/q1"] and sorted(gate.begun[2:]) == ["/new", "/q0-again"]


@in_engine("server.max_concurrency=2")
def test_waiting_costs_no_greenlet_and_no_descriptor(rig: Rig) -> None:
    gate = Gate(rig)
    wires = queue(rig, 2)
    greenlets, before = rig.engine.greenlets, descriptors()
    wires += queue(rig, 200)
    assert rig.engine.greenlets <= greenlets + 1
    assert len(left_open(before)) <= 400  # both ends
    gate.open()
    for wire in wires:
        assert wire.reply().status == 200
        wire.close()


@in_engine("server.max_concurrency=2")
def test_a_response_that_is_being_taken_takes_no_place(rig: Rig) -> None:
    large = b"x" * 20_000_000
    rig.dispatch = lambda request: Response(OK, [], large if request.path == "/large" else b"small")
    slow = [rig.connect().send(get("/large")) for _ in range(4)]
    rig.until(lambda: rig.count("in_flight") == 4, "all handlers are done, nobody reads")
    with rig.connect() as wire:
        assert wire.request("/").text == "small"
    for wire in slow:
        assert wire.reply().body == large
        wire.close()


@in_engine("server.max_concurrency=1", "server.queue_timeout=1m")
def test_a_handler_that_is_done_makes_room_before_its_response_is_taken(rig: Rig) -> None:
    import gevent

    begun: list[str] = []
    large = b"x" * 20_000_000

    def dispatch(request: Any) -> Response:
        begun.append(request.path)
        gevent.sleep(0.02)
        return Response(OK, [], large)

    rig.dispatch = dispatch
    wires = queue(rig, 3)
    rig.until(lambda: len(begun) == 3, "all have begun", seconds=0.35)  # the clock looks after 0.5 s
    for wire in wires:
        assert wire.reply().body == large
        wire.close()


@in_engine("server.max_concurrency=1")
def test_more_bytes_of_a_client_that_waits_do_no_harm(rig: Rig) -> None:
    import gevent

    gate = Gate(rig)
    first, second = queue(rig, 2)
    for number in range(5):
        second.send(get(f"/more{number}"))
        gevent.sleep(0.005)
    gate.open()
    assert [second.reply().text for _ in range(6)] == ["/q1", *(f"/more{number}" for number in range(5))]
    assert first.reply().text == "/q0"
    first.close()
    second.close()


@in_engine("server.max_concurrency=1")
def test_bodies_wait_with_their_requests(rig: Rig) -> None:
    gate = Gate(rig)
    (first,) = queue(rig, 1)
    small, large = b"s" * 3000, b"l" * 300_000
    chunked = get("/c", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n0\r\n\r\n"
    requests = [(post("/s", 3000) + small, small), (chunked, b"hello"), (post("/l", 300_000) + large, large)]
    wires = []
    for data, body in requests:
        waiting = rig.engine.open_requests + 1
        wires.append((rig.connect().send(data[:100_000]), data[100_000:], body))
        rig.until(lambda: rig.engine.open_requests == waiting, "the request is here")  # noqa: B023
    with rig.connect() as expecting:
        expecting.send(post("/e", 4, "Expect: 100-continue"))
        assert expecting.silent(0.05)
        gate.open()
        for wire, rest, body in wires:
            assert wire.send(rest).reply().body == body
            wire.close()
        assert expecting.reply().status == 100
        assert expecting.send(b"body").reply().text == "body"
    assert first.reply().status == 200
    first.close()


# -- as many as may wait ----------------------------------------------------------------------------------


@in_engine("server.max_concurrency=1", "server.queue_size=2")
def test_a_full_queue_turns_away_at_once_and_the_connection_stays(rig: Rig) -> None:
    gate = Gate(rig)
    waiting = queue(rig, 3)
    with rig.connect() as wire:
        for number in range(5):
            lines = ("Referer: /from", "User-Agent: impatient")
            assert is_shed(wire.send(get(f"/late{number}", *lines)).reply())
        reply = wire.send(get("/head", method="HEAD")).reply(head=True)
        assert reply.status == 503 and reply.header("Content-Length") == "11"
        (entry,) = [entry for entry in told(rig, 503) if entry[4] == "/late4"]
        assert entry[2:10] == ("127.0.0.1", "GET", "/late4", "HTTP/1.1", 503, 11, "/from", "impatient")
        assert entry[10] == "a" and entry[12] is None
        gate.open()
        assert [one.reply().status for one in waiting] == [200] * 3
        assert wire.send(get("/now")).reply().text == "/now"
    assert rig.count("shed") == 6 and rig.slot.statuses()[503] == 6
    assert rig.count("requests_total") == 10
    rig.until(lambda: any("overloaded: " in line for line in rig.records.lines), "a word in the error log")
    assert sum("overloaded: " in line for line in rig.records.lines) == 1
    for one in waiting:
        one.close()


@in_engine("server.max_concurrency=1", "server.queue_size=0")
def test_who_pipelines_hears_of_each_request(rig: Rig) -> None:
    gate = Gate(rig)
    (first,) = queue(rig, 1)
    with rig.connect() as wire:
        wire.send(b"".join(get(f"/{number}") for number in range(20)))
        for _ in range(20):
            assert is_shed(wire.reply())
        gate.open()
        assert first.reply().status == 200
        assert wire.send(get("/now")).reply().text == "/now"
    assert rig.count("shed") == 20
    first.close()


@in_engine("server.max_concurrency=1", "server.queue_size=0")
def test_bodies_of_requests_that_are_turned_away(rig: Rig) -> None:
    gate = Gate(rig)
    (first,) = queue(rig, 1)
    chunked = get("/c", "Transfer-Encoding: chunked", method="POST")
    with rig.connect() as wire:
        # Whole ones are dropped, and what follows is the next request.
        for whole in (post("/s", 3000) + b"s" * 3000, chunked + b"5\r\nhello\r\n0\r\n\r\n", get("/")):
            assert is_shed(wire.send(whole, get("/next")).reply())
            assert is_shed(wire.reply())
        for cut in (10, 1000):  # the body comes after the head
            wire.send(post("/s", 3000), b"s" * cut)
            assert wire.silent(0.02)
            assert is_shed(wire.send(b"s" * (3000 - cut)).reply())
    # Of the others, the rest is dropped with the connection: but not before the answer was read.
    half = chunked + b"20000\r\n" + b"c" * 100_000
    for data, rest in ((post("/l", 300_000) + b"l" * 100_000, b"l" * 100_000), (half, b"c" * 1000)):
        with rig.connect() as wire:
            wire.send(data)
            reply = wire.reply()
            assert is_shed(reply, connection="close")
            assert wire.send(rest).end().closed()
    with rig.connect() as wire:
        assert is_shed(wire.send(post("/e", 4, "Expect: 100-continue")).reply(), connection="close")
        assert wire.end().closed()
    gate.open()
    assert first.reply().status == 200
    first.close()
    assert rig.count("shed") == 11


@in_engine("server.max_concurrency=1", "server.queue_size=0")
def test_older_clients_and_those_who_leave(rig: Rig) -> None:
    gate = Gate(rig)
    (first,) = queue(rig, 1)
    with rig.connect() as wire:
        assert is_shed(wire.send(get("/", version="HTTP/1.0")).reply(), connection="close")
        assert wire.closed()
    with rig.connect() as wire:
        for _ in range(3):
            reply = wire.send(get("/", "Connection: keep-alive", version="HTTP/1.0")).reply()
            assert is_shed(reply, connection="keep-alive")
        assert is_shed(wire.send(get("/", "Connection: close")).reply(), connection="close")
        assert wire.closed()
    with rig.connect() as wire:
        wire.send(get("/")).end()
        assert is_shed(wire.reply())
        assert wire.closed()
    for number in range(20):
        wire = rig.connect().send(get("/"))
        wire.reset() if number % 2 else wire.close()
    rig.until(lambda: rig.engine.connections == 1, "those who left are forgotten")
    gate.open()
    assert first.reply().status == 200
    first.close()


@in_engine("server.max_concurrency=1", "server.queue_size=0", "server.trusted_proxies=[127.0.0.1]")
def test_behind_a_proxy_the_client_is_logged(rig: Rig) -> None:
    gate = Gate(rig)
    (first,) = queue(rig, 1)
    with rig.connect() as wire:
        assert is_shed(wire.send(get("/", "X-Forwarded-For: 192.0.2.7")).reply())
    assert [entry[2] for entry in told(rig, 503)] == ["192.0.2.7"]
    gate.open()
    first.reply()
    first.close()


# -- as long as they may wait -----------------------------------------------------------------------------


@in_engine("server.max_concurrency=1", "server.queue_timeout=150ms")
def test_who_has_waited_too_long_is_turned_away(rig: Rig) -> None:
    gate = Gate(rig)
    began = time.monotonic()
    wires = queue(rig, 6)
    for wire in wires[1:]:
        assert is_shed(wire.reply())
        assert 0.14 < time.monotonic() - began < 5
    assert rig.count("queued") == 0 and rig.engine.open_requests == 1
    gate.open()
    assert wires[0].reply().status == 200
    # The connection of one who was turned away is as good as new.
    assert wires[3].send(get("/again")).reply().text == "/again"
    assert gate.begun == ["/q0", "/again"]
    assert all(entry[1] > 140_000_000 for entry in told(rig, 503)) and rig.count("shed") == 5
    for wire in wires:
        wire.close()


@in_engine("server.queue_timeout=150ms")
def test_in_a_busy_worker_too(rig: Rig) -> None:
    begun = keep_busy(rig)
    wires = connect(rig, 40)
    for _ in range(2):  # and again on the same connections
        begun.clear()
        for number, wire in enumerate(wires):
            wire.send(get(f"/{number}"))
        replies = [wire.reply() for wire in wires]
        counted = Counter(reply.status for reply in replies)
        assert set(counted) == {200, 503}
        # Nobody begins who has waited 150 ms, so no more of them than that time has room for.
        assert 1 <= counted[200] <= 150 / 20 + 2
        assert begun == [f"/{number}" for number in range(counted[200])]
        assert all(is_shed(reply) for reply in replies if reply.status == 503)
    statuses = rig.slot.statuses()
    assert statuses[503] == rig.count("shed") and statuses[200] + statuses[503] == 81
    for wire in wires:
        wire.close()


@in_engine()
def test_a_busy_worker_serves_first_who_came_first(rig: Rig) -> None:
    begun = keep_busy(rig, 0.008)
    wires = connect(rig, 60)
    begun.clear()

    def second_wave() -> None:
        for number, wire in enumerate(wires[30:]):
            wire.send(get(f"/{30 + number}"))

    for number, wire in enumerate(wires[:30]):
        wire.send(get(f"/{number}"))
    rig.until(lambda: begun, "the first begins")
    assert len(begun) < 25
    second_wave()
    # Meanwhile the first of them come again.
    for wire in wires[:5]:
        wire.send(get("/again"))
    for number, wire in enumerate(wires):
        assert wire.reply().text == f"/{number}"
    for wire in wires[:5]:
        assert wire.reply().text == "/again"
    assert [one for one in begun if one != "/again"] == [f"/{number}" for number in range(60)]
    for wire in wires:
        wire.close()


@in_engine()
def test_timers_of_handlers_keep_running_in_a_busy_worker(rig: Rig) -> None:
    import gevent

    took: list[float] = []

    def dispatch(request: Any) -> Response:
        began = time.monotonic()
        if request.path == "/sleep":
            gevent.sleep(0.05)
            took.append(time.monotonic() - began)
        else:
            while time.monotonic() - began < BUSY:
                pass
        return Response(OK, [], b"")

    rig.dispatch = dispatch
    wires = connect(rig, 40)
    wires[0].send(get("/sleep"))
    for wire in wires[1:]:
        wire.send(get("/busy"))
    for wire in wires:
        assert wire.reply().status == 200
        wire.close()
    # All the computing takes 0.8 s. A timer is late by a few handlers, not by all of them.
    assert took[0] < 0.4, took


# -- those who left ---------------------------------------------------------------------------------------


@in_engine("server.max_concurrency=1", "server.queue_size=2", "server.queue_timeout=1m")
def test_who_leaves_the_queue_is_not_served_and_makes_room(rig: Rig) -> None:
    gate = Gate(rig)
    first, second, third = queue(rig, 3)
    second.close()
    third.reset()
    rig.until(lambda: rig.count("gone") == 2, "both are known to have left")
    others = queue(rig, 2, prefix="/other")
    gate.open()
    for wire in (first, *others):
        assert wire.reply().status == 200
        wire.close()
    assert gate.begun == ["/q0", "/other0", "/other1"]
    assert [entry[4] for entry in told(rig, 499)] == ["/q1", "/q2"]
    assert rig.count("shed") == 0 and rig.slot.statuses()[499] == 2


@in_engine("server.max_concurrency=1")
def test_a_turn_that_was_granted_to_one_who_left_is_the_next_ones(rig: Rig) -> None:
    gate = Gate(rig)
    wires = queue(rig, 5)
    for _ in range(4):
        # Nobody is looked at between these two.
        gate.open(1)
        wires[1].close()
        del wires[1]
    gate.open()
    for wire in wires:
        assert wire.reply().status == 200
        wire.close()
    rig.until(lambda: rig.count("requests_total") == 5, "all are over")
    assert rig.count("gone") + len(gate.begun) == 5


@in_engine()
def test_who_left_a_busy_worker_is_not_served(rig: Rig) -> None:
    begun = keep_busy(rig)
    stays = rig.connect()
    wires = [rig.connect() for _ in range(30)]
    rig.until(lambda: rig.engine.connections == 31, "all connected")
    for number, wire in enumerate(wires):
        wire.send(get(f"/{number}"))
    stays.send(get("/stays"))
    for number, wire in enumerate(wires):
        wire.reset() if number % 3 == 0 else wire.close()
    assert stays.reply().text == "/stays"
    rig.until(lambda: rig.engine.connections == 1, "all have left")
    # Those who had not waited noticeably are answered: they might have closed one direction only.
    assert len(begun) <= 1 + 100 / 20 + 2
    assert rig.count("gone") >= 15
    stays.close()


@in_engine("server.max_concurrency=1")
def test_a_client_that_closed_its_end_and_did_not_wait_is_answered(rig: Rig) -> None:
    for _ in range(10):
        with rig.connect() as wire:
            assert wire.send(get("/")).end().reply().status == 200
            assert wire.closed()
    assert rig.count("gone") == 0


# -- the end ----------------------------------------------------------------------------------------------


@in_engine("server.max_concurrency=1")
def test_a_drain_serves_who_waits(rig: Rig) -> None:
    gate = Gate(rig)
    wires = queue(rig, 4)
    wires[1].send(get("/pipelined"))
    rig.engine.drain()
    assert rig.engine.open_requests == 4
    gate.open()
    for number, wire in enumerate(wires):
        reply = wire.reply()
        assert reply.text == f"/q{number}" and reply.header("Connection") == "close"
        assert wire.closed()
        wire.close()
    assert rig.engine.open_requests == 0


@in_engine("server.queue_timeout=10s")
def test_a_drain_of_a_busy_worker_counts_who_waits_for_a_turn(rig: Rig) -> None:
    import gevent

    keep_busy(rig)
    wires = [rig.connect() for _ in range(20)]
    for number, wire in enumerate(wires):
        wire.send(get(f"/{number}"))
    rig.until(lambda: rig.count("requests_total") >= 2, "the first are served")
    rig.engine.drain()
    seen = []
    while rig.engine.open_requests:
        seen.append(rig.engine.open_requests)
        gevent.sleep(0.001)
    assert max(seen) > 10
    assert rig.count("requests_total") == 20
    for number, wire in enumerate(wires):
        assert wire.reply().text == f"/{number}"
        wire.close()


@in_engine("server.max_concurrency=1")
def test_a_quick_end_tells_who_waits(rig: Rig) -> None:
    gate = Gate(rig)
    wires = queue(rig, 4)
    rig.engine.close_all()
    for wire in wires[1:]:
        assert is_shed(wire.reply(), connection="close")
        assert wire.closed()
    assert wires[0].closed()
    assert rig.count("shed") == 3 and rig.engine.connections == 0
    gate.open()
    rig.until(lambda: gate.inside == 0, "the handler's end")
    for wire in wires:
        wire.close()


# -- what it says of itself -------------------------------------------------------------------------------


@in_engine("server.max_concurrency=1")
def test_the_scoreboard_tells_who_waits_and_since_when(rig: Rig) -> None:
    gate = Gate(rig)
    before = time.monotonic_ns()
    wires = queue(rig, 1)
    assert rig.count("queued") == rig.count("oldest_queued_ns") == 0
    wires += queue(rig, 3)
    rig.until(lambda: rig.count("queued") == 3, "three wait")
    since = rig.count("oldest_queued_ns")
    assert before < since < time.monotonic_ns()
    gate.open(1)
    rig.until(lambda: rig.count("queued") == 2, "two wait")
    assert rig.count("oldest_queued_ns") > since
    gate.open()
    for wire in wires:
        assert wire.reply().status == 200
        wire.close()
    rig.until(lambda: rig.count("queued") == rig.count("oldest_queued_ns") == 0, "nobody waits")


@in_engine()
def test_the_scoreboard_of_a_busy_worker_tells_who_waits(rig: Rig) -> None:
    seen: list[tuple[int, int]] = []
    keep_busy(rig)
    wires = [rig.connect() for _ in range(20)]
    rig.until(lambda: rig.engine.connections == 20, "all connected")
    for wire in wires:
        wire.send(get("/"))

    def look() -> bool:
        seen.append((rig.count("queued"), time.monotonic_ns() - rig.count("oldest_queued_ns")))
        return rig.count("requests_total") == 20

    rig.until(look, "all are served")
    busiest = max(seen)
    assert busiest[0] >= 10 and max(age for queued, age in seen if queued) > 2 * BUSY * 1e9
    rig.until(lambda: rig.count("queued") == 0, "nobody waits")
    for wire in wires:
        assert wire.reply().status == 200
        wire.close()


@in_engine("server.max_concurrency=2", "server.queue_size=50", "server.queue_timeout=100ms")
def test_every_request_is_accounted_for_in_a_storm(rig: Rig) -> None:
    """Clients of all kinds, for a while; `Rig.finish` compares the counts and looks for what is left."""
    import random

    import gevent

    chance = random.Random(7)
    answered: Counter[int] = Counter()

    def dispatch(request: Any) -> Response:
        if chance.random() < 0.3:
            gevent.sleep(0.01)
        else:
            until = time.monotonic() + 0.002
            while time.monotonic() < until:
                pass
        body = request.environ["wsgi.input"].read()
        return Response(OK, [], body or request.path.encode())

    def client(number: int) -> None:
        for turn in range(15):
            with rig.connect() as wire:
                for _ in range(chance.randrange(1, 4)):
                    depth = chance.choice((1, 1, 1, 5))
                    body = b"b" * chance.choice((0, 0, 10, 70_000))
                    wire.send((post(f"/{number}", len(body)) + body) * depth)
                    if chance.random() < 0.1:
                        wire.reset() if turn % 2 else wire.close()
                        break
                    replies = []
                    for _ in range(depth):
                        replies.append(wire.reply())
                        answered[replies[-1].status] += 1
                        if replies[-1].header("Connection") == "close":
                            break
                    assert all(reply.status in (200, 503) for reply in replies)
                    if replies[-1].header("Connection") == "close":
                        break

    rig.dispatch = dispatch
    clients = [gevent.spawn(client, number) for number in range(40)]
    for one in clients:
        one.get(timeout=50)
    rig.until(lambda: not rig.engine.connections, "no connection")
    statuses = rig.slot.statuses()
    assert answered[200] > 50 and answered[503] > 10
    assert statuses[200] >= answered[200] and statuses[503] >= answered[503]
    assert rig.count("shed") == statuses[503] and rig.count("queued") == 0
    assert rig.engine.open_requests == 0


@in_engine()
def test_a_request_that_comes_while_a_draining_worker_is_busy_is_answered(rig: Rig) -> None:
    silent, idle = connect(rig, 2)
    idle.request("/")
    rig.engine.drain()
    until = time.monotonic() + 0.8  # longer than idle connections live in a drain
    while time.monotonic() < until:
        pass
    for wire in (silent, idle):
        wire.send(get("/"))
    for wire in (silent, idle):
        reply = wire.reply()
        assert reply.status == 200 and reply.header("Connection") == "close"
        assert wire.closed()
        wire.close()
