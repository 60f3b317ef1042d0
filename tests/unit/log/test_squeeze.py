"""The compressing program by itself: what it writes can be read, what fails is told, it inherits nothing."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from acme_wsgi.log import squeeze

PROGRAM = [sys.executable, "-I", "-S", squeeze.__file__]


def run(source: Path, target: str, **options: object) -> bytes:
    with open(source, "rb") as reading, open(target, "wb") as writing:
        done = subprocess.run(  # type: ignore[call-overload]
            PROGRAM, stdin=reading, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=True, **options
        )
    return bytes(done.stderr)


@pytest.mark.parametrize("data", [b"", b"one\n", os.urandom(1 << 20), b"line\n" * 400_000])
def test_it_can_be_read_back(tmp_path, data):
    source, target = tmp_path / "log", tmp_path / "log.gz"
    source.write_bytes(data)
    assert run(source, str(target)) == squeeze.DONE.encode()
    assert gzip.decompress(target.read_bytes()) == data
    assert source.read_bytes() == data
    if len(set(data)) < 10:
        assert target.stat().st_size < 64 + len(data) / 100


def test_a_full_disk_is_told(tmp_path):
    source = tmp_path / "log"
    source.write_bytes(b"x" * 100)
    assert run(source, "/dev/full") == b"No space left on device"


def test_it_lets_go_of_what_it_was_not_given(tmp_path):
    """A listener that the parent holds must not stay open for as long as this runs."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    # The source is a pipe that stays open: the program waits in it.
    held, feed = os.pipe()
    with open(tmp_path / "out", "wb") as target:
        child = subprocess.Popen(
            PROGRAM, stdin=held, stdout=target, stderr=subprocess.PIPE, pass_fds=[writing]
        )
    os.close(writing)
    os.close(held)
    try:
        assert os.read(reading, 1) == b""  # its copy is closed, while it still runs
        assert child.poll() is None
        nice = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[16])
        assert nice == 19
    finally:
        os.close(feed)
        os.close(reading)
        _, said = child.communicate(timeout=30)
    assert said == b"done"
    assert gzip.decompress((tmp_path / "out").read_bytes()) == b""
