"""The parts of static files, each by itself: one filler for each key, listings, contents."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.files.beneath import Listed
from acme_wsgi.files.openfile import OpenFile
from acme_wsgi.handlers import _fillers
from acme_wsgi.handlers._contents import SMALL, Digests, is_utf8, read, whole
from acme_wsgi.handlers._fillers import Fillers
from acme_wsgi.handlers._listing import human_size, page


def opened(path: Path) -> OpenFile:
    return OpenFile(os.open(path, os.O_RDONLY))


# -- one filler


def in_turn(monkeypatch: pytest.MonkeyPatch, first: BaseException | None) -> list[object]:
    """What three callers get when `first` happens to the first of them while the others wait."""
    begun, go, waiting = threading.Event(), threading.Event(), threading.Semaphore(0)

    class Noted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.release()
            return super().wait(timeout)

    monkeypatch.setattr(_fillers, "threading", SimpleNamespace(Event=Noted))
    fillers: _fillers.Fillers[str, int] = _fillers.Fillers()
    results: list[object] = []
    calls: list[None] = []

    def make() -> int:
        calls.append(None)
        number = len(calls)
        if number == 1:
            begun.set()
            assert go.wait(10)
            if first is not None:
                raise first
        return number

    def ask() -> None:
        try:
            results.append(fillers.fill("key", make))
        except BaseException as error:  # noqa: BLE001 - it is the result
            results.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
        assert waiting.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join(10)
    return results


def test_who_waits_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_turn(monkeypatch, None) == [1, 1, 1]
    error = OSError("the disk")
    assert in_turn(monkeypatch, error) == [error] * 3


def test_a_stopped_filler_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = KeyboardInterrupt()
    results = in_turn(monkeypatch, stopped)
    assert results.count(stopped) == 1
    assert sum(isinstance(result, int) and result > 1 for result in results) == 2


def test_keys_do_not_wait_for_each_other() -> None:
    fillers: Fillers[str, int] = Fillers()
    assert fillers.fill("a", lambda: fillers.fill("b", lambda: 1) + 1) == 2


def test_an_error_is_for_nobody_who_comes_later() -> None:
    fillers: Fillers[str, int] = Fillers()
    with pytest.raises(ZeroDivisionError):
        fillers.fill("key", lambda: 1 // 0)
    assert fillers.fill("key", lambda: 5) == 5


# -- listings


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (1536, "1.5 KB"),
        (1048575, "1.0 MB"),
        (5 * 1024**3, "5.0 GB"),
        (1024**6, "1024.0 PB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_no_name_escapes_its_place(name: bytes) -> None:
    path = f"/{name.decode('latin-1')}/"
    text = page(path, [Listed(name, False, 1, 0)], more=False, parent=False).decode()
    plain = page("/x/", [Listed(b"x", False, 1, 0)], more=False, parent=False).decode()
    for mark in '<>"':
        assert text.count(mark) == plain.count(mark)
    link = text.partition('href="')[2].partition('"')[0]
    assert link.startswith("./") and link.isascii()
    assert not set(link[2:]) & set("/?#:\\")


# -- contents


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * SMALL)
    content = read(opened(path), "sha256", None, True)
    assert content.body == b"x" * SMALL
    assert content.steady and content.utf8 and content.digest is not None
    path.write_bytes(b"x" * (SMALL + 1))
    assert read(opened(path), None, None, False).body is None
    path.write_bytes(b"")
    assert read(opened(path), "md5", None, True).body == b""


@pytest.mark.parametrize("size", [100, SMALL + 100])
def test_a_file_that_changed_has_no_digest(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * size)
    file = opened(path)
    os.truncate(path, size - 1)
    content = read(file, "md5", None, False)
    assert (content.steady, content.digest) == (False, None)
    assert whole(file) is None


@pytest.mark.parametrize(
    ("data", "complete", "expected"),
    [
        (b"", True, True),
        ("grüße".encode(), True, True),
        ("grüße".encode("latin-1"), True, False),
        ("ü".encode()[:1], True, False),
        ("ü".encode()[:1], False, True),
        (b"\xff\xfe<\0", False, False),
    ],
)
def test_utf8(data: bytes, complete: bool, expected: bool) -> None:
    assert is_utf8(data, complete) is expected


def test_digests_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digests, "MOST", 3)
    digests = Digests()
    files = []
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        files.append(opened(path))
        digests.put("md5", files[-1], str(number))
    assert [digests.get("md5", file) for file in files] == [None, None, "2", "3", "4"]
    assert digests.get("sha256", files[4]) is None
