"""Guard: what is watched for a value, what the second look notices, and when the two are not enough."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from acme_wsgi.files import guard
from acme_wsgi.files.beneath import Beneath
from acme_wsgi.files.changes import Changes
from acme_wsgi.files.guard import Guard, Seen
from tests.unit.descriptors import descriptors, left_open
from tests.unit.files.in_loop import in_loop, until


@pytest.fixture
def root(told: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root whose files count as unchanged for long."""
    monkeypatch.setattr(guard, "SETTLED_NS", -1)
    (told / "a/b").mkdir(parents=True)
    (told / "a/b/page").write_bytes(b"page")
    (told / "a/other").write_bytes(b"other")
    return told


def seen(below: Beneath, relative: bytes) -> Seen:
    try:
        return below.stat(relative)
    except FileNotFoundError:
        return None


@pytest.mark.parametrize(
    ("relative", "change"),
    [
        (b"a/b/page", lambda root: (root / "a/b/page").write_bytes(b"more")),
        (b"a/b/page", lambda root: (root / "a/other").rename(root / "a/b/page")),
        (b"a/b/page", lambda root: (root / "a/b").rename(root / "a/c")),
        (b"a/b/page", lambda root: (root / "a").rename(root / "c")),
        (b"a/b/page", lambda root: (root / "a").chmod(0o700)),
        (b"a/b/page", lambda root: (root / "a/b/page").unlink()),
        (b"a/b/page.br", lambda root: (root / "a/b/page.br").touch()),
        (b"a/b/page/x", lambda root: (root / "a/b/page").unlink()),
        (b"new/index", lambda root: (root / "new").mkdir()),
        (b"new", lambda root: (root / "new").symlink_to("a")),
        (b"a/b/", lambda root: (root / "a/b").rename(root / "a/c")),
    ],
)
@in_loop
def test_what_changes_later_is_told(root: Path, relative: bytes, change: Callable[[Path], object]) -> None:
    below, calls = Beneath(root), []
    armed = Guard(below, Changes()).arm({relative: seen(below, relative)}, lambda: calls.append(1))
    assert armed is not None
    assert armed.certain
    assert armed.identity == (root.stat().st_dev, root.stat().st_ino)
    change(root)
    until(lambda: calls)


@pytest.mark.parametrize(
    ("relative", "change"),
    [
        (b"a/b/page", lambda root: (root / "a/b/page").write_bytes(b"more")),
        (b"a/b/page", lambda root: os.utime(root / "a/b/page", (1, 1))),
        (b"a/b/page", lambda root: (root / "a/other").rename(root / "a/b/page")),
        (b"a/b/page", lambda root: (root / "a").rename(root / "c")),
        (b"a/b/page", lambda root: (root / "a/b/page").unlink()),
        (b"a/b/page.br", lambda root: (root / "a/b/page.br").touch()),
        (b"new", lambda root: (root / "new").mkdir()),
    ],
)
@in_loop
def test_what_changed_before_is_noticed(root: Path, relative: bytes, change: Callable[[Path], None]) -> None:
    below, changes = Beneath(root), Changes()
    found = {relative: seen(below, relative), b"a/other": seen(below, b"a/other")}
    change(root)
    assert Guard(below, changes).arm(found, lambda: None) is None
    assert len(changes) == 0


@in_loop
def test_a_change_in_the_middle_is_noticed_or_told(root: Path) -> None:
    """After the watches and before the second look: both are right, none is not."""
    calls = []

    class Meddling(Changes):
        def watch(self, directory, name, callback):  # type: ignore[no-untyped-def]
            watch = super().watch(directory, name, callback)
            if name == b"page":
                (root / "a/b/page").write_bytes(b"meanwhile")
            return watch

    below = Beneath(root)
    found = {b"a/b/page": below.open(b"a/b/page")}
    assert Guard(below, Meddling()).arm(found, lambda: calls.append(1)) is None


