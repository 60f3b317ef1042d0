"""Where uploads end: a server that reads a request's body, drops it, and answers how many bytes it had.

The law of this file: it is also a program of its own (`python -m benchmarks.sink PORT`), one process, kept
connections, any number of clients. It knows HTTP/1.1 as far as a body with a Content-Length goes. An nginx
that answers by itself does so before the body is there, which is another thing to forward; one that waits for
it writes it to a disk.
"""

from __future__ import annotations

import selectors
import socket
import sys
import zlib
from dataclasses import dataclass

from .apps import HELLO

CHECKED = "/checked"  # the path whose answer names the CRC-32 too
_BUFFER = 1 << 20
_HEAD_LIMIT = 64 << 10


class _Refused(Exception):
    """The request's answer, which is the connection's last: status and reason."""


@dataclass(eq=False, slots=True)
class _Client:
    """One connection, and the request on it."""

    socket: socket.socket
    head: bytes = b""
    checked: bool = False
    length: int = 0
    left: int = 0  # of the body
    crc: int = 0

    def take(self, chunk: memoryview) -> None:
        """Go on with what came, to the end of it: at most one request is under way."""
        if self.left:
            self._body(chunk)
            return
        self.head += chunk
        head, found, rest = self.head.partition(b"\r\n\r\n")
        if not found:
            if len(self.head) > _HEAD_LIMIT:
                raise _Refused("431 Request Header Fields Too Large")
            return
        self.head = b""
        self._begin(head)
        self._body(memoryview(rest))

    def _begin(self, head: bytes) -> None:
        first, *fields = head.split(b"\r\n")
        parts = (field.partition(b":") for field in fields)
        named = {name.lower(): value.strip() for name, _, value in parts}
        length = named.get(b"content-length", b"0")
        if b"transfer-encoding" in named or not length.isdigit():
            raise _Refused("411 Length Required")
        if named.get(b"expect", b"").lower() == b"100-continue":
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        target = first.split(b" ")[1] if first.count(b" ") == 2 else b""
        self.checked = target == CHECKED.encode("ascii")
        self.length = self.left = int(length)
        self.crc = 0

    def _body(self, chunk: memoryview) -> None:
        if len(chunk) > self.left:
            raise _Refused("400 Bad Request")
        if self.checked:
            self.crc = zlib.crc32(chunk, self.crc)
        self.left -= len(chunk)
        if not self.left:
            self._answer()

    def _answer(self) -> None:
        body = HELLO
        if self.length:
            body = b"%d %08x" % (self.length, self.crc) if self.checked else b"%d" % self.length
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.socket.sendall(head + body)  # small: there is room for it


def serve(listener: socket.socket) -> None:
    """Serve until the process is told to end."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    buffer = memoryview(bytearray(_BUFFER))
    while True:
        for key, _ in selector.select():
            if key.data is None:
                client, _ = listener.accept()
                selector.register(client, selectors.EVENT_READ, _Client(client))
            elif not _turn(key.data, buffer):
                selector.unregister(key.data.socket)
                key.data.socket.close()


def _turn(client: _Client, buffer: memoryview) -> bool:
    """Read once; whether the connection goes on."""
    try:
        count = client.socket.recv_into(buffer)
        if count:
            client.take(buffer[:count])
    except _Refused as refusal:
        client.socket.sendall(
            f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        return False
    except ConnectionError:
        return False
    return bool(count)


def main() -> None:
    """Listen on 127.0.0.1 at the port that is the argument."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024) as listener:
        serve(listener)


if __name__ == "__main__":
    main()
