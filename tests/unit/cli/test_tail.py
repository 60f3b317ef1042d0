"""The end of a file and what is added to it, with real files, rotation and truncation."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acme_wsgi.cli import tail
from acme_wsgi.cli.tail import MAX_LINE, Follower, NoFile, last_lines, open_file
from tests.unit.descriptors import leading_below


def end_of(
    path: Path, wanted: int, verdict: Callable[[bytes], bool | None] = lambda line: True
) -> list[bytes]:
    descriptor = open_file(str(path))
    try:
        return last_lines(descriptor, path.stat().st_size, wanted, verdict)
    finally:
        os.close(descriptor)


# -- the end


@pytest.mark.parametrize(
    ("content", "wanted", "lines"),
    [
        (b"", 5, []),
        (b"\n", 5, [b""]),
        (b"a\n", 5, [b"a"]),
        (b"a\nb\nc\n", 2, [b"b", b"c"]),
        (b"a\nb\nc", 2, [b"b", b"c"]),
        (b"a\n\n\n", 2, [b"", b""]),
        (b"\n\na\n", 5, [b"", b"", b"a"]),
        (b"a\nb\n", 0, []),
    ],
)
def test_the_last_lines(tmp_path: Path, content: bytes, wanted: int, lines: list[bytes]) -> None:
    (tmp_path / "log").write_bytes(content)
    assert end_of(tmp_path / "log", wanted) == lines


@pytest.mark.parametrize("length", [1, 100, 8191, 8192, 70_000])
def test_lines_across_the_pieces_that_are_read(tmp_path: Path, length: int) -> None:
    lines = [b"%06d" % number + b"x" * length for number in range(400_000 // length + 3)]
    (tmp_path / "log").write_bytes(b"\n".join(lines) + b"\n")
    assert end_of(tmp_path / "log", 10**6) == lines
    assert end_of(tmp_path / "log", 2) == lines[-2:]


def test_a_huge_file_costs_little(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.truncate(10 << 30)  # a hole: one endless line of zeros
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    tracemalloc.start()
    try:
        assert end_of(tmp_path / "log", 1) == [b"last"]
        first, last = end_of(tmp_path / "log", 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last == b"last" and MAX_LINE < len(first) <= 2 * MAX_LINE
    assert peak < 8 * MAX_LINE


def test_what_is_held_has_an_end_however_many_lines_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "MAX_SHOWN", 1000)
    (tmp_path / "log").write_bytes(b"123456789\n" * 1000)
    assert 100 <= len(end_of(tmp_path / "log", 1000)) <= 120


def verdict(line: bytes) -> bool | None:
    return None if line.startswith(b" ") else line.startswith(b"y")


def test_lines_that_go_with_the_one_above(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"y1\n a\nn1\n b\n c\ny2\n d\n e\nn2\n")
    assert end_of(tmp_path / "log", 3, verdict) == [b"y2", b" d", b" e"]
    assert end_of(tmp_path / "log", 9, verdict) == [b"y1", b" a", b"y2", b" d", b" e"]


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(NoFile, match="log"):
        open_file(str(path))


# -- following


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    return path


@pytest.fixture
def follower(log: Path) -> Iterator[Follower]:
    found = Follower(str(log), open_file(str(log)), 4)
    yield found
    found.close()


def add(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_what_is_added_comes_once_and_in_whole_lines(log: Path, follower: Follower) -> None:
    assert follower.read() == []
    add(log, b"one\ntw")
    assert follower.read() == [b"one"]
    add(log, b"o\nthree\n")
    assert follower.read() == [b"two", b"three"]
    assert follower.read() == []


def test_a_renamed_file_is_read_to_its_end_before_the_new_one(log: Path, follower: Follower) -> None:
    renamed = log.with_name("log.1")
    log.rename(renamed)
    add(renamed, b"a\n")
    assert follower.read() == [b"a"]  # the new one isn't there yet
    add(renamed, b"b\n")
    add(log, b"c\n")
    assert follower.read() == [b"b", b"c"]
    add(renamed, b"d\n")  # a worker that hasn't changed yet
    add(log, b"e\n")
    assert follower.read() == [b"d", b"e"]


def test_an_old_file_is_let_go_of(log: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "GRACE", 0.0)
    before = leading_below(log.parent)
    for number in range(5):
        add(log, b"end without a line's end %d" % number)
        log.rename(log.with_name("log.1"))
        add(log, b"new %d\n" % number)
        lines = follower.read() + follower.read()
        assert sorted(lines) == [b"end without a line's end %d" % number, b"new %d" % number]
    assert leading_below(log.parent) == before


def test_a_truncated_file_is_read_from_its_beginning(log: Path, follower: Follower) -> None:
    add(log, b"a long line before\npart")
    assert follower.read() == [b"a long line before"]
    os.truncate(log, 0)
    add(log, b"new\n")
    assert follower.read() == [b"part", b"new"]


def test_a_removed_file_and_a_directory_in_its_place_are_waited_out(log: Path, follower: Follower) -> None:
    log.unlink()
    assert follower.read() == []
    log.mkdir()
    assert follower.read() == []
    log.rmdir()
    add(log, b"back\n")
    assert follower.read() == [b"back"]


def test_an_endless_line_comes_in_pieces(log: Path, follower: Follower) -> None:
    add(log, b"x" * (3 * MAX_LINE) + b"\nend\n")
    lines = follower.read()
    assert b"".join(lines) == b"x" * (3 * MAX_LINE) + b"end" and lines[-1] == b"end"
    add(log, b"y" * (2 * MAX_LINE))
    assert follower.read() == [b"y" * (2 * MAX_LINE)]