@in_loop
def test_an_open_file_is_as_good_as_its_stat(root: Path) -> None:
    below = Beneath(root)
    file = below.open(b"a/b/page")
    assert Guard(below, Changes()).arm({b"a/b/page": file}, lambda: None) is not None
    os.truncate(root / "a/b/page", 1)
    assert Guard(below, Changes()).arm({b"a/b/page": file}, lambda: None) is None


@in_loop
def test_each_name_is_watched_once(root: Path) -> None:
    below, changes = Beneath(root), Changes()
    paths = (b"a/b/page", b"a/b/page.br", b"a/b/page.gz", b"a")
    depends = {relative: seen(below, relative) for relative in paths}
    armed = Guard(below, changes).arm(depends, lambda: None)
    assert armed is not None
    assert len(armed.watches) == len(changes) == 5


@in_loop
def test_a_symlink_is_not_certain(root: Path) -> None:
    (root / "link").symlink_to("a/b/page")
    (root / "directory").symlink_to("a")
    below = Beneath(root)
    for relative in (b"link", b"directory/b/page"):
        armed = Guard(below, Changes()).arm({relative: seen(below, relative)}, lambda: None)
        assert armed is not None
        assert not armed.certain


@in_loop
def test_a_second_name_is_not_certain(root: Path) -> None:
    (root / "hard").hardlink_to(root / "a/b/page")
    below = Beneath(root)
    for found in (below.stat(b"hard"), below.open(b"hard")):
        armed = Guard(below, Changes()).arm({b"hard": found}, lambda: None)
        assert armed is not None
        assert not armed.certain


@in_loop
def test_what_changed_just_now_is_not_certain(root: Path) -> None:
    guard.SETTLED_NS = 3600 * 1_000_000_000
    below = Beneath(root)
    for found in (below.stat(b"a/b/page"), below.open(b"a/b/page")):
        armed = Guard(below, Changes()).arm({b"a/b/page": found}, lambda: None)
        assert armed is not None
        assert not armed.certain
    armed = Guard(below, Changes()).arm({b"a/b": below.stat(b"a/b"), b"nothing": None}, lambda: None)
    assert armed is not None
    assert armed.certain


@in_loop
def test_what_nobody_tells_is_not_certain(root: Path) -> None:
    below = Beneath("/proc/self")
    armed = Guard(below, Changes()).arm({b"status": below.stat(b"status")}, lambda: None)
    assert armed is None or not armed.certain  # its times are those of the look
    below = Beneath(root)
    armed = Guard(below, Changes(watches=2)).arm({b"a/b/page": below.stat(b"a/b/page")}, lambda: None)
    assert armed is not None
    assert not armed.certain


@in_loop
def test_what_is_refused_needs_no_watch(root: Path) -> None:
    changes = Changes()
    armed = Guard(Beneath(root), changes).arm({b".env": None, b"../x": None, b"a\0": None}, lambda: None)
    assert armed is not None
    assert armed.certain
    assert len(changes) == 0


@in_loop
def test_without_descriptors_nothing_is_armed(root: Path) -> None:
    def full(directory: int, relative: bytes) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    changes = Changes()
    found: dict[bytes, Seen] = {b"a/b/page": Beneath(root).stat(b"a/b/page")}
    assert Guard(Beneath(root, full), changes).arm(found, lambda: None) is None
    assert len(changes) == 0


@in_loop
def test_a_root_that_is_gone(root: Path) -> None:
    guard = Guard(Beneath(root / "a/b/none"), Changes())
    assert guard.identity() is None
    assert guard.arm({b"x": None}, lambda: None) is None


@in_loop
def test_no_descriptor_stays_open(root: Path) -> None:
    below, changes = Beneath(root), Changes()
    armer = Guard(below, changes)
    armed = armer.arm({b"a/b/page": below.stat(b"a/b/page")}, lambda: None)
    before = descriptors()
    for relative in (b"a/b/page", b"a/b/page/x", b"x/y", b"a", b"a/b/", b".git"):
        armer.arm({relative: seen(below, relative)}, lambda: None)
        armer.arm({relative: below.stat(b"a/other")}, lambda: None)
        armer.identity()
    assert left_open(before) == {}
    assert armed is not None
