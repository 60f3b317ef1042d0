"""The pool of connections to backends: reuse, limits, the queue, and clients that are slower than backends.

One worker each, so that there is one pool; the rogue counts its connections.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.backends import Backends, closing_all
from tests.conversation import Conversation
from tests.proxying import clients, config, running, slow_client
from tests.rogue import Rogue, named, reply
from tests.server import Launcher, Server, wait_until
from tests.wire import Wire

pytestmark = pytest.mark.slow

FITS = b"0123456789abcdef" * 12_800
"""200 KB: what may be held for a slow client."""


def takes_a_while(c: Conversation) -> None:
    """20 ms, so that requests meet."""
    threading.Event().wait(0.02)
    named(c)


def fits(c: Conversation) -> None:
    c.send(reply(FITS, "Content-Type: application/octet-stream"))


def stalls(c: Conversation) -> None:
    """Answers when the test says so."""
    c.wait(c.request.target)
    named(c)


SCRIPTS = {"while": takes_a_while, "fits": fits, "stalls": stalls}


def pooled(acme: Launcher, rogue: Rogue, **pool: object) -> Server:
    return acme(config(rogue.url, server={"connection_pool": pool}))


@pytest.fixture
def rogue(backends: Backends) -> Rogue:
    return backends.rogue(SCRIPTS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Rogue]]:
    """A server with the pool's defaults, and its backend."""
    with closing_all(Backends(tmp_path_factory.mktemp("pool"))) as backends:
        rogue = backends.rogue(SCRIPTS)
        with running(tmp_path_factory.mktemp("proxy"), config(rogue.url)) as server:
            yield server, rogue


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def own(wire: Wire, target: str) -> None:
    got = wire.request(target)
    assert (got.status, got.text) == (200, target)


# ------------------------------------------------------------------- reuse


def test_one_connection_serves_a_hundred_requests(shared: tuple[Server, Rogue]) -> None:
    server, rogue = shared
    with server.connect() as wire:
        own(wire, "/first")
        before = len(rogue.connections)
        for number in range(100):
            own(wire, f"/{number}")
    assert len(rogue.connections) == before
    assert len(rogue.open) <= before


def test_clients_share_connections(shared: tuple[Server, Rogue]) -> None:
    """A client's connection and a backend's have nothing to do with each other."""
    server, rogue = shared
    own(server.connect(), "/warm")
    before = len(rogue.connections)
    for number in range(20):
        assert server.get(f"/fresh/{number}").text == f"/fresh/{number}"
    assert len(rogue.connections) == before


def test_posts_share_them_too(shared: tuple[Server, Rogue]) -> None:
    server, rogue = shared
    own(server.connect(), "/warm")
    before = len(rogue.connections)
    with server.connect() as wire:
        for number in range(20):
            wire.send(f"POST /p/{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".encode())
            assert wire.reply().text == f"/p/{number}"
    assert len(rogue.connections) == before


def test_without_reuse_each_request_has_a_connection_of_its_own(acme: Launcher, rogue: Rogue) -> None:
    with pooled(acme, rogue, reuse_connections=False).connect() as wire:
        for number in range(10):
            own(wire, f"/{number}")
    assert len(rogue.connections) == 10
    assert all((one.header("Connection") or "").lower() == "close" for one in rogue.requests)
    wait_until(lambda: not rogue.open, "all are closed")


def test_idle_connections_are_closed_in_time(acme: Launcher, rogue: Rogue) -> None:
    with pooled(acme, rogue, idle_timeout="600ms").connect() as wire:
        own(wire, "/one")
        began = time.monotonic()
        own(wire, "/two")
        assert len(rogue.connections) == 1
        wait_until(lambda: not rogue.open, "it is closed")
        assert 0.4 < time.monotonic() - began < 5
        own(wire, "/three")
    assert rogue.connections[0].ending == "eof", "closed in order"


def test_connections_are_kept_warm(acme: Launcher, rogue: Rogue) -> None:
    """Before any request, past the idle timeout, and again after the backend was away."""
    server = pooled(acme, rogue, min_idle=3, idle_timeout="300ms")
    wait_until(lambda: len(rogue.open) >= 3, "three are there")
    assert not rogue.requests
    before = len(rogue.connections)
    with server.connect() as wire:
        own(wire, "/warm")
    assert len(rogue.connections) <= before + 1
    rogue.kill()
    rogue.start()
    wait_until(lambda: len(rogue.open) >= 3, "three are there again", 20)
    assert server.get("/again").text == "/again"
    wait_until(lambda: len(rogue.open) == 3, "no more than three", 20)


