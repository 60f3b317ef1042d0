"""Beneath: what it finds, what it refuses and how, and that it gives every descriptor back.

Each test runs with the kernel's walk and with our own: nobody must notice which one is at work.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import tempfile
import threading
import traceback
from pathlib import Path

import pytest

from acme_wsgi.files import beneath
from acme_wsgi.files.beneath import Beneath, Walk, best_walk, kernel_walk, own_walk, split
from acme_wsgi.files.openfile import OpenFile
from tests.unit.descriptors import descriptors, left_open


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with most things that a directory may hold, beside a secret."""
    (tmp_path / "secret.txt").write_bytes(b"SECRET")
    (tmp_path / "outside").mkdir()
    root = tmp_path / "root"
    for directory in ("a/b", ".git", ".well-known/acme", "a/.well-known", "empty"):
        (root / directory).mkdir(parents=True)
    for file in (
        "index.html",
        "a/page.html",
        "a/b/deep.html",
        ".env",
        ".git/config",
        "a/.htaccess",
        "back\\slash",
        ".well-known/security.txt",
        ".well-known/.hidden",
        "a/.well-known/x",
        "..twodots",
        "white space ",
    ):
        (root / file).write_bytes(file.encode())
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"latin")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    links = {
        "inside": "a/page.html",
        "inside-directory": "a",
        "a/b/up": "../../index.html",
        "chain": "inside",
        "outside-file": "../secret.txt",
        "outside-directory": "../outside",
        "outside-root": "..",
        "there-and-back": "../root/index.html",
        "absolute": str(root / "index.html"),
        "passwd": "/etc/passwd",
        "loop": "loop",
        "dangling": "nowhere",
        "a/climbs": "b/../../../secret.txt",
        "to-dot-file": ".env",
        "to-fifo": "fifo",
        "file-slash": "index.html/",
        "file-dot": "index.html/.",
        "directory-dot": "a/.",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


@pytest.fixture(params=[kernel_walk, own_walk])
def walk(request: pytest.FixtureRequest) -> Walk:
    walk: Walk = request.param
    if walk is kernel_walk and best_walk() is not kernel_walk:
        pytest.fail("this kernel has no openat2(2), or a filter forbids it: half of these tests can't be run")
    return walk


@pytest.fixture
def below(tree: Path, walk: Walk) -> Beneath:
    return Beneath(tree, walk)


def content(file: OpenFile) -> bytes:
    return os.pread(file.fd, 1000, 0)


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        (b"index.html", b"index.html"),
        (b"a/page.html", b"a/page.html"),
        (b"a/b/deep.html", b"a/b/deep.html"),
        (b"inside", b"a/page.html"),
        (b"chain", b"a/page.html"),
        (b"inside-directory/b/deep.html", b"a/b/deep.html"),
        (b"directory-dot/page.html", b"a/page.html"),
        (b"a/b/up", b"index.html"),
        (b".well-known/security.txt", b".well-known/security.txt"),
        (b"to-dot-file", b".env"),  # the name asked for counts: who made the link wanted it
        (b"back\\slash", b"back\\slash"),
        (b"white space ", b"white space "),
        (b"caf\xe9", b"latin"),
    ],
)
def test_a_file_is_opened(below: Beneath, relative: bytes, expected: bytes) -> None:
    before = descriptors()
    file = below.open(relative)
    assert content(file) == expected
    assert not os.get_inheritable(file.fd)
    assert below.stat(relative).st_ino == file.ino
    file.close()
    assert left_open(before) == {}


