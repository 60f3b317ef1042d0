"""One engine after the other takes over a listener while clients keep coming: nobody sees a reset, and
whoever waits for an answer gets it.

The clients are processes of their own, so that they come at any moment.
"""

from __future__ import annotations

import multiprocessing
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any, TypeAlias

import pytest

from tests.unit.engine_harness import Rig, in_engine
from tests.wire import Wire

pytestmark = pytest.mark.slow

DRAINS = 200
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000

Address = tuple[str, int]
Results: TypeAlias = "Queue[tuple[str, Counter[str]]]"


def keep_alive(address: Address, chance: random.Random, over: Event) -> Counter[str]:
    """One request after the other on a connection, for as long as it lasts."""
    found: Counter[str] = Counter()
    with Wire(socket.create_connection(address)) as wire:
        while not over.is_set():
            wire.send(chance.choice((GET, POST)))
            reply = wire.reply()
            found[str(reply.status)] += 1
            if reply.header("Connection") == "close":
                found["told"] += 1
                assert wire.sock.recv(1) == b""
                break
    return found


def one_each(address: Address, chance: random.Random, _over: Event) -> Counter[str]:
    """A connection for each request; some think before they speak."""
    with Wire(socket.create_connection(address)) as wire:
        time.sleep(chance.choice((0, 0, 0, 0.01)))
        wire.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
        status = str(wire.reply().status)
        assert wire.sock.recv(1) == b""
        return Counter({status: 1})


def pipelined(address: Address, chance: random.Random, over: Event) -> Counter[str]:
    """Several requests at once. After the answer that says close, the others are the client's to repeat."""
    found: Counter[str] = Counter()
    with Wire(socket.create_connection(address)) as wire:
        while not over.is_set():
            depth = chance.randrange(2, 12)
            wire.send(GET * depth)
            for _ in range(depth):
                reply = wire.reply()
                found[str(reply.status)] += 1
                if reply.header("Connection") == "close":
                    # Already on its way when the server said so.
                    wire.send(GET * 3)
                    assert wire.sock.recv(1) == b""
                    return found
    return found


def thinking(address: Address, chance: random.Random, over: Event) -> Counter[str]:
    """Pauses about as long as idle connections live in a drain. Some requests meet the end; none a reset."""
    found: Counter[str] = Counter()
    with Wire(socket.create_connection(address)) as wire:
        while not over.is_set():
            wire.send(GET)
            if not wire.sock.recv(1, socket.MSG_PEEK):
                found["too late"] += 1
                break
            reply = wire.reply()
            found[str(reply.status)] += 1
            if reply.header("Connection") == "close":
                break
            time.sleep(chance.uniform(0.49, 0.56))
    return found


def run(
    kind: Callable[..., Counter[str]], address: Address, over: Event, results: Results, threads: int = 1
) -> None:
    founds: list[Counter[str]] = []

    def loop(number: int) -> None:
        chance = random.Random(f"{kind.__name__} {number}")
        found: Counter[str] = Counter()
        while not over.is_set():
            try:
                found += kind(address, chance, over)
            except Exception as error:  # noqa: BLE001 - every kind of failure is a result
                found[f"{type(error).__name__}: {error}"] += 1
        founds.append(found)

    loops = [threading.Thread(target=loop, args=(number,)) for number in range(threads)]
    for one in loops:
        one.start()
    for one in loops:
        one.join()
    results.put((kind.__name__, sum(founds, Counter())))


class Succession:
    """Engines that follow each other on one listener, and clients in processes of their own."""

    def __init__(self, rig: Rig, **kinds: int) -> None:
        from acme_wsgi.scoreboard import Scoreboard

        processes = multiprocessing.get_context("spawn")
        self.rig = rig
        self.engine: Any = rig.engine
        self.board = Scoreboard(2)
        self.turn = 0
        self.over = processes.Event()
        self.results: Results = processes.Queue()
        address = rig.listener.getsockname()
        self.clients = [
            processes.Process(target=run, args=(globals()[kind], address, self.over, self.results, threads))
            for kind, threads in kinds.items()
        ]
        for client in self.clients:
            client.start()
        rig.until(lambda: rig.count("requests_total") > 100, "they are at it", seconds=30)

    def next(self) -> float:
        """The next engine takes over, and the old one comes to its end. Returns the seconds that took."""
        import gevent

        from acme_wsgi.engine import Engine
        from acme_wsgi.scoreboard import EMPTY, READY

        rig, old = self.rig, self.engine
        slot = self.board.slot(self.turn % 2)
        slot.reset_gauges()
        log: Any = None
        self.engine = Engine(
            rig.config, lambda request: rig.dispatch(request), log, slot, self.board, rig.base
        )
        self.engine.listen(rig.listener)
        self.engine.start()
        slot.state = READY
        began = time.monotonic()
        old.drain()
        while (old.open_requests or old.connections) and time.monotonic() < began + 3:
            gevent.sleep(0.001)
        took = time.monotonic() - began
        if old is not rig.engine:
            old.close_all()
            self.board.slot((self.turn + 1) % 2).state = EMPTY
        self.turn += 1
        return took

    def end(self) -> dict[str, Counter[str]]:
        """What the clients have met."""
        self.over.set()
        self.rig.until(lambda: self.results.qsize() == len(self.clients), "the clients' results", seconds=20)
        found = dict(self.results.get() for _ in self.clients)
        for client in self.clients:
            client.join()
        self.engine.drain()
        self.rig.until(lambda: not self.engine.connections, "the last one's end")
        self.engine.close_all()
        return found


@in_engine()
def test_200_drains_under_fire_and_no_reset(rig: Rig) -> None:
    import gevent

    succession = Succession(rig, keep_alive=1, one_each=1, pipelined=1)
    for _ in range(DRAINS):
        assert succession.next() < 3
        gevent.sleep(0.005)
    found = succession.end()
    strange = {name: set(one) - {"200", "told"} for name, one in found.items()}
    assert not any(strange.values()), found
    assert found["keep_alive"]["told"] >= 20 and all(one["200"] > 200 for one in found.values()), found


@in_engine()
def test_a_request_that_comes_too_late_meets_an_end_and_no_reset(rig: Rig) -> None:
    succession = Succession(rig, thinking=60)
    took = [succession.next() for _ in range(10)]
    assert all(0.4 < one < 3 for one in took), took
    found = succession.end()["thinking"]
    assert set(found) <= {"200", "too late"}, found
    assert found["200"] > 200
