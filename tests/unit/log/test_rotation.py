"""Rotation: when a file is due, what takes its place, and that no line is lost over it."""

from __future__ import annotations

import gzip
import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acme_wsgi import log as logs
from acme_wsgi.log import generations, rotation
from acme_wsgi.log.rotation import RETRY, Rotation
from acme_wsgi.log.sink import open_sink, open_sinks
from tests.server import wait_until

DAY = 86400.0
WORKER = (12345, 23456)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another account")


def section(
    output: object = "stderr",
    *,
    access: object = "stdout",
    errors: object = None,
    size: int | None = None,
    age: float | None = None,
    count: int = 7,
    compress: bool = False,
) -> Any:
    return SimpleNamespace(
        level="info",
        format="text",
        output=str(output),
        mask_headers=(),
        fields=(),
        error=SimpleNamespace(output=None if errors is None else str(errors)),
        access=SimpleNamespace(enabled=access is not None, output=str(access)),
        rotation=SimpleNamespace(size=size, age=age, count=count, compress=compress),
    )


@pytest.fixture
def rotating() -> Iterator[Rotation]:
    made = Rotation()
    yield made
    made.abandon()
    logs.close(0.1)
    assert open_sinks() == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "log"


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


# -- by size


def test_a_file_that_is_large_enough_is_replaced_by_an_empty_one(rotating, path):
    settings = section(path, size=10)
    path.write_text("123456789")
    assert not rotating.rotate(settings, None)
    path.write_text("1234567890")
    assert rotating.rotate(settings, None)
    assert (path.read_text(), path.with_name("log.1").read_text()) == ("", "1234567890")
    assert not rotating.rotate(settings, None)
    path.write_text("x" * 11)
    assert rotating.rotate(settings, None)
    assert names(path) == ["log", "log.1", "log.2"]


def test_without_a_size_or_an_age_nothing_is_done(rotating, path):
    path.write_text("x" * 100)
    assert not rotating.rotate(section(path), None)
    assert not rotating.rotate(section("stderr", size=1), None)
    assert names(path) == ["log"]


def test_every_file_output_is_looked_at_once(rotating, tmp_path):
    paths = [tmp_path / name for name in ("main", "errors", "access")]
    for each in paths:
        each.write_text("x" * 10)
    main, errors, access = paths
    assert rotating.rotate(section(main, errors=errors, access=access, size=10), None)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "access", "access.1", "errors", "errors.1", "main", "main.1",
    ]  # fmt: skip
    main.write_text("x" * 10)
    access.write_text("x" * 10)
    assert rotating.rotate(section(main, errors=main, access=None, size=10), None)
    assert main.with_name("main.2").exists()
    assert not main.with_name("main.3").exists()
    assert not main.with_name("access.2").exists()


def test_none_kept_is_a_new_empty_file_all_the_same(rotating, path):
    path.write_text("x" * 10)
    inode = path.stat().st_ino
    with path.open("rb") as held:
        assert rotating.rotate(section(path, size=10, count=0, compress=True), None)
        assert os.fstat(held.fileno()).st_ino == inode != path.stat().st_ino
    assert names(path) == ["log"]
    assert path.read_bytes() == b""


def test_the_sinks_of_this_process_follow(rotating, path):
    sink = open_sink(str(path))
    try:
        sink.put(b"old\n", 1)
        assert sink.drain(10)
        assert rotating.rotate(section(path, size=1), None)
        sink.put(b"new\n", 1)
        assert sink.drain(10)
        assert (path.read_bytes(), path.with_name("log.1").read_bytes()) == (b"new\n", b"old\n")
    finally:
        sink.close()


def test_an_idle_log_stays_empty(rotating, path):
    """What rotation itself has to say isn't the first line of the next file, to be rotated for its age."""
    logs.setup(section(path), process="arbiter")
    logging.getLogger("acme.x").info("x" * 100)
    (sink,) = open_sinks()
    assert sink.drain(10)
    size = path.stat().st_size
    assert rotating.rotate(section(path, size=50), None)
    assert sink.drain(10)
    assert path.read_bytes() == b""
    assert path.with_name("log.1").read_text().endswith(f"rotated {path} ({size} bytes)\n")


