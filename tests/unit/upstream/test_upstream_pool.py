"""The pool: who gets which connection and in which order, and that no connection is ever miscounted."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acme_wsgi.config.schema.server import ConnectionPool
from acme_wsgi.errors import BackendError, ClientDisconnected
from acme_wsgi.upstream.board import Board
from acme_wsgi.upstream.link import Link
from acme_wsgi.upstream.pool import Place, Pool, PoolFull, Shelf
from acme_wsgi.upstream.resolve import Address, Resolver
from acme_wsgi.upstream.target import Target
from tests.rogue import Unreachable, reserve
from tests.unit.files.in_loop import until
from tests.unit.upstream.backends import SECOND, enrolled
from tests.unit.upstream.far import MOMENT, listening, reset, soon, to_end, with_reactor

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets

CONNECT = 5 * SECOND


def chatter(end: socket.socket) -> None:
    """A byte that nobody asked for."""
    end.send(b"!")


AWAY: list[Callable[[socket.socket], None]] = [reset, socket.socket.close, chatter]


class Server:
    """A listener that takes all connections and says nothing."""

    def __init__(self) -> None:
        import gevent

        self.listener = listening()
        self.port = int(self.listener.getsockname()[1])
        self.ends: list[socket.socket] = []
        gevent.spawn(self._accept)

    def _accept(self) -> None:
        self.listener.settimeout(None)
        while True:
            self.ends.append(self.listener.accept()[0])


class Bench:
    """A pool before servers of the test's own, with a shelf for each."""

    def __init__(self, limit: int = 2, servers: int = 1, waiting: int = 1000, **options: Any) -> None:
        self.board = Board(1)
        self.pool = Pool(ConnectionPool(max_per_worker=limit, **options), 0, waiting)
        self.servers = [Server() for _ in range(servers)]
        self.shelves = [
            Shelf(
                self.pool, peer, Target.parse(f"http://127.0.0.1:{server.port}"), resolver(server.port), None
            )
            for peer, server in zip(enrolled(self.board, servers), self.servers, strict=True)
        ]

    @property
    def gauge(self) -> int:
        """Open connections, as everybody sees them."""
        return sum(peer["connections"] for peer in self.board.describe())

    def acquire(self, shelf: int = 0, seconds: float = 5, **options: Any) -> Link:
        return self.shelves[shelf].acquire(soon(seconds), CONNECT, **options)

    def check(self) -> None:
        """Nobody is connecting: every connection is counted once."""
        held = sum(len(shelf.idle) + len(shelf.busy) for shelf in self.shelves)
        assert self.pool.open == self.gauge == held <= self.pool.limit

    def finish(self) -> None:
        """Nothing is left, and nothing was miscounted."""
        self.check()
        for shelf in self.shelves:
            for link in list(shelf.busy):
                shelf.release(link, True)
            shelf.drop_idle()
        assert (self.pool.open, self.gauge, self.pool.waiting) == (0, 0, 0)
        until(lambda: all(ended(end) for server in self.servers for end in server.ends))


def ended(end: socket.socket) -> bool:
    if end.fileno() < 0:
        return True
    end.setblocking(False)
    try:
        return end.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def resolver(port: int) -> Resolver:
    return Resolver("127.0.0.1", port)


def spawned(step: Callable[[], Any], rounds: int = 2) -> Any:
    """A greenlet that has come as far as it gets by itself."""
    import gevent

    def run() -> Any:
        try:
            return step()
        except Exception as error:  # noqa: BLE001
            return error

    greenlet = gevent.spawn(run)
    for _ in range(rounds):
        gevent.sleep(0)
    return greenlet


# -- handing out ------------------------------------------------------------------------------------------


@with_reactor
def test_the_connection_used_last_is_used_next() -> None:
    bench = Bench(3)
    links = [bench.acquire() for _ in range(3)]
    assert bench.pool.open == 3 and [link.uses for link in links] == [1, 1, 1]
    for link in links:
        bench.shelves[0].release(link, True)
    bench.check()
    assert bench.acquire() is links[2] and bench.acquire() is links[1]
    assert links[2].uses == 2
    bench.finish()


