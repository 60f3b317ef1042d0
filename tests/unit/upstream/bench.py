"""Attempts at a backend of the test's own: the test asks, answers as the backend, and hears what came of it.

    @with_reactor
    def test_hello() -> None:
        bench = Bench()
        attempt, far = bench.heard()
        far.sendall(counted(b"hello"))
        assert attempt.body() == b"hello" and bench.verdict() == "ok"
        bench.check(idle=1)

Keep the name of a `far` for as long as the connection should last: a socket that nobody holds is closed.

Law: knows one exchange and what it is made of; nothing of balancing. gevent is imported in the child alone.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from acme_wsgi.config.schema.routes import RouteHeaders
from acme_wsgi.config.schema.server import ConnectionPool
from acme_wsgi.errors import BackendError
from acme_wsgi.http.writer import Response
from acme_wsgi.upstream.board import ROUND_ROBIN, Board
from acme_wsgi.upstream.exchange import Exchange, Lane, Patience
from acme_wsgi.upstream.payload import NOTHING, Payload
from acme_wsgi.upstream.pool import Pool, Shelf
from acme_wsgi.upstream.resolve import Resolver
from acme_wsgi.upstream.shape import Shaper
from acme_wsgi.upstream.target import Target
from tests.unit.files.in_loop import until
from tests.unit.upstream.backends import enrolled, key
from tests.unit.upstream.far import accepted, listening

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
        self.pieces: Iterator[bytes | BaseException] = iter(pieces)
        self.given = 0
        self.pauses: set[int] = set()
        """Numbers of pieces that the client doesn't send as long as they stand here."""
        self._read = 0

    def read(self, size: int) -> bytes:
        raise NotImplementedError

    def read1(self, size: int) -> bytes:
        import gevent

        gevent.sleep(0)
        while self._read in self.pauses:
            gevent.sleep(0.001)
        piece = next(self.pieces, b"")
        self._read += 1
        if isinstance(piece, BaseException):
            raise piece
        self.given += len(piece)
        return piece

    def ready_before(self, other: object) -> bool:
        """As the engine's; but where nothing comes it tells so at once."""
        import gevent

        paused = self._read in self.pauses
        gevent.sleep(0.001 if paused else 0)
        return not paused


def endless() -> Uploading:
    """A body that never ends."""
    body = Uploading()
    body.pieces = itertools.repeat(bytes(65536))
    return body


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

    def heard(self, payload: Payload = NOTHING, **options: Any) -> tuple[Attempt, socket.socket]:
        """An attempt on a new connection, and the backend's end of it, which has read the request's head."""
        attempt = self.start(payload, **options)
        far = self.far()
        head(far)
        return attempt, far

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


def used(bench: Bench) -> socket.socket:
    """The backend's end of an idle connection that was used once."""
    attempt, far = bench.heard()
    far.sendall(counted(b"first"))
    assert attempt.body() == b"first" and bench.verdict() == "ok"
    return far
