"""The verbs that speak to a running server: stop, restart, reload, status, against a stand-in for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi.cli import daemon, manage, stop

pytestmark = pytest.mark.slow  # commands in processes of their own

Start = Callable[..., subprocess.Popen[bytes]]
Orders = Callable[[], list[Any]]
Output = pytest.CaptureFixture[str]

WORKER = {
    "number": 1, "pid": 4711, "slot": 0, "state": "ready", "generation": 2, "uptime": 93784.2,
    "requests": 1234567, "connections": 12, "in_flight": 3, "idle": 9, "queued": 1, "errors": 5,
    "cpu_percent": 12.34, "pss": 43201000, "stalled": None, "stalls": 0,
}  # fmt: skip
STATUS = {
    "pid": 0, "version": "0.1.0", "state": "serving", "started": 1.0, "uptime": 75.0, "generation": 2,
    "addresses": ["127.0.0.1:8080", "unix:/run/x"], "config": ["/etc/acme/conf.d"],
    "runtime_dir": "/run/acme", "workers": [WORKER], "leaving": [], "stalls": 0, "last_reload": None,
    "logs": {"error": "stderr", "access": None}, "systemd": None,
}  # fmt: skip


@pytest.mark.parametrize("verb", ["stop", "reload"])
def test_no_server_is_told_and_exits_with_one(run_dir: Path, capsys: Output, verb: str) -> None:
    assert manage.main([verb]) == 1
    assert f"no server runs with the runtime directory '{run_dir}'" in capsys.readouterr().err
    assert manage.main([verb, "--json"]) == 1
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["ok"] is False and "no server runs" in answer["error"] and captured.err == ""


# -- stop


def test_stop_waits_until_the_process_is_gone(arbiter: Start, orders: Orders, capsys: Output) -> None:
    process = arbiter(status=STATUS, stop={})
    assert manage.main(["stop"]) == 0
    assert Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z", "ended; we are its parent"
    assert capsys.readouterr().out == f"stopped: pid {process.pid}\n"
    assert orders() == [["status", {}], ["stop", {"quick": False}]]


def test_stop_quick_as_json(arbiter: Start, orders: Orders, capsys: Output) -> None:
    process = arbiter(status=STATUS, stop={})
    assert manage.main(["stop", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "pid": process.pid}
    assert orders()[1] == ["stop", {"quick": True}]


@pytest.mark.parametrize(
    ("arguments", "said", "limit"),
    [
        (["--set", "server.shutdown_timeout=1500ms"], {}, "1.6"),
        (["--set", "server.shutdown_timeout=1500ms"], {"patience": 0.2}, "0.3"),
        (["--quick"], {"patience": 99}, "0.1"),
    ],
)
def test_a_server_that_does_not_stop(
    arbiter: Start,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: dict[str, float],
    limit: str,
) -> None:
    monkeypatch.setattr(stop, "MARGIN", 0.1)
    process = arbiter(status=STATUS, stop={"stubborn": True, **said})
    assert manage.main(["stop", *arguments]) == 1
    assert f"pid {process.pid} has not ended within {limit} s" in capsys.readouterr().err
    assert process.poll() is None


def test_stop_of_a_server_that_says_no_or_nonsense(arbiter: Start, capsys: Output) -> None:
    process = arbiter(status=STATUS, stop={"error": "not now", "stubborn": True})
    assert manage.main(["stop"]) == 1
    assert capsys.readouterr().err == "not now\n"
    process.kill()
    process.wait()
    arbiter(status={**STATUS, "pid": "1; rm"}, stop={})
    assert manage.main(["stop"]) == 1
    assert "does not say which process it is" in capsys.readouterr().err


# -- restart


def test_restart_is_the_running_servers_own_doing(arbiter: Start, orders: Orders, capsys: Output) -> None:
    arbiter(restart={"progress": ["starting the new program"], "pid": 99})
    assert manage.main(["restart", "-c", "nowhere-it-matters", "--runtime-dir", "run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("restarted: pid 99 serves now")
    assert captured.err == "starting the new program\n"
    assert orders() == [["restart", {}]]


def test_restart_that_fails(arbiter: Start, capsys: Output) -> None:
    arbiter(restart={"error": "the new program ended with status 3"})
    assert manage.main(["restart", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "error": "the new program ended with status 3",
        "ok": False,
    }
    assert manage.main(["restart"]) == 1
    assert capsys.readouterr().err == (
        "not restarted, the old program goes on: the new program ended with status 3\n"
    )


def test_restart_where_none_runs_and_nothing_is_named(run_dir: Path, capsys: Output) -> None:
    assert manage.main(["restart"]) == 2
    assert "nothing to serve" in capsys.readouterr().err


def test_restart_starts_a_daemon_where_none_runs(
    run_dir: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[daemon.Program] = []

    def launch(wanted: daemon.Program, environ: object) -> daemon.Started:
        launched.append(wanted)
        return daemon.Started(7, ("127.0.0.1:80",), "/run/acme.log")

    monkeypatch.setattr(daemon, "launch", launch)
    assert manage.main(["restart", "shop:app"]) == 0
    assert capsys.readouterr().out == "started: pid 7 on 127.0.0.1:80; output in /run/acme.log\n"
    assert launched[0].directory == str(run_dir)
    assert launched[0].command == (sys.executable, "-m", "acme_wsgi", "--", "shop:app")


# -- reload


def test_reload_with_its_end(arbiter: Start, orders: Orders, capsys: Output) -> None:
    arbiter(
        reload={
            "progress": ["reading the configuration", "worker 1 of 2 replaced"],
            "generation": 3,
            "workers": 2,
            "changed": ["server.timeout", "routes"],
            "left": ["server.user: needs a restart"],
        }
    )
    assert manage.main(["reload", "--wait"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "reading the configuration\nworker 1 of 2 replaced\n"
    assert captured.out == (
        "reloaded: generation 3, 2 workers\nchanged: server.timeout, routes\n"
        "left as it was:\n  server.user: needs a restart\n"
    )
    assert orders() == [["reload", {}]]
    assert manage.main(["reload", "--wait", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == ["server.user: needs a restart"]


def test_reload_that_leaves_the_old_configuration(arbiter: Start, capsys: Output) -> None:
    arbiter(reload={"progress": ["x"], "error": "2 problems", "problems": ["a.yaml:1: b", "a.yaml:2: \x1b"]})
    assert manage.main(["reload", "--wait"]) == 1
    assert capsys.readouterr().err == (
        "x\nnot reloaded, the old configuration stays: 2 problems\n  a.yaml:1: b\n  a.yaml:2: \\x1b\n"
    )
    assert manage.main(["reload", "--wait", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"error": "2 problems", "ok": False, "problems": ["a.yaml:1: b", "a.yaml:2: \x1b"]}


def test_reload_says_a_single_problem_once(arbiter: Start, capsys: Output) -> None:
    arbiter(reload={"error": "a.yaml:1: b", "problems": ["a.yaml:1: b"]})
    assert manage.main(["reload", "--wait"]) == 1
    assert capsys.readouterr().err == "not reloaded, the old configuration stays: a.yaml:1: b\n"


def test_reload_of_a_single_worker(arbiter: Start, capsys: Output) -> None:
    arbiter(reload={"generation": 2, "workers": 1, "changed": [], "left": []})
    assert manage.main(["reload", "--wait"]) == 0
    assert capsys.readouterr().out == "reloaded: generation 2, 1 worker\nchanged: nothing\n"


def test_reload_without_waiting_leaves_once_it_is_accepted(arbiter: Start, capsys: Output) -> None:
    arbiter(reload={"progress": ["reading the configuration"], "silent": True})
    assert manage.main(["reload"]) == 0
    assert capsys.readouterr().out == "reloading; the log tells how it goes\n"
    assert manage.main(["reload", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "done": False}


def test_reload_without_waiting_that_is_refused_at_once(arbiter: Start, capsys: Output) -> None:
    arbiter(reload={"error": "the server is stopping"})
    assert manage.main(["reload"]) == 1
    expected = "not reloaded, the old configuration stays: the server is stopping\n"
    assert capsys.readouterr().err == expected


def test_ctrl_c_ends_the_waiting_alone(arbiter: Start, run_dir: Path) -> None:
    process = arbiter(reload={"progress": ["on its way"], "silent": True})
    script = "import sys; from acme_wsgi.cli.manage import main; sys.exit(main(['reload', '--wait']))"
    root = str(Path(manage.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE
    ) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == b"on its way\n"
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == 130
        assert waiting.stderr.read() == b""
    assert process.poll() is None


# -- status


def test_status_of_a_serving_server(arbiter: Start, capsys: Output) -> None:
    process = arbiter(status=STATUS)
    assert manage.main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"acme 0.1.0 is serving: pid {process.pid}, up 1m 15s, generation 2"
    assert "  addresses      127.0.0.1:8080, unix:/run/x" in lines
    assert "  configuration  /etc/acme/conf.d" in lines
    assert "  access log     none" in lines
    assert not any("reload" in line or "systemd" in line for line in lines)
    assert lines[-2].split("  ")[0] == "worker"
    assert lines[-1].split() == [
        "1", "4711", "ready", "2", "1d", "2h", "1,234,567", "5", "3", "1", "12", "9", "0", "12.3%",
        "41.2", "MB",
    ]  # fmt: skip
    assert len(lines[-1]) == len(lines[-2])


def test_status_in_a_narrow_terminal(arbiter: Start, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acme_wsgi.cli.display.room_of", lambda _: (80, 24))
    arbiter(status=STATUS)
    assert manage.main(["status"]) == 0
    *_, titles, row = capsys.readouterr().out.splitlines()
    assert len(row) == len(titles) <= 80
    assert titles.split()[:3] == ["worker", "pid", "state"] and titles.endswith("memory")


def test_status_of_workers_that_stand_still_or_leave(arbiter: Start, capsys: Output) -> None:
    stalled = {"route": "/a\x1b[2J", "where": "shop.py:12 in total", "seconds": 2.1}
    arbiter(
        status={
            **STATUS,
            "state": "reloading",
            "workers": [
                WORKER,
                {**WORKER, "number": 2, "stalled": stalled, "pss": None, "cpu_percent": None},
            ],
            "leaving": [{**WORKER, "number": 1, "state": "draining"}],
            "last_reload": {
                "at": 0,
                "ok": False,
                "error": "a.yaml: wrong",
                "generation": 1,
                "left": [],
            },
            "systemd": "abc",
        }
    )
    assert manage.main(["status"]) == 0
    out = capsys.readouterr().out
    assert "worker 2 has stood still for 2.1s: /a\\x1b[2J at shop.py:12 in total" in out
    assert "draining" in out and "failed, the old configuration stays: a.yaml: wrong" in out
    assert "  systemd        abc" in out


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"state": "upgrading"}, 0),
        ({"state": "stopping"}, 1),
        ({"state": "starting"}, 1),
        ({"workers": []}, 1),
        ({"workers": [{**WORKER, "state": "starting"}]}, 1),
        ({"workers": [{**WORKER, "state": "starting"}, WORKER]}, 0),
        ({"workers": None, "addresses": 5, "logs": [], "last_reload": "x", "uptime": "long"}, 1),
    ],
)
def test_status_says_by_its_exit_status_whether_it_serves(
    arbiter: Start, capsys: Output, change: dict[str, Any], status: int
) -> None:
    arbiter(status={**STATUS, **change})
    assert manage.main(["status"]) == status
    assert manage.main(["status", "--json"]) == status
    answer = json.loads(capsys.readouterr().out.partition("\n{")[2].join(("{", "")))
    assert answer["ok"] is (status == 0) and "acme" not in answer


def test_status_of_none(run_dir: Path, capsys: Output) -> None:
    assert manage.main(["status"]) == 3
    assert "no server runs" in capsys.readouterr().out
    assert manage.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"


def test_status_of_one_that_does_not_answer(
    arbiter: Start, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = arbiter(status=STATUS)
    monkeypatch.setattr("acme_wsgi.cli.client.call.__kwdefaults__", {"timeout": 0.1, "on_progress": None})
    process.send_signal(signal.SIGSTOP)
    assert manage.main(["status"]) == 1
    assert "did not answer within 0.1 s" in capsys.readouterr().err
    assert manage.main(["status", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and "did not answer within 0.1 s" in answer["error"]
