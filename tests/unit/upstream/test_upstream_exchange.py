"""One attempt at one backend: what comes of it, what the board hears, what becomes of the connection."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acme_wsgi.config.schema.routes import RouteHeaders
from acme_wsgi.config.schema.server import ConnectionPool
from acme_wsgi.errors import BackendError, BodyError, ClientDisconnected
from acme_wsgi.http.writer import Response, Tunnel
from acme_wsgi.upstream.board import ROUND_ROBIN, Board
from acme_wsgi.upstream.exchange import Exchange, Lane, Patience
from acme_wsgi.upstream.payload import NOTHING, Payload
from acme_wsgi.upstream.pool import Pool, PoolFull, Shelf
from acme_wsgi.upstream.resolve import Resolver
from acme_wsgi.upstream.shape import CHUNKED, Shaper
from acme_wsgi.upstream.target import Target
from tests.rogue import Unreachable, reserve
from tests.unit.engine_harness import body_of
from tests.unit.files.in_loop import until
from tests.unit.upstream.backends import enrolled, key
from tests.unit.upstream.far import (
    MOMENT,
    accepted,
    exactly,
    listening,
    reset,
    to_end,
    was_read,
    with_reactor,
)

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets

OK = b"HTTP/1.1 200 OK\r\n"
MB = 1 << 20

Verdict = str
"""What the board heard: ok, failed, unreachable or nothing."""


class Asked:
    """A request, as far as an exchange knows one."""

    method = "GET"
    request_id = "id"

    def __init__(self, method: str = "GET") -> None:
        self.method = method
        self.environ = {
            "REQUEST_URI": "/", "PATH_INFO": "/", "QUERY_STRING": "", "HTTP_HOST": "a",
            "REMOTE_ADDR": "192.0.2.1", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http",
            "HTTP_UPGRADE": "echo",
        }  # fmt: skip
        self.on_leave: Callable[[], object] = lambda: None
        self.interims: list[tuple[int, list[tuple[str, str]]]] = []

    def interim(self, status: int, fields: Iterable[tuple[str, str]]) -> None:
        """As the engine's."""
        if status == 101:
            raise ValueError("status 101 is not one of an interim response")
        self.interims.append((status, list(fields)))


class Uploading:
    """A body that comes piece by piece; an exception among the pieces is raised."""

    def __init__(self, *pieces: bytes | BaseException) -> None:
        self.pieces = iter(pieces)
        self.given = 0

    def read(self, size: int) -> bytes:
        raise NotImplementedError

    def read1(self, size: int) -> bytes:
        import gevent

        gevent.sleep(0)
        piece = next(self.pieces, b"")
        if isinstance(piece, BaseException):
            raise piece
        self.given += len(piece)
        return piece


class Bench:
    """A backend of the test's own, and what the board says of it.

    :param waits: seconds, by name: connect, read, write, queue, total
    """

    def __init__(
        self, limit: int = 5, *, unix: bool = False, port: int = 0, buffers: int = 0, **waits: float | None
    ) -> None:
        self.listener = listening(family=socket.AF_UNIX if unix else socket.AF_INET, buffers=buffers)
        self.board = Board(1)
        (peer,) = enrolled(self.board, 1, 1000)
        group = self.board.group(key(1), ROUND_ROBIN, [(peer, 1)])
        self.pool = Pool(ConnectionPool(max_per_worker=limit), 0)
        name = self.listener.getsockname()
        port = port or (0 if unix else name[1])
        target = Target.parse(f"unix:{name}" if unix else f"http://127.0.0.1:{port}")
        resolver = None if unix else Resolver("127.0.0.1", port)
        self.shelf = Shelf(self.pool, peer, target, resolver, None)
        self.lane = Lane(group, 0, self.shelf, "backend")
        self.patience = Patience(**{"connect": 5, "read": 5, "write": 5, "queue": 5, "total": None, **waits})  # type: ignore[arg-type]
        self.shaper = Shaper(RouteHeaders(), None, True)
        self.seen = self.peer()

    def peer(self) -> dict[str, Any]:
        return dict(self.board.describe()[0])

    def attempt(self, *, until_ns: int = 0) -> Exchange:
        return Exchange(self.lane, self.patience, until_ns)

    def start(self, payload: Payload = NOTHING, **options: Any) -> Attempt:
        """An attempt in a greenlet, whose request is on its way to the backend or waits."""
        return Attempt(self, payload, **options)

    def far(self) -> socket.socket:
        """The backend's end of the next connection."""
        return accepted(self.listener)

    def verdict(self) -> Verdict:
        """What the board has heard since the last time, of one attempt; it is under way no more."""
        until(lambda: not self.peer()["active"])
        before, self.seen = self.seen, self.peer()
        changed = {
            name: self.seen[name] - before[name] for name in before if isinstance(before[name], int | float)
        }
        assert changed["requests"] == 1
        if changed["connect_errors"]:
            assert changed["failures"] in (0, 1) and not changed["latency_sum_ns"]
            return "unreachable"
        if changed["failures"]:
            assert changed["failures"] == 1 and changed["latency_sum_ns"]
            return "failed"
        return "ok" if changed["latency_sum_ns"] else "nothing"

    def check(self, idle: int) -> None:
        """Nothing is under way; so many connections are idle, and every one is counted once."""
        assert (len(self.shelf.busy), len(self.shelf.idle)) == (0, idle)
        assert self.pool.open == idle == self.peer()["connections"]
        assert self.peer()["active"] == 0


