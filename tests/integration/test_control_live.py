"""`acme-server` and real servers: from the start of a daemon to its end, and what may go wrong between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server import ROOT, Launcher, Server, wait_until
from tests.wire import DEADLINE

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.basic:app"
LIMIT = 60.0


class Site:
    """A configuration, a runtime directory, and `acme-server` for both."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run_dir = home / "run"
        self.conf = home / "conf.d"
        self.conf.mkdir(parents=True)
        self.write("10-server.yaml", server={
            "host": "127.0.0.1", "port": 0, "workers": 2, "user": "root", "runtime_dir": str(self.run_dir),
        })  # fmt: skip
        self.write("20-routes.yaml", routes=[{"path": "/*", "type": "wsgi", "app": APP}])

    def write(self, name: str, **sections: Any) -> None:
        (self.conf / name).write_text(yaml.safe_dump(sections))

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """`acme-server` with this site's configuration; it is not waited for."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ACME_")}
        return subprocess.Popen(
            [sys.executable, "-m", "acme_wsgi.cli.manage", *arguments, "-c", str(self.conf)],
            cwd=self.home,
            env={**inherited, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `acme-server` and wait for its end."""
        with self.begin(*arguments) as process:
            out, err = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def ask(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """Run `acme-server` with --json; its exit status must be `status`."""
        done = self.manage(*arguments, "--json")
        assert done.returncode == status, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def start(self) -> dict[str, Any]:
        return self.ask("start", "--daemon")

    def get(self, path: str, timeout: float = DEADLINE) -> str:
        """One request to the running server, wherever it listens."""
        host, _, port = self.ask("status")["addresses"][0].rpartition(":")
        return fetch(host, int(port), path, timeout)

    def processes(self) -> list[int]:
        """Every process that works in this site: servers, predecessors, workers."""
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if link.readlink() == self.home:
                    found.append(int(link.parent.name))
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
        return found

    @property
    def log(self) -> str:
        return (self.run_dir / "acme.log").read_text()


def fetch(host: str, port: int, path: str, timeout: float = DEADLINE) -> str:
    connection = HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    try:
        yield made
    finally:
        for pid in made.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def gone(pid: int) -> bool:
    """Whether a process has ended; a daemon's zombie may have to wait for whoever is process 1 here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# -- the start


def test_a_daemon_is_ready_when_start_returns(site: Site) -> None:
    started = site.start()
    host, _, port = started["addresses"][0].rpartition(":")
    assert fetch(host, int(port), "/") == "hello\n"
    assert os.getsid(started["pid"]) == started["pid"] != os.getsid(0)
    assert started["runtime_dir"] == str(site.run_dir)
    assert " ready: 2 workers on " in site.log and started["log"] == str(site.run_dir / "acme.log")
    wait_until(lambda: "GET / " in (site.run_dir / "access.log").read_text(), "the access log's line")
    os.kill(started["pid"], signal.SIGTERM)
    wait_until(lambda: gone(started["pid"]), "the server's end")
    assert "stopped" in site.log


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"routes": [{"path": "/*", "type": "wsgi", "app": "no.such:app"}]}, 3, "no.such"),
        ({"server": {"prot": 1}}, 78, "server.prot: unknown key"),
    ],
)
def test_a_daemon_that_cannot_start(site: Site, change: dict[str, Any], status: int, told: str) -> None:
    site.write("90-wrong.yaml", **change)
    done = site.manage("start", "--daemon")
    assert done.returncode == status and told in done.stderr and done.stdout == ""
    assert done.stderr.count("cannot start") <= 1, "what is in the log too is not told twice"
    wait_until(lambda: all(map(gone, site.processes())), "no process left")


def test_a_daemon_whose_port_is_taken(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = site.ask("start", "--daemon", "--set", f"server.port={port}", status=1)
    assert f"127.0.0.1:{port}: already in use" in answer["error"]


def test_in_the_foreground_it_is_acme_wsgi(site: Site) -> None:
    with site.begin("start", "--set", f"logging.output={site.home}/log") as process:
        log = site.home / "log"
        wait_until(lambda: log.exists() and " ready: " in log.read_text(), "ready", LIMIT)
        comm = Path(f"/proc/{process.pid}/comm").read_text()
        assert comm == "acme: arbiter\n", "the very process that was started"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


# -- a whole life


def test_from_the_start_to_the_end(site: Site) -> None:
    assert site.ask("status", status=3)["state"] == "stopped"
    started = site.start()
    again = site.ask("start", "--daemon", status=1)
    assert f"already running: pid {started['pid']} on {started['addresses'][0]}" in again["error"]
    status = site.ask("status")
    assert status["pid"] == started["pid"] and status["addresses"] == started["addresses"]
    text = site.manage("status")
    assert text.returncode == 0 and f"is serving: pid {started['pid']}" in text.stdout
    assert site.ask("stop") == {"ok": True, "pid": started["pid"]}
    assert gone(started["pid"])
    assert not (site.run_dir / "control.sock").exists()
    site.ask("status", status=3)
    site.ask("stop", status=1)


def test_everything_that_status_says(site: Site) -> None:
    started = site.start()
    site.get("/")
    status = site.ask("status")
    assert status["state"] == "serving" and status["generation"] == 1
    assert status["config"] == [str(site.conf)] and status["runtime_dir"] == str(site.run_dir)
    assert abs(time.time() - status["started"] - status["uptime"]) < 5
    assert status["last_reload"] is None and status["leaving"] == [] and status["stalls"] == 0
    assert status["logs"] == {
        "error": str(site.run_dir / "acme.log"),
        "errors": None,
        "access": str(site.run_dir / "access.log"),
    }
    workers = status["workers"]
    assert [worker["number"] for worker in workers] == [1, 2]
    assert all(worker["state"] == "ready" and worker["generation"] == 1 for worker in workers)
    assert sum(worker["requests"] for worker in workers) >= 1
    children = Path(f"/proc/{started['pid']}/task/{started['pid']}/children").read_text().split()
    assert {str(worker["pid"]) for worker in workers} <= set(children)
    assert set(workers[0]) >= {
        "slot", "uptime", "connections", "in_flight", "idle", "queued", "errors", "cpu_percent", "pss",
        "stalled", "stalls",
    }  # fmt: skip


# -- stop


def test_validate_knows_the_running_servers_port(site: Site) -> None:
    site.start()
    port = int(site.ask("status")["addresses"][0].rpartition(":")[2])
    site.write("30-port.yaml", server={"port": port})
    found = site.ask("validate")
    assert found["ok"]
    [check] = [check for check in found["checks"] if check["name"] == "port free"]
    assert check["ok"] and check["detail"].startswith("held by the running server")


def test_stop_lets_open_requests_finish(site: Site) -> None:
    site.start()
    slept: list[str] = []
    asking = threading.Thread(target=lambda: slept.append(site.get("/sleep/2")))
    asking.start()
    wait_until(lambda: sum(each["in_flight"] for each in site.ask("status")["workers"]), "in flight")
    assert site.manage("stop").returncode == 0
    asking.join()
    assert slept == ["slept\n"]


def test_stop_quick_cuts_them(site: Site) -> None:
    started = site.start()
    host, _, port = started["addresses"][0].rpartition(":")
    cut: list[type] = []

    def ask() -> None:
        try:
            fetch(host, int(port), "/sleep/60", LIMIT)
        except (OSError, HTTPException) as error:
            cut.append(type(error))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: sum(each["in_flight"] for each in site.ask("status")["workers"]), "in flight")
    began = time.monotonic()
    assert site.manage("stop", "--quick").returncode == 0
    assert time.monotonic() - began < 30, "it has not waited for the request"
    asking.join()
    assert len(cut) == 1


# -- reload


def test_reload_says_what_changed_and_what_did_not(site: Site) -> None:
    before = {worker["pid"] for worker in (site.start(), site.ask("status"))[1]["workers"]}
    site.write("50-more.yaml", server={"keep_alive_timeout": "7s", "backlog": 77})
    answer = site.ask("reload", "--wait")
    assert answer["generation"] == 2 and answer["workers"] == 2
    assert "server.keep_alive_timeout" in answer["changed"]
    assert any(left.startswith("server.backlog") for left in answer["left"])
    status = site.ask("status")
    assert status["last_reload"]["ok"] is True and status["last_reload"]["left"] == answer["left"]
    assert not before & {worker["pid"] for worker in status["workers"]}
    assert site.get("/") == "hello\n"


def test_a_broken_configuration_changes_nothing_and_keeps_nobody_out(site: Site) -> None:
    site.start()
    before = site.ask("status")
    site.write("90-wrong.yaml", server={"prot": 1})
    run_dir = ("--runtime-dir", str(site.run_dir))
    done = site.manage("reload", "--wait", *run_dir)
    assert done.returncode == 1 and "the old configuration stays" in done.stderr
    assert "server.prot: unknown key" in done.stderr
    status = site.ask("status", *run_dir)
    assert status["generation"] == 1 and status["last_reload"]["ok"] is False
    assert {each["pid"] for each in status["workers"]} == {each["pid"] for each in before["workers"]}
    assert site.manage("stop", *run_dir).returncode == 0


def test_an_application_that_does_not_load_any_more_is_told(site: Site) -> None:
    site.start()
    site.write("90-wrong.yaml", routes=[{"path": "/*", "type": "wsgi", "app": "no.such:app"}])
    done = site.manage("reload", "--wait")
    assert done.returncode == 1 and "no.such" in done.stderr
    assert site.get("/") == "hello\n"


def test_reload_without_waiting(site: Site) -> None:
    site.start()
    assert site.ask("reload")["ok"] is True
    wait_until(lambda: site.ask("status")["generation"] == 2, "the second generation", LIMIT)


# -- restart


def test_restart_keeps_the_sockets_and_refuses_nobody(site: Site) -> None:
    started = site.start()
    host, _, port = started["addresses"][0].rpartition(":")
    failures: list[str] = []
    answered = 0
    done = threading.Event()

    def ask() -> None:
        nonlocal answered
        while not done.is_set():
            try:
                fetch(host, int(port), "/")
                answered += 1
            except (OSError, HTTPException) as error:
                failures.append(repr(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        answer = site.ask("restart")
        wait_until(lambda: gone(started["pid"]), "the old server's end", LIMIT)
    finally:
        done.set()
        asking.join()
    assert failures == [] and answered > 0
    status = site.ask("status")
    assert status["pid"] == answer["pid"] != started["pid"]
    assert status["addresses"] == started["addresses"]
    assert (site.run_dir / "control.sock").is_socket(), "the old one has not taken it along"
    assert site.ask("stop")["pid"] == answer["pid"]


def test_restart_that_fails_leaves_the_old_server(site: Site) -> None:
    started = site.start()
    site.write("90-wrong.yaml", routes=[{"path": "/*", "type": "wsgi", "app": "no.such:app"}])
    assert site.ask("restart", status=1)["ok"] is False
    assert site.ask("status")["pid"] == started["pid"]
    assert site.get("/") == "hello\n"


def test_restart_where_none_runs_is_a_start(site: Site) -> None:
    answer = site.ask("restart")
    assert site.ask("status")["pid"] == answer["pid"]


# -- the socket of a real server


def configured(directory: Path) -> dict[str, Any]:
    return {"server": {"runtime_dir": str(directory), "user": "root"}}


def dial(directory: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(str(directory / "control.sock"))
    return sock


def ask_raw(directory: Path, request: bytes) -> dict[str, Any]:
    """Send bytes to the control socket and return the last line of the answer."""
    with dial(directory) as sock:
        sock.sendall(request)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    answer: dict[str, Any] = json.loads(received.splitlines()[-1])
    return answer


STATUS = b'{"acme": 1, "verb": "status"}\n'


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path fits into a socket address, so that a test can connect by itself."""
    return tmp_path_factory.mktemp("run")


def test_a_crowd_at_the_control_socket_disturbs_nobody(acme: Launcher, short: Path) -> None:
    server = acme(configured(short), app=APP)
    crowd = [dial(short) for _ in range(40)]
    for sock in crowd[:10]:
        with contextlib.suppress(BrokenPipeError):  # the oldest have made room already
            sock.sendall(b'{"acme": 1, "verb"')
    assert ask_raw(short, b"x" * 60_000 + b"\n")["ok"] is False
    assert ask_raw(short, b'{"acme": 1, "verb": "nope"}\n')["ok"] is False
    assert ask_raw(short, STATUS)["pid"] == server.pid
    assert server.get("/").text == "hello\n"
    for sock in crowd:
        sock.close()


def test_the_socket_is_its_users_alone(acme: Launcher, short: Path) -> None:
    acme(configured(short), app=APP)
    assert (short / "control.sock").stat().st_mode & 0o777 == 0o600


def test_a_killed_servers_socket_is_stale_at_once_and_replaced(acme: Launcher, short: Path) -> None:
    first = acme(configured(short), app=APP)
    with first.connect() as wire:
        # A worker that outlives its arbiter for a while must not have the socket.
        wire.send(b"GET /sleep/1 HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: ask_raw(short, STATUS)["workers"][0]["in_flight"], "in flight")
        first.tell(signal.SIGKILL)
        first.process.wait(DEADLINE)
        with pytest.raises(ConnectionRefusedError):
            dial(short)
        assert wire.reply().text == "slept\n"
    wait_until(lambda: not first.group(), "the worker's end")
    second = acme(configured(short), app=APP)
    assert ask_raw(short, STATUS)["pid"] == second.pid


def warnings(server: Server) -> list[str]:
    return [line for line in server.stderr.splitlines() if " warning " in line and "runtime_dir" in line]


def test_a_second_server_there_warns_once_and_serves(acme: Launcher, short: Path) -> None:
    first = acme(configured(short), app=APP)
    second = acme(configured(short), app=APP)
    assert second.get("/").text == "hello\n"
    assert len(warnings(second)) == 1 and f"pid {first.pid}" in warnings(second)[0]
    assert ask_raw(short, STATUS)["pid"] == first.pid
    second.stop()
    assert ask_raw(short, STATUS)["pid"] == first.pid, "it has not removed the first one's socket"


def test_a_directory_that_cannot_be_had_is_a_warning(acme: Launcher, short: Path) -> None:
    (short / "file").touch()
    server = acme(configured(short / "file"), app=APP)
    assert server.get("/").text == "hello\n"
    assert len(warnings(server)) == 1 and str(short / "file") in warnings(server)[0]