# -- by age

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


@pytest.mark.parametrize(
    "line",
    [
        "2023-11-14T21:13:20.000Z info acme.arbiter arbiter[1]: ready",
        '{"timestamp": "2023-11-14T21:13:20.000Z", "level": "info"}',
        'timestamp=2023-11-14T21:13:20.000Z level=info message="2001-01-01T00:00:00.000Z"',
        '127.0.0.1 - - [14/Nov/2023:21:13:20 +0000] "GET /?2001-01-01T00:00:00.000Z HTTP/1.1" 200 1',
        '::1 - - [14/Nov/2023:13:13:20 -0800] "GET /[01/Jan/2001:00:00:00 +0000] HTTP/1.1" 200 1',
        '- - - [15/Nov/2023:02:43:20 +0530] "GET / HTTP/1.1" 200 1',
        "printed by the application\n    | a traceback\n2023-11-14T21:13:20.000Z info x: y",
    ],
)
def test_the_age_is_that_of_the_first_line_whatever_touched_the_file(rotating, path, line, monkeypatch):
    path.write_text(line + "\n2023-11-14T22:00:00.000Z info x: y\n")
    clock = [NOW - 0.5]
    monkeypatch.setattr(rotation.time, "time", lambda: clock[0])
    assert not rotating.rotate(section(path, age=3600), None)
    # A restart: nothing is remembered.
    rotating = Rotation()
    assert not rotating.rotate(section(path, age=3600), None)
    clock[0] = NOW
    assert rotating.rotate(section(path, age=3600), None)
    assert names(path) == ["log", "log.1"]
    clock[0] = NOW + 10 * DAY
    assert not rotating.rotate(section(path, age=3600), None), "an empty file has no age"


@pytest.mark.parametrize(
    "text", ["nonsense\n", "[99/Foo/2023:21:13:20 +0000]\n", "0000-99-99T99:99:99.000Z\n"]
)
def test_without_a_time_the_last_write_that_was_seen_counts(rotating, path, text, monkeypatch):
    path.write_text(text * 3)
    os.utime(path, (NOW, NOW))
    clock = [NOW + 100]
    monkeypatch.setattr(rotation.time, "time", lambda: clock[0])
    assert not rotating.rotate(section(path, age=3600), None)
    os.utime(path, (NOW + 3000, NOW + 3000))
    clock[0] = NOW + 3600
    assert rotating.rotate(section(path, age=3600), None)


def test_a_time_in_the_future_is_taken_for_now(rotating, path, monkeypatch):
    path.write_text("2099-01-01T00:00:00.000Z info x: the clock was wrong\n")
    clock = [NOW]
    monkeypatch.setattr(rotation.time, "time", lambda: clock[0])
    assert not rotating.rotate(section(path, age=3600), None)
    clock[0] += 3600
    assert rotating.rotate(section(path, age=3600), None)


def test_the_file_after_a_rotation_has_an_age_of_its_own(rotating, path, monkeypatch):
    path.write_text("2023-11-14T21:13:20.000Z info x: y\n")
    clock = [NOW]
    monkeypatch.setattr(rotation.time, "time", lambda: clock[0])
    assert rotating.rotate(section(path, age=3600), None)
    path.write_text("2023-11-14T22:13:21.000Z info x: y\n")
    clock[0] += 3600
    assert not rotating.rotate(section(path, age=3600), None)
    clock[0] += 1
    assert rotating.rotate(section(path, age=3600), None)


# -- what others do to the files


def test_a_file_that_is_gone_or_replaced_is_reopened_by_all(rotating, path):
    settings = section(path, size=1000)
    assert rotating.rotate(settings, None), "created"
    assert not rotating.rotate(settings, None)
    path.rename(path.with_name("moved"))
    assert rotating.rotate(settings, None)
    assert not rotating.rotate(settings, None)
    path.rename(path.with_name("moved too"))
    path.write_text("another one's")
    assert rotating.rotate(settings, None)
    assert not rotating.rotate(settings, None)
    assert path.read_text() == "another one's"


