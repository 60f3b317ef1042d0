"""A worker's side of its backends: what routes share, and what is done in the background while it serves.

The loop is an engine's, in a child; the backends are threads of that child.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from acme_wsgi.upstream import resolve
from acme_wsgi.upstream.balancer import Balancer
from acme_wsgi.upstream.exchange import Patience
from acme_wsgi.upstream.link import Link
from acme_wsgi.upstream.pool import Shelf
from tests.conversation import Conversation
from tests.rogue import Rogue, Unreachable, reply
from tests.unit.engine_harness import Rig, in_engine
from tests.unit.upstream.services import HOSTS, STICKY, THREE, Made, made, urls

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets

UNCHECKED = "load_balancing.health_check.enabled=false"
SECOND = 1_000_000_000


def routes(*items: str) -> str:
    return "routes=[" + ", ".join(f"{{type: proxy, {item}}}" for item in items) + "]"


# -- what routes share ------------------------------------------------------------------------------------


def shelves(balancer: Balancer) -> list[Shelf]:
    return [lane.shelf for lane in balancer.lanes]


def test_equal_groups_are_one() -> None:
    backends = made(THREE, routes("path: /a", "path: /b"))
    assert backends.balancer(0) is backends.balancer(1)
    assert backends.balancer(0) is backends.balancer(0)


def test_different_groups_share_the_connections_to_a_backend() -> None:
    backends = made(
        THREE,
        routes(
            "path: /a",
            "path: /b, load_balancing: least_conn",
            "path: /c, load_balancing: {sticky_sessions: {enabled: true}}",
            f"path: /d, backend: '{HOSTS[1]}'",
            "path: /e, load_balancing: {connection_draining: {timeout: 1s}}",
        ),
    )
    balancers = [backends.balancer(number) for number in range(5)]
    assert len({id(balancer) for balancer in balancers}) == 5
    assert shelves(balancers[0]) == shelves(balancers[1]) == shelves(balancers[2]) == shelves(balancers[4])
    assert shelves(balancers[3]) == shelves(balancers[0])[1:2]
    assert len(backends.service.pool.shelves) == 3
    assert [lane.shown for lane in balancers[0].lanes] == list(HOSTS)
    assert [lane.member for lane in balancers[0].lanes] == [0, 1, 2]


def test_a_route_without_backends_has_no_group() -> None:
    assert made(THREE).service.group(1) is None


def test_certificates_are_read_only_where_one_is_checked() -> None:
    backends = made(urls("http://a", "unix:/run/b.sock"))
    backends.balancer()
    assert backends.service._context is None
    backends = made(urls("http://a", "https://b", "https://c"))
    backends.balancer()
    assert backends.service._context is not None


def test_one_that_has_left_is_reached_too() -> None:
    backends = made(urls(*HOSTS[:2]), STICKY, before=(THREE, STICKY))
    backends.balancer()
    assert [shelf.target.shown for shelf in backends.service.pool.shelves] == list(HOSTS)


# -- while the worker serves ------------------------------------------------------------------------------


@contextmanager
def serving(rig: Rig, *sets: str, before: tuple[str, ...] = ()) -> Iterator[Made]:
    """A worker's backends, all balancers made; at the end nothing of it may be left."""
    backends = made(*sets, before=before)
    for route in backends.service.upstreams.plans:
        backends.balancer(route)
    backends.service.start()
    try:
        yield backends
    finally:
        backends.service.stop()
    rig.until(lambda: not backends.service.pool.open, "no connection")


def shelf_of(backends: Made, member: int = 0) -> Shelf:
    return backends.balancer().lanes[member].shelf


def taken(shelf: Shelf) -> Link:
    """A connection in use."""
    return shelf.acquire(time.monotonic_ns() + SECOND, 5 * SECOND, False)


def settled(rig: Rig, seconds: float) -> None:
    """Let rounds go by in which something might happen that shouldn't."""
    end = time.monotonic() + seconds
    rig.until(lambda: time.monotonic() > end, "time to go by")


def pool(*keys: str) -> str:
    return "server.connection_pool={" + ", ".join(keys) + "}"


