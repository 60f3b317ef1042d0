"""Compression of rotated files: never one that is still written to, never half a result, never a wait."""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acme_wsgi.log import compress, generations
from acme_wsgi.log.compress import RETRY, Compressor, is_written
from tests.server import wait_until
from tests.unit.descriptors import descriptors, left_open

CONTENT = b"line\n" * 10_000


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@pytest.fixture
def compressor() -> Iterator[Compressor]:
    made = Compressor()
    yield made
    made.abandon()


def put(path: str, number: int, content: bytes = CONTENT) -> Path:
    plain = Path(f"{path}.{number}")
    plain.write_bytes(content)
    plain.chmod(0o604)
    os.utime(plain, (1_000_000_000, 1_000_000_000))
    return plain


def names(path: str) -> list[str]:
    return sorted(each.name for each in Path(path).parent.iterdir())


def finish(compressor: Compressor) -> None:
    def ended() -> bool:
        compressor.collect()
        return not compressor.busy

    wait_until(ended, "the end of the compression", 60)


def everything(compressor: Compressor, path: str) -> None:
    while compressor.start(path):
        assert compressor.busy
        finish(compressor)


def test_plain_files_are_compressed_one_after_the_other(compressor, path):
    put(path, 1, b"one\n")
    put(path, 2, b"two\n")
    Path(f"{path}.3.gz").write_bytes(gzip.compress(b"three\n"))
    before = descriptors()
    assert compressor.start(path)
    assert compressor.start(path), "one at a time, and the rest later"
    assert names(path) == ["log.1", "log.2", "log.3.gz", "log.gz.tmp"]
    everything(compressor, path)
    assert not compressor.start(path)
    assert names(path) == ["log.1.gz", "log.2.gz", "log.3.gz"]
    assert [gzip.decompress(Path(f"{path}.{n}.gz").read_bytes()) for n in (1, 2, 3)] == [
        b"one\n", b"two\n", b"three\n",
    ]  # fmt: skip
    assert left_open(before) == {}


def test_the_result_has_mode_owner_and_time_of_the_plain_file(compressor, path):
    plain = put(path, 1)
    if os.geteuid() == 0:
        os.chown(plain, 1234, 1235)
    want = plain.stat()
    everything(compressor, path)
    have = Path(f"{path}.1.gz").stat()
    assert (have.st_mode, have.st_uid, have.st_gid) == (want.st_mode, want.st_uid, want.st_gid)
    assert have.st_mtime_ns == want.st_mtime_ns


def test_a_file_that_a_process_has_open_for_writing_waits(compressor, path):
    plain = put(path, 1)
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with open(plain, "ab") as log:
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert compressor.start(path), "later"
    assert not compressor.busy
    with open(plain, "rb"):  # a reader is no reason to wait
        holder.communicate(timeout=30)
        assert compressor.start(path)
        assert compressor.busy
        finish(compressor)
    assert names(path) == ["log.1.gz"]


def test_without_leases_a_file_must_have_been_quiet(path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no leases here")

    monkeypatch.setattr(compress.fcntl, "fcntl", refuse)
    plain = put(path, 1)
    descriptor = os.open(plain, os.O_RDONLY)
    for age, written in ((0, True), (compress.QUIET - 5, True), (-5, True), (compress.QUIET + 5, False)):
        os.utime(plain, (0, time.time() - age))
        assert is_written(descriptor) is written, age
    os.close(descriptor)


def test_a_lease_broken_at_the_wrong_moment_ends_nobody(path, monkeypatch):
    """The kernel's signal for it would end the process if it were the one that is sent by default."""
    plain = put(path, 1)
    descriptor = os.open(plain, os.O_RDONLY)
    real, broken = fcntl.fcntl, []

    def meddling(number: int, command: int, argument: int = 0) -> int:
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_UNLCK):
            with pytest.raises(BlockingIOError):
                os.open(plain, os.O_WRONLY | os.O_NONBLOCK)
            broken.append(number)
        return real(number, command, argument)

    monkeypatch.setattr(compress.fcntl, "fcntl", meddling)
    assert not is_written(descriptor)
    assert broken == [descriptor]
    os.close(descriptor)


def shifted(path: str) -> None:
    Path(path).write_bytes(b"new\n")
    generations.shift(path, 2)


def test_a_rotation_meanwhile_is_followed(compressor, path):
    put(path, 1)
    assert compressor.start(path)
    shifted(path)
    finish(compressor)
    assert names(path) == ["log.1", "log.2.gz"]
    assert gzip.decompress(Path(f"{path}.2.gz").read_bytes()) == CONTENT


def test_a_file_that_is_removed_meanwhile_leaves_nothing(compressor, path):
    put(path, 1)
    put(path, 2)
    with open(f"{path}.1", "ab"):
        assert compressor.start(path)
        shifted(path)
        finish(compressor)
    assert names(path) == ["log.1", "log.2"]