def test_after_prepare_there_is_nothing_to_tell(rotating, path):
    settings = section(path, size=1000)
    rotating.prepare(settings, None)
    assert not rotating.rotate(settings, None)
    path.rename(path.with_name("log.1"))
    rotating.prepare(settings, None)
    assert not rotating.rotate(settings, None)
    assert path.exists()


def test_a_rotation_by_another_process_at_this_moment_is_left_to_it(rotating, path):
    path.write_text("x" * 10)
    with generations.locked(str(path)):
        assert not rotating.rotate(section(path, size=10), None)
    assert names(path) == ["log"]
    assert rotating.rotate(section(path, size=10), None)


def test_a_file_created_by_a_worker_in_between_is_taken(rotating, path, monkeypatch):
    path.write_text("x" * 10)
    shift = generations.shift

    def and_reopened(name: str, keep: int) -> None:
        shift(name, keep)
        path.write_text("by a worker\n")

    monkeypatch.setattr(generations, "shift", and_reopened)
    assert rotating.rotate(section(path, size=10), None)
    assert (path.read_text(), path.with_name("log.1").read_text()) == ("by a worker\n", "x" * 10)


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "directory"])
def test_what_is_no_plain_file_is_left_alone(rotating, path, kind, caplog):
    victim = path.with_name("victim")
    victim.write_text("x" * 100)
    victim.chmod(0o600)
    match kind:
        case "link":
            path.symlink_to(victim)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            # One of our own: should this fail as root, it must not be the machine's that is renamed.
            try:
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("no devices can be made here")
    before = victim.stat()
    with caplog.at_level(logging.WARNING, "acme.log"):
        for _ in range(3):
            assert not rotating.rotate(section(path, size=1, age=60), WORKER)
            rotating.prepare(section(path, size=1), WORKER)
    assert caplog.messages == ([f"can't rotate {path}: it is a symbolic link"] if kind == "link" else [])
    assert victim.stat() == before


# -- whose the files are


@as_root
def test_new_files_belong_to_the_workers(rotating, path):
    path.write_text("x" * 10)
    assert rotating.rotate(section(path, size=10), WORKER)
    assert (path.stat().st_uid, path.stat().st_gid) == WORKER
    path.unlink()
    assert rotating.rotate(section(path, size=10), WORKER)
    assert (path.stat().st_uid, path.stat().st_gid) == WORKER
    assert path.stat().st_mode & 0o777 == 0o640


@as_root
def test_mode_and_group_that_an_administrator_gave_are_kept(rotating, path):
    path.write_text("x" * 10)
    os.chown(path, WORKER[0], 4)
    path.chmod(0o644)
    assert rotating.rotate(section(path, size=10), WORKER)
    assert (path.stat().st_uid, path.stat().st_gid) == (WORKER[0], 4)
    assert path.stat().st_mode & 0o7777 == 0o644
    path.write_text("x" * 10)
    path.chmod(0o4777)
    assert rotating.rotate(section(path, size=10), WORKER)
    assert path.stat().st_mode & 0o7777 == 0o666


@as_root
def test_prepare_gives_files_of_ours_to_the_workers(rotating, path):
    rotating.prepare(section(path), WORKER)
    assert (path.stat().st_uid, path.stat().st_gid) == WORKER
    path.unlink()
    path.write_text("opened by the arbiter before it knew of anybody\n")
    rotating.prepare(section(path), WORKER)
    assert (path.stat().st_uid, path.stat().st_gid) == WORKER
    assert path.read_text().startswith("opened")


@as_root
@pytest.mark.parametrize("trick", ["hard link", "of a third account"])
def test_nothing_else_is_given_away(rotating, path, tmp_path, trick):
    secret = tmp_path / "secret"
    secret.write_text("x")
    if trick == "hard link":
        path.hardlink_to(secret)
    else:
        path.write_text("x")
        os.chown(path, 4711, 4711)
    before = path.stat()
    rotating.prepare(section(path), WORKER)
    assert (path.stat().st_uid, path.stat().st_gid) == (before.st_uid, before.st_gid)


