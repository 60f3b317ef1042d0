"""The page that is sent when no backend can answer: what is read, and what isn't."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acme_wsgi.upstream import fallback


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("busy.html", "text/html; charset=utf-8"),
        ("busy.json", "application/json"),
        ("BUSY.TXT", "text/plain; charset=utf-8"),
        ("busy", "application/octet-stream"),
    ],
)
def test_a_file_is_sent_as_what_its_name_says(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"\xffbusy")
    assert fallback.read(str(tmp_path / name)) == fallback.Fallback(b"\xffbusy", kind)


def test_the_largest_and_one_that_is_larger(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * fallback.MAX_BYTES)
    assert len(fallback.read(str(tmp_path / "a")).body) == fallback.MAX_BYTES
    (tmp_path / "a").write_bytes(b"a" * (fallback.MAX_BYTES + 1))
    with pytest.raises(ValueError, match="larger than 1MB"):
        fallback.read(str(tmp_path / "a"))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("pipe", "is no regular file"),
        (".", "can't be read: Is a directory"),
        ("none", "can't be read: No such file or directory"),
    ):
        with pytest.raises(ValueError, match=why):
            fallback.read(str(tmp_path / name))
