"""`acme-server logs`: where the lines are found, what of them is shown, and following."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from talker import Talker

from acme_wsgi import cli
from acme_wsgi.cli import manage
from tests.server import ROOT, wait_until

pytestmark = pytest.mark.slow  # commands in processes of their own

INVOCATION = "0123456789abcdef0123456789abcdef"
TEXT = """\
2026-01-31T12:00:00.000Z info acme.arbiter arbiter[1]: one
2026-01-31T12:00:01.000Z error acme.connection worker 1[2]: two
    | Traceback (most recent call last):
    | ValueError: bad
2026-01-31T12:00:02.000Z warning acme.worker worker 1[2]: three
printed by the application
2026-01-31T12:00:03.000Z debug acme.worker worker 1[2]: four
"""
LINES = TEXT.splitlines()


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(tmp_path / "none"))
    for name in list(os.environ):
        if name.startswith("ACME_"):
            monkeypatch.delenv(name)


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[Talker]:
    with Talker(tmp_path / "run") as found:
        yield found


@pytest.fixture
def log(tmp_path: Path, talker: Talker) -> Path:
    """The log file of the server that the talker plays."""
    path = tmp_path / "server.log"
    path.write_text(TEXT)
    (tmp_path / "access.log").write_text("an access\n")
    logs = {"error": str(path), "access": str(tmp_path / "access.log")}
    talker.answers["status"] = {"pid": os.getpid(), "logs": logs, "systemd": None}
    return path


def shown(talker: Talker, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert manage.main(["logs", "--runtime-dir", str(talker.directory), *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def refused(talker: Talker, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert manage.main(["logs", "--runtime-dir", str(talker.directory), *arguments]) == 1
    return capsys.readouterr().err


# -- a file


def test_the_last_lines_of_the_file(log: Path, talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(talker, capsys) == LINES
    assert shown(talker, capsys, "--lines", "2") == LINES[-2:]
    assert shown(talker, capsys, "-n", "0") == []
    assert shown(talker, capsys, "--access") == ["an access"]


@pytest.mark.parametrize("number", ["-1", "x", "100001", "1.5", ""])
def test_a_number_of_lines_that_is_none(
    talker: Talker, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        manage.main(["logs", f"--lines={number}"])
    assert ended.value.code == 2 and "number of lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "wanted"),
    [("debug", LINES), ("info", LINES[:6]), ("warning", LINES[1:6]), ("error", [*LINES[1:4], LINES[5]])],
)
def test_only_what_is_serious(
    log: Path, talker: Talker, capsys: pytest.CaptureFixture[str], level: str, wanted: list[str]
) -> None:
    assert shown(talker, capsys, "--level", level) == wanted


def test_errors_that_have_a_file_of_their_own(
    log: Path, talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = log.with_name("errors.log")
    errors.write_text(LINES[1] + "\n")
    talker.answers["status"]["logs"]["errors"] = str(errors)
    assert shown(talker, capsys, "--level", "error") == LINES[1:2]
    assert shown(talker, capsys, "--access") == ["an access"]
    assert manage.main(["logs", "--runtime-dir", str(talker.directory)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == LINES
    assert captured.err == f"errors are not in this log but go to {errors}: --level error shows them\n"
    talker.answers["status"]["logs"]["errors"] = str(log)
    assert shown(talker, capsys, "--level", "error", "-n", "4") == [*LINES[1:4], LINES[5]]


@pytest.mark.parametrize(
    "form",
    [
        '{{"timestamp": "2026-01-31T12:00:00.000Z", "level": "{level}", "logger": "acme", "message": "m"}}',
        'timestamp=2026-01-31T12:00:00.000Z level={level} logger=acme message="m"',
    ],
)
def test_levels_of_the_other_formats(
    log: Path, talker: Talker, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    lines = [form.format(level=level) for level in ("info", "error", "debug", "critical")]
    log.write_text("\n".join(lines) + "\n")
    assert shown(talker, capsys, "--level", "error") == [lines[1], lines[3]]


def test_lines_drive_no_terminal(log: Path, talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_bytes(b"a\x1b[2J\tb\r\nc\x9b\xff\x00\xe2\x80\xae\n")
    assert shown(talker, capsys) == ["a\\x1b[2J\tb", "c\ufffd\ufffd\\x00\\u202e"]


def test_json(log: Path, talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_bytes(b'{"level": "info",  "n": 1}\nplain \x1b[2J\n[1]\n{"evil": "\xc2\x9b2J"}\n' + b"[" * 9999)
    first, *others = shown(talker, capsys, "--json")
    assert first == '{"level": "info",  "n": 1}'
    assert all(line.isascii() and line.isprintable() for line in others)
    assert [json.loads(line) for line in others] == [
        {"line": "plain \x1b[2J"},
        {"line": "[1]"},
        {"evil": "\x9b2J"},
        {"line": "[" * 9999},
    ]


def test_a_file_that_is_gone(log: Path, talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    log.unlink()
    assert "server.log' can't be read: No such file" in refused(talker, capsys)


def test_a_pipe_in_place_of_a_file(log: Path, talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    log.unlink()
    os.mkfifo(log)
    assert "no regular file" in refused(talker, capsys)


# -- a standard stream


@pytest.fixture
def writer(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """A process that only has its standard output and error: "file", "pipe" or "device"."""
    kind = request.param
    if kind == "file":
        (tmp_path / "err").write_text(TEXT)
        (tmp_path / "out").write_text("an access\n")
        with (tmp_path / "out").open("a") as stdout, (tmp_path / "err").open("a") as stderr:
            process = subprocess.Popen(["sleep", "600"], stdout=stdout, stderr=stderr)
    elif kind == "pipe":
        process = subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    else:
        with open("/dev/full", "w") as device:
            process = subprocess.Popen(["sleep", "600"], stdout=device, stderr=device)
    with process:
        yield process.pid
        process.kill()


def streams(pid: int, systemd: str | None = None) -> dict[str, Any]:
    return {"pid": pid, "logs": {"error": "stderr", "access": "stdout"}, "systemd": systemd}


@pytest.mark.parametrize("writer", ["file"], indirect=True)
def test_a_stream_that_goes_to_a_file_is_read_there(
    talker: Talker, capsys: pytest.CaptureFixture[str], writer: int, tmp_path: Path
) -> None:
    talker.answers["status"] = streams(writer, INVOCATION)
    assert shown(talker, capsys) == LINES
    assert shown(talker, capsys, "--access") == ["an access"]
    (tmp_path / "err").unlink()  # only the process has it now
    assert shown(talker, capsys, "-n", "1") == LINES[-1:]


@pytest.mark.parametrize(
    ("writer", "where"), [("pipe", "a pipe"), ("device", "/dev/full")], indirect=["writer"]
)
@pytest.mark.parametrize("systemd", [None, INVOCATION])  # a shell under systemd hands its id on
def test_a_stream_that_keeps_nothing(
    talker: Talker, capsys: pytest.CaptureFixture[str], writer: int, where: str, systemd: str | None
) -> None:
    talker.answers["status"] = streams(writer, systemd)
    said = refused(talker, capsys)
    assert where in said and f"pid {writer}" in said and " logging.output: /path" in said
    assert "logging.access.output: /path" in refused(talker, capsys, "--access")


def test_no_access_log(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    talker.answers["status"] = {"pid": 1, "logs": {"error": "stderr", "access": None}}
    assert "logging.access.enabled" in refused(talker, capsys, "--access")


# -- systemd's journal


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talker: Talker) -> Iterator[Path]:
    """A server whose stderr is a socket, and a journalctl that shows TEXT and notes its arguments."""
    command = tmp_path / "bin" / "journalctl"
    command.parent.mkdir()
    (tmp_path / "journal").write_text(TEXT)
    command.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat {tmp_path}/journal\n'
        'case "$*" in *-f*) exec sleep 600;; esac\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    server = (
        "import socket, os\na, b = socket.socketpair()\nos.dup2(a.fileno(), 2)\nprint(flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", server], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        talker.answers["status"] = streams(process.pid, INVOCATION)
        yield tmp_path / "arguments"
        process.kill()


def test_the_journal(journal: Path, talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(talker, capsys, "-n", "7") == LINES
    assert journal.read_text().split() == [
        f"_SYSTEMD_INVOCATION_ID={INVOCATION}", "-n", "7", "-o", "cat", "--no-pager",
    ]  # fmt: skip
    assert shown(talker, capsys, "--level", "error") == [*LINES[1:4], LINES[5]]


@pytest.mark.parametrize("forged", ["", "--vacuum-size=1", INVOCATION + "\n-x", 7])
def test_an_invocation_that_is_none(
    journal: Path, talker: Talker, capsys: pytest.CaptureFixture[str], forged: Any
) -> None:
    talker.answers["status"]["systemd"] = forged
    assert "no invocation id" in refused(talker, capsys)
    assert not journal.exists()


def test_a_machine_without_journalctl(
    journal: Path, talker: Talker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(journal.parent / "nowhere"))
    assert "journalctl: No such file" in refused(talker, capsys)


# -- no server


def test_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manage.main(["logs", "--runtime-dir", str(tmp_path)]) == 3
    assert "no server runs" in capsys.readouterr().err


def test_a_dead_servers_file_is_shown_by_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dead.log").write_text(TEXT)
    (tmp_path / "acme.yaml").write_text(
        f"server: {{runtime_dir: {tmp_path}}}\nlogging: {{output: {tmp_path}/dead.log}}\n"
    )
    assert manage.main(["logs", "-c", str(tmp_path / "acme.yaml"), "-n", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == LINES[-1:] and "no server runs" in said.err and "dead.log" in said.err


def test_a_dead_daemons_file_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acme.log").write_text(TEXT)
    assert manage.main(["logs", "--runtime-dir", str(tmp_path), "-n", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == LINES[-1:] and f"are in {tmp_path}/acme.log" in said.err
    assert manage.main(["logs", "--runtime-dir", str(tmp_path), "--access"]) == 3


# -- following, in a process of its own


class Following:
    """A running `acme-server logs --follow`."""

    def __init__(self, talker: Talker, *arguments: str) -> None:
        self.out = talker.directory / "shown"
        command = [
            sys.executable,
            "-m",
            "acme_wsgi.cli.manage",
            "logs",
            "--runtime-dir",
            str(talker.directory),
        ]
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--follow", *arguments],
                stdout=out,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=talker.directory,
            )

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_for(self, *lines: str) -> None:
        """Wait until exactly these lines have been shown."""
        wanted = "".join(f"{line}\n" for line in lines)
        wait_until(
            lambda: self.process.poll() is not None or self.out.read_text() == wanted,
            f"{wanted!r}, not {self.out.read_text()!r}",
        )
        assert self.out.read_text() == wanted

    def interrupt(self) -> tuple[int, bytes]:
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


def add(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_following_goes_through_rotation_and_ends_with_ctrl_c(log: Path, talker: Talker) -> None:
    renamed = log.with_name("server.log.1")
    with Following(talker, "-n", "1") as following:
        following.wait_for(LINES[-1])
        add(log, "a")
        following.wait_for(LINES[-1], "a")
        log.rename(renamed)
        add(renamed, "b")
        add(log, "c" * 99)
        following.wait_for(LINES[-1], "a", "b", "c" * 99)
        os.truncate(log, 0)
        add(log, "d")
        following.wait_for(LINES[-1], "a", "b", "c" * 99, "d")
        talker.stop()  # a server that ends may come back, and its file is still there
        add(log, "e")
        following.wait_for(LINES[-1], "a", "b", "c" * 99, "d", "e")
        assert following.interrupt() == (0, b"")


def test_following_keeps_to_the_level(log: Path, talker: Talker) -> None:
    with Following(talker, "-n", "0", "--level", "error") as following:
        wait_until(lambda: talker.orders, "its question")
        with log.open("a") as file:
            marker = "2026-01-31T12:00:09.000Z critical acme.worker worker 1[2]: now"
            file.write(f"{marker}\n")
            file.flush()
            wait_until(lambda: following.out.read_text() or following.process.poll() is not None, "a line")
            file.write(TEXT)
        wanted = [*LINES[1:4], LINES[5]]
        wait_until(lambda: following.out.read_text().splitlines()[-4:] == wanted, f"{wanted}")
        assert LINES[0] not in following.out.read_text()
        assert following.interrupt() == (0, b"")


def test_following_the_journal_ends_with_ctrl_c_and_leaves_no_process(journal: Path, talker: Talker) -> None:
    with Following(talker, "-n", "7") as following:
        following.wait_for(*LINES)
        assert "-f" in journal.read_text().split()
        children = Path(f"/proc/{following.process.pid}/task/{following.process.pid}/children").read_text()
        assert following.interrupt() == (0, b"")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.split()), "no journalctl")
