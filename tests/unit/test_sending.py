"""Files on their way out: the four ways, several parts, cold pages, and files that change meanwhile."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi.files.openfile import OpenFile
from acme_wsgi.http.writer import DIRECT, MAPPING, READ, SENDFILE, FileBody, Parts, Response
from tests.unit.engine_harness import OK, Rig, body_of, in_engine
from tests.wire import DEADLINE

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
WAYS = (SENDFILE, MAPPING, DIRECT, READ)
MB = 1 << 20
LIBC = ctypes.CDLL(None)


@contextmanager
def file_of(content: bytes) -> Iterator[Path]:
    """A file on a disk: what is not in memory there has to be read."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parents[2]) as directory:
        path = Path(directory) / "file"
        path.write_bytes(content)
        yield path


def opened(path: Path) -> OpenFile:
    return OpenFile(os.open(path, os.O_RDONLY))


def evict(path: Path) -> None:
    """Put the file out of memory. The kernel may hold pages back for a moment: it is asked until it has."""
    deadline = time.monotonic() + DEADLINE
    with open(path, "rb") as file:
        while in_memory(path):
            assert time.monotonic() < deadline, "the kernel keeps the pages, so this test shows nothing"
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_memory(path: Path) -> bool:
    """Whether any page of the file is in the page cache. Only looks: a read might bring it there."""
    size = path.stat().st_size
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    LIBC.mmap.restype = ctypes.c_void_p
    with open(path, "rb") as file:
        length = ctypes.c_size_t(size)
        address = ctypes.c_void_p(
            LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), ctypes.c_long(0))
        )
    assert LIBC.mincore(address, length, pages) == 0
    assert LIBC.munmap(address, length) == 0
    return any(page & 1 for page in pages.raw)


def serve(rig: Rig, body: Any) -> None:
    rig.dispatch = lambda request: Response(OK, [], body)


@in_engine()
def test_each_way_sends_the_same_bytes(rig: Rig) -> None:
    content = body_of(2 * MB + 4321)
    with file_of(content) as path:
        for way in WAYS:
            end = len(content)
            for offset, count in ((0, end), (4097, MB + 70_005), (0, 0), (end - 1, 1), (17, 300_000)):
                serve(rig, FileBody(opened(path), offset, count, way))
                with rig.connect(receive_buffer=8192) as wire:
                    reply = wire.send(GET).reply()
                    assert reply.body == content[offset : offset + count], (way, offset, count)
                    assert wire.send(GET).reply().body == reply.body, "the connection goes on"


@in_engine()
def test_each_way_sends_what_is_not_in_memory(rig: Rig) -> None:
    content = body_of(3 * MB + 1)
    for way in WAYS:
        with file_of(content) as path:
            evict(path)
            serve(rig, FileBody(opened(path), 0, len(content), way))
            with rig.connect() as wire:
                assert wire.send(GET).reply().body == content
            assert in_memory(path) == (way != DIRECT)


@in_engine()
def test_a_file_of_the_applications_own_is_sent_from_the_disk(rig: Rig) -> None:
    content = body_of(2 * MB)
    with file_of(content) as path, open(path, "rb") as file:
        evict(path)
        serve(rig, FileBody(file, 5, MB, SENDFILE))
        with rig.connect() as wire:
            assert wire.send(GET).reply().body == content[5 : 5 + MB]


@in_engine()
def test_parts_are_sent_one_after_the_other(rig: Rig) -> None:
    content = body_of(2 * MB)
    with file_of(content) as path:
        file = opened(path)
        for way in WAYS:
            pieces = [b"<", FileBody(file, 3, 200_000, way), b"", b"|" * 70_000, FileBody(file, 9, 0, way),
                      FileBody(file, MB, MB, way), b">"]  # fmt: skip
            whole = b"<" + content[3:200_003] + b"|" * 70_000 + content[MB:] + b">"
            serve(rig, Parts(pieces))
            with rig.connect(receive_buffer=8192) as wire:
                reply = wire.send(GET).reply()
                assert reply.body == whole
                assert reply.header("Content-Length") == str(len(whole))
                assert wire.request("/", method="HEAD").header("Content-Length") == str(len(whole))
                assert wire.send(GET).reply().body == whole


@in_engine()
def test_parts_promise_their_own_length(rig: Rig) -> None:
    rig.errors_expected = True
    rig.dispatch = lambda request: Response(OK, [("Content-Length", "3")], Parts([b"four"]))
    with rig.connect() as wire:
        assert b"four" not in wire.send(GET).rest()