@in_engine()
def test_connections_are_kept_warm(rig: Rig) -> None:
    with (
        Rogue() as rogue,
        Rogue() as other,
        serving(rig, urls(rogue.url, other.url), UNCHECKED, pool("min_idle: 3")) as backends,
    ):
        for member in (0, 1):
            rig.until(lambda: len(shelf_of(backends, member).idle) == 3, "three idle ones")  # noqa: B023
        assert backends.service.pool.open == 6
        # What breaks is made anew.
        rig.until(lambda: len(rogue.open) == 3, "all three accepted")
        for conversation in rogue.open:
            conversation.disconnect(reset=True)
        rig.until(lambda: len(rogue.connections) == 6 and len(shelf_of(backends).idle) == 3, "three again")
        backends.service.stop()
        assert backends.service.pool.open == 0 and not shelf_of(backends).idle
        settled(rig, 0.6)
        assert len(rogue.connections) == 6


@in_engine()
def test_many_are_made_in_portions(rig: Rig) -> None:
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, pool("min_idle: 20")) as backends:
        rig.until(lambda: len(shelf_of(backends).idle) == 20, "twenty idle ones")


@in_engine()
def test_idle_ones_are_closed_after_their_time(rig: Rig) -> None:
    with (
        Rogue() as rogue,
        serving(rig, urls(rogue.url), UNCHECKED, pool("min_idle: 0", "idle_timeout: 300ms")) as backends,
    ):
        shelf = shelf_of(backends)
        links = [taken(shelf) for _ in range(3)]
        begun = time.monotonic()
        for link in links:
            shelf.release(link, True)
        assert len(shelf.idle) == 3
        rig.until(lambda: not shelf.idle, "no idle ones")
        assert time.monotonic() - begun >= 0.3


@in_engine()
def test_connections_that_are_kept_warm_follow_their_backends_name(rig: Rig) -> None:
    resolve.REFRESH = 0.3
    with Rogue() as old, Rogue() as new:
        port = old.port
        resolve.look_up_in_thread = lambda host, _: [(socket.AF_INET, ("127.0.0.1", port))]
        with serving(rig, urls("http://app.invalid"), UNCHECKED, pool("min_idle: 2")) as backends:
            rig.until(lambda: len(shelf_of(backends).idle) == 2, "two idle ones")
            settled(rig, 1.0)
            assert len(old.connections) == 2
            port = new.port
            rig.until(lambda: len(new.open) == 2 and not old.open, "two to the new one, none to the old")


@in_engine()
def test_a_backend_that_is_down_is_left_alone(rig: Rig) -> None:
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, pool("min_idle: 2")) as backends:
        backends.down(0)
        rig.until(lambda: len(shelf_of(backends).idle) in (0, 2), "a round")
        shelf_of(backends).drop_idle()
        before = len(rogue.connections)
        settled(rig, 0.6)
        assert len(rogue.connections) == before and not shelf_of(backends).idle


@in_engine()
def test_of_a_drained_backend_idle_ones_go_at_once_and_busy_ones_after_its_time(rig: Rig) -> None:
    draining = "load_balancing.connection_draining.timeout=1s"
    with (
        Rogue() as rogue,
        serving(rig, urls(rogue.url), UNCHECKED, draining, pool("min_idle: 2")) as backends,
    ):
        shelf = shelf_of(backends)
        rig.until(lambda: len(shelf.idle) == 2, "two idle ones")
        busy = taken(shelf)
        begun = time.monotonic_ns()
        backends.peer(0).draining_since = begun
        rig.until(lambda: not shelf.idle and len(rogue.open) == 1, "no idle ones")
        assert shelf.busy == {busy} and time.monotonic_ns() - begun < 0.9 * SECOND
        rig.until(lambda: not rogue.open, "the busy one cut")
        assert time.monotonic_ns() - begun >= SECOND
        told = [line for line in rig.records.lines if "its time is over" in line]
        assert told == [f"WARNING acme.upstream: backend {rogue.url}: its time is over, 1 requests are cut"]
        shelf.release(busy, False)
        # Back in the traffic, it is kept warm again.
        backends.peer(0).draining_since = 0
        rig.until(lambda: len(shelf.idle) == 2, "two idle ones")


PATIENT = "load_balancing.connection_draining.timeout=1s"


@in_engine()
def test_a_worker_that_leaves_goes_on_cutting_what_is_drained(rig: Rig) -> None:
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, PATIENT) as backends:
        shelf = shelf_of(backends)
        busy = taken(shelf)
        begun = time.monotonic_ns()
        backends.peer(0).draining_since = begun
        backends.service.stop()
        settled(rig, 0.6)
        assert shelf.busy == {busy} and len(rogue.open) == 1
        rig.until(lambda: not rogue.open, "it cut")
        assert time.monotonic_ns() - begun >= SECOND
        shelf.release(busy, False)


