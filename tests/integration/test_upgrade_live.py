"""The next program on the same sockets, under load: SIGUSR2 and the order `restart`; how they can fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.load import MARK, more_answers, nothing_lost, under_load
from tests.server import Launcher, Server, wait_until

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "shop:app"
PROVEN = 25.0
"""Seconds after which a predecessor must be gone: it stays for ten."""


def serve(acme: Launcher) -> Server:
    return acme(app=APP, workers=2, files={"shop.py": MARK})


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def ended(server: Server) -> Iterator[None]:
    """Stop whoever serves at the end, which isn't the process that the fixture started; that goes as well."""
    try:
        yield
    finally:
        pid = server.status()["pid"]
        if pid != server.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not lives(pid), f"{pid} has stopped")
            assert server.wait().status == 0


def test_two_upgrades_under_load_lose_nothing(acme: Launcher) -> None:
    server = serve(acme)
    arbiters = [server.pid]
    with ended(server):
        with under_load(server) as outcome:
            for _ in range(2):
                answer = server.order("restart")
                assert answer["ok"] and answer["pid"] not in arbiters
                arbiters.append(answer["pid"])
                status = server.status()
                assert status["pid"] == answer["pid"] and status["generation"] == 1
                more_answers(outcome)
            assert server.wait(PROVEN).status == 0
            wait_until(lambda: not lives(arbiters[1]), "the second has left as well", PROVEN)
            assert server.status()["state"] == "serving"
            more_answers(outcome)
        nothing_lost(outcome)
        assert len(outcome.by_worker) >= 4, "the clients really talked to one program after the other"
        assert server.status()["addresses"] == list(server.addresses)


def test_the_next_program_has_the_settings_that_need_a_restart(acme: Launcher) -> None:
    server = serve(acme)
    with ended(server):
        server.configure("server: {backlog: 77}")
        before = server.order("reload")
        assert [sentence for sentence in before["left"] if "server.backlog" in sentence]
        assert server.order("restart")["ok"]
        assert server.order("reload")["left"] == [], "it has it, so there is nothing left"


def test_a_signal_upgrades(acme: Launcher) -> None:
    server = serve(acme)
    with ended(server):
        with under_load(server) as outcome:
            server.tell(signal.SIGUSR2)
            wait_until(lambda: server.status()["pid"] != server.pid, "another program serves")
            more_answers(outcome)
        nothing_lost(outcome)


@pytest.mark.parametrize(
    ("source", "config", "cause"),
    [
        ("import no_such_module\n", "{}", "no_such_module"),
        (MARK, "server: {wokers: 3}", "wokers"),
        ("import os\nos._exit(7)\n", "{}", "7"),
    ],
)
def test_a_program_that_cannot_serve_leaves_the_old_one_serving(
    acme: Launcher, source: str, config: str, cause: str
) -> None:
    server = serve(acme)
    server.errors_expected = True
    before = set(server.worker_pids())
    with under_load(server) as outcome:
        (server.cwd / "shop.py").write_text(source)
        server.configure(config)
        answer = server.order("restart")
        assert not answer["ok"] and cause in answer["error"]
        more_answers(outcome)
        assert set(server.worker_pids()) == before
        assert server.status()["pid"] == server.pid and server.status()["state"] == "serving"
        (server.cwd / "shop.py").write_text(MARK)
        server.configure("{}")
        assert server.order("reload")["ok"], "it still can do everything"
    nothing_lost(outcome)
    server.wait_for_log(r"error .*does not serve, this one goes on: ")


def test_a_program_that_dies_right_after_it_took_over_is_taken_over_from(acme: Launcher) -> None:
    server = serve(acme)
    server.errors_expected = True
    with under_load(server) as outcome:
        new = server.order("restart")["pid"]
        more_answers(outcome)
        os.kill(new, signal.SIGKILL)
        server.wait_for_log("this one takes over again")
        wait_until(lambda: server.status()["pid"] == server.pid, "the old one serves")
        wait_until(lambda: server.status()["state"] == "serving", "all of it")
        more_answers(outcome)
    nothing_lost(outcome)


def test_an_upgrade_during_a_reload_is_refused(acme: Launcher) -> None:
    server = serve(acme)
    (server.cwd / "shop.py").write_text("import time\ntime.sleep(0.5)\n" + MARK)
    server.tell(signal.SIGHUP)
    wait_until(lambda: server.status()["state"] == "reloading", "it is under way")
    answer = server.order("restart")
    assert not answer["ok"] and "reload" in answer["error"]
    server.wait_for_log("reloaded: generation 2")