def test_warming_one_backend_holds_up_no_other(acme: Launcher, rogue: Rogue, backends: Backends) -> None:
    """Surplus idle connections end in time, though another backend can't be connected to."""
    pool = {"min_idle": 1, "idle_timeout": "300ms"}
    configuration = config(rogue.url, server={"connection_pool": pool})
    unreachable = {"path": "/unreachable/*", "type": "proxy", "backend": backends.unreachable().url}
    configuration["routes"].insert(0, unreachable)
    server = acme(configuration)
    wires = [server.connect().send(get(f"/script/stalls?{number}")) for number in range(4)]
    wait_until(lambda: len(rogue.asked("/script/stalls")) == 4, "four connections")
    for number, wire in enumerate(wires):
        rogue.release(f"/script/stalls?{number}")
        assert wire.reply().status == 200
        wire.close()
    wait_until(lambda: len(rogue.open) == 1, "one is kept", 3)


FORKING = """
import os, signal, time

def app(environ, start_response):
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        time.sleep(1.5)       # gevent's: the child's loop runs
        os._exit(7)
    text = b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]
"""


def test_a_process_that_an_application_forks_leaves_the_pool_alone(acme: Launcher, rogue: Rogue) -> None:
    """Its loop runs past the time of idle connections, which are its parent's."""
    server = acme(
        {
            "server": {"connection_pool": {"idle_timeout": "400ms"}},
            "load_balancing": {"health_check": {"interval": "200ms", "timeout": "200ms"}},
            "routes": [
                {"path": "/fork", "type": "wsgi", "app": "forking:app"},
                {"path": "/*", "type": "proxy", "backend": rogue.url},
            ],
        },
        files={"forking.py": FORKING},
    )
    with server.connect() as wire:
        own(wire, "/idle")
        assert wire.request("/fork").text == "7", "the child came to its own end"
        own(wire, "/next")


# ------------------------------------------------------------------- limits and the queue


def test_fifty_clients_over_two_connections_are_all_answered(acme: Launcher, rogue: Rogue) -> None:
    most: list[int] = []

    def counting(c: Conversation) -> None:
        most.append(len(rogue.open))
        takes_a_while(c)

    rogue.scripts["counting"] = counting
    server = pooled(acme, rogue, max_per_worker=2)
    together = threading.Barrier(50)

    def client(number: int) -> None:
        with server.connect(timeout=30) as wire:
            together.wait()
            for turn in range(2):
                own(wire, f"/script/counting?{number}.{turn}")

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(client, range(50)))
    assert len(most) == 100 and max(most) == 2


def test_the_queue_is_fair(acme: Launcher, rogue: Rogue) -> None:
    """First come, first served."""
    server = pooled(acme, rogue, max_per_worker=1)
    first = server.connect().send(get("/script/stalls?first"))
    wait_until(lambda: rogue.asked("?first"), "the only connection is taken")
    waiting = []
    for number in range(5):
        waiting.append(server.connect().send(get(f"/queued/{number}")))
        # The next one must come behind: this one's own round trip over another path says that it was read.
        with server.connect() as wire:
            assert wire.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").reply().status == 204
    assert not rogue.asked("/queued")
    rogue.release("/script/stalls?first")
    assert first.reply().status == 200
    assert [wire.reply().text for wire in waiting] == [f"/queued/{number}" for number in range(5)]
    assert [one.target for one in rogue.asked("/queued")] == [f"/queued/{number}" for number in range(5)]
    assert len(rogue.connections) == 1
    for wire in (first, *waiting):
        wire.close()


