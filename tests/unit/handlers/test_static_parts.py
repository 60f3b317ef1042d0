"""The parts of static files, each by itself: one filler for each key, listings, contents."""

from __future__ import annotations

import gzip
import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi import iothreads
from acme_wsgi.files.beneath import Listed
from acme_wsgi.files.openfile import OpenFile
from acme_wsgi.handlers import _contents, _encoding, _fillers
from acme_wsgi.handlers._contents import SMALL, Digests, is_utf8, read, whole
from acme_wsgi.handlers._encoding import AS_IT_IS, Encodings
from acme_wsgi.handlers._fillers import Fillers, Later
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


# -- work in a queue


def test_later_is_one_after_the_other_and_once_for_each_key() -> None:
    later: Later[str, str] = Later(3)
    go = threading.Event()
    order: list[str] = []

    def make(key: str) -> str:
        assert go.wait(10)
        order.append(key)
        return key.upper()

    works = [later.begin(key, lambda key=key: make(key)) for key in ("a", "b", "a", "c", "d")]
    assert works[0] is works[2] and works[4] is None, "one for each key, and no more than there is room for"
    go.set()
    for work, value in zip(works[:4], "ABAC", strict=True):
        assert work is not None and work.done.wait(10)
        assert work.value == (value,)
    assert order == ["a", "b", "c"]
    again = later.begin("a", lambda: make("a"))
    assert again is not None and again.done.wait(10)
    assert order[3:] == ["a"]


def test_work_that_fails_does_not_hold_up_what_comes_after_it(caplog: pytest.LogCaptureFixture) -> None:
    later: Later[str, float] = Later(3)
    go = threading.Event()

    def fail() -> float:
        assert go.wait(10)
        return 1 / 0

    works = [later.begin("a", fail), later.begin("b", lambda: 1.0)]
    go.set()
    for work in works:
        assert work is not None and work.done.wait(10)
    failed, done = works
    assert failed is not None and failed.value is None and isinstance(failed.error, ZeroDivisionError)
    assert done is not None and done.value == (1.0,)
    (said,) = caplog.records
    assert said.exc_info is not None and said.exc_info[1] is failed.error


# -- forms that take long


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What takes long is done in place; the lengths of what was compressed."""
    lengths: list[int] = []
    compress = _encoding.compress

    def noted(token: str, level: int, data: bytes) -> bytes:
        lengths.append(len(data))
        return compress(token, level, data)

    monkeypatch.setattr(iothreads, "run_long", lambda function, *args: function(*args))
    monkeypatch.setattr(_encoding, "compress", noted)
    return lengths


def written(path: Path, content: bytes) -> OpenFile:
    path.write_bytes(content)
    return opened(path)


def test_a_form_is_made_once_for_each_version(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_encoding, "has_settled", lambda file: True)
    encodings = Encodings()
    file = written(tmp_path / "a", b"x" * 1000)
    for again in (file, opened(tmp_path / "a")):
        data = encodings.get("gzip", 6, again, 10)
        assert data is not None and gzip.decompress(data) == b"x" * 1000
    encodings.get("gzip", 9, file, 10)
    encodings.get("gzip", 6, written(tmp_path / "a", b"x" * 1001), 10)
    assert at_once == [1000, 1000, 1001]
    assert encodings.get("gzip", 6, written(tmp_path / "noise", os.urandom(1000)), 10) == AS_IT_IS


def test_nobody_waits_for_a_form_that_others_have_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(iothreads, "run_long", lambda *args: (b"made", True) if go.wait(20) else None)
    monkeypatch.setattr(_encoding, "has_settled", lambda file: True)
    encodings = Encodings()
    file = written(tmp_path / "a", b"x" * 1000)
    assert encodings.get("gzip", 6, file, 0.0) is None
    [(work, _)] = encodings._later._queue.values()
    work.since -= 60.0
    assert encodings.get("gzip", 6, file, 60.0) is None, "at once: the minute is over"
    go.set()
    assert work.done.wait(10)
    assert encodings.get("gzip", 6, file, 0.0) == b"made"


def test_a_form_of_a_version_that_its_times_do_not_name_is_not_kept(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_contents, "key_of", lambda file: (1, 1, 1, 1, 1))
    monkeypatch.setattr(_encoding, "key_of", lambda file: (1, 1, 1, 1, 1))
    monkeypatch.setattr(_encoding, "has_settled", lambda file: False)
    encodings = Encodings()
    for content in (b"x" * 1000, b"y" * 1000):
        data = encodings.get("gzip", 6, written(tmp_path / "a", content), 10)
        assert data is not None and gzip.decompress(data) == content


def test_a_form_whose_file_has_settled_meanwhile_is_kept(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = iter([False, True])
    monkeypatch.setattr(_encoding, "has_settled", lambda file: next(settled))
    encodings = Encodings()
    file = written(tmp_path / "a", b"x" * 1000)
    assert encodings.get("gzip", 6, file, 10) == encodings.get("gzip", 6, file, 10)
    assert at_once == [1000]


def test_forms_are_bounded_and_the_oldest_make_room(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_encoding, "has_settled", lambda file: True)
    monkeypatch.setattr(_encoding, "HELD", 3 * (_encoding.OVERHEAD + 100))
    encodings = Encodings()
    files = [written(tmp_path / str(number), b"x" * (1000 + number)) for number in range(4)]
    for number in (0, 1, 2, 0, 3, 0, 1):
        encodings.get("gzip", 6, files[number], 10)
    assert at_once == [1000, 1001, 1002, 1003, 1001]


def test_a_form_that_is_too_large_to_be_kept_is_not_made_again(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_encoding, "has_settled", lambda file: True)
    monkeypatch.setattr(_encoding, "HELD", _encoding.OVERHEAD)
    encodings = Encodings()
    file = written(tmp_path / "a", b"x" * 1000)
    assert encodings.get("gzip", 6, file, 10) != AS_IT_IS
    assert encodings.get("gzip", 6, file, 10) == AS_IT_IS
    assert at_once == [1000]


def test_a_file_that_can_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise OSError("the disk")

    monkeypatch.setattr(iothreads, "run_long", fail)
    with caplog.at_level(logging.WARNING):
        assert Encodings().get("gzip", 6, written(tmp_path / "a", b"x"), 10) is None
    assert "the disk" in caplog.text


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
