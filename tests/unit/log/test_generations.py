"""The numbers of rotated files: shifted without a gap, nobody else's file touched, nothing overwritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acme_wsgi.log import generations
from tests.unit.descriptors import descriptors, left_open


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text("0")
    return path


def put(path: Path, *names: str) -> None:
    """Rotated files; each holds its own name."""
    for name in names:
        path.with_name(name).write_text(name)


def seen(path: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in sorted(path.parent.iterdir())}


def test_the_first_rotation(path):
    generations.shift(str(path), 7)
    assert seen(path) == {"log.1": "0"}


def test_plain_and_compressed_names_move_together(path):
    put(path, "log.1", "log.2.gz", "log.3", "log.3.gz", "log.4.gz")
    generations.shift(str(path), 7)
    assert seen(path) == {
        "log.1": "0",
        "log.2": "log.1",
        "log.3.gz": "log.2.gz",
        "log.4": "log.3",
        "log.4.gz": "log.3.gz",
        "log.5.gz": "log.4.gz",
    }


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_so_many_are_kept(path, keep):
    put(path, "log.1", "log.2.gz", "log.3.gz")
    generations.shift(str(path), keep)
    kept = {"log.1": "0", "log.2": "log.1", "log.3.gz": "log.2.gz"}
    assert seen(path) == {name: text for name, text in kept.items() if int(name[4]) <= keep}


def test_none_may_be_kept(path):
    put(path, "log.1", "log.2.gz")
    generations.shift(str(path), 0)
    assert seen(path) == {}


def test_a_lowered_count_removes_what_is_too_much(path):
    put(path, *(f"log.{number}.gz" for number in range(1, 21)))
    generations.shift(str(path), 3)
    assert seen(path) == {"log.1": "0", "log.2.gz": "log.1.gz", "log.3.gz": "log.2.gz"}


def test_files_of_others_are_left_alone(path):
    others = ("log.20240131", "log.2024", "log.4.gz", "log.x", "log.gz", "log.01", "xlog.1", "log.1.bak")
    put(path, "log.1", "log.2", *others)
    before = seen(path)
    generations.shift(str(path), 2)
    after = seen(path)
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert len(after) == len(others) + 2


def test_a_gap_is_where_the_generations_end(path):
    put(path, "log.1", "log.3")
    assert generations.length(str(path)) == 1
    generations.shift(str(path), 7)
    assert seen(path) == {"log.1": "0", "log.2": "log.1", "log.3": "log.3"}


def test_what_fails_midway_loses_nothing_and_can_be_done_again(path):
    put(path, "log.1", "log.3")
    path.with_name("log.2").mkdir()  # can't be unlinked
    with pytest.raises(OSError):
        generations.shift(str(path), 2)
    assert {"log": "0", "log.1": "log.1"}.items() <= {
        each.name: each.read_text() for each in path.parent.iterdir() if each.is_file()
    }.items()
    path.with_name("log.2").rmdir()
    generations.shift(str(path), 2)
    assert seen(path) == {"log.1": "0", "log.2": "log.1"}


def test_a_link_is_not_followed(path):
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.with_name("log.1").symlink_to(victim)
    generations.shift(str(path), 1)
    assert seen(path) == {"log.1": "0", "victim": "precious"}
    assert generations.look(str(path.with_name("no"))) is None


def test_the_lock_holds_off_another_process_and_never_waits(path):
    code = (
        "import sys; from acme_wsgi.log import generations\n"
        "try:\n"
        "    with generations.locked(sys.argv[1]): print('free')\n"
        "except generations.Busy: print('busy')\n"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    before = descriptors()
    with generations.locked(str(path)):
        assert elsewhere() == "busy"
        with pytest.raises(generations.Busy), generations.locked(str(path)):
            pytest.fail("locked twice")
    assert elsewhere() == "free"
    assert left_open(before) == {}
