"""The hostile paths against Beneath: whatever a target is taken for, nothing is opened that isn't public."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from acme_wsgi.files.beneath import Beneath, Walk, kernel_walk, own_walk
from tests.unit.files.hostile import PUBLIC, build, targets

FAMILIES = sorted({family for family, _ in targets()})

_CUTS = (b"", b";", b"?", b"#", b"\0", b":", b" ")
"""What some take for the end of a path."""

_LOOK_ALIKES = (
    (b"\xc0\xae", b"."),
    (b"\xe0\x80\xae", b"."),
    (b"\xf0\x80\x80\xae", b"."),
    (b"\xc0\xaf", b"/"),
    (b"\xe0\x80\xaf", b"/"),
    (b"\xf0\x80\x80\xaf", b"/"),
    (b"\xc1\x9c", b"/"),
    ("\uff0e".encode(), b"."),
    ("\uff0f".encode(), b"/"),
    ("\uff3c".encode(), b"/"),
    ("\u2215".encode(), b"/"),
    ("\u2044".encode(), b"/"),
    ("\u2024".encode(), b"."),
    ("\u2025".encode(), b".."),
    (b"\xc0\x80", b"\0"),
    (b"\\", b"/"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hostile"))


def readings(target: bytes) -> Iterator[bytes]:
    """The relative paths that a target could be taken for, with and without each mistake."""
    path = target.removeprefix(b"@")
    path = re.sub(rb"\A(https?|file)://[^/]*", b"", path)
    path = re.sub(rb"\A/(static|tries)(?=/)", b"", path)
    for decoded, alike, cut, plain in itertools.product(range(4), (False, True), _CUTS, (False, True)):
        read = path
        for _ in range(decoded):
            read = unquote_to_bytes(read)
        if alike:
            for old, new in _LOOK_ALIKES:
                read = read.replace(old, new)
        if cut:
            read = read.partition(cut)[0]
        if plain:
            read = re.sub(rb"/+", b"/", read).lstrip(b"/").rstrip(b"/. ")
        yield read


def test_there_are_many() -> None:
    found = targets()
    assert len(found) >= 500
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("walk", [kernel_walk, own_walk])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_opened_that_is_not_public(root: Path, family: str, walk: Walk) -> None:
    below = Beneath(root, walk)
    paths = {path for name, target in targets() if name == family for path in readings(target)}
    for path in paths:
        try:
            file = below.open(path)
        except (FileNotFoundError, IsADirectoryError):
            continue
        assert os.pread(file.fd, 100, 0).startswith(PUBLIC), path


def test_both_walks_say_the_same(root: Path) -> None:
    below, other = Beneath(root, kernel_walk), Beneath(root, own_walk)
    for path in {path for _, target in targets() for path in itertools.islice(readings(target), 0, None, 7)}:
        assert outcome(below, path) == outcome(other, path), path


def outcome(below: Beneath, path: bytes) -> object:
    try:
        return below.stat(path).st_ino
    except OSError as error:
        return type(error)


@pytest.mark.parametrize("walk", [kernel_walk, own_walk])
def test_the_tree_is_no_empty_threat(root: Path, walk: Walk) -> None:
    """What is public can be had, and the traps are there: opened by another way they hold the canary."""
    below = Beneath(root, walk)
    for path in (
        b"index.html",
        b"a/b/page.html",
        b".well-known/security.txt",
        b"self/in-directory/b/page.html",
    ):
        assert os.pread(below.open(path).fd, 100, 0).startswith(PUBLIC)
    for trap in ("out-file", "out-absolute", "hop", "a/climbs", "lure/index.html", "dots/secret.txt", ".env"):
        assert (root / trap).read_bytes().startswith(b"CANARY")
    assert (root / "proc/environ").exists()
    assert (root / "fifo-directory/index.html").is_fifo()


def test_a_listing_names_nothing_hidden(root: Path) -> None:
    for directory in (b"", b"a", b"a/b", b"lure", b".well-known", b"fifo-directory"):
        for entry in Beneath(root).listing(directory, 1000):
            name = entry.name.decode()
            assert not name.startswith(".") or (name == ".well-known" and not directory)
            assert not name.startswith(("out", "socket", "to-", "null", "zero", "climbs", "proc", "etc"))
            assert entry.is_directory or not name.startswith("fifo")
