"""The pid file: written whole, removed by its owner alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acme_wsgi import pidfile
from acme_wsgi.limits import ResourceError


def test_it_names_this_process_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "acme.pid"
    path.write_text("a stale one, longer than any process id could be\n")
    pidfile.write(str(path))
    assert path.read_text() == f"{os.getpid()}\n" and path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
    pidfile.remove(str(path))
    assert not path.exists()


def test_a_living_servers_file_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "acme.pid"
    other = os.getppid()
    path.write_text(f"{other}\n")
    pidfile.claim(str(path))  # that process is no server of ours
    path.write_text(f"{other}\n")
    monkeypatch.setattr(pidfile, "ARBITER", Path(f"/proc/{other}/comm").read_text().strip())
    with pytest.raises(ResourceError, match=rf"acme\.pid is the file of a running server \(pid {other}\)"):
        pidfile.claim(str(path))
    assert path.read_text() == f"{other}\n"


@pytest.mark.parametrize("content", ["1\n", "", "x\n", "9" * 100])
def test_the_successors_file_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "acme.pid"
    path.write_text(content)
    pidfile.remove(str(path))
    assert path.read_text() == content


def test_none_is_none(tmp_path: Path) -> None:
    pidfile.write(None)
    pidfile.remove(None)
    pidfile.remove(str(tmp_path / "missing"))


def test_where_it_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"server\.pid_file: can't write .*/no/acme\.pid: No such file"):
        pidfile.write(str(tmp_path / "no" / "acme.pid"))


def test_a_link_laid_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / f"acme.pid.{os.getpid()}").symlink_to(target)
    with pytest.raises(ResourceError):
        pidfile.write(str(tmp_path / "acme.pid"))
    assert target.read_text() == "precious"
