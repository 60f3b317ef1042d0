"""One connection to a backend of the tests' own, as its script and the test see it; see tests/rogue.py.

Law: knows sockets and the framing of HTTP/1.1 requests, which it reads strictly. Keeps what came.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.wire import DEADLINE

if TYPE_CHECKING:
    from tests.rogue import Rogue

RECORD = 8 << 20
"""Bytes of a connection that are kept."""

_HEAD_LIMIT = 1 << 20
_PATIENCE = 120.0  # seconds that a thread waits on a socket: a test that hangs ends all the same
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~\x80-\xff][\t -~\x80-\xff]*)?)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?\r\n")
_SCRIPT = re.compile(r"/script/([A-Za-z0-9_.-]+)")

_ENDED = (ConnectionError, TimeoutError, ssl.SSLError)


class Malformed(Exception):
    """What came is no request; the text says why and shows it."""


class Gone(Exception):
    """The peer ended the connection."""


@dataclass(slots=True)
class Request:
    """One request as it came: `head` raw with its empty line; `body` as far as a script has read it."""

    connection: int
    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    head: bytes
    body: bytes = b""
    complete: bool = False

    def header(self, name: str) -> str | None:
        """The values of a field, joined by a comma; None if it isn't there."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def script(self) -> str | None:
        """The script that its path names."""
        found = _SCRIPT.search(self.target.partition("?")[0])
        return found[1] if found else None