@as_root
def test_who_drops_rights_can_reopen_what_was_prepared():
    code = """
import os, sys
from types import SimpleNamespace as N
from acme_wsgi import log
section = N(output=sys.argv[1], error=N(output=None), access=N(enabled=False, output="stdout"),
            rotation=N(size=1, age=None, count=3, compress=False))
log.prepare(section, owner=(12345, 23456))
sink = log.sink.open_sink(sys.argv[1])
os.setgroups([]); os.setresgid(23456, 23456, 23456); os.setresuid(12345, 12345, 12345)
sink.reopen()
sink.put(b"still allowed\\n", 1)
assert sink.drain(10)
"""
    with tempfile.TemporaryDirectory() as directory:  # tmp_path lies in one that only root can enter
        Path(directory).chmod(0o755)
        path = Path(directory, "log")
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
        assert path.read_text() == "still allowed\n"


# -- trouble


def test_trouble_is_told_once_and_serving_goes_on(rotating, path, caplog, monkeypatch):
    settings = section(path, size=10)
    sink = open_sink(str(path))
    clock = [1000.0]
    monkeypatch.setattr(rotation.time, "monotonic", lambda: clock[0])
    try:
        sink.put(b"x" * 10 + b"\n", 1)
        assert sink.drain(10)
        moved = path.parent.rename(path.parent.with_name("moved"))
        with caplog.at_level(logging.WARNING, "acme.log"):
            for _ in range(20):
                assert not rotating.rotate(settings, None)
                clock[0] += RETRY / 2
            sink.put(b"not lost\n", 1)
            assert sink.drain(10)
        assert caplog.messages == [f"can't rotate {path}: No such file or directory"]
        assert (moved / "log").read_text().endswith("not lost\n")
        path.parent.mkdir()
        clock[0] += RETRY
        assert rotating.rotate(settings, None), "the directory is back: everybody reopens"
        sink.put(b"here\n", 1)
        assert sink.drain(10)
        assert path.read_text() == "here\n"
    finally:
        sink.close()


@pytest.mark.parametrize("step", ["rename", "create"])
def test_a_disk_that_refuses_loses_nothing(rotating, path, caplog, monkeypatch, step):
    """Nothing can be renamed, or no file be created: the lines go on into the file that there is."""
    path.write_text("x" * 10)
    settings = section(path, size=10)
    clock = [1000.0]
    monkeypatch.setattr(rotation.time, "monotonic", lambda: clock[0])
    assert not rotating.rotate(section(path, size=11), None)
    real_open, real_rename = os.open, Path.rename

    def refuse(*args: Any, **_: Any) -> int:
        if step == "create" and args[1] & os.O_EXCL == 0:
            return real_open(*args)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "acme.log"):
        patched.setattr(*((Path, "rename", refuse) if step == "rename" else (rotation.os, "open", refuse)))
        for _ in range(3):
            assert not rotating.rotate(settings, None)
            clock[0] += RETRY
    assert caplog.messages == [f"can't rotate {path}: No space left on device"]
    assert names(path) == (["log"] if step == "rename" else ["log.1"])
    assert Path.rename is real_rename
    assert rotating.rotate(settings, None)
    assert names(path) == ["log", "log.1"]
    assert path.with_name("log.1").read_text() == "x" * 10


def test_the_same_trouble_after_a_success_is_told_again(rotating, path, caplog, monkeypatch):
    settings = section(path, size=1000)
    clock = [1000.0]
    monkeypatch.setattr(rotation.time, "monotonic", lambda: clock[0])
    for _ in range(2):
        path.parent.rename(path.parent.with_name("moved"))
        assert not rotating.rotate(settings, None)
        path.parent.with_name("moved").rename(path.parent)
        clock[0] += RETRY
        rotating.rotate(settings, None)
    assert caplog.messages == [f"can't rotate {path}: No such file or directory"] * 2


# -- compression


