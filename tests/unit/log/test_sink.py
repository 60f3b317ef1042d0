"""The writer: whole lines in order, bounded, and never in anybody's way."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acme_wsgi.log import sink as module
from acme_wsgi.log.sink import QUEUE_LIMIT, Sink, open_sink, open_sinks
from tests.unit.descriptors import leading_below

PATIENCE = 10.0


@pytest.fixture
def opened() -> Iterator[Callable[[object], Sink]]:
    sinks: list[Sink] = []

    def opener(path: object) -> Sink:
        sinks.append(open_sink(str(path)))
        return sinks[-1]

    yield opener
    for sink in sinks:
        sink.close(0.1)
    assert open_sinks() == []


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A pipe with a path, and the end that reads it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


def threads() -> set[str]:
    """The numbers of this process's threads. Those of an earlier test may go at any moment."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


def read_until(reader: int, complete: Callable[[bytes], bool]) -> bytes:
    data = b""
    deadline = time.monotonic() + PATIENCE
    while not complete(data):
        assert time.monotonic() < deadline, f"only {len(data)} bytes came"
        select.select([reader], [], [], 0.1)
        try:
            data += os.read(reader, 1 << 16)
        except BlockingIOError:
            continue
    return data


def test_lines_arrive_in_order(opened, tmp_path):
    sink = opened(tmp_path / "log")
    for number in range(1000):
        assert sink.put(b"%d\n" % number, 1)
    assert sink.drain(PATIENCE)
    assert (tmp_path / "log").read_bytes() == b"".join(b"%d\n" % number for number in range(1000))
    assert sink.losses() is None