@with_reactor
def test_a_fresh_one_is_made_even_where_one_is_idle() -> None:
    bench = Bench(2)
    link = bench.acquire()
    bench.shelves[0].release(link, True)
    other = bench.acquire(fresh=True)
    assert other is not link and other.uses == 1 and bench.shelves[0].idle == [link]
    third = bench.acquire(fresh=True)  # at the limit: the idle one makes room
    assert third is not link and third.uses == 1
    bench.finish()


@with_reactor
def test_a_fresh_one_is_made_for_who_had_to_wait_for_it() -> None:
    bench = Bench(1)
    link = bench.acquire()
    waiter = spawned(lambda: bench.acquire(fresh=True))
    bench.shelves[0].release(link, True)
    assert waiter.get(timeout=5) is not link
    assert not link.usable()
    bench.finish()


@with_reactor
def test_idle_ones_that_ended_are_passed_over() -> None:
    for loop_runs in (True, False):
        bench = Bench(3)
        links = [bench.acquire() for _ in range(3)]
        until(lambda bench=bench: len(bench.servers[0].ends) == 3)  # type: ignore[misc]
        for link in links:
            bench.shelves[0].release(link, True)
        for end in bench.servers[0].ends[1:]:
            end.close()
        if loop_runs:
            until(lambda bench=bench: bench.pool.open == 1)  # type: ignore[misc]
        assert bench.acquire() is links[0]
        assert bench.pool.open == 1
        bench.finish()


@with_reactor
def test_without_reuse_nothing_is_kept() -> None:
    bench = Bench(2, reuse_connections=False, min_idle=2)
    link = bench.acquire()
    bench.shelves[0].release(link, True)
    assert not link.usable() and bench.pool.open == 0
    assert not bench.shelves[0].warm(CONNECT)
    bench.finish()


@with_reactor
def test_what_is_not_reusable_is_closed() -> None:
    bench = Bench(2)
    link = bench.acquire()
    bench.shelves[0].release(link, False)
    assert (bench.pool.open, bench.gauge, bench.shelves[0].idle, bench.shelves[0].busy) == (0, 0, [], set())
    bench.finish()


@with_reactor
def test_a_connection_that_was_closed_while_in_use_may_be_released() -> None:
    bench = Bench(1)
    for reusable in (True, False):
        link = bench.acquire()
        link.abort()
        bench.check()
        bench.shelves[0].release(link, reusable and link.reusable)
        bench.check()
    bench.finish()


# -- connecting -------------------------------------------------------------------------------------------


@with_reactor
def test_a_connection_that_can_not_be_made_gives_its_place_back() -> None:
    bench = Bench(1)
    holder, port = reserve()
    dead = Shelf(bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), resolver(port), None)
    for _ in range(3):
        with pytest.raises(BackendError, match="refused"):
            dead.acquire(soon(), CONNECT, False)
        assert bench.pool.open == 0
    link = bench.acquire()
    waiters = [spawned(lambda: dead.acquire(soon(), CONNECT, False)), spawned(bench.acquire)]
    bench.shelves[0].release(link, True)
    assert isinstance(waiters[0].get(timeout=5), BackendError)
    assert waiters[1].get(timeout=5) in bench.shelves[0].busy
    holder.close()
    bench.finish()


@with_reactor
def test_who_is_killed_while_connecting_gives_its_place_back() -> None:
    bench = Bench(1)
    with Unreachable() as unreachable:
        far = Shelf(
            bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), resolver(unreachable.port), None
        )
        connecting = spawned(lambda: far.acquire(soon(), CONNECT, False))
        waiter = spawned(bench.acquire)
        assert (bench.pool.open, bench.pool.waiting, bench.gauge) == (1, 1, 0)
        connecting.kill()
        assert isinstance(waiter.get(timeout=5), Link)
    bench.finish()


@with_reactor
def test_connecting_takes_no_longer_than_it_may() -> None:
    bench = Bench(1)
    with Unreachable() as unreachable:
        far = Shelf(
            bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), resolver(unreachable.port), None
        )
        with pytest.raises(BackendError) as caught:
            far.acquire(soon(), int(MOMENT * 1e9), False)
    assert caught.value.status == 504 and caught.value.connecting
    bench.finish()


