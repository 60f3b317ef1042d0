"""Following the next program, with processes that only play one; real: integration/test_upgrade_live.py."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

import pytest

from acme_wsgi import handover, upgrade
from tests.server import wait_until


class Order:
    """Keeps what was answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, Any]] = []

    def reply(self, **facts: Any) -> None:
        self.answers.append(("reply", facts))

    def progress(self, text: str) -> None:
        self.answers.append(("progress", text))

    def fail(self, reason: str) -> None:
        self.answers.append(("fail", reason))


def program(said: bytes, order: Order) -> upgrade.Program:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.write(writing, said)
    os.close(writing)
    return upgrade.Program(4711, reading, cast(Any, order))


def test_a_program_that_says_so_is_ready_and_proves_itself_by_living(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order()
    found = program(handover.SERVES, order)
    assert not found.ready and not found.proven
    found.listen()
    assert found.ready and not found.proven and found.pipe == -1
    assert order.answers == [("reply", {"pid": 4711})]
    monkeypatch.setattr(upgrade, "PROOF", 0.0)
    assert found.proven


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"cannot listen on 127.0.0.1:80", "cannot listen on 127.0.0.1:80"),
        (b"", "it exited with status 78; the log says more"),
    ],
)
def test_one_that_ends_before_that_says_why(said: bytes, reason: str) -> None:
    order = Order()
    found = program(said, order)
    found.listen()
    found.ended(78 << 8)
    assert not found.ready and order.answers == [("fail", reason)]


def test_a_program_without_a_word_yet_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    found = upgrade.Program(4711, reading, None)
    found.listen()
    assert not found.ready and found.pipe == reading
    os.close(writing)
    found.close()


def test_what_is_abandoned_is_told_to_stop() -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    order = Order()
    found = upgrade.Program(pid, -1, cast(Any, order))
    found.abandon("the server stops")
    assert os.waitpid(pid, 0)[1] == 15
    assert order.answers == [("fail", "the server stops")]


def test_spawning_executes_our_own_command_line_in_its_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = (
        "import os; open('found', 'w').write(os.environ['MARK'] + ' ' + os.environ['LISTEN_HANDOVER'][:1])"
    )
    monkeypatch.setattr("sys.orig_argv", ["python", "-c", script])
    found = upgrade.spawn([], {"MARK": "here"}, str(tmp_path), None)
    assert os.waitpid(found.pid, 0)[1] == 0
    wait_until((tmp_path / "found").exists, "it ran")
    assert (tmp_path / "found").read_text() == "here {"
    found.listen()
    assert found.pipe == -1 and not found.ready


def test_what_cannot_be_executed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    order = Order()
    found = upgrade.spawn([], {}, str(tmp_path), cast(Any, order))
    found.ended(os.waitpid(found.pid, 0)[1])
    [(how, reason)] = [answer for answer in order.answers if answer[0] == "fail"]
    assert how == "fail" and reason.startswith(f"can't execute {tmp_path}/no-python")


def test_the_directory_by_the_name_it_was_entered_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, current = tmp_path / "release-1", tmp_path / "current"
    release.mkdir()
    current.symlink_to(release)
    monkeypatch.chdir(release)
    assert upgrade.logical_directory({"PWD": str(current)}) == str(current)
    assert upgrade.logical_directory({"PWD": str(tmp_path)}) == str(release)
    assert upgrade.logical_directory({"PWD": "."}) == str(release)
    assert upgrade.logical_directory({}) == str(release)