class Attempt:
    """One exchange at work in a greenlet."""

    def __init__(
        self, bench: Bench, payload: Payload, *, method: str = "GET", until_ns: int = 0, **options: bool
    ) -> None:
        import gevent

        self.bench = bench
        self.request = Asked(method)
        self.exchange = bench.attempt(until_ns=until_ns)
        self.greenlet = gevent.spawn(self._run, payload, options)
        gevent.sleep(0)

    def _run(self, payload: Payload, options: dict[str, bool]) -> object:
        try:
            return self.exchange.run(self.request, self.bench.shaper, payload, options.get("fresh", False))
        except Exception as error:  # noqa: BLE001
            return error

    @property
    def outcome(self) -> Any:
        return self.greenlet.get(timeout=5)

    @property
    def response(self) -> Response:
        outcome = self.outcome
        assert isinstance(outcome, Response), outcome
        return outcome

    def error(self) -> BackendError:
        outcome = self.outcome
        assert isinstance(outcome, BackendError), outcome
        return outcome

    def body(self) -> bytes:
        """The whole body; `close` is called as the engine does."""
        body: Any = self.response.body
        try:
            return body if isinstance(body, bytes) else b"".join(body)
        finally:
            if self.response.close is not None:
                self.response.close()


def head(far: socket.socket) -> bytes:
    """A request's head."""
    seen = b""
    while not seen.endswith(b"\r\n\r\n"):
        byte = far.recv(1)
        assert byte, seen
        seen += byte
    return seen