@in_engine()
def test_what_a_reload_has_taken_out_is_cut_in_its_time_once_the_worker_leaves(rig: Rig) -> None:
    warm = pool("min_idle: 1")
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, PATIENT, warm) as backends:
        shelf = shelf_of(backends)
        rig.until(lambda: shelf.idle, "an idle one")
        busy = taken(shelf)
        backends.peer(0).removed_since = time.monotonic_ns() - 5 * SECOND
        settled(rig, 0.6)
        assert shelf.busy == {busy}, "nobody has followed the worker yet: its requests may need it"
        assert not shelf.idle, "none is kept warm any more"
        begun = time.monotonic_ns()
        backends.service.stop()
        rig.until(lambda: not rogue.open, "it cut")
        assert time.monotonic_ns() - begun >= SECOND
        told = [line for line in rig.records.lines if "its time is over" in line]
        assert told == [f"WARNING acme.upstream: backend {rogue.url}: its time is over, 1 requests are cut"]
        shelf.release(busy, False)


@in_engine()
def test_what_a_worker_that_leaves_has_in_use_elsewhere_goes_on(rig: Rig) -> None:
    impatient = "load_balancing.connection_draining.enabled=false"
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, impatient) as backends:
        shelf = shelf_of(backends)
        links = [taken(shelf) for _ in range(2)]
        backends.service.stop()
        shelf.release(links.pop(), True)
        rig.until(lambda: not shelf.idle and len(rogue.open) == 1, "what is idle closed")
        settled(rig, 0.6)
        assert shelf.busy == set(links) and len(rogue.open) == 1
        shelf.release(links.pop(), False)


@in_engine()
def test_visitors_of_a_backend_that_has_left_are_cut_when_its_time_is_over(rig: Rig) -> None:
    with Rogue() as stays, Rogue() as leaves:
        before = (urls(stays.url, leaves.url), STICKY, UNCHECKED, PATIENT)
        begun = time.monotonic_ns()
        with serving(rig, urls(stays.url), *before[1:], before=before) as backends:
            (gone,) = backends.group().leaving
            backends.board.peer(gone.key).removed_since = begun
            shelf = next(each for each in backends.service.pool.shelves if each.target.shown == leaves.url)
            busy, other = taken(shelf), taken(shelf_of(backends))
            rig.until(lambda: not leaves.open and leaves.connections, "it cut")
            assert time.monotonic_ns() >= gone.until_ns >= begun + SECOND
            assert shelf_of(backends).busy == {other}
            shelf.release(busy, False)
            shelf_of(backends).release(other, False)


@in_engine()
def test_the_longest_time_of_its_groups_counts(rig: Rig) -> None:
    own = routes(
        "path: /a, load_balancing: {connection_draining: {timeout: 0s}}",
        "path: /b, load_balancing: {connection_draining: {timeout: 60s}}",
        "path: /c, load_balancing: {connection_draining: {enabled: false}}",
    )
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, own) as backends:
        shelf = shelf_of(backends)
        busy = taken(shelf)
        backends.peer(0).draining_since = time.monotonic_ns()
        settled(rig, 0.6)
        assert shelf.busy == {busy} and len(rogue.open) == 1
        shelf.release(busy, False)


@in_engine()
def test_a_backend_that_takes_no_connections_holds_up_nobodys_end(rig: Rig) -> None:
    draining = "load_balancing.connection_draining.timeout=0s"
    with (
        Unreachable() as unreachable,
        Rogue() as rogue,
        serving(rig, urls(unreachable.url, rogue.url), UNCHECKED, draining, pool("min_idle: 1")) as backends,
    ):
        rig.until(lambda: backends.service.pool.open, "an attempt to connect")
        busy = taken(shelf_of(backends, 1))
        begun = time.monotonic()
        backends.peer(1).draining_since = time.monotonic_ns()
        rig.until(lambda: not rogue.open, "the busy one cut")
        assert time.monotonic() - begun < 3
        shelf_of(backends, 1).release(busy, False)


@in_engine()
def test_nobody_connects_to_a_backend_that_has_left(rig: Rig) -> None:
    with Rogue() as stays, Rogue() as leaves:
        before = (urls(stays.url, leaves.url), STICKY, UNCHECKED)
        now = (urls(stays.url), STICKY, UNCHECKED, pool("min_idle: 1"))
        with serving(rig, *now, before=before) as backends:
            rig.until(lambda: shelf_of(backends).idle, "an idle one")
            settled(rig, 0.6)
            assert len(stays.connections) == 1 and not leaves.connections


