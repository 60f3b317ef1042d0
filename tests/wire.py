"""A client that sees the bytes: for tests of what a library's client would hide or refuse to send.

Knows HTTP/1.1 framing and sockets; nothing of the server.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import TracebackType

DEADLINE = 10.0
"""Seconds that a test waits for anything before it fails."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One response. `headers` as sent, in order; `body` with its framing taken off."""

    version: str
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The values of a header, joined by a comma; None if it isn't there."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def text(self) -> str:
        return self.body.decode()


class Wire:
    """One connection. `send` raw bytes, then take replies off it one by one; a context manager."""

    def __init__(self, sock: socket.socket, timeout: float = DEADLINE) -> None:
        self.sock = sock
        self.timeout = timeout
        self.sock.settimeout(timeout)
        self._buffer = b""

    def send(self, *data: bytes) -> Wire:
        """Send bytes as they are; returns the connection, so that `wire.send(...).reply()` reads well."""
        self.sock.sendall(b"".join(data))
        return self

    def trickle(self, data: bytes, pause: float = 0.0) -> Wire:
        """Send byte by byte, each in a segment of its own."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(data)):
            self.sock.sendall(data[index : index + 1])
            if pause:
                time.sleep(pause)
        return self

    def end(self) -> Wire:
        """Send no more (a half-closed connection)."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Go away rudely: the peer gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.sock.close()

    def request(self, target: str = "/", *, method: str = "GET", headers: Iterable[str] = ()) -> Reply:
        """A plain request and its reply. `headers` are whole lines without their ends."""
        lines = [f"{method} {target} HTTP/1.1", "Host: test", *headers, "", ""]
        self.send("\r\n".join(lines).encode("latin-1"))
        return self.reply(head=method == "HEAD")

    def reply(self, *, head: bool = False) -> Reply:
        """Read exactly one response (an interim 1xx counts as one).

        :param head: it answers a HEAD request, so there is no body whatever its headers say
        :raises AssertionError: the connection ended inside it; TimeoutError: it did not come
        """
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, reason = [*lines[0].split(" ", 2), ""][:3]
        pairs = [line.partition(":") for line in lines[1:-2]]
        headers = tuple((name, value.strip(" \t")) for name, _, value in pairs)
        bare = Reply(version, int(status), reason, headers, b"")
        return bare if head else replace(bare, body=self.body(bare))

    def body(self, of: Reply) -> bytes:
        """The body that a head announces, for tests that took the head alone with `reply(head=True)`."""
        if of.status in (204, 304) or of.status < 200:
            return b""
        if "chunked" in (of.header("Transfer-Encoding") or ""):
            return self._chunks()
        length = of.header("Content-Length")
        return self.rest() if length is None else self.exactly(int(length))

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes."""
        while len(self._buffer) < count:
            self._more()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def rest(self) -> bytes:
        """All bytes up to the end of the connection; a reset ends it as well."""
        deadline = time.monotonic() + self.timeout
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the connection stays open; so far {self._buffer[-200:]!r}")
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                taken, self._buffer = self._buffer, b""
                return taken
            self._buffer += data

    def closed(self) -> bool:
        """Whether the server closes the connection now, with nothing more to read."""
        return self.rest() == b""

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long, and the connection stays open."""
        if self._buffer:
            return False
        self.sock.settimeout(seconds)
        try:
            self._buffer += self.sock.recv(1)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(self.timeout)
        return False

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        while self._until(b"\r\n") != b"\r\n":
            pass  # trailers
        return body

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        return self.exactly(self._buffer.index(end) + len(end))

    def _more(self) -> None:
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise TimeoutError(f"no more within {self.timeout} s; so far {self._buffer[-200:]!r}") from None
        assert data, f"the connection ended early, after {self._buffer[-200:]!r}"
        self._buffer += data
