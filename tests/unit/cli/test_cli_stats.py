"""`acme-server stats` against a control socket that says what the test wants it to say."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from talker import Talker

from acme_wsgi import cli
from acme_wsgi.cli import manage
from acme_wsgi.history import History
from acme_wsgi.scoreboard import Scoreboard
from tests.server import ROOT, wait_until
from tests.unit.processes import python

STATUS = {
    "pid": 4711, "version": "1.2.3", "state": "serving", "uptime": 11_530.0, "generation": 2,
    "addresses": ["127.0.0.1:8080", "[::1]:8080"],
    "workers": [], "leaving": [],
}  # fmt: skip
WORKER = {
    "number": 1, "pid": 4712, "slot": 0, "state": "ready", "requests_per_second": 6172.8, "in_flight": 3,
    "queued": 0, "connections": 512, "latency": {"p50": 0.0041, "p99": 0.25, "mean": 0.005},
    "cpu_percent": 97.4, "pss": 43_000_000,
}  # fmt: skip
STATS = {
    "seconds": 10.0, "requests_per_second": 12_345.6, "bytes_in_per_second": 4_200,
    "bytes_out_per_second": 43e6,
    "connections": 1024, "connections_per_second": 7, "idle": 900, "in_flight": 6, "queued": 2,
    "oldest_queued": 1.34,
    "shed_per_second": 0.3, "errors_per_second": 0, "statuses": {"2xx": 12_000.0, "4xx": 345.6, "5xx": 0},
    "latency": {"p50": 0.0041, "p90": 0.01, "p95": 0.02, "p99": 0.25, "mean": 0.0051},
    "totals": {"requests": 9}, "cpu_percent": 188.0, "pss": 90_000_000, "pss_exact": True,
    "workers": [WORKER, {**WORKER, "number": 2, "pid": 4713, "state": "draining"}],
}  # fmt: skip
PAGE = """\
acme 1.2.3   pid 4711   serving   up 3 h 12 min   generation 2
listens on   127.0.0.1:8080   [::1]:8080
requests     12.3k/s   in 4.1 KB/s   out 41 MB/s   errors 0/s   (over 10 s)
latency      p50 4.1 ms   p90 10 ms   p95 20 ms   p99 250 ms   mean 5.1 ms
statuses     2xx 12k/s   4xx 346/s
waiting      6 in flight   2 queued (longest 1.3 s)   shed 0.3/s
connections  1k open   900 idle   7/s new
processes    CPU 188 %   PSS 86 MB

worker   pid  state     requests/s     p50     p99  in flight  queued  connections   CPU    PSS
     1  4712  ready           6.2k  4.1 ms  250 ms          3       0          512  97 %  41 MB
     2  4713  draining        6.2k  4.1 ms  250 ms          3       0          512  97 %  41 MB
