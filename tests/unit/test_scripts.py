"""The project's own commands: the bench reads its instruments rightly, and the scripts are runnable.

No server is measured here; what is tested is what would silently give a wrong figure.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.benchmarks.closed_loop import Failure
from scripts.benchmarks.holders import _ask
from scripts.benchmarks.load import BROWSER_HEADERS, LoadFailed, read_h2load_log, read_wrk
from scripts.benchmarks.machine import Cores, MachineError
from scripts.benchmarks.peers import PEERS, Launch
from scripts.benchmarks.processes import ProcessTree, alive
from scripts.benchmarks.report import Column, Table
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.scenarios.kill import sort_failures
from scripts.benchmarks.scenarios.memory import verdict

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("scripts/serve", "scripts/test", "scripts/bench", ".ci/run")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_executable_bash_without_syntax_errors(name: str) -> None:
    path = ROOT / name
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_an_unknown_argument_of_the_test_command_is_refused_before_anything_runs() -> None:
    done = subprocess.run([ROOT / "scripts/test", "--fast"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--fast" in done.stderr


def report(**changes: int) -> str:
    told = dict.fromkeys(("connect", "read", "write", "status", "timeout"), 0)
    told |= {
        "requests": 1000,
        "duration_us": 2_000_000,
        "bytes": 1,
        "p50": 10,
        "p90": 20,
        "p99": 30,
        "max": 40,
    }
    return f"Running 2s test\n#report {json.dumps(told | changes)}\n"


def test_wrk_is_read_exactly() -> None:
    load = read_wrk(report())
    assert (load.requests, load.rate, load.p50_us, load.p99_us, load.max_us) == (1000, 500.0, 10, 30, 40)


@pytest.mark.parametrize("kind", ["connect", "read", "write", "status", "timeout"])
def test_an_error_that_wrk_saw_fails_the_run_unless_it_is_asked_for(kind: str) -> None:
    with pytest.raises(LoadFailed, match=kind):
        read_wrk(report(**{kind: 3}))
    assert read_wrk(report(**{kind: 3}), count_errors=True).errors == {kind: 3}


@pytest.mark.parametrize("output", [report(requests=0), "unable to connect\n"])
def test_wrk_without_a_single_answer_is_a_failure(output: str) -> None:
    with pytest.raises(LoadFailed):
        read_wrk(output, count_errors=True)


def test_h2load_percentiles_leave_out_the_opening_and_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # One request each millisecond for ten seconds: slow in the first and the last, 1..8000 us between.
    rows = [(start * 1000, 200, 10**6 if start < 1000 or start > 9000 else start) for start in range(10_000)]
    log.write_text("".join(f"{start}\t{status}\t{micros}\n" for start, status, micros in rows))
    load = read_h2load_log(log, skip=1, tail=0.999, expected=10_000)
    assert load.requests == 8001
    assert (load.p50_us, load.p99_us, load.max_us) == (5000, 8920, 9000)


@pytest.mark.parametrize(("status", "expected"), [(503, 2), (-1, 2), (200, 3)])
def test_h2load_failed_or_missing_requests_are_a_failure(tmp_path: Path, status: int, expected: int) -> None:
    log = tmp_path / "log"
    log.write_text(f"0\t200\t5\n9\t{status}\t5\n")
    with pytest.raises(LoadFailed, match="of"):
        read_h2load_log(log, skip=0, expected=expected)


def test_a_browser_sends_twelve_fields_with_its_host() -> None:
    assert len(BROWSER_HEADERS) + 1 == 12


def test_cores_are_those_named_and_usable() -> None:
    first = min(os.sched_getaffinity(0))
    assert Cores.choose(str(first), "any") == Cores(frozenset({first}), None)
    for wrong in ("x", "", "4096"):
        with pytest.raises(MachineError):
            Cores.choose(wrong, "any")


# A parent whose child burns CPU and dies, then a second child that stays: the account has to hold both.
# /proc counts whole hundredths of a second, so they burn a little more than is asked for.
_FAMILY = """
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.33: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
child = subprocess.Popen([sys.executable, "-c", burn + "\\nprint('ready', flush=True)\\ntime.sleep(60)"])
child.wait()
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    yield process
    ProcessTree(process.pid).stop(patience=0.5)
    process.wait()


def test_cpu_time_counts_living_and_dead_children_once(family: subprocess.Popen[str]) -> None:
    assert family.stdout is not None
    assert family.stdout.readline() == "ready\n"
    tree = ProcessTree(family.pid)
    assert len(tree.pids()) == 2
    assert 0.6 <= tree.cpu_seconds() < 1.2  # twice 0.3 s and what three interpreters take to start
    memory = tree.memory()
    assert 0 < memory.private <= memory.pss < memory.rss


def test_stopping_a_tree_ends_members_that_outlive_the_root(family: subprocess.Popen[str]) -> None:
    assert family.stdout is not None
    family.stdout.readline()
    tree = ProcessTree(family.pid)
    members = tree.pids()
    tree.stop(patience=0.2)
    deadline = time.monotonic() + 10
    # Who reaps the orphans, and when, is not the tree's business: a zombie has ended.
    while any(alive(pid) for pid in members):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_peer_writes_a_configuration_with_the_launch_in_it(tmp_path: Path) -> None:
    for peer in PEERS.values():
        directory = tmp_path / peer.name
        directory.mkdir()
        log = directory / "access.log" if peer.can_log else None
        command = peer.command(Launch(directory, "127.0.0.1", 40123, access_log=log))
        written = " ".join(command) + "".join(p.read_text() for p in directory.rglob("*") if p.is_file())
        assert "40123" in written
        assert log is None or str(log) in written


def test_failures_are_excused_by_a_kill_or_not_at_all() -> None:
    explained, fresh = Failure(5.1, "closed", 71), Failure(5.5, "closed", 0)
    late, living, refused = Failure(9.0, "closed", 0), Failure(5.1, "closed", 72), Failure(5.1, "refused", 0)
    sorted_out = sort_failures([explained, fresh, late, living, refused], {71: 5.0})
    assert sorted_out == ([explained], [fresh], [late, living], [refused])


def test_an_answer_that_is_cut_is_no_answer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello")
        theirs.shutdown(socket.SHUT_WR)
        assert _ask(ours) == "cut by the server"


def test_a_leak_shows_as_the_slope_of_the_second_half() -> None:
    flat = verdict([(0.0, 10.0), (1.0, 20.0), (2.0, 20.0), (3.0, 20.0)])
    leak = verdict([(float(x), 20.0 + x) for x in range(10)])
    assert "+0.0 KB" in flat
    assert "+1000.0 KB" in leak


def test_a_table_is_markdown_with_a_dash_for_what_is_not_known() -> None:
    table = Table("title", (Column("peer", "server"), Column("rate", "rate", "{:,.0f}")))
    table.rows += [{"peer": "nginx", "rate": 12345.6}, {"peer": "acme", "rate": None}]
    assert table.text().splitlines()[2:] == [
        "| server |   rate |",
        "| ------ | -----: |",
        "| nginx  | 12,346 |",
        "| acme   |      - |",
    ]


def test_every_scenario_names_peers_that_exist() -> None:
    for scenario in SCENARIOS.values():
        assert set(scenario.peers) <= set(PEERS)
        assert "acme" in scenario.peers
