"""OpenFile: what it says of a file, what it notices, and that it gives back every descriptor and mapping."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from acme_wsgi.files.openfile import Mapping, OpenFile


def opened(path: Path) -> OpenFile:
    return OpenFile(os.open(path, os.O_RDONLY))


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def mappings_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_bytes(b"x" * 9000)
    return path


def test_what_fstat_told(path: Path) -> None:
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    file, found = opened(path), path.stat()
    assert (file.size, file.mtime_ns, file.ctime_ns) == (9000, 1_700_000_000_123_456_789, found.st_ctime_ns)
    assert (file.ino, file.dev, file.mode, file.links) == (found.st_ino, found.st_dev, found.st_mode, 1)
    assert os.pread(file.fileno(), 3, 0) == b"xxx"
    assert file.fd == file.fileno()


def test_a_descriptor_that_isnt_one() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        OpenFile(-1)


def test_the_last_user_closes_it(path: Path) -> None:
    file = opened(path)
    fd, direct = file.fd, file.direct_fd()
    file.mapping()
    assert is_open(fd)
    assert mappings_of(path) == 1
    del file
    assert not is_open(fd)
    assert direct < 0 or not is_open(direct)
    assert mappings_of(path) == 0


def test_closed_once(path: Path) -> None:
    file = opened(path)
    fd = file.fd
    file.close()
    other = os.open(path, os.O_RDONLY)
    assert other == fd
    file.close()
    del file
    assert is_open(other)
    os.close(other)


def test_closed_it_is_of_no_use(path: Path) -> None:
    file = opened(path)
    file.close()
    assert file.fd == -1
    assert not file.unchanged()
    for use in (file.fileno, file.mapping, file.direct_fd):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_write_is_noticed(path: Path) -> None:
    file = opened(path)
    assert file.unchanged()
    with path.open("r+b") as other:
        other.write(b"y")
    os.utime(path, ns=(1, file.mtime_ns + 1))
    assert not file.unchanged()


def test_a_truncation_is_noticed_even_if_the_time_is_put_back(path: Path) -> None:
    file = opened(path)
    os.truncate(path, 10)
    os.utime(path, ns=(1, file.mtime_ns))
    assert not file.unchanged()


def test_what_was_replaced_or_deleted_stays_what_it_was(path: Path, tmp_path: Path) -> None:
    file = opened(path)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").rename(path)
    assert file.unchanged()
    path.unlink()
    assert file.unchanged()
    assert os.pread(file.fd, 10_000, 0) == b"x" * 9000


def test_one_mapping_for_all(path: Path) -> None:
    file = opened(path)
    mapping = file.mapping()
    assert file.mapping() is mapping
    assert mapping.length == 9000
    assert mappings_of(path) == 1
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line)
    assert line.split()[1] == "r--s"


def test_the_mapping_stays_while_somebody_holds_it(path: Path) -> None:
    file = opened(path)
    mapping = file.mapping()
    file.close()
    del file
    assert mappings_of(path) == 1
    del mapping
    assert mappings_of(path) == 0


def test_an_empty_file_has_an_empty_mapping(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert opened(tmp_path / "empty").mapping().length == 0


def test_a_mapping_is_made_by_a_file_alone() -> None:
    with pytest.raises(TypeError):
        Mapping()


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    directory = OpenFile(os.open(tmp_path, os.O_RDONLY))
    with pytest.raises(OSError, match="No such device"):
        directory.mapping()


def test_a_second_descriptor_for_direct_reads(path: Path) -> None:
    file = opened(path)
    direct = file.direct_fd()
    if direct == -1:  # the test's own directory doesn't do it: then the kernel says so too
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(path, os.O_RDONLY | os.O_DIRECT)
        return
    assert fcntl.fcntl(direct, fcntl.F_GETFL) & os.O_DIRECT
    assert fcntl.fcntl(direct, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert os.fstat(direct).st_ino == file.ino
    assert file.direct_fd() == direct


def test_direct_reads_of_a_file_that_is_gone(path: Path) -> None:
    file = opened(path)
    path.unlink()
    direct = file.direct_fd()
    assert direct == -1 or os.fstat(direct).st_ino == file.ino


def test_no_direct_reads_where_the_kernel_has_none() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        os.open("/proc/self/status", os.O_RDONLY | os.O_DIRECT)
    file = OpenFile(os.open("/proc/self/status", os.O_RDONLY))
    assert file.direct_fd() == -1
    assert file.direct_fd() == -1
    assert is_open(file.fd)
