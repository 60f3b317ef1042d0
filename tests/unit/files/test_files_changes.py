"""Changes: each kind of change is told to whom it concerns, until cancelled, within the bounds."""

from __future__ import annotations

import functools
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from acme_wsgi.files.changes import Changes, events, tells
from tests.unit.files.in_loop import in_loop, until


class Heard:
    """Counts the calls of a callback."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: append(path),
        lambda path: path.write_bytes(b"new"),
        lambda path: os.truncate(path, 1),
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path, (1, 1)),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("elsewhere")),
        lambda path: path.with_name("other").rename(path),
        lambda path: shutil.rmtree(path.parent),
        lambda path: path.parent.rename(path.parent.with_name("moved")),
        lambda path: path.parent.chmod(0o711),
    ],
    ids=[
        "append",
        "rewrite",
        "truncate",
        "chmod",
        "utime",
        "unlink",
        "away",
        "replace",
        "rmtree",
        "move",
        "mode",
    ],
)
@in_loop
def test_each_change_is_told(told: Path, change: Callable[[Path], object]) -> None:
    (told / "directory").mkdir()
    path = told / "directory/page"
    path.write_bytes(b"first")
    path.with_name("other").write_bytes(b"second")
    changes, heard, unheard = Changes(), Heard(), Heard()
    assert changes.watch(str(path.parent), b"page", heard) is not None
    assert changes.watch(os.fsencode(told), b"another", unheard) is not None
    change(path)
    until(lambda: heard.calls)
    assert unheard.calls == 0


@in_loop
def test_what_is_created_is_told(told: Path) -> None:
    changes = Changes()
    ways: dict[str, Callable[[Path], object]] = {
        "file": lambda path: path.touch(),
        "directory": lambda path: path.mkdir(),
        "link": lambda path: path.symlink_to("x"),
        "hard": lambda path: path.hardlink_to(told / "file"),
    }
    for name, create in ways.items():
        heard = Heard()
        assert changes.watch(str(told), name.encode(), heard)
        create(told / name)
        until(functools.partial(getattr, heard, "calls"))


@in_loop
def test_the_others_in_the_directory_are_not_told(told: Path) -> None:
    changes, one, other = Changes(), Heard(), Heard()
    changes.watch(str(told), b"one", one)
    changes.watch(str(told), b"other", other)
    (told / "nobody's").touch()
    (told / "other").touch()
    until(lambda: other.calls)
    assert one.calls == 0


@in_loop
def test_all_who_watch_one_name_are_told(told: Path) -> None:
    changes, heard = Changes(), [Heard() for _ in range(5)]
    for one in heard:
        changes.watch(str(told), b"name", one)
    (told / "name").touch()
    until(lambda: all(one.calls for one in heard))


@in_loop
def test_cancelled_it_is_told_no_more(told: Path) -> None:
    changes, gone, stays = Changes(), Heard(), Heard()
    watch = changes.watch(str(told), b"name", gone)
    changes.watch(str(told), b"name", stays)
    assert watch is not None
    watch.cancel()
    watch.cancel()
    assert len(changes) == 1
    (told / "name").touch()
    until(lambda: stays.calls)
    assert gone.calls == 0


@in_loop
def test_a_directory_that_nobody_watches_any_more_is_given_back(told: Path) -> None:
    changes = Changes(directories=1)
    (told / "a").mkdir()
    first = changes.watch(str(told), b"x", Heard())
    second = changes.watch(str(told), b"y", Heard())
    assert first is not None
    assert second is not None
    assert changes.watch(str(told / "a"), b"x", Heard()) is None
    first.cancel()
    assert changes.watch(str(told / "a"), b"x", Heard()) is None
    second.cancel()
    heard = Heard()
    assert changes.watch(str(told / "a"), b"x", heard) is not None
    (told / "a/x").touch()
    until(lambda: heard.calls)


@in_loop
def test_the_number_of_watches_is_bounded(told: Path) -> None:
    changes = Changes(watches=2)
    first = changes.watch(str(told), b"x", Heard())
    assert first is not None
    assert changes.watch(str(told), b"x", Heard()) is not None
    assert changes.watch(str(told), b"x", Heard()) is None
    first.cancel()
    assert changes.watch(str(told), b"x", Heard()) is not None


@in_loop
def test_a_deleted_directory_is_forgotten(told: Path) -> None:
    (told / "a").mkdir()
    changes, heard = Changes(), Heard()
    watch = changes.watch(str(told / "a"), b"x", heard)
    (told / "a").rmdir()
    until(lambda: len(changes) == 0)
    assert heard.calls
    assert watch is not None
    watch.cancel()
    assert len(changes) == 0


@in_loop
def test_when_events_were_lost_all_are_told(told: Path) -> None:
    (told / "a").mkdir()
    changes, heard, quiet = Changes(), Heard(), Heard()
    assert changes.watch(str(told), b"name", heard) is not None
    assert changes.watch(str(told / "a"), b"unchanged", quiet) is not None
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(queue // 2):
        (told / f"x{number}").touch()  # two events: created, closed
        (told / f"x{number}").unlink()
    until(lambda: quiet.calls)


@in_loop
def test_a_callback_that_fails_keeps_nobody_from_being_told(told: Path) -> None:
    import gevent

    def fail() -> None:
        raise RuntimeError("this traceback is wanted")

    changes, heard, errors = Changes(), [Heard() for _ in range(4)], []
    gevent.get_hub().handle_error = lambda context, kind, value, trace: errors.append(value)
    for one in heard:
        changes.watch(str(told), b"name", fail)
        changes.watch(str(told), b"name", one)
    (told / "name").mkdir()
    until(lambda: all(one.calls for one in heard))
    assert len(errors) == 4


@in_loop
def test_watched_from_a_thread(told: Path) -> None:
    import gevent

    changes, heard = Changes(), Heard()
    watch = gevent.get_hub().threadpool.apply(changes.watch, (str(told), b"name", heard))
    assert watch is not None
    (told / "name").touch()
    until(lambda: heard.calls)


@in_loop
def test_threads_and_the_loop_watch_and_cancel_together(told: Path) -> None:
    import gevent

    changes, pool = Changes(), gevent.get_hub().threadpool

    def churn(number: int) -> None:
        for turn in range(300):
            watch = changes.watch(str(told), b"%d" % (turn % 3), Heard())
            assert watch is not None, number
            watch.cancel()

    threads = [pool.spawn(churn, number) for number in range(4)]
    turn = 0
    while not all(thread.ready() for thread in threads):
        (told / str(turn % 3)).write_bytes(b"x")
        turn += 1
        gevent.sleep(0)
    for thread in threads:
        thread.get()
    assert len(changes) == 0
    heard = Heard()
    changes.watch(str(told), b"0", heard)
    (told / "0").write_bytes(b"y")
    until(lambda: heard.calls)


@in_loop
def test_it_does_not_keep_the_loop_running(told: Path) -> None:
    import gevent

    changes = Changes()
    changes.watch(str(told), b"name", Heard())
    gevent.sleep(0.01)
    assert gevent.get_hub().join(timeout=5)


@in_loop
def test_closed_it_tells_nothing(told: Path) -> None:
    changes, heard, other = Changes(), Heard(), Changes()
    watch = changes.watch(str(told), b"name", heard)
    (told / "name").touch()
    changes.close()
    assert watch is not None
    watch.cancel()
    later = Heard()
    other.watch(str(told), b"later", later)
    (told / "later").touch()
    until(lambda: later.calls)
    assert heard.calls == 0


@in_loop
def test_what_cannot_be_watched(told: Path) -> None:
    (told / "file").touch()
    changes = Changes()
    assert changes.watch(str(told / "nothing"), b"x", Heard()) is None
    assert changes.watch(str(told / "file"), b"x", Heard()) is None
    assert changes.watch("/proc/self", b"x", Heard()) is None
    assert len(changes) == 0


def test_the_file_systems_that_tell(told: Path) -> None:
    assert tells(os.fsencode(told))
    assert not tells(b"/proc")
    assert not tells(b"/sys")
    assert not tells(b"/nothing/there")


def test_events_are_cut_right() -> None:
    data = struct.pack("iIII16s", 1, 2, 0, 16, b"name") + struct.pack("iIII", 3, 0x8000, 0, 0)
    assert list(events(data)) == [(1, 2, b"name"), (3, 0x8000, b"")]
    assert list(events(b"")) == []