@pytest.mark.parametrize(
    "relative",
    [
        b"nothing",
        b"a/nothing",
        b"nothing/at/all",
        b"index.html/",
        b"index.html/x",
        b"fifo",
        b"socket",
        b"to-fifo",
        b"fifo/",
        b"..",
        b"../secret.txt",
        b"a/../../secret.txt",
        b"a/../index.html",
        b"./index.html",
        b".",
        b"/index.html",
        b"//index.html",
        b"/",
        b"//",
        b"a//page.html",
        b"a/page.html//",
        b"/etc/passwd",
        b"a\0",
        b"index.html\0.png",
        b"\0",
        b".env",
        b".git/config",
        b".git",
        b"a/.htaccess",
        b"..twodots",
        b".well-known/.hidden",
        b"a/.well-known/x",
        b".well-known/../index.html",
        b".well-known2",
        b"outside-file",
        b"outside-directory",
        b"outside-directory/",
        b"outside-root/secret.txt",
        b"outside-root",
        b"there-and-back",
        b"absolute",
        b"passwd",
        b"loop",
        b"dangling",
        b"a/climbs",
        b"file-slash",
        b"file-dot",
        b"inside-directory/climbs",
        b"n" * 256,
        b"a/" + b"n" * 5000,
        b"a/" * 3000 + b"x",
        b"x/" * 300,
        b"back\\..\\secret.txt",
    ],
)
def test_what_is_refused_is_not_there(below: Beneath, relative: bytes) -> None:
    before = descriptors()
    for use in (below.open, below.stat, lambda relative: below.listing(relative, 10)):
        with pytest.raises(FileNotFoundError):
            use(relative)
    assert left_open(before) == {}


@pytest.mark.parametrize(
    "relative", [b"", b"a", b"a/", b"a/b/", b"inside-directory", b"inside-directory/", b"directory-dot"]
)
def test_a_directory_is_a_directory(below: Beneath, relative: bytes) -> None:
    before = descriptors()
    with pytest.raises(IsADirectoryError):
        below.open(relative)
    assert stat.S_ISDIR(below.stat(relative).st_mode)
    below.listing(relative, 10)
    assert left_open(before) == {}


def test_a_fifo_is_not_even_opened(below: Beneath, tree: Path) -> None:
    # A writer waits in open() until a reader comes; one that doesn't wait is told that there is none.
    with pytest.raises(FileNotFoundError):
        below.open(b"fifo")
    with pytest.raises(OSError, match="No such device or address"):
        os.open(tree / "fifo", os.O_WRONLY | os.O_NONBLOCK)


def test_a_file_that_becomes_a_fifo_is_not_opened(tree: Path, walk: Walk) -> None:
    """Exchanged between the walk and the opening: what was found is opened, not what has its name now."""

    def exchanging(root: int, relative: bytes) -> int:
        fd = walk(root, relative)
        (tree / "index.html").unlink()
        os.mkfifo(tree / "index.html")
        return fd

    assert content(Beneath(tree, exchanging).open(b"index.html")) == b"index.html"


def test_a_device_is_refused(walk: Walk) -> None:
    with pytest.raises(FileNotFoundError):
        Beneath("/dev", walk).open(b"null")


def test_the_fds_of_a_process_are_no_way_out(walk: Walk, tree: Path) -> None:
    with (tree / "../secret.txt").open() as secret, pytest.raises(FileNotFoundError):
        Beneath("/proc/self/fd", walk).open(b"%d" % secret.fileno())
    with pytest.raises(FileNotFoundError):
        Beneath("/proc/self", walk).open(b"root/etc/passwd")


def test_the_root_may_be_switched(tmp_path: Path, walk: Walk) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "name").write_text(release)
    (tmp_path / "current").symlink_to("one")
    below = Beneath(tmp_path / "current", walk)
    assert content(below.open(b"name")) == b"one"
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "current")
    assert content(below.open(b"name")) == b"two"
    (tmp_path / "current").unlink()
    with pytest.raises(FileNotFoundError):
        below.open(b"name")


def test_a_file_is_no_root(tmp_path: Path, walk: Walk) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        Beneath(tmp_path / "file", walk).stat(b"")


