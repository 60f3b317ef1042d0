"""A closed loop of keep-alive clients that knows which worker answered each of them.

For a server whose site answers the worker's process id: when a connection breaks, the client can tell in
whose hands its request was.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from dataclasses import dataclass, field

_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSED, TIMEOUT = "refused", "timeout"


@dataclass
class Client:
    """One connection and its request under way. `worker` is 0 until an answer on this connection named it."""

    sock: socket.socket
    worker: int = 0
    since: float = 0.0
    answer: bytes = b""


@dataclass(frozen=True)
class Failure:
    """A request that got no answer: when (monotonic), how, on a connection of which worker (0: not known)."""

    when: float
    how: str
    worker: int


@dataclass
class Outcome:
    """What the loop saw so far."""

    answered: int = 0
    by_worker: dict[int, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


class ClosedLoop:
    """`count` clients; a broken one counts its failure and comes back on a new connection."""

    def __init__(self, address: tuple[str, int], count: int, patience: float = 10.0) -> None:
        self._address = address
        self._patience = patience
        self._selector = selectors.DefaultSelector()
        self.outcome = Outcome()
        for _ in range(count):
            self._connect()

    def run(self, until: float) -> None:
        """Serve the clients until the monotonic time `until`."""
        next_sweep = time.monotonic() + 1
        while (now := time.monotonic()) < until:
            for key, _ in self._selector.select(min(0.05, until - now)):
                self._turn(key.data)
            if now > next_sweep:
                self._sweep(now)
                next_sweep = now + 1

    def close(self) -> None:
        """Close every connection."""
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()

    def clients_of(self, worker: int) -> int:
        """How many connections got their last answer from this worker: each has one request in its hands."""
        return sum(key.data.worker == worker for key in self._selector.get_map().values())

    def workers(self) -> list[int]:
        """The workers that hold connections now."""
        return sorted({key.data.worker for key in self._selector.get_map().values()} - {0})

    def _connect(self) -> None:
        """A new connection with its first request sent; a refusal is counted and tried again."""
        deadline = time.monotonic() + self._patience
        while True:
            sock = socket.socket()
            sock.settimeout(self._patience)
            try:
                sock.connect(self._address)
                sock.sendall(_REQUEST)
            except OSError as error:
                sock.close()
                how = REFUSED if error.errno == errno.ECONNREFUSED else f"connect: {type(error).__name__}"
                self.outcome.failures.append(Failure(time.monotonic(), how, 0))
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            client = Client(sock, since=time.monotonic())
            self._selector.register(sock, selectors.EVENT_READ, client)
            return

    def _turn(self, client: Client) -> None:
        """Take what came; with the whole answer there, send the next request."""
        try:
            chunk = client.sock.recv(65536)
            client.answer += chunk
            trouble = "closed" if not chunk else self._read(client)
            if chunk and not client.answer:
                client.sock.sendall(_REQUEST)
        except OSError as error:
            trouble = type(error).__name__
        if trouble:
            self._fail(client, trouble)

    def _read(self, client: Client) -> str | None:
        """Count and clear the answer once it is whole; returns what is wrong with it."""
        head, found, body = client.answer.partition(b"\r\n\r\n")
        if not found:
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            return head.split(b"\r\n")[0].decode("latin-1")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) == length:
            client.worker = int(body)
            client.answer, client.since = b"", time.monotonic()
            self.outcome.answered += 1
            self.outcome.by_worker[client.worker] = self.outcome.by_worker.get(client.worker, 0) + 1
        return None

    def _fail(self, client: Client, how: str) -> None:
        self.outcome.failures.append(Failure(time.monotonic(), how, client.worker))
        with contextlib.suppress(KeyError):
            self._selector.unregister(client.sock)
        client.sock.close()
        self._connect()

    def _sweep(self, now: float) -> None:
        """Requests that wait beyond patience have failed too."""
        for key in list(self._selector.get_map().values()):
            if now - key.data.since > self._patience:
                self._fail(key.data, TIMEOUT)
