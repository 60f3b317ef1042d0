"""`acme-server stats` and `acme-server logs` with real servers: the figures, and where the lines lie.

Knows the commands, the wire and processes; how figures are made of counters is tested with the history.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server import ROOT, Launcher, Server, wait_until

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.basic:app"
FIGURES = 15.0  # seconds for two samples, and for one round of memory measurements


def command(server: Server, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "acme_wsgi.cli.manage", *arguments, "-c", str(server.cwd / "conf.d")]


def acme_server(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `acme-server` for this server, from somewhere else."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(server, *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
        cwd="/",
        check=False,
    )


def stats(server: Server, *arguments: str) -> dict[str, Any]:
    done = acme_server(server, "stats", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def stats_when(
    server: Server, condition: Callable[[dict[str, Any]], object], *arguments: str
) -> dict[str, Any]:
    """The statistics once they fulfil a condition."""
    told: dict[str, Any] = {}

    def asked() -> bool:
        told.clear()
        told.update(stats(server, *arguments))
        return bool(condition(told))

    wait_until(asked, "the figures that were waited for", FIGURES)
    return told


def get_many(server: Server, count: int, target: str = "/") -> None:
    with server.connect() as wire:
        for _ in range(count):
            assert wire.request(target).status == 200


def test_requests_become_figures(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    stats_when(server, lambda told: told["seconds"] > 0)
    get_many(server, 300)
    server.errors_expected = True
    assert server.get("/raise").status == 500
    told = stats_when(server, lambda told: told["requests_per_second"] > 0, "--window", "60")
    assert told["requests_per_second"] * told["seconds"] == pytest.approx(301, abs=1)
    assert told["statuses"]["2xx"] * told["seconds"] == pytest.approx(300, abs=1)
    assert told["statuses"]["5xx"] > 0 and told["errors_per_second"] > 0
    assert 0 < told["latency"]["p50"] <= told["latency"]["p95"] <= told["latency"]["p99"] < 1
    assert told["bytes_out_per_second"] > told["bytes_in_per_second"] > 0
    assert told["totals"]["statuses"] == {"200": 300, "500": 1}
    assert sorted(worker["pid"] for worker in told["workers"]) == sorted(server.worker_pids())
    assert [worker["number"] for worker in told["workers"]] == [1, 2]
    assert sum(worker["requests_per_second"] for worker in told["workers"]) > 0
    assert told["server"]["pid"] == server.pid and list(server.addresses) == told["server"]["addresses"]


def test_latency_is_what_the_client_waits(acme: Launcher) -> None:
    server = acme(app=APP)
    stats_when(server, lambda told: told["seconds"] > 0)
    get_many(server, 4, "/sleep/0.3")
    told = stats_when(
        server, lambda told: told["totals"]["requests"] == 4 and told["latency"]["p50"], "--window", "60"
    )
    for name in ("p50", "p99"):
        assert 0.25 <= told["latency"][name] <= 1
    assert 0.3 <= told["latency"]["mean"] <= 1


def test_what_is_under_way_is_told(acme: Launcher) -> None:
    server = acme(app=APP)
    with server.connect() as idle, server.connect() as busy:
        idle.request("/")
        busy.send(b"GET /sleep/60 HTTP/1.1\r\nHost: a\r\n\r\n")
        told = stats_when(server, lambda told: told["in_flight"] == 1)
        assert told["connections"] == 2
        assert (told["workers"][0]["in_flight"], told["workers"][0]["connections"]) == (1, 2)
    server.tell(signal.SIGINT)  # the handler sleeps on
    server.wait()


def test_processor_and_memory_are_measured(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    spinning = threading.Thread(target=get_many, args=(server, 8, "/spin/0.5"))
    spinning.start()
    told = stats_when(
        server,
        lambda told: (
            told["pss"]
            and all(worker["pss"] and worker["cpu_percent"] is not None for worker in told["workers"])
            and (told["cpu_percent"] or 0) > 5
        ),
    )
    spinning.join()
    assert max(worker["cpu_percent"] for worker in told["workers"]) > 5
    for worker in told["workers"]:
        assert 1 << 20 < worker["pss"] < 1 << 30
    assert told["pss"] >= sum(worker["pss"] for worker in told["workers"])

    memory = stats(server, "--memory")
    assert [each["name"] for each in memory["processes"]] == ["arbiter", "worker 1", "worker 2"]
    assert {each["pid"] for each in memory["processes"]} == {server.pid, *server.worker_pids()}
    for kind in ("pss", "rss", "private", "shared", "swap"):
        assert memory["total"][kind] == sum(each[kind] for each in memory["processes"])
    shown = acme_server(server, "stats", "--memory")
    assert shown.returncode == 0 and shown.stdout.splitlines()[-1].startswith("total")


def test_the_servers_counts_outlive_a_worker_and_the_workers_do_not(acme: Launcher) -> None:
    server = acme(app=APP)
    server.errors_expected = True
    get_many(server, 50)
    killed = server.worker_pids()[0]
    stats_when(server, lambda told: told["totals"]["requests"] == 50)
    os.kill(killed, signal.SIGKILL)
    server.wait_for_log(r"worker 1 \(pid \d+\) was ended by SIGKILL")
    told = stats_when(
        server,
        lambda told: [(one["state"], one["pid"] != killed) for one in told["workers"]] == [("ready", True)],
        "--window",
        "60",
    )
    assert told["workers"][0]["requests_per_second"] * 60 < 10  # its probe at the most
    assert told["totals"]["requests"] >= 50
    assert told["requests_per_second"] >= 0
    get_many(server, 5)
    told = stats_when(server, lambda told: told["totals"]["requests"] >= 55)
    assert told["totals"]["statuses"]["200"] >= 55


def test_what_a_dead_worker_counted_is_not_its_successors(acme: Launcher) -> None:
    server = acme(app=APP)
    server.errors_expected = True
    assert server.get("/raise").status == 500
    # A client may have its answer before the worker has counted it.
    wait_until(lambda: server.status()["workers"][0]["requests"] == 1, "the request to be counted")
    [worker] = server.status()["workers"]
    assert worker["errors"] == 1
    os.kill(worker["pid"], signal.SIGKILL)
    server.wait_for_log(r"worker 1 \(pid \d+\) was ended by SIGKILL")
    wait_until(lambda: [each["state"] for each in server.status()["workers"]] == ["ready"], "its successor")
    [successor] = server.status()["workers"]
    assert successor["pid"] != worker["pid"]
    assert (successor["requests"], successor["errors"], successor["stalls"]) == (0, 0, 0)


def test_figures_go_on_through_a_reload(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    get_many(server, 40)
    before = set(server.worker_pids())
    done = acme_server(server, "reload")
    assert done.returncode == 0, done.stderr
    told = stats_when(
        server,
        lambda told: len(told["workers"]) == 2 and not before & {worker["pid"] for worker in told["workers"]},
    )
    assert told["totals"]["statuses"]["200"] >= 40
    assert {worker["generation"] for worker in told["workers"]} == {2}


def test_a_stopped_arbiter_gives_no_absurd_rates(acme: Launcher) -> None:
    server = acme(app=APP)
    stats_when(server, lambda told: told["seconds"] > 0)
    server.tell(signal.SIGSTOP)
    stopped = time.monotonic()
    get_many(server, 100)
    wait_until(lambda: time.monotonic() > stopped + 4, "four seconds to pass")
    server.tell(signal.SIGCONT)
    told = stats_when(
        server, lambda told: sum(entry["requests_per_second"] for entry in told["history"]), "--history"
    )
    rates = [entry["requests_per_second"] for entry in told["history"]]
    assert 1 < max(rates) <= 100 / 3.9
    assert all(entry["cpu_percent"] <= 100 * (os.cpu_count() or 1) for entry in told["history"])


def test_the_page_for_people(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    done = acme_server(server, "stats")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("acme ") and f"pid {server.pid}" in lines[0] and "serving" in lines[0]
    assert server.addresses[0] in lines[1]
    assert [line.split()[1] for line in lines[-2:]] == [str(pid) for pid in sorted(server.worker_pids())]


def test_watching_until_the_server_stops(acme: Launcher, tmp_path: Path) -> None:
    server = acme(app=APP)
    shown = tmp_path / "shown"
    with shown.open("wb") as out:
        watch = subprocess.Popen(
            command(server, "stats", "--watch", "200ms", "--json"),
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    with watch:
        wait_until(lambda: shown.read_text().count("\n") >= 3, "three rounds")
        server.stop()
        _, err = watch.communicate(timeout=30)
    assert watch.returncode == 1 and err and b"Traceback" not in err
    ended = acme_server(server, "stats")
    assert ended.returncode == 3 and "no server runs" in ended.stderr and ended.stdout == ""


# -- logs


def test_the_log_of_a_server_whose_streams_go_to_files(acme: Launcher) -> None:
    server = acme(app=APP)  # the fixture sends stdout and stderr to files
    server.get("/hello?a=b")
    done = acme_server(server, "logs")
    assert done.returncode == 0 and "ready" in done.stdout
    server.wait_for_log("GET /hello")
    done = acme_server(server, "logs", "--access", "-n", "1")
    assert done.returncode == 0 and '"GET /hello?a=b HTTP/1.1" 200' in done.stdout


def test_the_log_of_a_server_that_writes_files(acme: Launcher, tmp_path: Path) -> None:
    log, access = tmp_path / "error.log", tmp_path / "access.log"
    logging = {"output": str(log), "format": "json", "access": {"output": str(access)}}
    server = acme({"logging": logging}, app=APP)
    server.errors_expected = True
    server.get("/raise")
    wait_until(lambda: access.exists() and "/raise" in access.read_text(), "the access log's line")
    wait_until(lambda: '"error"' in log.read_text(), "the error")
    done = acme_server(server, "logs", "--level", "error", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and lines and {line["level"] for line in lines} == {"error"}
    assert "/raise" in acme_server(server, "logs", "--access").stdout


def test_following_through_a_rotation(acme: Launcher, tmp_path: Path) -> None:
    access = tmp_path / "access.log"
    server = acme({"logging": {"access": {"output": str(access)}}}, app=APP, workers=2)
    shown = tmp_path / "shown"
    with shown.open("wb") as out:
        follow = subprocess.Popen(
            command(server, "logs", "--access", "--follow", "-n", "0"),
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    with follow:
        first = 0

        def began() -> bool:
            nonlocal first
            first += 1
            server.get(f"/?before={first}")
            return "before=" in shown.read_text()

        wait_until(began, "a line")
        access.rename(tmp_path / "access.log.1")
        server.get("/?old=1")
        server.tell(signal.SIGUSR1)
        wait_until(access.exists, "a new file")
        for number in range(20):
            server.get(f"/?new={number}")
        wait_until(
            lambda: all(f"new={number} " in shown.read_text() for number in range(20)), "all lines", FIGURES
        )
        assert shown.read_text().count("old=1 ") == 1
        follow.send_signal(signal.SIGINT)
        _, err = follow.communicate(timeout=30)
    assert (follow.returncode, err) == (0, b"")
