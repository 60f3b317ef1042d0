"""A client for big files: reads every byte into one buffer, drops it, and accounts for each answer.

wrk reads 8 KB at a time through its parser, and the server waits for it. Knows HTTP/1.1 as far as an answer
with a Content-Length goes.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from .load import Load, LoadFailed

_BUFFER = 1 << 20
_HEAD_LIMIT = 16 << 10
_PATIENCE = 30.0  # seconds without a byte from anyone

Look = Callable[[int, memoryview], None]  # the offset of a piece of the body, and the piece until it returns


class _Download:
    """One connection that fetches the same file again and again."""

    def __init__(self, address: tuple[str, int], path: str, size: int) -> None:
        host = f"{address[0]}:{address[1]}"
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("ascii")
        self._size = size
        self._head = b""
        self._left = 0  # of the body, once the head is there
        self._began = 0.0
        self.seconds: list[float] = []  # of each whole answer
        self.received = 0
        self.socket = socket.create_connection(address, timeout=_PATIENCE)

    def ask(self) -> None:
        """Send the next request; the answer before it is whole."""
        self._head, self._left, self._began = b"", 0, time.monotonic()
        self.socket.sendall(self._request)

    def read(self, buffer: memoryview, look: Look | None = None) -> bool:
        """Take what is there; whether the answer is whole now. Raises LoadFailed, OSError."""
        count = self.socket.recv_into(buffer)
        if not count:
            raise LoadFailed(f"closed after {len(self.seconds)} files, {self._left} bytes before the end")
        self.received += count
        body = buffer[:count] if self._left else self._after_head(bytes(buffer[:count]))
        if body is None:
            return False
        if len(body) > self._left:
            raise LoadFailed(f"{len(body) - self._left} bytes behind the answer")
        if look is not None and len(body):
            look(self._size - self._left, body)
        self._left -= len(body)
        if self._left:
            return False
        self.seconds.append(time.monotonic() - self._began)
        return True

    def _after_head(self, came: bytes) -> memoryview | None:
        """The body's first bytes, None while the head isn't whole."""
        self._head += came
        head, found, body = self._head.partition(b"\r\n\r\n")
        if not found:
            if len(self._head) > _HEAD_LIMIT:
                raise LoadFailed(f"no head: {self._head[:80]!r}")
            return None
        lines = head.lower().split(b"\r\n")
        if not lines[0].startswith(b"http/1.1 200 ") or b"content-length: %d" % self._size not in lines:
            raise LoadFailed(f"not 200 with {self._size} bytes: {head[:500]!r}")
        self._left = self._size
        return memoryview(body)


def drain(address: tuple[str, int], path: str, *, size: int, connections: int, seconds: float) -> Load:
    """Fetch the file over `connections` at once, again and again; after `seconds` none is begun any more.

    Every answer counts, each is read to its end, `size` bytes (positive) or the run fails. Raises LoadFailed.
    """
    downloads: dict[int, _Download] = {}
    poll = select.poll()
    buffer = memoryview(bytearray(_BUFFER))
    try:
        for _ in range(connections):
            download = _Download(address, path, size)
            downloads[download.socket.fileno()] = download
            poll.register(download.socket, select.POLLIN)
        began = time.monotonic()
        for download in downloads.values():
            download.ask()
        going = set(downloads)
        while going:
            ready = poll.poll(_PATIENCE * 1000)
            if not ready:
                raise LoadFailed(f"no byte for {_PATIENCE:.0f} s")
            for descriptor, _event in ready:
                if not downloads[descriptor].read(buffer):
                    continue
                if time.monotonic() - began < seconds:
                    downloads[descriptor].ask()
                else:
                    poll.unregister(descriptor)
                    going.discard(descriptor)
        return _load(list(downloads.values()), time.monotonic() - began)
    except OSError as error:
        raise LoadFailed(f"download of {path}: {error}") from error
    finally:
        for download in downloads.values():
            download.socket.close()


def _load(downloads: list[_Download], seconds: float) -> Load:
    times = sorted(second * 1e6 for download in downloads for second in download.seconds)
    p50, p90, p99 = (times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.9, 0.99))
    received = sum(download.received for download in downloads)
    return Load(len(times), seconds, p50, p90, p99, times[-1], received=received)


def compare(address: tuple[str, int], path: str, file: Path) -> None:
    """Fetch it once: each byte as in `file`, which isn't empty. Raises LoadFailed."""
    size = file.stat().st_size
    with open(file, "rb") as original:

        def look(offset: int, piece: memoryview) -> None:
            if original.read(len(piece)) != bytes(piece):
                raise LoadFailed(f"{path}: not the file's bytes, {offset} to {offset + len(piece)}")

        try:
            download = _Download(address, path, size)
            with download.socket:
                download.ask()
                buffer = memoryview(bytearray(_BUFFER))
                while not download.read(buffer, look):
                    pass
        except OSError as error:
            raise LoadFailed(f"download of {path}: {error}") from error