def test_rotated_files_are_compressed_in_the_background(rotating, path):
    settings = section(path, size=10, compress=True)
    sink = open_sink(str(path))
    try:
        for number in range(3):
            sink.put(b"line %d\n" % number * 2, 2)
            assert sink.drain(10)
            assert rotating.rotate(settings, None)
            assert sink.drain(10)

        def done() -> bool:
            assert not rotating.rotate(settings, None)
            return names(path) == ["log", "log.1.gz", "log.2.gz", "log.3.gz"]

        wait_until(done, "three compressed files", 60)
    finally:
        sink.close()
    assert [gzip.decompress(path.with_name(f"log.{n}.gz").read_bytes()) for n in (3, 2, 1)] == [
        b"line %d\n" % number * 2 for number in range(3)
    ]


def test_what_an_interrupted_compression_left_is_removed(rotating, path):
    for name in ("log", "log.1", "log.2.gz", "log.gz.tmp"):
        path.with_name(name).write_text("x")
    assert not rotating.rotate(section(path, size=1000), None)
    assert names(path) == ["log", "log.1", "log.2.gz"]


# -- everything at once

WRITERS = """
import json, os, signal, sys, time
from types import SimpleNamespace as N
from acme_wsgi import log
from acme_wsgi.log.sink import open_sink

path, compress = sys.argv[1], sys.argv[2] == "compress"
settings = N(output=path, error=N(output=None), access=N(enabled=False, output="stdout"),
             rotation=N(size=20_000, age=None, count=1000, compress=compress))

def write(me, pipe):
    wanted = [False, False]
    signal.signal(signal.SIGUSR1, lambda *_: wanted.__setitem__(0, True))
    signal.signal(signal.SIGTERM, lambda *_: wanted.__setitem__(1, True))
    sink = open_sink(path)
    os.write(pipe, b".")
    number = 0
    while not wanted[1]:
        batch = 1 + number % 37
        while not sink.put(b"".join(b"%d:%d\\n" % (me, number + i) for i in range(batch)), batch):
            raise SystemExit("the queue is full")
        number += batch
        if wanted[0]:
            wanted[0] = False
            log.reopen_all()
        time.sleep(0.001 * (number % 3))
    assert sink.close(30) and not sink.dropped and not sink.failed, sink.error
    os.write(pipe, b"%d %d\\n" % (me, number))
    os._exit(0)

reading, writing = os.pipe()
children = []
for me in range(4):
    pid = os.fork()
    if pid == 0:
        write(me, writing)
    children.append(pid)
ready = b""
while len(ready) < 4:
    ready += os.read(reading, 4)
rotations = 0
deadline = time.monotonic() + 120
while rotations < 50:
    assert time.monotonic() < deadline, rotations
    if log.rotate(settings, owner=None):
        rotations += 1
        for pid in children:
            os.kill(pid, signal.SIGUSR1)
    time.sleep(0.002)
for pid in children:
    os.kill(pid, signal.SIGTERM)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
if compress:
    while any(name.rpartition(".")[2].isdigit() for name in os.listdir(os.path.dirname(path))):
        assert time.monotonic() < deadline
        log.rotate(settings, owner=None)
        time.sleep(0.002)
os.set_blocking(reading, False)
print(os.read(reading, 4096).decode())
"""


@pytest.mark.slow
@pytest.mark.parametrize("compress", ["plain", "compress"])
def test_every_line_of_several_writers_is_there_exactly_once(path, compress):
    """Four processes write as fast as they can while their file is rotated fifty times under them."""
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(path), compress], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    wrote = {int(me): int(count) for me, count in re.findall(r"(\d+) (\d+)", done.stdout)}
    assert wrote.keys() == {0, 1, 2, 3}
    files = list(path.parent.iterdir())
    assert len(files) == 51
    assert sum(each.suffix == ".gz" for each in files) == (50 if compress == "compress" else 0)
    found = b"".join(
        gzip.decompress(each.read_bytes()) if each.suffix == ".gz" else each.read_bytes() for each in files
    )
    lines = sorted(found.decode().splitlines())
    assert lines == sorted(f"{me}:{number}" for me, count in wrote.items() for number in range(count))