class Conversation:
    """One connection, as its script and the test see it.

    :ivar number: the how-manieth of its Rogue, from 1
    :ivar received: all bytes that came, the first RECORD of them; `total` counts all
    :ivar ending: "" while it is open, then "eof", "reset", "malformed", "closed" (by us), "handshake: ..."
    :ivar sni: the server name of the TLS handshake
    """

    def __init__(self, rogue: Rogue, sock: socket.socket, number: int) -> None:
        self.rogue = rogue
        self.sock = sock
        self.number = number
        self.received = bytearray()
        self.total = 0
        self.requests: list[Request] = []
        self.ending = ""
        self.sni: str | None = None
        self.ended = threading.Event()
        self._buffer = bytearray()
        self._body: Iterator[bytes] = iter(())
        self._shut = False
        sock.settimeout(_PATIENCE)

    # -- for scripts: what comes

    @property
    def request(self) -> Request:
        """The request in hand."""
        return self.requests[-1]

    def pieces(self) -> Iterator[bytes]:
        """The rest of the request's body, framing taken off, in pieces; nothing of it is kept."""
        yield from self._body

    def body(self) -> bytes:
        """The whole body of the request in hand; it is kept in `request.body`."""
        self.request.body += b"".join(self._body)
        return self.request.body

    def raw(self) -> bytes:
        """The next bytes that come, whatever they are: after an upgrade."""
        if not self._buffer:
            self._fill()
        taken = bytes(self._buffer)
        self._buffer.clear()
        return taken

    def gone(self) -> None:
        """Wait until the peer ends the connection; what still comes is dropped. Raises Gone, always."""
        while True:
            self._fill()
            self._buffer.clear()

    def wait(self, name: str, seconds: float = 3 * DEADLINE) -> None:
        """Wait until the test says `rogue.release(name)`."""
        deadline = time.monotonic() + seconds
        while not self.rogue.event(name).wait(0.05):
            if self._shut:
                raise Gone
            assert time.monotonic() < deadline, f"nobody released {name!r}"

    # -- for scripts: what goes

    def send(self, *data: bytes) -> Conversation:
        """Send bytes as they are."""
        self.sock.sendall(b"".join(data))
        return self

    def drip(self, data: bytes, pause: float) -> None:
        """Send byte by byte; the pause (seconds) is the behaviour, not a wait for something."""
        for index in range(len(data)):
            self.sock.sendall(data[index : index + 1])
            time.sleep(pause)

    def half_close(self) -> None:
        """Send no more."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close in order. Unread bytes make a reset of it: that is how TCP is."""
        self._end("closed")

    def reset(self) -> None:
        """Close with a reset."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end("closed")

    # -- the life of the connection

    def run(self) -> None:
        """In a thread of its own: requests, one by one, until either side ends it."""
        try:
            self._shake_hands()
            if self.rogue.on_connect is not None:
                self.rogue.on_connect(self)
            while not self._shut:
                self._next()
                self.rogue.script_for(self.request)(self)
                if not self._shut:
                    for _ in self._body:
                        pass  # what the script left is dropped, so that the next head can follow
        except Gone:
            self._end("eof")
        except Malformed as error:
            self.rogue.faults.append(f"connection {self.number}: {error}")
            self._end("malformed")
        except _ENDED:
            self._end("reset")
        except OSError as error:
            if not self._shut:
                self.rogue.errors.append(f"connection {self.number}: {error!r}")
            self._end("reset")
        except Exception as error:  # noqa: BLE001 - the test's thread tells of it
            self.rogue.errors.append(f"connection {self.number}: {error!r}")
            self._end("closed")
        finally:
            self._end("closed")

    def disconnect(self, *, reset: bool) -> None:
        """From another thread: let `run` end, and the connection with it."""
        if reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._shut = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)

    def _end(self, how: str) -> None:
        if not self.ended.is_set():
            self.ending = how
            self._shut = True
            self.sock.close()
            self.ended.set()

    def _shake_hands(self) -> None:
        if self.rogue.context is None:
            return
        try:
            self.sock = self.rogue.context.wrap_socket(
                self.sock, server_side=True, do_handshake_on_connect=False
            )
            # The callback of SNI is given this very object.
            self.sock.conversation = self
            self.sock.do_handshake()
        except (OSError, ssl.SSLError) as error:
            self._end(f"handshake: {error}")
            raise ConnectionError(str(error)) from error

    def _next(self) -> None:
        """Read the head of the next request; its body is left to the script."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise Malformed(f"no end of the head within {_HEAD_LIMIT} bytes")
            try:
                self._fill()
            except Gone:
                if self._buffer:
                    raise Malformed(f"ended within a head: {bytes(self._buffer[-200:])!r}") from None
                raise
        head = self._take(end + 4)
        request, body = read_head(head, self.number)
        self.requests.append(request)
        self._body = self._framed(body)
        with self.rogue.lock:
            self.rogue.requests.append(request)
            if request.script is not None:
                self.rogue.calls[request.script] += 1

    def _framed(self, length: int | None) -> Iterator[bytes]:
        """The body's pieces: `length` bytes, or chunks when it is None."""
        request = self.request
        if length is None:
            while size := int(self._line(_CHUNK)[1], 16):
                yield from self._counted(size)
                if self._exactly(2) != b"\r\n":
                    raise Malformed("no line end behind the data of a chunk")
            while (line := self._until_line_end()) != b"\r\n":
                if not _FIELD.fullmatch(line[:-2]):
                    raise Malformed(f"trailer {line!r}")
        else:
            yield from self._counted(length)
        request.complete = True

    def _counted(self, left: int) -> Iterator[bytes]:
        while left:
            if not self._buffer:
                self._fill()
            piece = self._take(min(left, len(self._buffer)))
            left -= len(piece)
            yield piece

    def _line(self, expression: re.Pattern[bytes]) -> re.Match[bytes]:
        line = self._until_line_end()
        found = expression.fullmatch(line)
        if found is None:
            raise Malformed(f"chunk size {line!r}")
        return found

    def _until_line_end(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise Malformed("an endless line")
            self._fill()
        return self._take(end + 2)

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _fill(self) -> None:
        data = self.sock.recv(1 << 18)
        if not data:
            raise Gone
        self.total += len(data)
        self.received += data[: max(0, RECORD - len(self.received))]
        self._buffer += data


def read_head(head: bytes, connection: int = 0) -> tuple[Request, int | None]:
    """A request's head, strictly, and the length of its body (None: chunked). Raises Malformed."""
    lines = head[:-4].split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(lines[0])
    if found is None:
        raise Malformed(f"request line {lines[0]!r}")
    headers = []
    for line in lines[1:]:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Malformed(f"field {line!r}")
        headers.append((field[1].decode(), field[2].rstrip(b" \t").decode("latin-1")))
    version = "HTTP/1." + found[3].decode()
    request = Request(connection, found[1].decode(), found[2].decode(), version, tuple(headers), head)
    return request, _length(request)


def _length(request: Request) -> int | None:
    """RFC 9112 6.3 without its leniencies."""
    named = Counter(name.lower() for name, _ in request.headers)
    if named["host"] != 1 and request.version == "HTTP/1.1":
        raise Malformed(f"{named['host']} Host fields")
    lengths, codings = request.header("Content-Length"), request.header("Transfer-Encoding")
    if lengths is not None and codings is not None:
        raise Malformed("both Content-Length and Transfer-Encoding")
    if codings is not None:
        if codings.lower() != "chunked":
            raise Malformed(f"Transfer-Encoding: {codings}")
        return None
    if lengths is not None and not re.fullmatch(r"[0-9]{1,19}", lengths):
        raise Malformed(f"Content-Length: {lengths}")
    return int(lengths or 0)
