"""The other end of connections to backends: sockets whose waiting lets the loop work.

    @with_reactor
    def test_hello() -> None:
        link, far = linked()
        far.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert link.read_head(False, soon())[0] == "204 No Content"

Law: knows sockets, memory BIOs of TLS and the loop; nothing of HTTP. gevent is imported in the child alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import socket
import ssl
import struct
import sys
import tempfile
import termios
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from acme_wsgi.upstream.link import Link
from tests.unit.files.in_loop import DEADLINE, in_loop, until

P = ParamSpec("P")

MOMENT = 0.1
"""Seconds, for limits that are meant to pass."""


def with_reactor(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a child in whose loop a reactor works; no exception may have got lost."""

    @functools.wraps(test)
    def attached(*args: P.args, **kwargs: P.kwargs) -> None:
        from acme_wsgi.reactor import Reactor

        lost: list[str] = []
        sys.unraisablehook = lambda args: lost.extend(traceback.format_exception(args.exc_value))
        reactor = Reactor()
        reactor.attach()
        reactor.need_tick(0.01)
        with tempfile.TemporaryDirectory(prefix="acme-far-") as tempfile.tempdir:
            test(*args, **kwargs)
        gc.collect()
        assert not lost, lost

    return in_loop(attached)


def soon(seconds: float = DEADLINE) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def listening(backlog: int = 128, *, family: int = socket.AF_INET, buffers: int = 0) -> socket.socket:
    """A listener. What it accepts waits in the loop."""
    import gevent.socket

    listener: socket.socket = gevent.socket.socket(family)
    if buffers:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    if family == socket.AF_UNIX:
        listener.bind(str(Path(tempfile.mkdtemp()) / "far.sock"))
    else:
        listener.bind(("127.0.0.1", 0))
    listener.listen(backlog)
    listener.settimeout(DEADLINE)
    return listener


def accepted(listener: socket.socket) -> socket.socket:
    """The other end of the next connection."""
    far = listener.accept()[0]
    far.settimeout(DEADLINE)
    if far.family != socket.AF_UNIX:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return far


def linked(
    *, family: int = socket.AF_INET, buffers: int = 0, shelf: object = None
) -> tuple[Link, socket.socket]:
    """A Link that is about to send a request, and its other end."""
    with listening(family=family, buffers=buffers) as listener:
        link = Link(shelf)
        link.connect(family, listener.getsockname(), soon())
        link.begin()
        return link, accepted(listener)


def outgoing(far: socket.socket) -> int:
    """Bytes that the kernel still has to send; of a UNIX socket, those that were not read yet."""
    return int(struct.unpack("i", fcntl.ioctl(far.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def was_read(far: socket.socket) -> None:
    """Wait until the other end has read all that was sent to it; for UNIX sockets."""
    until(lambda: not outgoing(far))


def exactly(far: socket.socket, count: int) -> bytes:
    """So many bytes, or all up to the end."""
    seen = bytearray()
    while len(seen) < count and (data := far.recv(min(65536, count - len(seen)))):
        seen += data
    return bytes(seen)


def to_end(far: socket.socket) -> bytes:
    """All bytes up to the end."""
    return exactly(far, sys.maxsize)


def reset(far: socket.socket) -> None:
    """Away with a reset."""
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


def fill(far: socket.socket) -> int:
    """Send zeros as long as the kernel takes them; how many that were."""
    sent = 0
    far.setblocking(False)
    try:
        while True:
            sent += far.send(bytes(65536))
    except BlockingIOError:
        return sent
    finally:
        far.settimeout(DEADLINE)


class Veiled:
    """A TLS server's end of a connection, each of whose steps is the test's to make."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def shake_hands(self) -> Veiled:
        self._do(self.tls.do_handshake)
        return self

    def encrypted(self, data: bytes) -> bytes:
        """What has to be sent for some bytes to arrive; with it goes what was left to send before."""
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view[:16384]) :]
        return self.outgoing.read()

    def send(self, data: bytes) -> None:
        self.sock.sendall(self.encrypted(data))

    def receive(self, most: int = 65536) -> bytes:
        """What comes next; b"" at a proper end. Raises ssl.SSLEOFError at another."""
        try:
            return bytes(self._do(lambda: self.tls.read(most)))
        except ssl.SSLZeroReturnError:
            return b""

    def exactly(self, count: int) -> bytes:
        seen = bytearray()
        while len(seen) < count and (data := self.receive(min(65536, count - len(seen)))):
            seen += data
        return bytes(seen)

    def say_goodbye(self) -> None:
        """The proper end of what we send (close_notify)."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.sock.sendall(self.outgoing.read())

    def close(self) -> None:
        self.sock.close()

    def _do(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(65536)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
                continue
            except ssl.SSLError:
                self._flush()  # the alert
                raise
            self._flush()
            return done

    def _flush(self) -> None:
        data = self.outgoing.read()
        if data:
            self.sock.sendall(data)
