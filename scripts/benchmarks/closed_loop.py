"""A closed loop of clients that account for each request, and know which worker answered it.

For a site that answers the worker's process id, and with `marks` the request's own mark behind it: so an
answer that belongs to another request is found out, and when a connection breaks, the client can tell in
whose hands its request was. Some clients keep their connection, others take a new one for each request.

The account is exact: asked == answered + failed + under way, and after `drain` nothing is under way.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from .answers import REFUSED, TIMEOUT, WRONG, Answer, NotAnAnswer, ended_how, read_answer

PAUSE = 0.01  # seconds before a client that could not connect tries again
_ROUND = 0.05  # longest wait of the loop


@dataclass(eq=False, slots=True)
class Client:
    """One client and its request under way. `worker` is 0 until an answer on this connection named it."""

    fresh: bool
    sock: socket.socket | None = None
    worker: int = 0
    mark: int = 0
    since: float = 0.0
    took: float = 0.0  # the answer before, on this connection
    sent: bool = False
    waiting: bool = False
    came: bytes = b""
    refused_since: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A request that failed: when (monotonic), how, on a connection of which worker (0: not known)."""

    when: float
    how: str
    worker: int
    detail: str = ""


@dataclass
class Outcome:
    """What the loop saw so far."""

    asked: int = 0
    answered: int = 0
    by_worker: Counter[int] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def under_way(self) -> int:
        """Requests that have neither been answered nor failed yet."""
        return self.asked - self.answered - len(self.failures)

    def kinds(self) -> dict[str, int]:
        """Failures by kind."""
        return dict(Counter(failure.how for failure in self.failures))