def test_what_may_not_be_read(walk: Walk) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        tree = Path(top)
        tree.chmod(0o755)
        (tree / "closed").mkdir()
        for file in ("index.html", "private", "closed/page.html"):
            (tree / file).write_bytes(file.encode())
        (tree / "link").symlink_to("private")
        (tree / "private").chmod(0)
        (tree / "closed").chmod(0)
        child = os.fork()
        if child == 0:
            os._exit(_look_as_nobody(Beneath(tree, walk)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (tree / "closed").chmod(0o755)


def _look_as_nobody(below: Beneath) -> int:
    """The exit code of a child that isn't root: 0 if it was told right."""
    try:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        for relative in (b"private", b"closed/page.html", b"link"):
            with pytest.raises(PermissionError):
                below.open(relative)
        assert [entry.name for entry in below.listing(b"", 100)] == [b"index.html"]
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


def test_a_full_table_is_no_missing_file(below: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: int, relative: bytes) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = descriptors()
    with pytest.raises(OSError, match="Too many open files") as caught:
        Beneath(below.root, full).open(b"index.html")
    assert not isinstance(caught.value, FileNotFoundError)
    assert left_open(before) == {}


def test_the_listing(below: Beneath, tree: Path) -> None:
    entries = below.listing(b"", 1000)
    assert [(entry.name, entry.is_directory) for entry in entries] == [
        (b".well-known", True),
        (b"a", True),
        (b"directory-dot", True),
        (b"empty", True),
        (b"inside-directory", True),
        (b"back\\slash", False),
        (b"caf\xe9", False),
        (b"chain", False),
        (b"index.html", False),
        (b"inside", False),
        (b"to-dot-file", False),
        (b"white space ", False),
    ]
    page = next(entry for entry in entries if entry.name == b"inside")
    assert page.size == len(b"a/page.html")
    assert page.mtime_ns == (tree / "a/page.html").stat().st_mtime_ns
    assert [entry.name for entry in below.listing(b"a/", 1000)] == [b"b", b"page.html"]
    assert [entry.name for entry in below.listing(b"inside-directory/b", 1000)] == [b"deep.html", b"up"]
    assert below.listing(b"empty", 1000) == []


def test_a_listing_is_bounded(below: Beneath) -> None:
    assert len(below.listing(b"", 3)) == 3
    assert below.listing(b"", 0) == []


def test_all_that_is_listed_can_be_had(below: Beneath) -> None:
    for entry in below.listing(b"", 1000):
        found = below.stat(entry.name)
        assert stat.S_ISDIR(found.st_mode) == entry.is_directory
        assert (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)


def test_no_listing_of_a_file(below: Beneath) -> None:
    with pytest.raises(NotADirectoryError):
        below.listing(b"index.html", 10)


def test_a_tree_in_motion_never_lets_anybody_out(tree: Path, walk: Walk) -> None:
    """While a directory turns into a symlink to the outside and back, again and again."""
    (tree / "../outside/page.html").write_bytes(b"SECRET")
    (tree / "way-out").symlink_to("../outside")
    below, done = Beneath(tree, walk), threading.Event()

    def exchange() -> None:
        while not done.is_set():
            _exchange(tree / "a", tree / "way-out")

    mover = threading.Thread(target=exchange)
    mover.start()
    seen = set()
    try:
        for _ in range(2000):
            try:
                seen.add(content(below.open(b"a/page.html")))
            except FileNotFoundError:
                seen.add(b"")
    finally:
        done.set()
        mover.join()
    assert seen <= {b"a/page.html", b""}
    assert seen


def _exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def test_a_forbidden_openat2_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(beneath, "_syscall", forbidden)
    best_walk.cache_clear()
    try:
        assert best_walk() is own_walk
    finally:
        best_walk.cache_clear()


def test_a_kernel_that_is_never_sure(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def unsure(*arguments: object) -> int:
        tries.append(arguments)
        ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(beneath, "_syscall", unsure)
    assert content(Beneath(tree, kernel_walk).open(b"a/b/up")) == b"index.html"
    assert len(tries) == 16


def test_the_components() -> None:
    assert split(b"") == []
    assert split(b"a/b") == [b"a", b"b"]
    assert split(b"a/b/") == [b"a", b"b"]
    assert split(b".well-known/x") == [b".well-known", b"x"]