def test_a_line_written_meanwhile_is_not_lost(compressor, path):
    plain = put(path, 1)
    assert compressor.start(path)
    with open(plain, "ab") as late:
        late.write(b"late\n")
    finish(compressor)
    assert names(path) == ["log.1"]
    everything(compressor, path)
    assert gzip.decompress(Path(f"{path}.1.gz").read_bytes()) == CONTENT + b"late\n"


def test_what_an_interrupted_run_left_is_replaced(compressor, path):
    put(path, 1)
    put(path, 2)
    Path(f"{path}.gz.tmp").write_bytes(b"half")
    Path(f"{path}.2.gz").write_bytes(b"the plain one was about to go")
    everything(compressor, path)
    assert names(path) == ["log.1.gz", "log.2.gz"]
    assert gzip.decompress(Path(f"{path}.2.gz").read_bytes()) == CONTENT


def test_a_result_that_somebody_replaced_is_not_used(compressor, path):
    put(path, 1)
    assert compressor.start(path)
    Path(f"{path}.gz.tmp").unlink()
    Path(f"{path}.gz.tmp").write_bytes(b"another one's")
    finish(compressor)
    assert Path(f"{path}.1").read_bytes() == CONTENT
    assert not Path(f"{path}.1.gz").exists()


def test_it_waits_for_the_lock_of_another_process(compressor, path):
    put(path, 1)
    assert compressor.start(path)
    assert compressor._job is not None
    with generations.locked(path):
        wait_until(lambda: compress._listen(compressor._job), "its end", 60)
        compressor.collect()
        assert compressor.busy
    compressor.collect()
    assert names(path) == ["log.1.gz"]


def test_a_killed_child_is_told_once_and_tried_again_later(compressor, path, caplog):
    put(path, 1, os.urandom(16 << 20))
    with caplog.at_level(logging.WARNING, "acme.log"):
        for _ in range(3):
            assert compressor.start(path)
            assert compressor._job is not None
            os.kill(compressor._job.pid, signal.SIGKILL)
            finish(compressor)
            assert compressor.start(path)
            assert not compressor.busy
            assert RETRY / 2 < compressor._not_before - time.monotonic() <= RETRY
            compressor._not_before = 0.0
    assert caplog.messages == [
        f"can't compress the rotated files of {path}: the compressing process was killed"
    ]
    assert names(path) == ["log.1"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.write(2, b'No space left on device')", "No space left on device"),
        ("raise ValueError('a bug')", "ValueError: a bug"),
    ],
)
def test_a_failure_is_told_with_its_cause(compressor, path, caplog, monkeypatch, tmp_path, program, why):
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(compress, "_PROGRAM", str(tmp_path / "program.py"))
    put(path, 1)
    with caplog.at_level(logging.WARNING, "acme.log"):
        assert compressor.start(path)
        finish(compressor)
    assert caplog.messages == [f"can't compress the rotated files of {path}: {why}"]
    assert names(path) == ["log.1", "program.py"]


def test_no_process_to_be_had_is_told_too(compressor, path, caplog, monkeypatch):
    def refuse(*_: object, **__: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    put(path, 1)
    before = descriptors()
    monkeypatch.setattr(compress.os, "posix_spawn", refuse)
    with caplog.at_level(logging.WARNING, "acme.log"):
        assert compressor.start(path)
    assert "Resource temporarily unavailable" in caplog.text
    assert names(path) == ["log.1"]
    assert left_open(before) == {}


@pytest.mark.parametrize("reap", [True, False], ids=["reaped by somebody else", "not reaped yet"])
def test_who_reaps_the_child_does_not_matter(compressor, path, reap):
    put(path, 1)
    assert compressor.start(path)
    assert compressor._job is not None
    if reap:
        os.waitpid(compressor._job.pid, 0)
    finish(compressor)
    assert names(path) == ["log.1.gz"]


@pytest.mark.parametrize("reaped", [True, False])
def test_the_end_of_the_process_ends_the_child(path, reaped):
    compressor = Compressor()
    put(path, 1, os.urandom(16 << 20) if not reaped else b"x\n")
    before = descriptors()
    assert compressor.start(path)
    assert compressor._job is not None
    pid = compressor._job.pid
    if reaped:
        os.waitpid(pid, 0)
    compressor.abandon()
    assert not Path(f"/proc/{pid}").exists()
    assert names(path) == ["log.1"]
    assert left_open(before) == {}
    compressor.abandon()


def test_a_forked_child_knows_nothing_of_it(compressor, path):
    put(path, 1)
    assert compressor.start(path)
    pid = os.fork()
    if pid == 0:
        compressor.forget()
        os._exit(compressor.busy)
    assert os.waitpid(pid, 0)[1] == 0
    finish(compressor)
    assert names(path) == ["log.1.gz"]