class ClosedLoop:
    """`count` clients on kept connections and `fresh` ones on new ones; a broken one comes back.

    :param marks: the site answers "PID MARK", not "PID" alone
    :param patience: seconds before an answer counts as missing; for so long a refused client tries again
    """

    def __init__(
        self,
        address: tuple[str, int],
        count: int,
        *,
        fresh: int = 0,
        marks: bool = False,
        patience: float = 10.0,
    ) -> None:
        self._address = address
        self._marks = marks
        self._patience = patience
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Client] = {}
        self._later: deque[tuple[float, Client]] = deque()
        self._asking = True
        self._next_sweep = time.monotonic() + 1
        self.outcome = Outcome()
        self._clients = [Client(number >= count) for number in range(count + fresh)]
        for client in self._clients:
            self._connect(client)

    def run(self, until: float, stop: threading.Event | None = None) -> None:
        """Serve the clients until the monotonic time `until`, or until `stop` is set.

        Raises ConnectionRefusedError when a client has been refused for as long as patience lasts.
        """
        while (now := time.monotonic()) < until and not (stop and stop.is_set()):
            self._round(min(_ROUND, until - now))

    def drain(self) -> None:
        """Ask nothing more; wait until each request under way is answered or has failed."""
        self._asking = False
        self._later.clear()
        while self.outcome.under_way:
            self._round(_ROUND)

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients:
            if client.sock is not None:
                client.sock.close()
        self._epoll.close()

    def clients_of(self, worker: int) -> int:
        """How many connections got their last answer from this worker: each has one request in its hands."""
        return sum(client.worker == worker for client in self._clients)

    def workers(self) -> list[int]:
        """The workers that hold connections now."""
        return sorted({client.worker for client in self._clients} - {0})

    def _round(self, wait: float) -> None:
        if self._later:
            wait = min(wait, PAUSE)
        for descriptor, _ in self._epoll.poll(wait):
            if (client := self._by_descriptor.get(descriptor)) is not None:
                self._turn(client)
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._connect(self._later.popleft()[1])
        if now > self._next_sweep:
            self._next_sweep = now + 1
            for client in self._clients:
                if client.waiting and now - client.since > self._patience:
                    self._fail(client, TIMEOUT)

    def _begin(self, client: Client) -> None:
        """From here on a request is under way."""
        self.outcome.asked += 1
        client.mark = self.outcome.asked
        client.came, client.sent, client.waiting = b"", False, True
        client.since = time.monotonic()

    def _connect(self, client: Client) -> None:
        """A new connection for the client's next request."""
        self._begin(client)
        client.worker, client.took = 0, 0.0
        client.sock = sock = socket.socket()
        sock.setblocking(False)
        number = sock.connect_ex(self._address)
        if number not in (0, errno.EINPROGRESS):
            self._fail(client, ended_how(OSError(number, os.strerror(number)), b""))
            return
        self._by_descriptor[sock.fileno()] = client
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _send(self, client: Client) -> None:
        assert client.sock is not None
        close = "Connection: close\r\n" if client.fresh else ""
        client.sock.send(f"GET /?{client.mark} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n".encode())
        client.sent = True

    def _turn(self, client: Client) -> None:
        """Go on with what the kernel has for this client."""
        sock = client.sock
        assert sock is not None
        try:
            if client.waiting and not client.sent:
                if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(number, os.strerror(number))
                self._send(client)
                self._epoll.modify(sock.fileno(), select.EPOLLIN)
                return
            chunk = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(client, error)
            return
        if chunk:
            client.came += chunk
            self._read(client)
        else:
            self._ended(client, None)

    def _ended(self, client: Client, error: OSError | None) -> None:
        if client.waiting:
            # A connection on which this client, or its machine, was slow may have counted as idle.
            before = f"the answer before took {client.took:.2f} s" if client.took else ""
            self._fail(client, ended_how(error, client.came), before)
        else:  # nothing is under way on it any more
            self._drop(client)

    def _read(self, client: Client) -> None:
        """Count the answer once it is whole, and ask again."""
        try:
            answer = read_answer(client.came)
            if answer is None:
                return
            worker = self._judge(client, answer)
        except NotAnAnswer as trouble:
            self._fail(client, WRONG, str(trouble))
            return
        self.outcome.answered += 1
        self.outcome.by_worker[worker] += 1
        client.worker, client.waiting, client.refused_since = worker, False, 0.0
        client.took = time.monotonic() - client.since
        if client.fresh or answer.last:
            self._drop(client)
            if self._asking:
                self._connect(client)
        elif self._asking:
            self._begin(client)
            try:
                self._send(client)
            except OSError as error:
                self._ended(client, error)

    def _judge(self, client: Client, answer: Answer) -> int:
        """The worker that gave this answer. Raises NotAnAnswer when it is not the one to this request."""
        pid, _, mark = answer.body.partition(b" ")
        expected = b"%d" % client.mark if self._marks else b""
        if answer.status != 200 or not client.waiting or not pid.isdigit() or mark != expected:
            raise NotAnAnswer(f"{answer.status} {answer.body[:80]!r} to request {client.mark}")
        return int(pid)

    def _drop(self, client: Client) -> None:
        if client.sock is not None:
            self._by_descriptor.pop(client.sock.fileno(), None)
            client.sock.close()
            client.sock = None

    def _fail(self, client: Client, how: str, detail: str = "") -> None:
        now = time.monotonic()
        self.outcome.failures.append(Failure(now, how, client.worker, detail))
        connected = client.sent
        client.waiting = client.sent = False
        self._drop(client)
        if how == REFUSED:
            client.refused_since = client.refused_since or now
            if now - client.refused_since > self._patience:
                raise ConnectionRefusedError(f"refused for {self._patience:g} s")
        if not self._asking:
            return
        if connected:
            self._connect(client)
        else:
            self._later.append((now + PAUSE, client))


@contextmanager
def going(loop: ClosedLoop, *, seconds: float = 3600.0) -> Iterator[Outcome]:
    """Run the loop in a thread of its own meanwhile; at the end its requests under way are awaited.

    An error of the loop is raised at the end.
    """
    stop = threading.Event()

    def serve() -> None:
        loop.run(time.monotonic() + seconds, stop)
        loop.drain()

    try:
        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(serve)
            try:
                yield loop.outcome
            finally:
                stop.set()
            served.result()
    finally:
        loop.close()
