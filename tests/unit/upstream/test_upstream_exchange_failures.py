"""Backends that fail: whose fault it is, whether another may be asked, how long each wait may last."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

import pytest

from acme_wsgi.errors import BackendError
from acme_wsgi.upstream.payload import NOTHING, Payload
from acme_wsgi.upstream.pool import PoolFull
from tests.rogue import Unreachable, reserve
from tests.unit.files.in_loop import until
from tests.unit.upstream.bench import MB, OK, Asked, Bench, Uploading, counted, head, in_chunks, used
from tests.unit.upstream.far import MOMENT, reset, with_reactor

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets


# -- backends that die ------------------------------------------------------------------------------------


@with_reactor
def test_nobody_there() -> None:
    holder, port = reserve()
    bench = Bench(port=port)
    attempt = bench.start()
    assert attempt.error().connecting and bench.verdict() == "unreachable"
    assert not attempt.exchange.stale
    bench.check(idle=0)
    holder.close()


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
@pytest.mark.parametrize("said", [b"", OK, b"HTTP/1.1 100 Continue\r\n\r\n", b"nonsense"])
def test_a_backend_that_dies_before_its_head_is_whole(
    said: bytes, away: Callable[[socket.socket], None]
) -> None:
    bench = Bench()
    attempt, far = bench.heard()
    far.sendall(said)
    away(far)
    error = attempt.error()
    assert (error.status, error.connecting) == (502, False)
    assert error.retriable == (said != b"nonsense")
    assert bench.verdict() == "failed" and not attempt.exchange.stale
    bench.check(idle=0)


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
@pytest.mark.parametrize("form", [counted(b"body")[:-1], in_chunks(b"body")[:-5]])
def test_a_backend_that_dies_amid_its_body(form: bytes, away: Callable[[socket.socket], None]) -> None:
    bench = Bench()
    attempt, far = bench.heard()
    far.sendall(form)
    assert attempt.response.status == "200 OK"
    away(far)
    with pytest.raises(BackendError):
        attempt.body()
    assert bench.verdict() == "failed"
    bench.check(idle=0)
    assert list(attempt.exchange) == []


@with_reactor
def test_a_malformed_body_that_is_here_never_begins() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    far.sendall(in_chunks(b"body")[:-5] + b"bad\n")
    with pytest.raises(BackendError, match="malformed"):
        attempt.body()
    assert bench.verdict() == "failed"
    bench.check(idle=0)


@with_reactor
def test_a_request_that_is_cut_between_two_waits_does_not_wait_for_ever() -> None:
    import gevent

    class Cutting(Uploading):
        def read1(self, size: int) -> bytes:
            piece = super().read1(size)
            if not piece:
                bench.shelf.cut()
            return piece

    bench = Bench()
    attempt, far = bench.heard(Payload(5, None, reader=Cutting(b"12345")), method="POST")
    with gevent.Timeout(5):
        assert attempt.error().status == 502
    assert bench.verdict() == "nothing", "it was not the backend's doing"
    bench.check(idle=0)
    far.close()


# -- connections that were used before --------------------------------------------------------------------


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
def test_an_idle_connection_that_ends_as_it_is_used_says_nothing_about_the_backend(
    away: Callable[[socket.socket], None],
) -> None:
    bench = Bench()
    far = used(bench)
    attempt = bench.start()
    head(far)
    away(far)
    error = attempt.error()
    assert attempt.exchange.stale and error.retriable and bench.verdict() == "nothing"
    bench.check(idle=0)


@with_reactor
def test_nor_does_one_that_ends_before_the_request_has_left() -> None:
    class Meanwhile(Asked):
        @property
        def method(self) -> str:  # type: ignore[override]
            if bench.shelf.busy and far.fileno() >= 0:
                reset(far)
                time.sleep(0.02)  # the loop doesn't see it
            return "GET"

        @method.setter
        def method(self, value: str) -> None:
            pass

    bench = Bench()
    far = used(bench)
    exchange = bench.attempt()
    with pytest.raises(BackendError):
        exchange.run(Meanwhile("GET"), bench.shaper, NOTHING)
    assert exchange.stale and bench.verdict() == "nothing"
    bench.check(idle=0)


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
def test_one_that_ends_when_the_backend_has_been_at_work_does(away: Callable[[socket.socket], None]) -> None:
    import gevent

    bench = Bench()
    far = used(bench)
    attempt = bench.start()
    head(far)
    gevent.sleep(0.3)  # an idle connection that was closed as the request left shows sooner
    away(far)
    error = attempt.error()
    assert not attempt.exchange.stale and error.retriable and bench.verdict() == "failed"
    bench.check(idle=0)


@with_reactor
def test_who_was_taken_out_while_a_request_waited_does_not_get_it() -> None:
    import gevent

    bench = Bench(limit=1)
    first, far = bench.heard()
    waiting = bench.start()
    gevent.sleep(0.01)
    bench.shelf.peer.draining_since = time.monotonic_ns()
    far.sendall(counted(b"done"))
    assert first.body() == b"done"
    error = waiting.error()
    assert (error.status, error.connecting, error.retriable) == (503, True, True)
    until(lambda: not bench.peer()["active"])
    assert bench.peer()["failures"] == bench.peer()["connect_errors"] == 0 and bench.pool.open == 0


@with_reactor
def test_but_once_a_byte_has_come_it_does() -> None:
    bench = Bench()
    far = used(bench)
    attempt = bench.start()
    head(far)
    far.sendall(b"H")
    far.close()
    assert attempt.error().answered and not attempt.exchange.stale
    assert bench.verdict() == "failed"
    bench.check(idle=0)


@with_reactor
def test_a_slow_answer_on_an_idle_connection_is_the_backends_fault() -> None:
    bench = Bench(read=MOMENT)
    far = used(bench)
    attempt = bench.start()
    head(far)
    assert attempt.error().status == 504 and not attempt.exchange.stale
    assert bench.verdict() == "failed"
    far.close()


@with_reactor
def test_a_connection_that_died_a_moment_ago_is_not_used() -> None:
    for away in (reset, socket.socket.close):
        bench = Bench()
        far = used(bench)
        away(far)
        attempt = bench.start(method="POST")
        far = bench.far()
        far.sendall(counted(b"second"))
        assert attempt.body() == b"second" and bench.verdict() == "ok"


# -- the limit of each wait -------------------------------------------------------------------------------


@with_reactor
def test_each_wait_has_its_limit() -> None:
    cases: list[tuple[bytes, bool]] = [(b"", True), (OK, True), (counted(b"body")[:-1], False)]
    for said, before in cases:
        bench = Bench(read=MOMENT)
        began = time.monotonic()
        attempt = bench.start()
        far = bench.far()
        far.sendall(said)
        if before:
            error = attempt.error()
        else:
            with pytest.raises(BackendError) as caught:
                attempt.body()
            error = caught.value
        assert (error.status, error.retriable) == (504, False)
        assert MOMENT <= time.monotonic() - began < 50 * MOMENT
        assert bench.verdict() == "failed"
        bench.check(idle=0)


@with_reactor
def test_a_backend_that_takes_nothing() -> None:
    bench = Bench(write=MOMENT, buffers=8192)
    attempt = bench.start(Payload(20 * MB, None, reader=Uploading(bytes(20 * MB))), method="POST")
    far = bench.far()
    assert attempt.error().status == 504 and bench.verdict() == "failed"
    bench.check(idle=0)
    far.close()


@with_reactor
def test_a_full_pool_is_not_the_backends_fault() -> None:
    bench = Bench(1, queue=MOMENT)
    first, far = bench.heard()
    assert isinstance(bench.start().outcome, PoolFull)
    assert bench.peer()["active"] == 1 and bench.peer()["failures"] == 0
    far.sendall(counted(b"first"))
    assert first.body() == b"first"


# -- the limit of the whole -------------------------------------------------------------------------------


@with_reactor
def test_the_limit_of_the_whole_is_one_of_each_wait() -> None:
    bench = Bench(1, total=MOMENT)
    began = time.monotonic()
    attempt = bench.start()
    far = bench.far()
    queued = bench.start()
    assert attempt.error().status == 504 and MOMENT <= time.monotonic() - began < 50 * MOMENT
    assert far.recv(1) == b"G"
    assert isinstance(queued.outcome, PoolFull | BackendError)
    bench.check(idle=0)


@with_reactor
def test_it_is_one_of_connecting_too() -> None:
    with Unreachable() as unreachable:
        bench = Bench(port=unreachable.port, total=MOMENT)
        began = time.monotonic()
        error = bench.start().error()
        assert MOMENT <= time.monotonic() - began < 50 * MOMENT
        assert error.status == 504 and error.connecting and bench.verdict() == "unreachable"
        bench.check(idle=0)
        # And of the attempt after it.
        began = time.monotonic()
        attempt = bench.start(until_ns=time.monotonic_ns() + int(MOMENT * 1e9))
        assert attempt.error().status == 504 and time.monotonic() - began < 50 * MOMENT


@with_reactor
def test_it_is_one_of_a_body_that_comes_for_ever() -> None:
    import gevent

    bench = Bench(total=3 * MOMENT)
    attempt = bench.start()
    far = bench.far()
    far.sendall(in_chunks()[:-5])

    def drip() -> None:
        with contextlib.suppress(OSError):
            while True:
                far.sendall(b"1\r\nx\r\n")
                gevent.sleep(MOMENT / 10)

    dripping = gevent.spawn(drip)
    began = time.monotonic()
    with pytest.raises(BackendError) as caught:
        attempt.body()
    assert caught.value.status == 504 and time.monotonic() - began < 50 * MOMENT
    assert bench.verdict() == "failed"
    dripping.kill()
    bench.check(idle=0)


@with_reactor
def test_it_is_handed_on_to_the_next_attempt() -> None:
    bench = Bench(total=5.0)
    first = bench.attempt()
    assert 4 < (first.until_ns - time.monotonic_ns()) / 1e9 <= 5
    assert bench.attempt(until_ns=first.until_ns).until_ns == first.until_ns
    assert Bench().attempt().until_ns == 0