"""


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(tmp_path / "none"))
    for name in list(os.environ):
        if name.startswith("ACME_"):
            monkeypatch.delenv(name)


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[Talker]:
    with Talker(tmp_path / "run") as found:
        found.answers = {"status": STATUS, "stats": STATS}
        yield found


def asked(talker: Talker, *arguments: str) -> int:
    return manage.main(["stats", "--runtime-dir", str(talker.directory), *arguments])


# -- one page


def test_the_page(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(talker) == 0
    assert capsys.readouterr().out == PAGE
    assert talker.orders == [("status", {}), ("stats", {"seconds": 10, "history": False})]


def test_json_has_what_the_server_said_and_who_it_is(
    talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(talker, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("server")["pid"] == 4711
    assert told.pop("backends") == []
    assert told == STATS


@pytest.mark.parametrize(("window", "seconds"), [("1", 1), ("2m", 120), ("10m", 600)])
def test_the_window_is_asked_for(
    talker: Talker, capsys: pytest.CaptureFixture[str], window: str, seconds: int
) -> None:
    assert asked(talker, "--window", window, "--history") == 0
    assert talker.orders[-1] == ("stats", {"seconds": seconds, "history": True})
    assert json.loads(capsys.readouterr().out)["latency"] == STATS["latency"]


@pytest.mark.parametrize(
    "arguments",
    [("--window", "0"), ("--window", "11m"), ("--window", "x"), ("--watch", "0"), ("--watch", "2h")],
)
def test_impossible_times_are_wrong_usage(
    talker: Talker, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        asked(talker, *arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--memory",), ("--watch",), ("--json",)])
def test_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    assert manage.main(["stats", "--runtime-dir", str(tmp_path), *more]) == 3
    said = capsys.readouterr()
    assert "no server runs" in said.err and str(tmp_path) in said.err
    assert (json.loads(said.out)["ok"] is False) if "--json" in more else said.out == ""


def test_a_refusal(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    talker.answers["stats"] = "not today"
    assert asked(talker) == 1
    assert capsys.readouterr().err == "not today\n"
    assert asked(talker, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"error": "not today", "ok": False}


def test_a_server_that_has_had_no_request(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(Scoreboard(2))
    history.sample(1.0, {0: os.getpid()})
    history.sample(2.0, {0: os.getpid()})
    talker.answers["stats"] = history.stats(history=True)
    assert asked(talker) == 0
    out = capsys.readouterr().out
    assert "requests     0/s" in out and "p50 -" in out and "statuses     none" in out


def test_controls_from_the_server_drive_no_terminal(
    talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;pwned\x07\x1b[2J\r\n\x9b31m"
    talker.answers["status"] = {**STATUS, "version": evil, "state": evil, "pid": evil, "addresses": [evil]}
    worker = dict.fromkeys(WORKER, evil)
    talker.answers["stats"] = {**dict.fromkeys(STATS, evil), "workers": [worker], "statuses": {"2xx": evil}}
    assert asked(talker) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert out.startswith("acme \\x1b]0;pwned")


@pytest.mark.parametrize("nonsense", [{}, {"workers": [1, None, []], "latency": 3, "statuses": []}])
def test_a_server_of_another_version_may_leave_things_out(
    talker: Talker, capsys: pytest.CaptureFixture[str], nonsense: dict[str, Any]
) -> None:
    talker.answers = {"status": {}, "stats": nonsense}
    assert asked(talker) == 0
    assert capsys.readouterr().out.startswith("acme -   pid -   -   up -")


# -- memory


@pytest.fixture
def child() -> Iterator[int]:
    with python("kept = b'x' * (32 << 20)") as pid:
        yield pid


def test_memory_of_every_process_and_the_sums(
    talker: Talker, capsys: pytest.CaptureFixture[str], child: int
) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    talker.answers["status"] = {
        **STATUS,
        "pid": os.getpid(),
        "workers": [{"number": 1, "pid": child}, {"number": 2, "pid": ended.pid}],
        "leaving": [{"number": 2, "pid": child}, {"number": 3, "pid": None}],
    }
    assert asked(talker, "--memory", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    names = [each["name"] for each in told["processes"]]
    assert names == ["arbiter", "worker 1", "worker 2", "leaving worker 2"]
    arbiter, worker, gone, _ = told["processes"]
    assert worker["private"] > 32 << 20 and worker["rss"] == worker["private"] + worker["shared"]
    assert (gone["pss"], gone["rss"]) == (None, None)
    for kind in ("pss", "rss", "private", "shared", "swap"):
        total = sum(each[kind] for each in told["processes"] if each[kind] is not None)
        assert told["total"][kind] == total
    assert told["total"]["pss"] >= arbiter["pss"] + 2 * (32 << 20)

    assert asked(talker, "--memory") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["process", "pid", "PSS", "RSS", "private", "shared", "swap"]
    assert re.match(rf"worker 1 +{child}  +\d+ MB  +\d+ MB  +\d+ MB ", lines[2])
    assert re.match(rf"worker 2 +{ended.pid}(  +-){{5}}$", lines[3])
    assert re.match(r"total  +\d+ MB", lines[5])
    assert ("stats", {}) not in talker.orders


def test_a_sum_that_lacks_a_process_is_none(
    talker: Talker, capsys: pytest.CaptureFixture[str], child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acme_wsgi import procfs

    measure = procfs.memory
    monkeypatch.setattr(procfs, "memory", lambda pid: procfs.Memory(5000) if pid == child else measure(pid))
    talker.answers["status"] = {**STATUS, "pid": os.getpid(), "workers": [{"number": 1, "pid": child}]}
    assert asked(talker, "--memory") == 0
    out = capsys.readouterr().out
    assert re.search(r"^total  +-  +\d+ MB", out, re.MULTILINE)
    assert "PSS is shown to root and to the server's own user only" in out


# -- watching, in a process of its own


def watching(
    talker: Talker, *arguments: str, stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "acme_wsgi.cli.manage", "stats", "--runtime-dir", str(talker.directory)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    return subprocess.Popen(
        [*command, *arguments], stdout=stdout, stderr=subprocess.PIPE, env=environ, cwd=talker.directory
    )


def test_watching_prints_one_page_below_the_other_and_ends_with_ctrl_c(talker: Talker) -> None:
    with watching(talker, "--watch", "100ms") as process:
        wait_until(lambda: len(talker.orders) >= 6, "three rounds")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, b"")
    assert out.decode().startswith(PAGE + "\n" + PAGE) and b"\x1b" not in out


def test_watching_as_json_prints_lines(talker: Talker) -> None:
    with watching(talker, "--watch", "0.1", "--json") as process:
        assert process.stdout is not None
        first, second = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert first == second and first["requests_per_second"] == 12_345.6


def test_watching_a_server_that_goes_away(talker: Talker) -> None:
    with watching(talker, "--watch", "100ms") as process:
        wait_until(lambda: len(talker.orders) >= 4, "two rounds")
        talker.stop()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and b"\nTraceback" not in err
    assert b"gone away" in err or b"went away" in err


class Terminal:
    """A pseudo-terminal of a given size, and what was written to it."""

    def __init__(self, lines: int, columns: int) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.set_blocking(self.master, False)
        self.written = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.master)
        os.close(self.slave)

    def read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            self.written += os.read(self.master, 1 << 16)
        return self.written


def test_on_a_terminal_the_page_is_drawn_in_place(talker: Talker) -> None:
    with Terminal(lines=8, columns=50) as terminal:
        with watching(talker, "--watch", "100ms", stdout=terminal.slave) as process:
            wait_until(lambda: terminal.read().count(b"\x1b[H") >= 3, "three pages")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        written = terminal.read().decode()
    assert (process.returncode, err) == (0, b"")
    assert written.startswith("\x1b[?25l\x1b[2J") and written.endswith("\x1b[?25h")
    page = written.split("\x1b[H")[1]
    lines = [line.removesuffix("\x1b[K") for line in page.removesuffix("\x1b[J").splitlines()]
    assert len(lines) == 7 and all(len(line) <= 50 for line in lines)
    assert re.fullmatch(r"\.\.\. and \d+ more lines", lines[-1])


def test_on_a_terminal_the_table_has_the_columns_that_fit(talker: Talker) -> None:
    with Terminal(lines=50, columns=60) as terminal:
        with watching(talker, stdout=terminal.slave) as process:
            _, err = process.communicate(timeout=20)
        lines = terminal.read().decode().splitlines()
    assert (process.returncode, err) == (0, b"")
    assert all(len(line) <= 60 for line in lines)
    assert lines[-3].split()[:3] == ["worker", "pid", "state"] and "queued" not in lines[-3]
    assert lines[-1].startswith("     2  4713  draining")
