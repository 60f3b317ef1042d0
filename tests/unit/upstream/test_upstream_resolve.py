"""Where a backend's name leads. The clock is the test's own; the loop is gevent's, in a child."""

from __future__ import annotations

import logging
import socket
import threading
import time

import gevent
import pytest
from gevent.event import Event

from acme_wsgi.upstream import resolve
from acme_wsgi.upstream.resolve import Address, Resolver
from tests.unit.files.in_loop import in_loop, until

A, B, C = ((int(socket.AF_INET), (f"192.0.2.{number}", 80)) for number in (1, 2, 3))
V6 = (int(socket.AF_INET6), ("2001:db8::1", 80, 0, 0))


class Names:
    """A name server, and a clock that stands still unless it is moved."""

    def __init__(self, *answer: Address) -> None:
        self.answer: list[Address] | OSError = list(answer)
        self.asked = 0
        self.now = 1000.0
        self.open = Event()
        self.open.set()
        self.resolver = Resolver("app1.internal", 80, look_up=self.look_up, clock=lambda: self.now)

    def look_up(self, host: str, port: int) -> list[Address]:
        assert (host, port) == ("app1.internal", 80)
        self.asked += 1
        self.open.wait()
        if isinstance(self.answer, OSError):
            raise self.answer
        return list(self.answer)

    def addresses(self) -> list[Address]:
        return self.resolver.addresses(5.0)

    def settle(self) -> None:
        """Let the look-up that runs in the background end."""
        until(lambda: self.resolver._pending is None)


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        resolve.log.addHandler(self)
        resolve.log.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def gone() -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@in_loop
def test_the_first_call_waits_and_later_ones_get_what_is_known() -> None:
    names = Names(A)
    assert names.addresses() == [A]
    names.open.clear()
    names.now += resolve.REFRESH - 0.1
    assert names.addresses() == [A]
    assert names.asked == 1


@in_loop
def test_concurrent_first_calls_share_one_look_up() -> None:
    names = Names(A)
    names.open.clear()
    callers = [gevent.spawn(names.addresses) for _ in range(20)]
    until(lambda: names.asked)
    gevent.sleep(0)
    names.open.set()
    assert [caller.get(timeout=5) for caller in callers] == [[A]] * 20
    assert names.asked == 1


@in_loop
def test_an_old_answer_is_refreshed_behind_the_callers_back() -> None:
    names = Names(A)
    names.addresses()
    names.answer = [B]
    names.open.clear()
    names.now += resolve.REFRESH
    assert [names.addresses() for _ in range(5)] == [[A]] * 5
    until(lambda: names.asked == 2)
    names.open.set()
    names.settle()
    assert names.addresses() == [B]
    assert names.asked == 2


@in_loop
def test_a_failed_connect_has_the_name_looked_up_again_but_not_more_than_once_a_second() -> None:
    names = Names(A)
    names.addresses()
    for _ in range(3):
        names.resolver.failed(A)
        assert names.addresses() == [A]
    names.settle()
    assert names.asked == 1
    names.now += resolve.RECHECK
    names.answer = [B]
    assert names.addresses() == [A]
    names.settle()
    assert names.addresses() == [B]
    names.now += resolve.RECHECK
    names.addresses()
    names.settle()
    assert names.asked == 2


@in_loop
def test_addresses_stay_in_use_while_their_name_cant_be_looked_up() -> None:
    said = Lines()
    names = Names(A)
    names.addresses()
    names.answer = gone()
    for _ in range(4):
        names.now += resolve.REFRESH
        assert names.addresses() == [A]
        names.settle()
    assert names.asked == 5
    names.addresses()
    names.now += resolve.RETRY - 0.1
    names.addresses()
    names.settle()
    assert names.asked == 5
    warning = "backend host app1.internal: Name or service not known; its last addresses stay in use"
    assert said.lines == [warning]
    names.answer = [B]
    names.now += resolve.RETRY
    names.addresses()
    names.settle()
    assert names.addresses() == [B]
    assert said.lines == [warning, "backend host app1.internal is known again"]