class Addresses(Resolver):
    """A name with these addresses."""

    def __init__(self, *ports: int) -> None:
        self.given: list[Address] = [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]
        self.dead: list[object] = []

    def addresses(self, timeout: float) -> list[Address]:
        assert 0 < timeout <= 5
        return self.given

    def failed(self, address: Address | None = None) -> None:
        self.dead.append(address)


def named(bench: Bench, *ports: int) -> tuple[Shelf, Addresses]:
    """A backend whose name leads to these."""
    names = Addresses(*ports)
    return Shelf(bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), names, None), names


@with_reactor
def test_of_several_addresses_the_first_that_answers_is_used() -> None:
    bench = Bench(1)
    holders = [reserve(), reserve()]
    shelf, names = named(bench, holders[0][1], holders[1][1], bench.servers[0].port)
    link = shelf.acquire(soon(), CONNECT, False)
    until(lambda: bench.servers[0].ends)
    assert names.dead == names.given[:2] and bench.pool.open == 1
    shelf.release(link, False)
    for holder, _ in holders:
        holder.close()
    bench.finish()


@with_reactor
def test_an_address_that_does_not_answer_leaves_time_for_the_next_one() -> None:
    bench = Bench(1)
    with Unreachable() as unreachable:
        shelf, names = named(bench, unreachable.port, bench.servers[0].port)
        link = shelf.acquire(soon(), int(10 * MOMENT * 1e9), False)
        assert names.dead == names.given[:1]
        shelf.release(link, False)
        shelf, names = named(bench, unreachable.port, unreachable.port)
        with pytest.raises(BackendError) as caught:
            shelf.acquire(soon(), int(MOMENT * 1e9), False)
    assert caught.value.status == 504 and len(names.dead) == 2
    bench.finish()


@with_reactor
def test_who_leaves_while_a_connection_is_made_makes_room_at_once() -> None:
    import gevent

    bench = Bench(1)
    with Unreachable() as unreachable:
        shelf, names = named(bench, unreachable.port, bench.servers[0].port)
        place = Place()
        asked = gevent.spawn(shelf.acquire, soon(), int(5e9), False, 0, place)
        gevent.sleep(0.01)
        place.leave()
        with pytest.raises(ClientDisconnected):
            asked.get(timeout=5)
    assert bench.pool.open == 0 and names.dead == []
    bench.finish()


@with_reactor
def test_a_name_that_leads_nowhere_is_unreachable() -> None:
    import gevent

    def fails(_: str, __: int) -> list[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def hangs(_: str, __: int) -> list[Address]:
        gevent.sleep(10)
        return []

    bench = Bench(1)
    for look_up, status in ((fails, 502), (hangs, 504)):
        names = Resolver("nowhere.test", 80, look_up=look_up)
        shelf = Shelf(bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), names, None)
        with pytest.raises(BackendError, match="name could not be resolved") as caught:
            shelf.acquire(soon(), int(MOMENT * 1e9), False)
        assert (caught.value.status, caught.value.connecting) == (status, True)
    bench.finish()


