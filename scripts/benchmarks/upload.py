"""A client that uploads big files, and accounts for each answer: the counterpart of drain.py, to a sink.

The kernel sends the file's pages (sendfile), so that the client's own work is small beside the server's.
"""

from __future__ import annotations

import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .answers import NotAnAnswer, ended_how, read_answer
from .load import Load, LoadFailed
from .sink import CHECKED

_PATIENCE = 60.0  # seconds without progress


def fill(address: tuple[str, int], file: Path, *, connections: int, seconds: float) -> Load:
    """Upload it over `connections` at once, again and again; after `seconds` none is begun any more.

    Every upload is answered with its size, or the run fails. `received` are the bytes that the sink got.
    Raises LoadFailed.
    """
    size = file.stat().st_size
    expected = b"%d" % size
    began = time.monotonic()

    def upload() -> list[float]:
        times: list[float] = []
        with _connect(address) as client:
            while not times or time.monotonic() - began < seconds:
                start = time.monotonic()
                _send(client, "/upload", file, size, expected)
                times.append((time.monotonic() - start) * 1e6)
        return times

    with ThreadPoolExecutor(connections) as pool:
        uploads = [pool.submit(upload) for _ in range(connections)]
        times = sorted(time for done in uploads for time in done.result())
    p50, p90, p99 = (times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.9, 0.99))
    return Load(len(times), time.monotonic() - began, p50, p90, p99, times[-1], received=size * len(times))


def verify(address: tuple[str, int], file: Path) -> None:
    """Upload it once: each byte arrives as it is in `file`, by the CRC-32 of all. Raises LoadFailed."""
    size = file.stat().st_size
    with _connect(address) as client:
        _send(client, CHECKED, file, size, b"%d %08x" % (size, _crc(file)))


def _connect(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_connection(address, timeout=_PATIENCE)
    except OSError as error:
        raise LoadFailed(f"upload: {error}") from error


def _send(client: socket.socket, path: str, file: Path, size: int, expected: bytes) -> None:
    """One request and its answer. Raises LoadFailed."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    came = b""
    try:
        client.sendall(head.encode("ascii"))
        with open(file, "rb") as body:
            client.sendfile(body)
        while (answer := read_answer(came)) is None:
            if not (chunk := client.recv(4096)):
                raise LoadFailed(f"upload: {ended_how(None, came)}")
            came += chunk
    except NotAnAnswer as trouble:
        raise LoadFailed(f"upload: {trouble}") from trouble
    except OSError as error:
        raise LoadFailed(f"upload: {error}{_said(client)}") from error
    if answer.status != 200 or answer.body != expected:
        raise LoadFailed(f"upload: {answer.status} {answer.body[:200]!r}, not {expected!r}")


def _said(client: socket.socket) -> str:
    """What the server answered before it broke the upload off, as far as it can still be read."""
    try:
        return f": {client.recv(200)!r}"
    except OSError:
        return ""


def _crc(file: Path) -> int:
    crc = 0
    with open(file, "rb") as body:
        while block := body.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
