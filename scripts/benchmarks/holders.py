"""Processes that hold keep-alive connections open: each one asked once, then idle, later asked again.

A process may have only so many descriptors and an address only so many ports, so the connections are spread
over several processes, each with a destination address of its own (127.0.0.1, 127.0.0.2, ...).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from .load import LoadFailed
from .machine import pin, raise_descriptor_limit

PER_HOLDER = 18_000  # below 20,000 descriptors and below the 28,000 ports of one pair of addresses
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class Tally:
    """How many of the connections got a right answer, and what the others met, by kind."""

    answered: int
    failed: dict[str, int]


def _ask(client: socket.socket) -> str | None:
    """One request, one answer; what went wrong, or None."""
    try:
        client.sendall(_REQUEST)
        answer = b""
        while b"\r\n\r\n" not in answer:
            if not (chunk := client.recv(4096)):
                return "closed by the server"
            answer += chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            return head.split(b"\r\n")[0].decode("latin-1")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            if not (chunk := client.recv(4096)):
                return "cut by the server"
            body += chunk
    except OSError as error:
        return type(error).__name__
    return None


def _hold(pipe: Connection, address: tuple[str, int], count: int, cores: frozenset[int] | None) -> None:
    """The life of a holder: "open", "ask" and "close" come in over `pipe`, a Tally goes out for each."""
    pin(cores)
    raise_descriptor_limit()
    clients: list[socket.socket] = []
    while (order := pipe.recv()) != "close":
        failed: dict[str, int] = {}
        answered = 0
        for number in range(count if order == "open" else len(clients)):
            trouble = _connect(clients, address) if order == "open" else None
            trouble = trouble or _ask(clients[-1 if order == "open" else number])
            if trouble is None:
                answered += 1
            else:
                failed[trouble] = failed.get(trouble, 0) + 1
        pipe.send(Tally(answered, failed))
    for client in clients:
        client.close()


def _connect(clients: list[socket.socket], address: tuple[str, int]) -> str | None:
    client = socket.socket()
    client.settimeout(30)
    try:
        client.connect(address)
    except OSError as error:
        client.close()
        return f"connect: {type(error).__name__}"
    clients.append(client)
    return None


class Holders:
    """All holders together."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def _order(self, order: str) -> Tally:
        answered, failed = 0, dict[str, int]()
        for pipe in self._pipes:
            pipe.send(order)
        for pipe in self._pipes:
            try:
                tally: Tally = pipe.recv()
            except EOFError:
                raise LoadFailed("a process that holds connections died") from None
            answered += tally.answered
            for kind, count in tally.failed.items():
                failed[kind] = failed.get(kind, 0) + count
        return Tally(answered, failed)

    def open(self) -> Tally:
        """Open every connection, one request on each."""
        return self._order("open")

    def ask(self) -> Tally:
        """One more request on each open connection."""
        return self._order("ask")


@contextmanager
def holders(port: int, count: int, cores: frozenset[int] | None) -> Iterator[Holders]:
    """Processes for `count` connections to `port`, nothing opened yet. Their connections close at the end."""
    usable = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 64
    each = min(PER_HOLDER, usable)
    start = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    try:
        for number, first in enumerate(range(0, count, each)):
            ours, theirs = start.Pipe()
            address = (f"127.0.{number // 250}.{number % 250 + 1}", port)
            arguments = (theirs, address, min(each, count - first), cores)
            process = start.Process(target=_hold, args=arguments, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield Holders(pipes)
    finally:
        for pipe in pipes:
            with contextlib.suppress(OSError):
                pipe.send("close")
        for process in processes:
            process.join(30)
            if process.is_alive():
                process.kill()