@in_loop
def test_what_is_known_is_looked_up_again_for_who_makes_no_connections() -> None:
    names = Names(A)
    names.resolver.refresh()
    assert names.asked == 0, "nobody has asked for it yet"
    names.addresses()
    names.now += resolve.REFRESH - 0.1
    names.resolver.refresh()
    names.settle()
    assert names.asked == 1
    names.now += 0.1
    names.open.clear()
    for _ in range(3):
        names.resolver.refresh()
    until(lambda: names.asked == 2)
    names.open.set()
    names.settle()
    assert names.asked == 2


def answered(names: Names, *answer: Address, after: float = resolve.REFRESH) -> frozenset[Address]:
    """Where connections may lead after the next look-up."""
    names.now += after
    names.answer = list(answer)
    names.resolver.refresh()
    names.settle()
    return names.resolver.current


@in_loop
def test_an_address_is_gone_when_the_answers_of_half_a_minute_were_without_it() -> None:
    names = Names(A)
    assert names.resolver.current == frozenset()
    names.addresses()
    assert names.resolver.current == {A}
    assert answered(names, B) == {A, B}
    assert names.addresses() == [B], "new connections follow at once"
    assert answered(names, B) == {B}


@in_loop
def test_answers_in_quick_succession_do_not_make_an_address_gone_sooner() -> None:
    names = Names(A)
    names.addresses()
    assert answered(names, B) == {A, B}
    for _ in range(3):
        names.resolver.failed(B)
        assert answered(names, B, after=resolve.RECHECK) == {A, B}
    assert names.asked == 5
    assert answered(names, B) == {B}


@in_loop
def test_answers_that_tell_some_of_many_addresses_in_turn_make_none_of_them_gone() -> None:
    names = Names(A)
    names.addresses()
    assert answered(names, B) == {A, B}
    for answer in ([A], [B]) * 3:
        assert answered(names, *answer) == {A, B}
    assert answered(names, C) == {A, B, C} - {A}


@in_loop
def test_while_a_name_cant_be_looked_up_nothing_is_gone() -> None:
    names = Names(A)
    names.addresses()
    assert answered(names, B) == {A, B}
    for _ in range(3):
        names.answer = gone()
        names.now += resolve.REFRESH
        names.resolver.refresh()
        names.settle()
    assert names.asked == 5 and names.resolver.current == {A, B}


@in_loop
def test_one_address_too_many_is_not_gone_as_long_as_it_is_named() -> None:
    many = [(int(socket.AF_INET), (f"10.0.0.{number}", 80)) for number in range(resolve.MAX_ADDRESSES)]
    names = Names(A)
    names.addresses()
    for _ in range(3):
        assert answered(names, *many, A) == {A, *many}
    assert A not in names.addresses()
    answered(names, *many)
    assert answered(names, *many) == set(many)


@in_loop
def test_a_name_that_leads_nowhere_is_an_error_for_everybody_who_waits() -> None:
    said = Lines()
    names = Names()
    names.answer = gone()
    names.open.clear()
    callers = [gevent.spawn(_error_of, names) for _ in range(3)]
    until(lambda: names.asked)
    names.open.set()
    errors = [caller.get(timeout=5) for caller in callers]
    assert [type(error) for error in errors] == [socket.gaierror] * 3
    assert {error.args for error in errors} == {gone().args}
    assert len({id(error) for error in errors}) == 3
    assert said.lines == ["backend host app1.internal: Name or service not known"]


@in_loop
def test_a_name_that_leads_nowhere_is_asked_for_once_a_second() -> None:
    names = Names()
    for _ in range(3):
        assert isinstance(_error_of(names), socket.gaierror)
    assert names.asked == 1
    names.now += resolve.RECHECK
    names.answer = [A]
    assert names.addresses() == [A]


@in_loop
def test_the_first_look_up_may_take_as_long_as_its_caller_has() -> None:
    names = Names(A)
    names.open.clear()
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"the look-up of app1\.internal took longer than 0\.02 s"):
        names.resolver.addresses(0.02)
    assert time.monotonic() - begun < 5
    with pytest.raises(TimeoutError):
        names.resolver.addresses(-1.0)
    patient = gevent.spawn(names.addresses)
    gevent.sleep(0)
    names.open.set()
    assert patient.get(timeout=5) == [A]
    assert names.asked == 1


