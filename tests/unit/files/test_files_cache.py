"""FileTable: what is kept and until when, what makes room, and that no old version outlives its change."""

from __future__ import annotations

import gc
import os
import random
import resource
import weakref
from pathlib import Path

import pytest

from acme_wsgi.files import guard
from acme_wsgi.files.beneath import Beneath
from acme_wsgi.files.cache import OVERHEAD, FileTable
from acme_wsgi.files.changes import Changes
from tests.unit.files.in_loop import in_loop, until

LONG = 3600.0


class Value:
    """Something that can be watched going."""


@pytest.fixture
def root(told: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root whose files count as unchanged for long."""
    monkeypatch.setattr(guard, "SETTLED_NS", -1)
    (told / "page").write_bytes(b"page")
    (told / "a").mkdir()
    return told


def table(root: Path, **bounds: float) -> FileTable:
    return FileTable(Beneath(root), Changes(), **({"interval": LONG} | bounds))  # type: ignore[arg-type]


def keep(files: FileTable, path: str, value: object, *, memory: int = 10, descriptors: int = 0) -> bool:
    """Keep a value that depends on nothing."""
    return files.keep(path, value, {}, memory=memory, descriptors=descriptors)


@in_loop
def test_kept_until_its_file_changes(root: Path) -> None:
    files, value = table(root), Value()
    assert files.get("/page") is None
    assert files.keep("/page", value, {b"page": Beneath(root).stat(b"page")}, memory=5, descriptors=1)
    assert files.get("/page") is value
    assert (len(files), files.memory, files.descriptors) == (1, 5 + OVERHEAD, 1)
    assert (files.hits, files.misses) == (1, 1)
    (root / "page").write_bytes(b"new")
    until(lambda: files.get("/page") is None)
    assert (len(files), files.memory, files.descriptors) == (0, 0, 0)


@in_loop
def test_what_was_dropped_is_let_go(root: Path) -> None:
    files, value = table(root), Value()
    gone = weakref.ref(value)
    files.keep("/page", value, {b"page": Beneath(root).stat(b"page")}, memory=0, descriptors=0)
    del value
    assert gone() is not None
    (root / "page").unlink()
    until(lambda: gone() is None)


@in_loop
def test_not_kept_if_the_file_changed_meanwhile(root: Path) -> None:
    files, changes = table(root), Beneath(root).stat(b"page")
    (root / "page").write_bytes(b"new, and longer")
    assert not files.keep("/page", Value(), {b"page": changes}, memory=0, descriptors=0)
    assert files.get("/page") is None
    assert len(files) == 0


@in_loop
def test_what_appears_beside_it_drops_it(root: Path) -> None:
    files = table(root)
    found = {b"page": Beneath(root).stat(b"page"), b"page.br": None}
    assert files.keep("/page", Value(), found, memory=0, descriptors=0)
    (root / "page.br").touch()
    until(lambda: len(files) == 0)


@in_loop
def test_the_new_value_replaces_the_old(root: Path) -> None:
    files, old, new = table(root), Value(), Value()
    found = Beneath(root).stat(b"page")
    files.keep("/page", old, {b"page": found}, memory=100, descriptors=1)
    files.keep("/page", new, {}, memory=7, descriptors=0)
    assert files.get("/page") is new
    assert (len(files), files.memory, files.descriptors) == (1, 7 + OVERHEAD, 0)
    (root / "page").unlink()  # concerns the old one only
    probe = Value()
    files.keep("/probe", probe, {b"probe": None}, memory=0, descriptors=0)
    (root / "probe").touch()
    until(lambda: files.get("/probe") is None)
    assert files.get("/page") is new


@in_loop
def test_what_nobody_watches_ends_by_itself(root: Path) -> None:
    import gevent

    (root / "link").symlink_to("page")
    files = table(root, interval=0.05)
    files.verify()
    assert files.keep("/link", Value(), {b"link": Beneath(root).stat(b"link")}, memory=0, descriptors=0)
    until(lambda: files.get("/link") is None)
    while len(files):  # and its value goes when somebody verifies
        files.verify()
        gevent.sleep(0.001)


@in_loop
def test_what_is_watched_does_not_end(root: Path) -> None:
    files = table(root, interval=0.02)
    found = Beneath(root).stat(b"page")
    value = Value()
    assert files.keep("/page", value, {b"page": found}, memory=0, descriptors=0)
    for _ in range(5):
        until(lambda: files.get("/page") is None)  # somebody is to verify
        files.verify()
        assert files.get("/page") is value


@in_loop
def test_one_is_sent_to_verify_and_if_nobody_does_it_all(root: Path) -> None:
    import gevent

    files, value = table(root, interval=0.2), Value()
    keep(files, "/x", value)
    assert files.get("/x") is value
    until(lambda: files.get("/x") is None)
    assert files.get("/x") is value  # the others go on meanwhile
    until(lambda: files.get("/x") is None)
    gevent.sleep(0)
    assert files.get("/x") is None
    files.verify()
    assert files.get("/x") is value


@in_loop
def test_a_switched_root_drops_all(told: Path) -> None:
    for release in ("one", "two"):
        (told / release).mkdir()
        (told / release / "page").write_text(release)
    (told / "current").symlink_to("one")
    guard.SETTLED_NS = -1
    files = table(told / "current", interval=0.02)
    below = Beneath(told / "current")
    for path in ("/page", "/other"):
        assert files.keep(path, Value(), {b"page": below.stat(b"page")}, memory=0, descriptors=0)
    (told / "next").symlink_to("two")
    (told / "next").rename(told / "current")

    def dropped() -> bool:
        files.verify()
        return len(files) == 0

    until(dropped)
    value = Value()
    assert files.keep("/page", value, {b"page": below.stat(b"page")}, memory=0, descriptors=0)
    assert files.get("/page") is value


@in_loop
def test_what_a_switch_keeps_out_is_let_go_at_once(told: Path) -> None:
    for name in ("one", "two"):
        (told / name).mkdir()
        (told / name / "page").write_text(name)
    (told / "current").symlink_to("one")
    beneath = Beneath(told / "current")
    files = FileTable(beneath, Changes(), interval=LONG)
    assert keep(files, "/first", Value())
    (told / "next").symlink_to("two")
    (told / "next").rename(told / "current")
    value = Value()
    gone = weakref.ref(value)
    gc.disable()
    try:
        assert not files.keep("/page", value, {b"page": beneath.stat(b"page")}, memory=1, descriptors=1)
        del value
        assert gone() is None, "files would stay open until the collector comes"
    finally:
        gc.enable()


@in_loop
def test_a_switch_that_is_not_yet_noticed_lets_nothing_new_in(told: Path) -> None:
    (told / "one").mkdir()
    (told / "two").mkdir()
    (told / "current").symlink_to("one")
    files = table(told / "current")
    assert keep(files, "/x", Value())
    (told / "current").unlink()
    (told / "current").symlink_to("two")
    assert not keep(files, "/y", Value())
    assert files.get("/x") is not None


@in_loop
def test_a_root_that_goes_drops_all(told: Path) -> None:
    (told / "root").mkdir()
    files = table(told / "root", interval=0.02)
    assert keep(files, "/x", Value())
    (told / "root").rename(told / "elsewhere")

    def dropped() -> bool:
        files.verify()
        return len(files) == 0

    until(dropped)
    assert not keep(files, "/x", Value())


@pytest.mark.parametrize("bound", ["entries", "memory", "descriptors"])
@in_loop
def test_each_bound_holds(root: Path, bound: str) -> None:
    limits = {"entries": 10, "memory": 10 * (OVERHEAD + 100), "descriptors": 20}
    files = table(root, **{bound: limits[bound]})
    for number in range(100):
        assert keep(files, str(number), Value(), memory=100, descriptors=2)
        assert len(files) <= 10
        assert files.get(str(number)) is not None
    assert len(files) == 10
    assert files.evicted == 90
    assert files.memory == 10 * (OVERHEAD + 100)
    assert files.descriptors == 20


@in_loop
def test_what_is_used_stays(root: Path) -> None:
    files, value = table(root, entries=10), Value()
    keep(files, "used", value)
    for number in range(100):
        keep(files, str(number), Value())
        assert files.get("used") is value


@in_loop
def test_if_all_is_used_something_goes_all_the_same(root: Path) -> None:
    files = table(root, entries=200)
    for number in range(1000):
        keep(files, str(number), Value())
        for other in range(number + 1):
            files.get(str(other))
    assert len(files) == 200


@in_loop
def test_what_is_too_big_alone_is_not_kept(root: Path) -> None:
    files = table(root, memory=OVERHEAD + 100, descriptors=3)
    keep(files, "small", Value())
    assert not keep(files, "big", Value(), memory=101)
    assert not keep(files, "open", Value(), memory=0, descriptors=4)
    assert files.get("small") is not None


@in_loop
def test_forgotten_and_cleared(root: Path) -> None:
    changes = Changes()
    files = FileTable(Beneath(root), changes, interval=LONG)
    found = Beneath(root).stat(b"page")
    for path in ("/a", "/b", "/c"):
        files.keep(path, Value(), {b"page": found}, memory=0, descriptors=1)
    files.forget("/a")
    files.forget("/nothing")
    assert files.get("/a") is None
    assert (len(files), len(changes)) == (2, 2)
    files.clear()
    assert (len(files), len(changes), files.memory, files.descriptors) == (0, 0, 0, 0)


@in_loop
def test_a_share_of_the_descriptors(root: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    assert table(root).max_descriptors == 100
    assert table(root, descriptors=7).max_descriptors == 7


@in_loop
def test_the_queues_do_not_grow_with_changes(root: Path) -> None:
    """Kept and dropped over and over: what was dropped is not remembered."""
    import gc

    def entries() -> int:
        return sum(type(one).__name__ == "Entry" for one in gc.get_objects())

    files = table(root)
    gone = []
    before = entries()
    gc.disable()  # in a worker it seldom comes
    for _ in range(2000):
        value = Value()
        gone.append(weakref.ref(value))
        keep(files, "/x", value)
        del value
    assert sum(one() is not None for one in gone) == 1
    assert entries() - before < 200


@in_loop
def test_threads_keep_while_files_change(root: Path) -> None:
    """Many threads keep what they read while the loop replaces it: no old version outlives its change."""
    import gevent

    names = [f"file{number}" for number in range(5)]
    for name in names:
        (root / name).write_text("0")
    below, files, pool = Beneath(root), table(root, entries=4), gevent.get_hub().threadpool
    done: list[bool] = []

    def fill(number: int) -> None:
        chance = random.Random(number)
        while not done:
            name = chance.choice(names)
            try:
                file = below.open(name.encode())
            except FileNotFoundError:
                continue
            text = os.pread(file.fd, 100, 0).decode()
            files.keep(name, text, {name.encode(): file}, memory=len(text), descriptors=0)

    threads = [pool.spawn(fill, number) for number in range(4)]
    for version in range(1, 300):
        name = names[version % 5]
        (root / "new").write_text(str(version))
        (root / "new").rename(root / name)
        files.get(name)
        gevent.sleep(0.001)
    done.append(True)
    for thread in threads:
        thread.get()
    last = {name: (root / name).read_text() for name in names}
    until(lambda: all(files.get(name) in (None, last[name]) for name in names))
    assert len(files) <= 4
    assert files.memory == sum(OVERHEAD + len(last[name]) for name in names if files.get(name) is not None)