def test_nobody_waits_for_ever(acme: Launcher, rogue: Rogue) -> None:
    configuration = config(rogue.url, server={"connection_pool": {"max_per_worker": 1}}, timeout="800ms")
    configuration["routes"].append({"path": "/patient/*", "type": "proxy", "backend": rogue.url})
    server = acme(configuration)
    with server.connect() as holding, server.connect() as wire:
        holding.send(get("/patient/script/stalls"))
        wait_until(lambda: rogue.asked("/patient"), "the only connection is taken")
        began = time.monotonic()
        got = wire.request("/waits")
        assert got.status == 503 and int(got.header("Retry-After") or 0) > 0
        assert 0.4 < time.monotonic() - began < 5
        rogue.release("/patient/script/stalls")
        assert holding.reply().text == "/patient/script/stalls"
        own(wire, "/next")
    assert not rogue.asked("/waits"), "who gave up isn't sent"


def test_who_leaves_the_queue_is_not_sent(acme: Launcher, rogue: Rogue) -> None:
    server = pooled(acme, rogue, max_per_worker=1)
    with server.connect() as holding:
        holding.send(get("/script/stalls?hold"))
        wait_until(lambda: rogue.asked("?hold"), "the only connection is taken")
        leaving = server.connect().send(get("/leaves"))
        with server.connect() as wire:
            wire.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").reply()
        leaving.close()
        with server.connect() as wire:
            wire.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").reply()
        rogue.release("/script/stalls?hold")
        assert holding.reply().status == 200
        own(holding, "/next")
    assert not rogue.asked("/leaves")


def test_who_leaves_the_queue_costs_the_others_nothing(acme: Launcher, rogue: Rogue) -> None:
    """Their turns are not taken, so that the one connection lives on."""
    server = pooled(acme, rogue, max_per_worker=1)
    with server.connect() as holding:
        holding.send(get("/script/stalls?hold"))
        wait_until(lambda: rogue.asked("?hold"), "the only connection is taken")
        leaving = [server.connect().send(get(f"/leaves/{number}")) for number in range(5)]
        wait_until(lambda: clients(server) == 6, "all are here")
        for wire in leaving:
            wire.close()
        wait_until(lambda: clients(server) == 1, "and gone, with their requests")
        rogue.release("/script/stalls?hold")
        assert holding.reply().status == 200
        own(holding, "/next")
    assert not rogue.asked("/leaves")
    assert len(rogue.connections) == 1


def test_one_backend_cannot_have_all_that_another_needs(acme: Launcher, backends: Backends) -> None:
    """Idle connections to one backend make room for those to another."""
    one, two = backends.rogue(SCRIPTS), backends.rogue(SCRIPTS)
    configuration = config(one.url, server={"connection_pool": {"max_per_worker": 1}})
    configuration["routes"].append({"path": "/two/*", "type": "proxy", "backend": two.url})
    with acme(configuration).connect() as wire:
        for number in range(5):
            own(wire, f"/one/{number}")
            own(wire, f"/two/{number}")
    assert len(one.requests) == len(two.requests) == 5


# ------------------------------------------------------------------- clients slower than backends


def test_a_slow_client_does_not_hold_a_connection(acme: Launcher, rogue: Rogue) -> None:
    """What fits is taken off the backend at once: its only connection serves others meanwhile."""
    server = pooled(acme, rogue, max_per_worker=1)
    with slow_client(server, get("/script/fits")) as slow, server.connect() as quick:
        wait_until(lambda: rogue.asked("/script/fits"), "the backend is asked")
        for number in range(5):
            own(quick, f"/quick/{number}")
        assert len(rogue.connections) == 1
        assert slow.reply().body == FITS


def test_many_slow_clients_are_served_by_few_connections(acme: Launcher, rogue: Rogue) -> None:
    server = pooled(acme, rogue, max_per_worker=2)
    slow = [slow_client(server, get(f"/script/fits?{number}")) for number in range(30)]
    try:
        wait_until(lambda: len(rogue.asked("/script/fits")) == 30, "all are asked for while nobody reads")
        assert len(rogue.connections) <= 2
        assert all(wire.reply().body == FITS for wire in slow)
    finally:
        for wire in slow:
            wire.close()


def test_a_client_that_sends_slowly_does_not_hold_one_either(acme: Launcher, rogue: Rogue) -> None:
    """A small body is awaited before a backend's connection is taken."""
    server = pooled(acme, rogue, max_per_worker=1)
    with server.connect() as slow, server.connect() as quick:
        slow.send(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        own(quick, "/quick")
        assert not rogue.asked("/slow")
        assert slow.send(b"67890").reply().text == "/slow"