def counted(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def in_chunks(*pieces: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


# -- answers ----------------------------------------------------------------------------------------------


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
        attempt = bench.start()
        far = bench.far()
        head(far)
        far.sendall(form[:cut])
        was_read(far)
        far.sendall(form[cut:])
        far.close()
        assert attempt.body() == b"a body" and bench.verdict() == "ok"
        bench.check(idle=0)


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


# -- failures ---------------------------------------------------------------------------------------------


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
    attempt = bench.start()
    far = bench.far()
    head(far)
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
    attempt = bench.start()
    far = bench.far()
    head(far)
    far.sendall(form)
    assert attempt.response.status == "200 OK"
    away(far)
    with pytest.raises(BackendError):
        attempt.body()
    assert bench.verdict() == "failed"
    bench.check(idle=0)
    assert list(attempt.exchange) == []


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
    for whole in (True, False):
        attempt = bench.start()
        far = bench.far() if whole else far
        head(far)
        far.sendall(form[:-missing])
        gevent.sleep(0.01)
        assert not attempt.greenlet.ready()
        if whole:
            far.sendall(form[-missing:])
            assert attempt.response.body == b"body" and bench.verdict() == "ok"
            bench.check(idle=1)
    away(far)
    error = attempt.error()
    assert (error.status, error.retriable, error.answered) == (502, True, True)
    assert bench.verdict() == "failed"
    bench.check(idle=0)


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
def test_a_malformed_body_that_is_here_never_begins() -> None:
    bench = Bench()
    attempt = bench.start()
    bench.far().sendall(in_chunks(b"body")[:-5] + b"bad\n")
    with pytest.raises(BackendError, match="malformed"):
        attempt.body()
    assert bench.verdict() == "failed"
    bench.check(idle=0)


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
        assert MOMENT <= time.monotonic() - began < 10 * MOMENT
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


def used(bench: Bench) -> socket.socket:
    """The backend's end of an idle connection that was used once."""
    attempt = bench.start()
    far = bench.far()
    head(far)
    far.sendall(counted(b"first"))
    assert attempt.body() == b"first" and bench.verdict() == "ok"
    return far


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


# -- the client leaves ------------------------------------------------------------------------------------


@with_reactor
def test_a_client_that_leaves_in_the_queue_is_not_sent() -> None:
    bench = Bench(1)
    first = bench.start()
    far = bench.far()
    head(far)
    second, third = bench.start(), bench.start()
    second.request.on_leave()
    far.sendall(counted(b"first"))
    assert first.body() == b"first" and isinstance(second.outcome, ClientDisconnected)
    head(far)  # the third's: who has left stands in nobody's way
    far.sendall(counted(b"third"))
    assert third.body() == b"third"
    until(lambda: not bench.peer()["active"])
    peer = bench.peer()
    assert (peer["requests"], peer["failures"]) == (3, 0)
    bench.check(idle=1)


@with_reactor
def test_a_client_that_leaves_while_a_connection_is_made_is_not_sent() -> None:
    with Unreachable() as unreachable:
        bench = Bench(port=unreachable.port, connect=MOMENT)
        attempt = bench.start()
        attempt.request.on_leave()
        assert isinstance(attempt.outcome, ClientDisconnected)
    assert bench.verdict() == "nothing"
    bench.check(idle=0)


@with_reactor
@pytest.mark.parametrize("said", [b"", OK, b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_client_that_leaves_before_the_head_ends_the_request(said: bytes) -> None:
    bench = Bench(unix=True)
    attempt = bench.start()
    far = bench.far()
    head(far)
    far.sendall(said)
    was_read(far)
    attempt.request.on_leave()
    assert to_end(far) == b""
    assert isinstance(attempt.outcome, ClientDisconnected) and bench.verdict() == "nothing"
    bench.check(idle=0)


@with_reactor
@pytest.mark.parametrize("form", [counted(b"body")[:-1], in_chunks(b"body")[:-5], OK + b"\r\nbody"])
@pytest.mark.parametrize("reading", [True, False])
def test_a_client_that_leaves_amid_the_body_ends_the_request(form: bytes, reading: bool) -> None:
    import gevent

    bench = Bench(unix=True)
    attempt = bench.start()
    far = bench.far()
    head(far)
    far.sendall(form)
    body: Any = attempt.response.body
    next(body)
    was_read(far)
    if reading:
        waiter = gevent.spawn(pytest.raises, ClientDisconnected, lambda: list(body))
        gevent.sleep(0)
        attempt.request.on_leave()
        waiter.get(timeout=5)
    else:
        attempt.request.on_leave()
        with gevent.Timeout(5), pytest.raises(ClientDisconnected):
            list(body)
    assert attempt.response.close is not None
    attempt.response.close()
    assert to_end(far) == b"" and bench.verdict() == "ok", "the backend had answered"
    bench.check(idle=0)


@with_reactor
def test_a_response_that_lasts_is_judged_when_it_begins() -> None:
    """How long a stream goes on says nothing about the backend, and its circuit must not wait for the end."""
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    head(far)
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


@with_reactor
def test_a_client_that_leaves_while_it_uploads_ends_the_request() -> None:
    bench = Bench(buffers=8192)
    for payload in (
        Payload(20 * MB, None, reader=Uploading(bytes(20 * MB))),
        Payload(CHUNKED, None, first=bytes(20 * MB), reader=Uploading()),
    ):
        attempt = bench.start(payload, method="POST")
        far = bench.far()
        head(far)
        attempt.request.on_leave()
        assert isinstance(attempt.outcome, ClientDisconnected) and bench.verdict() == "nothing"
        bench.check(idle=0)


@with_reactor
@pytest.mark.parametrize("error", [BodyError("cut"), ClientDisconnected("gone")])
@pytest.mark.parametrize("length", [10, CHUNKED])
def test_a_body_that_the_client_cuts_is_not_the_backends_fault(error: Exception, length: int) -> None:
    bench = Bench()
    attempt = bench.start(Payload(length, None, reader=Uploading(b"12345", error)), method="POST")
    far = bench.far()
    head(far)
    assert not to_end(far).endswith(b"0\r\n\r\n")
    assert attempt.outcome is error and bench.verdict() == "nothing"
    bench.check(idle=0)


@with_reactor
def test_who_leaves_after_the_end_changes_nothing() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    far.sendall(counted(b"body"))
    assert attempt.body() == b"body"
    attempt.request.on_leave()
    bench.check(idle=1)
    assert bench.verdict() == "ok" and far.fileno() >= 0


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
    attempt = bench.start(Payload(5, None, reader=Cutting(b"12345")), method="POST")
    far = bench.far()
    head(far)
    with gevent.Timeout(5):
        assert attempt.error().status == 502
    assert bench.verdict() == "failed"
    bench.check(idle=0)


# -- killed -----------------------------------------------------------------------------------------------


@with_reactor
def test_a_greenlet_that_is_killed_leaves_nothing_behind() -> None:
    bench = Bench(1, buffers=8192)
    for payload, said in (
        (NOTHING, b""),
        (NOTHING, OK),
        (Payload(20 * MB, None, reader=Uploading(bytes(20 * MB))), b""),
        (Payload(5, None, reader=Uploading(b"12345"), expect=True), b""),
    ):
        attempt = bench.start(payload)
        far = bench.far()
        head(far)
        far.sendall(said)
        queued = bench.start()
        queued.greenlet.kill()
        assert bench.peer()["active"] == 1
        attempt.greenlet.kill()
        assert bench.peer()["active"] == 0 and bench.peer()["failures"] == 0
        bench.check(idle=0)
        far.close()


@with_reactor
def test_a_full_pool_is_not_the_backends_fault() -> None:
    bench = Bench(1, queue=MOMENT)
    first = bench.start()
    far = bench.far()
    head(far)
    assert isinstance(bench.start().outcome, PoolFull)
    assert bench.peer()["active"] == 1 and bench.peer()["failures"] == 0
    far.sendall(counted(b"first"))
    assert first.body() == b"first"


# -- uploads ----------------------------------------------------------------------------------------------


@with_reactor
def test_a_body_that_is_here_leaves_with_the_head() -> None:
    bench = Bench()
    attempt = bench.start(Payload(5, b"12345"), method="POST")
    far = bench.far()
    assert b"Content-Length: 5\r\n" in head(far) and exactly(far, 5) == b"12345"
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks"
    bench.check(idle=1)


@with_reactor
def test_a_body_that_comes_is_passed_on_as_it_comes() -> None:
    data = body_of(3 * MB)
    pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    bench = Bench(buffers=8192)
    attempt = bench.start(Payload(len(data), None, reader=Uploading(*pieces)), method="POST")
    far = bench.far()
    head(far)
    assert exactly(far, len(data)) == data
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks"
    attempt = bench.start(Payload(CHUNKED, None, first=b"first", reader=Uploading(b"second")), method="POST")
    assert b"Transfer-Encoding: chunked\r\n" in head(far)
    expected = b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"
    assert exactly(far, len(expected)) == expected
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks"
    bench.check(idle=1)


def endless() -> Iterator[bytes]:
    return itertools.repeat(bytes(65536))


@with_reactor
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("away", [None, socket.socket.close])
def test_a_refusal_ends_the_upload(said: bytes, away: Callable[[socket.socket], None] | None) -> None:
    bench = Bench(buffers=8192)
    reader = Uploading()
    reader.pieces = endless()
    attempt = bench.start(Payload(10**12, None, reader=reader), method="POST")
    far = bench.far()
    head(far)
    far.sendall(said + counted(b"too much", b"413 Content Too Large"))
    if away:
        to_be_read = exactly(far, 10**6)
        assert len(to_be_read) == 10**6
    assert (attempt.response.status, attempt.body()) == ("413 Content Too Large", b"too much")
    assert [status for status, _ in attempt.request.interims] == ([103] if b"103" in said else [])
    assert bench.verdict() == "ok"
    bench.check(idle=0)
    far.close()


@with_reactor
def test_a_refusal_from_a_backend_that_has_closed_already_is_heard() -> None:
    bench = Bench(buffers=8192)
    reader = Uploading()
    reader.pieces = endless()
    attempt = bench.start(Payload(10**12, None, reader=reader), method="POST")
    far = bench.far()
    head(far)
    far.sendall(counted(b"too much", b"413 Content Too Large"))
    far.close()
    outcome = attempt.outcome
    if isinstance(outcome, Response):
        assert outcome.status == "413 Content Too Large" and attempt.body() == b"too much"
    else:
        assert isinstance(outcome, BackendError)  # the reset was faster than the answer
    bench.verdict()
    bench.check(idle=0)


@with_reactor
def test_an_early_answer_that_is_no_refusal_does_not_end_the_upload() -> None:
    data = body_of(MB)
    bench = Bench(buffers=8192)
    attempt = bench.start(Payload(len(data), None, reader=Uploading(data)), method="POST")
    far = bench.far()
    head(far)
    far.sendall(OK + b"Content-Length: 4\r\n\r\n")
    assert exactly(far, len(data)) == data
    far.sendall(b"fine")
    assert attempt.body() == b"fine" and bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
def test_a_switch_of_protocols_amid_an_upload_is_nonsense() -> None:
    bench = Bench(buffers=8192)
    reader = Uploading()
    reader.pieces = endless()
    attempt = bench.start(Payload(10**12, None, reader=reader), method="POST")
    far = bench.far()
    head(far)
    far.sendall(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    error = attempt.error()
    assert error.status == 502 and "without having been asked" in str(error)
    assert bench.verdict() == "failed"
    bench.check(idle=0)
    far.close()


@with_reactor
def test_a_backend_that_dies_amid_an_upload() -> None:
    for away in (reset, socket.socket.close):
        bench = Bench(buffers=8192)
        reader = Uploading()
        reader.pieces = endless()
        attempt = bench.start(Payload(CHUNKED, None, reader=reader), method="POST")
        far = bench.far()
        head(far)
        away(far)
        error = attempt.error()
        assert (error.status, error.connecting) == (502, False) and bench.verdict() == "failed"
        bench.check(idle=0)


# -- interim responses, expectations ----------------------------------------------------------------------


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
        bench.far().sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * number + counted(b"body"))
        if number == 32:
            assert attempt.body() == b"body" and bench.verdict() == "ok"
        else:
            assert "too many interim" in str(attempt.error()) and bench.verdict() == "failed"
            bench.check(idle=0)


@with_reactor
def test_an_expected_body_is_sent_once_the_backend_says_so() -> None:
    bench = Bench()
    reader = Uploading(b"12345")
    attempt = bench.start(Payload(5, None, reader=reader, expect=True), method="POST")
    far = bench.far()
    assert b"Expect: 100-continue\r\n" in head(far)
    far.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    until(lambda: attempt.request.interims)
    assert reader.given == 0
    far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert exactly(far, 5) == b"12345"
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks" and bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
def test_a_refused_expectation_asks_for_no_body() -> None:
    bench = Bench()
    reader = Uploading(b"12345")
    attempt = bench.start(Payload(5, None, reader=reader, expect=True), method="POST")
    far = bench.far()
    head(far)
    far.sendall(counted(b"no", b"417 Expectation Failed"))
    assert attempt.response.status == "417 Expectation Failed" and reader.given == 0
    assert to_end(far) == b"" and bench.verdict() == "ok"
    bench.check(idle=0)


@with_reactor
def test_a_backend_that_does_not_know_of_expectations_gets_the_body_all_the_same() -> None:
    bench = Bench()
    attempt = bench.start(Payload(5, None, reader=Uploading(b"12345"), expect=True), method="POST")
    far = bench.far()
    head(far)
    began = time.monotonic()
    assert exactly(far, 5) == b"12345"
    assert 0.5 < time.monotonic() - began < 5
    far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + counted(b"thanks"))
    assert attempt.body() == b"thanks"
    bench.check(idle=1)


@with_reactor
def test_a_backend_that_dies_over_an_expectation_has_not_answered() -> None:
    bench = Bench()
    reader = Uploading(b"12345")
    attempt = bench.start(Payload(5, None, reader=reader, expect=True), method="POST")
    far = bench.far()
    head(far)
    far.close()
    assert attempt.error().status == 502 and reader.given == 0 and bench.verdict() == "failed"
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
    bench.far().sendall(SWITCHING)
    assert "without having been asked" in str(attempt.error()) and bench.verdict() == "failed"
    bench.check(idle=0)


# -- the limit of the whole -------------------------------------------------------------------------------


@with_reactor
def test_the_limit_of_the_whole_is_one_of_each_wait() -> None:
    bench = Bench(1, total=MOMENT)
    began = time.monotonic()
    attempt = bench.start()
    far = bench.far()
    queued = bench.start()
    assert attempt.error().status == 504 and MOMENT <= time.monotonic() - began < 10 * MOMENT
    assert far.recv(1) == b"G"
    assert isinstance(queued.outcome, PoolFull | BackendError)
    bench.check(idle=0)


@with_reactor
def test_it_is_one_of_connecting_too() -> None:
    with Unreachable() as unreachable:
        bench = Bench(port=unreachable.port, total=MOMENT)
        began = time.monotonic()
        error = bench.start().error()
        assert MOMENT <= time.monotonic() - began < 10 * MOMENT
        assert error.status == 504 and error.connecting and bench.verdict() == "unreachable"
        bench.check(idle=0)
        # And of the attempt after it.
        began = time.monotonic()
        attempt = bench.start(until_ns=time.monotonic_ns() + int(MOMENT * 1e9))
        assert attempt.error().status == 504 and time.monotonic() - began < 10 * MOMENT


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
    assert caught.value.status == 504 and time.monotonic() - began < 13 * MOMENT
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


# -- whatever happens -------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_each_attempt_is_counted_once_whatever_happens(seed: int) -> None:
    with_reactor(lambda: storm(random.Random(seed)))()


def storm(rng: random.Random) -> None:
    """Attempts of all kinds before a backend that does anything; clients leave and are killed."""
    import gevent

    bench = Bench(rng.randrange(1, 4), buffers=8192, read=0.05, write=0.05, queue=rng.choice([0.01, 1]))
    bench.listener.settimeout(None)
    forms = [
        counted(b"body"),
        in_chunks(b"bo", b"dy"),
        OK + b"\r\nbody",
        counted(b"b", b"500 Oops"),
        b"nonsense",
    ]

    def serve(far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while far.recv(100_000):
                form = rng.choice(forms)
                cuts = sorted(rng.sample(range(len(form)), rng.randrange(4)))
                for low, high in itertools.pairwise([0, *cuts, len(form)]):
                    if rng.random() < 0.1:
                        rng.choice([reset, socket.socket.close])(far)
                    far.sendall(form[low:high])
                    gevent.sleep(0)
                if form.startswith(OK + b"\r\n"):
                    far.close()

    def accept() -> None:
        while True:
            gevent.spawn(serve, bench.listener.accept()[0])

    accepting = gevent.spawn(accept)
    attempts: list[Attempt] = []

    def finish(attempt: Attempt) -> None:
        with contextlib.suppress(BackendError, ClientDisconnected):
            if isinstance(attempt.greenlet.get(), Response):
                attempt.body()

    tasks = []
    for _ in range(60):
        size = rng.choice([5, MB])
        payloads = [
            NOTHING,
            Payload(5, b"12345"),
            Payload(size, None, reader=Uploading(bytes(size))),
            Payload(CHUNKED, None, reader=Uploading(bytes(size), BodyError("cut"))),
        ]
        attempt = bench.start(rng.choice(payloads), fresh=rng.random() < 0.1)
        attempts.append(attempt)
        tasks.append(gevent.spawn(finish, attempt))
        if rng.random() < 0.3:
            rng.choice(attempts).request.on_leave()
        if rng.random() < 0.1:
            rng.choice(tasks).kill(block=False)
        if rng.random() < 0.1:
            rng.choice(attempts).greenlet.kill(block=False)
        gevent.sleep(rng.choice([0, 0.001]))
    gevent.joinall(tasks, timeout=10)
    for attempt in attempts:
        attempt.greenlet.join(10)
        assert attempt.greenlet.dead
        if isinstance(attempt.greenlet.value, Response) and attempt.greenlet.value.close is not None:
            attempt.greenlet.value.close()
    accepting.kill()
    assert bench.peer()["requests"] == 60
    bench.shelf.drop_idle()
    bench.check(idle=0)