@in_engine()
def test_a_round_that_fails_is_not_the_last(rig: Rig) -> None:
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, pool("min_idle: 1")) as backends:
        rig.until(lambda: shelf_of(backends).idle, "an idle one")

        class Failing:
            def __getattr__(self, name: str) -> Any:
                raise RuntimeError("a fault of ours")

        key = next(iter(backends.service._shelves))
        real = backends.service._shelves[key]
        broken: Any = Failing()
        rig.errors_expected = True
        backends.service._shelves[key] = broken
        rig.until(
            lambda: sum("tending the connections" in line for line in rig.records.lines) >= 2, "a fault"
        )
        backends.service._shelves[key] = real
        real.drop_idle()
        rig.until(lambda: real.idle, "an idle one again")


# -- checks -----------------------------------------------------------------------------------------------

CHECKED = (
    "load_balancing.health_check={path: /up, interval: 400ms, timeout: 400ms, unhealthy_threshold: 2,"
    " healthy_threshold: 1}"
)


@in_engine()
def test_backends_are_checked_while_the_worker_serves(rig: Rig) -> None:
    status = ["200 OK"]

    def answer(conversation: Conversation) -> None:
        conversation.send(reply(b"", status=status[0]))

    with Rogue(default=answer) as rogue:
        sets = (urls(rogue.url), CHECKED)
        with serving(rig, *sets) as backends:
            rig.until(lambda: len(rogue.requests) >= 2, "two checks")
            assert {request.target for request in rogue.requests} == {"/up"}
            assert backends.peer(0).state() == "up"
            status[0] = "503 Service Unavailable"
            rig.until(lambda: backends.peer(0).state() == "down", "it down")
            status[0] = "200 OK"
            rig.until(lambda: backends.peer(0).state() != "down", "it up")
            backends.service.stop()
            rig.until(lambda: not rogue.open, "the end of checks")
            before = len(rogue.requests)
            settled(rig, 0.4)
            assert len(rogue.requests) == before


@in_engine()
def test_a_backend_of_several_groups_is_checked_once(rig: Rig) -> None:
    with Rogue() as rogue:
        sets = (urls(rogue.url), CHECKED, routes("path: /a", "path: /b, load_balancing: least_conn"))
        with serving(rig, *sets) as backends:
            assert backends.service._checker is not None
            assert len(backends.service._checker._subjects) == 1
            rig.until(lambda: rogue.requests, "a check")


@in_engine()
def test_without_checks_nobody_asks(rig: Rig) -> None:
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, pool("min_idle: 0")) as backends:
        assert backends.service._checker is None
        settled(rig, 0.4)
        assert not rogue.connections


# -- the clock, and the ends ------------------------------------------------------------------------------


@in_engine()
def test_the_clock_is_fine_enough_for_the_shortest_limit(rig: Rig) -> None:
    coarse = rig.engine.tick_seconds
    backends = made(THREE, UNCHECKED)
    backends.service.need(Patience(10, 20, 30, 1, None))
    backends.service.need(Patience(1, 0.05, 1, 1, 1))
    backends.service.start()
    assert rig.engine.tick_seconds < min(coarse, 0.05)
    backends.service.stop()


@in_engine()
def test_stopping_may_come_twice_and_without_a_start(rig: Rig) -> None:
    backends = made(THREE)
    backends.balancer()
    backends.service.stop()
    backends.service.start()
    checks = backends.service._checks
    assert checks is not None
    backends.service.stop()
    backends.service.stop()
    rig.until(checks.ready, "no checks")


@in_engine()
def test_what_is_under_way_goes_on_when_the_worker_drains(rig: Rig) -> None:
    with Rogue() as rogue, serving(rig, urls(rogue.url), UNCHECKED, pool("min_idle: 0")) as backends:
        link = taken(shelf_of(backends))
        backends.service.stop()
        deadline = time.monotonic_ns() + 5 * SECOND
        link.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", deadline)
        assert link.read_head(False, deadline)[0] == "200 OK"
        shelf_of(backends).release(link, False)


def test_upstreams_of_the_same_key_read_each_others_cookies() -> None:
    first, second = made(THREE, STICKY), made(THREE, STICKY)
    other = made(THREE, STICKY, key=bytes(32))
    lane, cookie = first.balancer().choose({}, 0, True)
    asked = {"HTTP_COOKIE": cookie.partition(";")[0]}
    kept, again = second.balancer().choose(asked, 0, True)
    assert lane is not None and kept is not None
    assert (kept.shown, again) == (lane.shown, "")
    assert other.balancer().choose(asked, 0, True)[1]