def test_parts_are_bytes_and_files() -> None:
    wrong: Any = ["text"]
    with pytest.raises(TypeError, match="str"):
        Parts(wrong)


@in_engine()
def test_a_file_that_is_rewritten_meanwhile_is_cut_before_its_end(rig: Rig) -> None:
    content = body_of(6 * MB)
    for way in WAYS:
        with file_of(content) as path:
            serve(rig, FileBody(opened(path), 0, len(content), way))
            with rig.connect() as wire:
                wire.send(GET)
                wire.exactly(1000)
                with open(path, "r+b") as file:
                    file.write(b"other")
                assert len(wire.rest()) < len(content), way
    assert sum("/file' was changed while it was sent" in line for line in rig.records.lines) == len(WAYS)


@in_engine()
def test_a_file_that_is_rewritten_while_other_parts_leave_is_cut_before_its_end(rig: Rig) -> None:
    content = body_of(100_000)
    for way in WAYS:
        with file_of(content) as path:
            serve(rig, Parts([b"|" * (8 * MB), FileBody(opened(path), 0, len(content), way), b"the end"]))
            with rig.connect() as wire:
                wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                wire.exactly(1000)
                with open(path, "r+b") as file:
                    file.write(b"other")
                assert not wire.rest().endswith(b"the end"), way
    assert sum("/file' was changed while it was sent" in line for line in rig.records.lines) == len(WAYS)


@in_engine()
def test_a_file_that_is_truncated_meanwhile_is_cut_and_kills_nobody(rig: Rig) -> None:
    content = body_of(12 * MB)
    for way in WAYS:
        with file_of(content) as path:
            serve(rig, FileBody(opened(path), 0, len(content), way))
            with rig.connect(receive_buffer=8192) as wire:
                wire.send(GET)
                wire.exactly(1000)
                os.truncate(path, 100)
                assert len(wire.rest()) < len(content), way
            serve(rig, b"next")
            with rig.connect() as wire:
                assert wire.send(GET).reply().body == b"next"


@in_engine()
def test_clients_that_leave_while_a_disk_is_read_leave_nothing_behind(rig: Rig) -> None:
    content = body_of(4 * MB)
    with file_of(content) as path:
        for way in (SENDFILE, DIRECT, READ):
            serve(rig, FileBody(opened(path), 0, len(content), way))
            for _ in range(10):
                evict(path)
                wire = rig.connect()
                wire.send(GET)
                wire.reset()
            rig.until(lambda: not rig.count("in_flight"), "the end of all requests")
        with rig.connect() as wire:
            assert wire.send(GET).reply().body == content


@in_engine()
def test_a_shutdown_while_no_thread_is_free_closes_each_response(rig: Rig) -> None:
    import gevent

    pool = gevent.get_hub().threadpool
    pool.maxsize = 1
    free, closed = threading.Event(), []
    with file_of(body_of(MB)) as path:
        rig.dispatch = lambda request: Response(
            OK, [], FileBody(opened(path), 0, MB, READ), lambda: closed.append(1)
        )
        busy = pool.spawn(free.wait)
        wires = [rig.connect() for _ in range(3)]
        for wire in wires:
            wire.send(GET)
        rig.until(lambda: rig.count("in_flight") == 3, "all three to wait")
        rig.engine.close_all()
        free.set()
        busy.get()
        rig.until(lambda: len(closed) == 3, "the end of all three responses")
        for wire in wires:
            wire.sock.close()


@in_engine()
def test_a_file_that_the_application_closes_too_early_costs_its_response_only(rig: Rig) -> None:
    rig.errors_expected = True
    with file_of(body_of(MB)) as path:
        for way in WAYS:
            with open(path, "rb") as file:
                serve(rig, FileBody(file, 0, MB, way))
            with rig.connect() as wire:
                assert len(wire.send(GET).rest().partition(b"\r\n\r\n")[2]) < MB
            serve(rig, b"next")
            with rig.connect() as wire:
                assert wire.send(GET).reply().body == b"next"


@in_engine()
def test_requests_share_one_mapping(rig: Rig) -> None:
    content = body_of(2 * MB)
    with file_of(content) as path:
        file = opened(path)
        serve(rig, FileBody(file, 0, len(content), MAPPING))
        with rig.connect(receive_buffer=8192) as one, rig.connect(receive_buffer=8192) as other:
            one.send(GET)
            other.send(GET)
            one.exactly(100)
            other.exactly(100)
            maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
            assert len(maps) == 1
            assert maps[0].split()[1] == "r--s"
    assert mmap.PAGESIZE == 4096, "what loading.pyx takes a page for"