@with_reactor
def test_a_failed_handshake_is_a_failed_connect() -> None:
    bench = Bench(1)
    shelf = Shelf(
        bench.pool,
        bench.shelves[0].peer,
        Target.parse("https://a:1"),
        resolver(bench.servers[0].port),
        ssl.create_default_context(),
    )
    connecting = spawned(lambda: shelf.acquire(soon(), CONNECT, False))
    until(lambda: bench.servers[0].ends)
    bench.servers[0].ends[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    error = connecting.get(timeout=5)
    assert isinstance(error, BackendError) and error.connecting
    until(lambda: to_end(bench.servers[0].ends[0])[:1] == b"\x16")
    bench.finish()


# -- the line ---------------------------------------------------------------------------------------------


@with_reactor
def test_who_came_first_is_served_first_whatever_the_backend() -> None:
    rng = random.Random(2)
    bench = Bench(2, servers=3)
    held = [bench.acquire(0), bench.acquire(1)]
    order: list[int] = []

    def wait(number: int) -> None:
        link = bench.acquire(rng.randrange(3))
        order.append(number)
        held.append(link)

    for number in range(60):
        spawned(lambda number=number: wait(number), 1)  # type: ignore[misc]
    assert bench.pool.waiting == 60
    for served in range(60):
        link = held.pop(rng.randrange(len(held)))
        link.shelf.release(link, rng.random() < 0.7)
        assert bench.pool.open <= 2
        until(lambda served=served: len(order) > served)  # type: ignore[misc]
    assert order == list(range(60))
    bench.finish()


@with_reactor
def test_nobody_overtakes_those_who_wait() -> None:
    bench = Bench(1)
    link = bench.acquire()
    order: list[str] = []

    def come(name: str) -> None:
        mine = bench.acquire()
        order.append(name)
        bench.shelves[0].release(mine, True)

    first = spawned(lambda: come("first"))
    bench.shelves[0].release(link, True)  # theirs from now on, though they have not run yet
    come("late")
    assert first.dead and order == ["first", "late"]
    bench.finish()


@with_reactor
def test_a_connection_goes_from_hand_to_hand_where_the_backend_is_the_same() -> None:
    bench = Bench(1)
    link = bench.acquire()
    waiters = [spawned(bench.acquire) for _ in range(5)]
    for waiter in waiters:
        link.shelf.release(link, True)
        assert waiter.get(timeout=5) is link
    assert link.uses == 6
    bench.finish()


@with_reactor
def test_waiting_ends_at_its_deadline() -> None:
    bench = Bench(1)
    bench.acquire()
    began = time.monotonic()
    with pytest.raises(PoolFull) as caught:
        bench.acquire(seconds=MOMENT)
    assert MOMENT <= time.monotonic() - began < 50 * MOMENT
    assert caught.value.status == 503 and ("Retry-After", "1") in caught.value.headers
    assert bench.pool.waiting == 0
    bench.finish()


@with_reactor
def test_the_line_has_an_end() -> None:
    bench = Bench(1, waiting=2)
    link = bench.acquire()
    waiters = [spawned(bench.acquire) for _ in range(2)]
    with pytest.raises(PoolFull):
        bench.acquire()
    for waiter in waiters:
        link.shelf.release(link, True)
        assert waiter.get(timeout=5) is link
    bench.finish()


@with_reactor
@pytest.mark.parametrize("reusable", [True, False])
@pytest.mark.parametrize("kill_first", [True, False])
def test_a_turn_that_comes_as_its_waiter_is_killed_goes_to_the_next(reusable: bool, kill_first: bool) -> None:
    bench = Bench(1, servers=2)
    for shelf in (0, 1):
        link = bench.acquire()
        killed, following = spawned(bench.acquire), spawned(lambda shelf=shelf: bench.acquire(shelf))  # type: ignore[misc]
        if kill_first:
            killed.kill(block=False)
        link.shelf.release(link, reusable)
        if not kill_first:
            killed.kill(block=False)
        if kill_first or not reusable:
            # Killed in line, or while connecting.
            mine = following.get(timeout=5)
        else:
            until(lambda killed=killed: killed.dead)  # type: ignore[misc]
            taken = killed.value
            assert isinstance(taken, Link)  # it had it before it was killed
            taken.shelf.release(taken, True)
            mine = following.get(timeout=5)
        mine.shelf.release(mine, False)
        assert bench.pool.open == 0
    bench.finish()


@with_reactor
def test_a_turn_that_comes_as_the_time_is_over_is_not_lost() -> None:
    import gevent

    bench = Bench(1)
    for _ in range(30):
        link = bench.acquire()
        late = spawned(lambda: bench.acquire(seconds=0.002))
        following = spawned(bench.acquire)
        end = time.monotonic() + 0.002
        while time.monotonic() < end:  # nobody's timer runs meanwhile
            pass
        link.shelf.release(link, True)
        outcome = late.get(timeout=5)
        if isinstance(outcome, Link):
            outcome.shelf.release(outcome, True)
        else:
            assert isinstance(outcome, PoolFull)
        mine = following.get(timeout=5)
        mine.shelf.release(mine, True)
        gevent.sleep(0)
        bench.check()
    bench.finish()


@with_reactor
@pytest.mark.parametrize("away", AWAY)
def test_a_connection_that_ends_on_its_way_to_a_waiter_is_replaced(
    away: Callable[[socket.socket], None],
) -> None:
    bench = Bench(1, servers=2)
    link = bench.acquire()
    first, second = spawned(lambda: bench.acquire()), spawned(lambda: bench.acquire(1))
    until(lambda: bench.servers[0].ends)
    away(bench.servers[0].ends[0])
    link.shelf.release(link, True)
    mine = first.get(timeout=5)
    assert mine is not link and mine.usable() and not second.dead
    mine.shelf.release(mine, True)
    assert second.get(timeout=5) in bench.shelves[1].busy
    bench.finish()


@with_reactor
def test_room_is_made_by_the_one_that_is_idle_for_longest() -> None:
    bench = Bench(3, servers=3)
    links = [bench.acquire(number) for number in range(3)]
    for number in (1, 2, 0):
        bench.shelves[number].release(links[number], True)
    bench.acquire(0)
    assert bench.pool.open == 3
    bench.acquire(0)
    assert [link.usable() for link in links] == [True, False, True]
    bench.acquire(0)
    assert [link.usable() for link in links] == [True, False, False]
    assert bench.pool.open == bench.gauge == 3
    bench.finish()


# -- now and then -----------------------------------------------------------------------------------------


@with_reactor
def test_what_is_idle_for_too_long_is_closed_but_for_what_is_kept_warm() -> None:
    bench = Bench(5, idle_timeout=10.0, min_idle=2)
    shelf = bench.shelves[0]
    for link in [bench.acquire() for _ in range(5)]:
        shelf.release(link, True)
    shelf.tidy(time.monotonic_ns() + 9 * SECOND)
    assert len(shelf.idle) == 5
    newest = shelf.idle[3:]
    shelf.tidy(time.monotonic_ns() + 11 * SECOND)
    assert shelf.idle == newest
    bench.finish()


class Moving(Addresses):
    """A name that leads to another server from one moment to the next."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.current = frozenset(self.given)
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1

    def move(self, port: int) -> None:
        self.given = [(socket.AF_INET, ("127.0.0.1", port))]
        self.current = frozenset(self.given)


@with_reactor
def test_where_the_name_leads_no_more_no_other_request_follows() -> None:
    bench = Bench(3, servers=2, min_idle=3)
    names = Moving(bench.servers[0].port)
    shelf = Shelf(bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), names, None)
    busy, *idle = [shelf.acquire(soon(), CONNECT) for _ in range(3)]
    for link in idle:
        shelf.release(link, True)
    shelf.tidy(time.monotonic_ns())
    assert shelf.idle == idle and names.refreshed == 1
    names.move(bench.servers[1].port)
    shelf.tidy(time.monotonic_ns())
    assert not shelf.idle and shelf.busy == {busy} and bench.pool.open == 1
    assert busy.usable(), "the request goes on"
    shelf.release(busy, True)
    assert not shelf.idle and bench.pool.open == 0
    link = shelf.acquire(soon(), CONNECT)
    until(lambda: len(bench.servers[1].ends) == 1)
    shelf.tidy(time.monotonic_ns())
    shelf.release(link, True)
    assert shelf.idle == [link]
    shelf.drop_idle()
    bench.finish()


@with_reactor
def test_a_connection_in_use_is_kept_if_the_name_leads_there_again() -> None:
    bench = Bench(1)
    names = Moving(bench.servers[0].port)
    shelf = Shelf(bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), names, None)
    link = shelf.acquire(soon(), CONNECT)
    for port in (1, bench.servers[0].port):
        names.move(port)
        shelf.tidy(time.monotonic_ns())
    shelf.release(link, True)
    assert shelf.idle == [link]
    shelf.drop_idle()
    bench.finish()


@with_reactor
def test_warm_connections_are_made_one_by_one_within_the_limit() -> None:
    bench = Bench(3, servers=2, min_idle=2)
    assert [bench.shelves[0].warm(CONNECT) for _ in range(3)] == [True, True, False]
    assert [bench.shelves[1].warm(CONNECT) for _ in range(2)] == [True, False]
    bench.check()
    assert [len(shelf.idle) for shelf in bench.shelves] == [2, 1]
    link = bench.acquire()
    assert link.uses == 1
    bench.finish()


@with_reactor
def test_warming_gives_way_to_those_who_wait() -> None:
    bench = Bench(2, min_idle=1)
    held = bench.acquire()
    warming = spawned(lambda: bench.shelves[0].warm(CONNECT), 1)
    assert bench.pool.open == 2
    waiter = spawned(bench.acquire, 1)
    assert isinstance(waiter.get(timeout=5), Link) and warming.get(timeout=5) is True
    assert not bench.shelves[0].warm(CONNECT)
    bench.shelves[0].release(held, True)
    bench.finish()


@with_reactor
def test_a_warm_connection_that_can_not_be_made_is_an_error_and_no_more() -> None:
    bench = Bench(1, min_idle=1)
    holder, port = reserve()
    dead = Shelf(bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), resolver(port), None)
    with pytest.raises(BackendError):
        dead.warm(CONNECT)
    holder.close()
    bench.finish()


@with_reactor
def test_cut_ends_what_is_in_use_and_nothing_else() -> None:
    bench = Bench(3)
    links = [bench.acquire() for _ in range(3)]
    bench.shelves[0].release(links[0], True)
    waiting = spawned(lambda: links[1].read_head(False, soon()))
    bench.shelves[0].cut()
    assert isinstance(waiting.get(timeout=5), BackendError)
    assert [link.usable() for link in links] == [True, False, False]
    bench.check()
    assert bench.pool.open == 1
    bench.shelves[0].drop_idle()
    assert bench.pool.open == 0
    bench.finish()


@with_reactor
def test_a_connection_of_ones_own_is_not_the_pools() -> None:
    bench = Bench(1)
    bench.acquire()
    link = bench.shelves[0].connect_alone(soon())
    assert bench.pool.open == bench.gauge == 1
    link.close()
    assert bench.pool.open == bench.gauge == 1
    bench.finish()


# -- whatever happens -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_nothing_is_ever_miscounted(seed: int) -> None:
    with_reactor(lambda: storm(random.Random(seed)))()


def storm(rng: random.Random) -> None:
    """Two hundred things happen, in any order."""
    import gevent

    bench = Bench(rng.randrange(1, 4), servers=2, waiting=rng.choice([3, 100]), min_idle=rng.randrange(3))
    holder, port = reserve()
    dead = Shelf(bench.pool, bench.shelves[0].peer, Target.parse("http://a:1"), resolver(port), None)
    shelves = [*bench.shelves, dead]
    held: list[Link] = []
    clients: list[Any] = []

    def client() -> None:
        shelf, seconds = rng.choice(shelves), rng.choice([0, 0.002, 5])
        with contextlib.suppress(PoolFull, BackendError):
            held.append(shelf.acquire(soon(seconds), CONNECT, rng.random() < 0.5, rng.random() < 0.2))

    def release() -> None:
        if held:
            link = held.pop(rng.randrange(len(held)))
            link.shelf.release(link, rng.random() < 0.7)

    def server() -> None:
        ends = [end for one in bench.servers for end in one.ends if end.fileno() >= 0]
        if ends:
            with contextlib.suppress(OSError):
                rng.choice(AWAY)(rng.choice(ends))

    def warm() -> None:
        with contextlib.suppress(BackendError):
            rng.choice(shelves).warm(CONNECT)

    def background() -> None:
        shelf = rng.choice(shelves)
        steps: list[Callable[[], None]] = [shelf.drop_idle, shelf.cut]
        steps.append(lambda: shelf.tidy(time.monotonic_ns() + 1000 * SECOND))
        rng.choice(steps)()

    def kill() -> None:
        if clients:
            rng.choice(clients).kill(block=False)

    steps = [lambda: clients.append(gevent.spawn(client))] * 6 + [release] * 5
    steps += [server, lambda: clients.append(gevent.spawn(warm)), background, kill, kill]
    for _ in range(200):
        rng.choice(steps)()
        assert bench.gauge <= bench.pool.open <= bench.pool.limit
        if rng.random() < 0.3:
            gevent.sleep(rng.choice([0, 0, 0.001]))
    while any(not one.dead for one in clients):
        release()
        gevent.sleep(0)
    bench.shelves[0].busy.update(dead.busy)
    bench.check()
    while held:
        release()
    bench.finish()
    holder.close()
