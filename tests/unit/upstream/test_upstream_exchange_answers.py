"""An answer of a backend: which head goes ahead of its body, where it ends, what the board hears of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from acme_wsgi.errors import BackendError
from acme_wsgi.http.writer import Tunnel
from acme_wsgi.upstream.exchange import Exchange
from acme_wsgi.upstream.payload import Payload
from tests.unit.upstream.bench import OK, Bench, Verdict, counted, head, in_chunks
from tests.unit.upstream.far import reset, to_end, was_read, with_reactor

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets


# -- whole answers ----------------------------------------------------------------------------------------


@with_reactor
def test_an_answer_that_is_here_gives_its_connection_back_before_anybody_sees_it() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    assert head(far).startswith(b"GET / HTTP/1.1\r\nHost: a\r\n")
    far.sendall(counted(b"hello", b"201 Made"))
    assert (attempt.response.status, attempt.response.body) == ("201 Made", b"hello")
    bench.check(idle=1)
    assert bench.verdict() == "ok"


@with_reactor
@pytest.mark.parametrize("form", [counted(b"a body"), in_chunks(b"a bo", b"dy"), counted(b""), in_chunks()])
def test_an_answer_may_be_cut_anywhere(form: bytes) -> None:
    bench = Bench(unix=True)
    attempt = bench.start()
    far = bench.far()
    for cut in range(1, len(form)):
        head(far)
        far.sendall(form[:cut])
        was_read(far)
        far.sendall(form[cut:])
        assert attempt.body() == (b"a body" if b"bo" in form else b""), cut
        assert bench.verdict() == "ok"
        bench.check(idle=1)
        attempt = bench.start()
    far.close()


@with_reactor
def test_a_body_until_the_end_may_be_cut_anywhere() -> None:
    form = OK + b"\r\na body"
    bench = Bench(unix=True)
    for cut in range(1, len(form) + 1):
        attempt, far = bench.heard()
        far.sendall(form[:cut])
        was_read(far)
        far.sendall(form[cut:])
        far.close()
        assert attempt.body() == b"a body" and bench.verdict() == "ok"
        bench.check(idle=0)


@with_reactor
def test_a_head_request_has_no_body_to_wait_for() -> None:
    bench = Bench()
    attempt = bench.start(method="HEAD")
    far = bench.far()
    far.sendall(counted(b"12345")[:-5])
    assert attempt.response.body == b"" and ("Content-Length", "5") in attempt.response.headers
    assert bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
@pytest.mark.parametrize(
    ("form", "idle"),
    [
        (counted(b"body"), 1),
        (counted(b"body") + b"H", 0),
        (in_chunks(b"body") + b"H", 0),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody", 0),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", 0),
    ],
)
def test_a_connection_rests_after_exactly_one_message(form: bytes, idle: int) -> None:
    bench = Bench(unix=True)
    attempt = bench.start()
    far = bench.far()
    far.sendall(form)
    assert attempt.body() == b"body" and bench.verdict() == "ok"
    bench.check(idle=idle)


# -- heads that go ahead ----------------------------------------------------------------------------------


@with_reactor
def test_the_head_goes_ahead_of_a_body_that_is_long_in_coming() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    far.sendall(in_chunks(b"x")[:-11])
    body: Any = attempt.response.body
    assert body is attempt.exchange and next(body) == b"" and attempt.response.buffer > 0
    far.sendall(b"1\r\nx\r\n")
    assert next(body) == b"x"
    far.sendall(b"0\r\n\r\n")
    assert list(body) == [] and list(body) == []
    assert bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
@pytest.mark.parametrize("length", [65536, 65537])
def test_the_head_goes_ahead_of_a_long_body(length: int) -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    body = bytes(length)
    far.sendall(counted(body)[:-1])
    if length > 65536:
        assert isinstance(attempt.response.body, Exchange)
    far.sendall(b"\0")
    if length <= 65536:
        assert isinstance(attempt.response.body, bytes)
    assert attempt.body() == body
    bench.check(idle=1)


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
@pytest.mark.parametrize("missing", [1, 4])
def test_the_head_waits_for_a_short_body_and_may_be_taken_back(
    missing: int, away: Callable[[socket.socket], None]
) -> None:
    """As long as nothing has left for the client, another backend can be asked."""
    import gevent

    bench = Bench()
    form = counted(b"body")
    attempt, far = bench.heard()
    for whole in (True, False):
        far.sendall(form[:-missing])
        gevent.sleep(0.01)
        assert not attempt.greenlet.ready()
        if whole:
            far.sendall(form[-missing:])
            assert attempt.response.body == b"body" and bench.verdict() == "ok"
            bench.check(idle=1)
            attempt = bench.start()
            head(far)
    away(far)
    error = attempt.error()
    assert (error.status, error.retriable, error.answered) == (502, True, True)
    assert bench.verdict() == "failed"
    bench.check(idle=0)


@with_reactor
def test_a_stream_gives_its_connection_back_with_its_last_byte() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    far.sendall(counted(b"12345")[:-1])
    body: Any = attempt.response.body
    assert next(body) == b"1234"
    far.sendall(b"5")
    assert next(body) == b"5"
    bench.check(idle=1)  # though nobody has asked for more yet
    assert attempt.response.close is not None
    attempt.response.close()
    assert bench.verdict() == "ok" and list(body) == []
    bench.check(idle=1)


# -- what they say of a backend ---------------------------------------------------------------------------


@with_reactor
@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize(
    ("status", "verdict"),
    [(b"200 OK", "ok"), (b"404 Not Found", "ok"), (b"500 Oops", "failed"), (b"503 Busy", "failed"),
     (b"501 What", "ok"), (b"505 Which", "ok")],
)  # fmt: skip
def test_some_answers_say_that_a_backend_is_not_well(status: bytes, verdict: Verdict, cut: int) -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    form = counted(b"body", status)
    far.sendall(form[: len(form) - cut])
    assert attempt.response.status.encode() == status
    far.sendall(form[len(form) - cut :])
    assert attempt.body() == b"body" and bench.verdict() == verdict
    bench.check(idle=1)


@with_reactor
def test_it_is_not_well_either_when_nobody_waits_for_the_end_of_what_it_says() -> None:
    for status, verdict in ((b"500 Oops", "failed"), (b"200 OK", "ok")):
        bench = Bench()
        attempt = bench.start()
        far = bench.far()
        far.sendall(counted(b"body", status)[:-1])
        assert attempt.response.close is not None
        attempt.response.close()
        assert bench.verdict() == verdict
        bench.check(idle=0)


@with_reactor
def test_a_response_that_lasts_is_judged_when_it_begins() -> None:
    """How long a stream goes on says nothing about the backend, and its circuit must not wait for the end."""
    bench = Bench()
    attempt, far = bench.heard()
    far.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
    assert next(iter(attempt.response.body)) is not None
    begun = bench.peer()
    assert begun["active"] == 1 and begun["latency_sum_ns"] and not begun["failures"]
    far.close()
    with pytest.raises(BackendError):
        list(attempt.response.body)
    ended = bench.peer()
    assert ended["active"] == 0 and ended["failures"] == 1, "it broke off"
    assert ended["latency_sum_ns"] == begun["latency_sum_ns"]


# -- interim responses ------------------------------------------------------------------------------------


@with_reactor
def test_interim_responses_go_on_to_the_client_but_for_100() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    for interim in (
        b"103 Early Hints\r\nLink: </a>",
        b"100 Continue",
        b"102 Processing\r\nConnection: x\r\nX: y",
    ):
        far.sendall(b"HTTP/1.1 " + interim + b"\r\n\r\n")
    far.sendall(counted(b"body"))
    assert attempt.body() == b"body"
    assert attempt.request.interims == [(103, [("Link", "</a>")]), (102, [])]
    bench.check(idle=1)


@with_reactor
def test_there_may_not_be_any_number_of_them() -> None:
    for number in (32, 33):
        bench = Bench()
        attempt = bench.start()
        far = bench.far()
        far.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * number + counted(b"body"))
        if number == 32:
            assert attempt.body() == b"body" and bench.verdict() == "ok"
        else:
            assert "too many interim" in str(attempt.error()) and bench.verdict() == "failed"
            bench.check(idle=0)


# -- other protocols --------------------------------------------------------------------------------------

SWITCHING = b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX: y\r\n\r\n"


@with_reactor
def test_a_switch_that_was_asked_for_is_a_tunnel() -> None:
    bench = Bench()
    attempt = bench.start(Payload(upgrade=True, tunnel_idle=3.0))
    far = bench.far()
    assert b"Upgrade: echo\r\n" in head(far)
    far.sendall(SWITCHING + b"its first bytes")
    response = attempt.response
    tunnel: Any = response.body
    assert isinstance(tunnel, Tunnel) and (tunnel.first, tunnel.idle_seconds) == (b"its first bytes", 3.0)
    assert response.headers == [("X", "y"), ("Connection", "Upgrade"), ("Upgrade", "echo")]
    assert bench.peer()["active"] == 1 == bench.pool.open
    assert response.close is not None
    response.close()
    assert bench.verdict() == "ok" and to_end(far) == b""
    bench.check(idle=0)


@with_reactor
def test_one_that_nobody_asked_for_is_nonsense() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    far.sendall(SWITCHING)
    assert "without having been asked" in str(attempt.error()) and bench.verdict() == "failed"
    bench.check(idle=0)