def test_a_file_is_appended_to_and_not_for_everybodys_eyes(opened, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    sink = opened(path)
    sink.put(b"after\n", 1)
    assert sink.drain(PATIENCE)
    assert path.read_bytes() == b"before\nafter\n"
    sink = opened(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o007 == 0


def test_real_threads_lose_nothing(opened, tmp_path):
    sink = opened(tmp_path / "log")

    def write(name: bytes) -> None:
        for number in range(500):
            sink.put(b"%s %d\n" % (name, number), 1)

    threads = [threading.Thread(target=write, args=(b"t%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.drain(PATIENCE)
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert sorted(lines) == sorted(b"t%d %d" % (i, n) for i in range(4) for n in range(500))
    for i in range(4):
        assert [line for line in lines if line.startswith(b"t%d " % i)] == [
            b"t%d %d" % (i, n) for n in range(500)
        ]


def test_one_output_has_one_sink_until_its_last_user_closes(tmp_path):
    path = str(tmp_path / "log")
    first, second = open_sink(path), open_sink(path)
    assert first is second
    first.close()
    second.put(b"still here\n", 1)
    assert second.close(PATIENCE)
    assert Path(path).read_bytes() == b"still here\n"
    assert not second.put(b"too late\n", 1)
    assert second.dropped == 1


def test_closing_gives_the_descriptor_back(tmp_path):
    sink = open_sink(str(tmp_path / "log"))
    sink.put(b"x\n", 1)
    assert leading_below(tmp_path)
    sink.close(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while leading_below(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- outputs that don't take what they are given


def test_a_blocked_pipe_costs_lines_and_no_time(opened, fifo):
    path, reader = fifo
    sink = opened(path)
    line = b"x" * 1023 + b"\n"
    offered = 3 * QUEUE_LIMIT // len(line)
    slowest = 0.0
    for _ in range(offered):
        began = time.monotonic()
        sink.put(line, 1)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0
    assert sink.dropped > 0
    assert not sink.drain(0.01)
    taken = offered - sink.dropped
    assert taken * len(line) <= QUEUE_LIMIT + (1 << 20)  # the pipe itself holds some
    assert sink.losses() == f"{sink.dropped} lines for {path} were lost: {_SLOW}"
    assert sink.losses() is None
    # Once somebody reads again, what was queued comes whole, and there is room for more.
    assert read_until(reader, lambda data: len(data) == taken * len(line)) == line * taken
    assert sink.drain(PATIENCE)
    assert sink.put(b"again\n", 1)
    assert read_until(reader, lambda data: data.endswith(b"\n")) == b"again\n"


_SLOW = "the output is slower than what is written to it"


def test_closing_waits_for_a_blocked_pipe_only_so_long(fifo):
    sink = open_sink(str(fifo[0]))
    sink.put(b"x" * (1 << 20) + b"\n", 1)
    began = time.monotonic()
    assert not sink.close(0.05)
    assert time.monotonic() - began < PATIENCE / 2


def test_a_pipe_nobody_reads_is_an_error_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device") as caught:
        open_sink(str(tmp_path / "fifo"))
    assert caught.value.errno == errno.ENXIO
    assert open_sinks() == []


def test_a_reader_that_left_costs_lines(opened, fifo):
    path, reader = fifo
    sink = opened(path)
    elsewhere = os.open("/dev/null", os.O_RDONLY)
    os.dup2(elsewhere, reader)
    os.close(elsewhere)
    sink.put(b"one\ntwo\n", 2)
    assert sink.drain(PATIENCE)
    assert (sink.failed, sink.error) == (2, "Broken pipe")


def test_a_full_disk_costs_lines_and_is_reported_now_and_then(opened, monkeypatch):
    sink = opened("/dev/full")
    for _ in range(10):
        assert sink.put(b"one\ntwo\n", 2)
    assert sink.drain(PATIENCE)
    assert (sink.failed, sink.dropped) == (20, 0)
    assert sink.losses() == "20 lines for /dev/full were lost: No space left on device"
    sink.put(b"three\n", 1)
    assert sink.drain(PATIENCE)
    assert sink.losses() is None
    monkeypatch.setattr(module.time, "monotonic", lambda: sink._report_after + 1)
    assert sink.losses() == "1 lines for /dev/full were lost: No space left on device"


def test_pipes_get_whole_lines_in_atomic_pieces(fifo):
    writer = os.open(fifo[0], os.O_WRONLY)
    data = b"".join(b"%d" % n * (n % 97) + b"\n" for n in range(2000))
    pieces = [bytes(piece) for piece in module._pieces(writer, data)]
    assert b"".join(pieces) == data
    assert len(pieces) < len(data) / 2000
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in pieces)
    long_line = b"a\n" + b"x" * 3 * select.PIPE_BUF + b"\nb\n"
    assert [len(piece) for piece in module._pieces(writer, long_line)] == [2, 3 * select.PIPE_BUF + 1, 2]
    os.close(writer)


# -- rotation


def test_reopening_follows_a_renamed_file(opened, tmp_path):
    sink = opened(tmp_path / "log")
    sink.put(b"old\n", 1)
    (tmp_path / "log").rename(tmp_path / "log.1")
    sink.put(b"still old\n", 1)
    sink.reopen()
    sink.put(b"new\n", 1)
    assert sink.drain(PATIENCE)
    assert (tmp_path / "log.1").read_bytes() == b"old\nstill old\n"
    assert (tmp_path / "log").read_bytes() == b"new\n"


def test_what_cannot_be_reopened_stays(opened, tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    sink = opened(directory / "log")
    directory.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        sink.reopen()
    sink.put(b"not lost\n", 1)
    assert sink.drain(PATIENCE)
    assert (tmp_path / "moved" / "log").read_bytes() == b"not lost\n"


def test_reopening_does_not_leak_descriptors(opened, tmp_path):
    sink = opened(tmp_path / "log")
    for _ in range(50):
        sink.reopen()
    assert sink.drain(PATIENCE)
    assert leading_below(tmp_path) == [str(tmp_path / "log")]


# -- the thread


def test_there_is_no_thread_before_the_first_line_and_signals_pass_it_by(opened, tmp_path):
    before = threads()
    sink = opened(tmp_path / "log")
    assert threads() <= before
    sink.put(b"x\n", 1)
    (thread,) = threads() - before
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    blocked = int(re.search(r"SigBlk:\s*([0-9a-f]+)", status).group(1), 16)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
        assert blocked >> (number - 1) & 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_without_room_for_a_thread_keeps_the_lines_for_later(opened, tmp_path, monkeypatch):
    sink = opened(tmp_path / "log")
    native = module._native

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "_native", lambda m, n: refuse if n == "start_new_thread" else native(m, n))
    assert sink.put(b"first\n", 1)
    monkeypatch.undo()
    assert sink.put(b"second\n", 1)
    assert sink.drain(PATIENCE)
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a link to another account")
def test_root_writes_through_no_link_but_its_own(opened, tmp_path):
    link, target = tmp_path / "log", tmp_path / "target"
    link.symlink_to(target)
    os.lchown(link, 65534, 65534)
    with pytest.raises(OSError, match="a symbolic link of user 65534"):
        open_sink(str(link))
    assert not target.exists()
    os.lchown(link, 0, 0)
    sink = opened(link)
    os.lchown(link, 65534, 65534)
    with pytest.raises(OSError, match="a symbolic link of user 65534"):
        sink.reopen()
    sink.put(b"line\n", 1)
    assert sink.drain(PATIENCE) and target.read_bytes() == b"line\n"