@in_loop
def test_a_caller_that_is_killed_leaves_the_look_up_to_the_others() -> None:
    names = Names(A)
    names.open.clear()
    first = gevent.spawn(names.addresses)
    second = gevent.spawn(names.addresses)
    until(lambda: names.asked)
    first.kill()
    names.open.set()
    assert second.get(timeout=5) == [A]


@in_loop
def test_addresses_share_the_load() -> None:
    names = Names(A, B, C)
    calls = [names.addresses() for _ in range(6)]
    assert all(sorted(call) == [A, B, C] for call in calls)
    assert sorted(call[0] for call in calls) == [A, A, B, B, C, C]


@in_loop
def test_the_family_that_the_system_prefers_goes_first() -> None:
    names = Names(V6, A, B)
    calls = [names.addresses() for _ in range(4)]
    assert all(call[0] == V6 for call in calls)
    assert sorted(call[1] for call in calls) == [A, A, B, B]


@in_loop
def test_a_dead_address_is_tried_last_for_a_while() -> None:
    names = Names(A, B, C)
    names.addresses()
    names.resolver.failed(B)
    assert all(names.addresses()[2] == B for _ in range(6))
    names.settle()
    names.now += resolve.AVOID
    assert B in [names.addresses()[0] for _ in range(3)]


@in_loop
def test_a_dead_address_of_the_preferred_family_goes_behind_the_other_family() -> None:
    names = Names(V6, A)
    names.addresses()
    names.resolver.failed(V6)
    assert names.addresses() == [A, V6]


@in_loop
def test_when_all_are_dead_all_are_tried() -> None:
    names = Names(A, B)
    names.addresses()
    for address in (A, B, C):
        names.resolver.failed(address)
    assert sorted(names.addresses()) == [A, B]


@in_loop
def test_addresses_are_bounded_and_named_once() -> None:
    many = [(int(socket.AF_INET), (f"10.0.{number // 250}.{number % 250}", 80)) for number in range(1000)]
    names = Names(*many[:1] * 3, *many)
    assert len(names.addresses()) == resolve.MAX_ADDRESSES
    assert len(set(names.addresses())) == resolve.MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", (int(socket.AF_INET), ("192.0.2.1", 81))),
        ("2001:db8::1", (int(socket.AF_INET6), ("2001:db8::1", 81, 0, 0))),
    ],
)
def test_a_literal_address_is_never_looked_up(host: str, expected: Address) -> None:
    def look_up(host: str, port: int) -> list[Address]:
        raise AssertionError("looked up")

    resolver = Resolver(host, 81, look_up=look_up)
    for _ in range(3):
        assert resolver.addresses(0.0) == [expected]
        resolver.failed(expected)
        resolver.refresh()
    assert resolver.current == {expected}


@in_loop
def test_the_systems_own_names() -> None:
    found = Resolver("localhost", 8000).addresses(5.0)
    assert (int(socket.AF_INET), ("127.0.0.1", 8000)) in found


@in_loop
def test_the_systems_own_error() -> None:
    said = Lines()
    for host in ("name.invalid", "a..b", "x" * 64 + ".invalid"):
        with pytest.raises(socket.gaierror):
            Resolver(host, 80).addresses(20.0)
    assert len(said.lines) == 3


@in_loop
def test_a_slow_name_server_keeps_neither_the_loop_nor_the_io_threads_waiting() -> None:
    from acme_wsgi import iothreads

    gevent.get_hub().threadpool.maxsize = 1
    answered = threading.Event()
    asked: list[str] = []

    def slow(host: str, port: int, flags: int) -> list[Address]:
        asked.append(host)
        answered.wait(10)
        return [A]

    resolvers = [Resolver(f"{number}.invalid", 80) for number in range(resolve.THREADS + 1)]
    resolve._getaddrinfo = slow
    callers = [gevent.spawn(resolver.addresses, 5.0) for resolver in resolvers]
    until(lambda: len(asked) == resolve.THREADS)
    assert iothreads.run(lambda: "read") == "read"
    assert not any(caller.ready() for caller in callers)
    answered.set()
    assert [caller.get(timeout=5) for caller in callers] == [[A]] * len(resolvers)


def _error_of(names: Names) -> OSError | None:
    try:
        names.addresses()
    except OSError as error:
        return error
    return None
