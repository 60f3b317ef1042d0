"""Reloads under load: nothing is lost, and what can't hold changes nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from scripts.benchmarks.machine import free_port
from tests.load import MARK, more_answers, nothing_lost, under_load
from tests.server import Launcher, Server, wait_until
from tests.wire import DEADLINE

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

ROUTES: dict[str, Any] = {"routes": [{"path": "/*", "type": "wsgi", "app": "shop:app"}]}


def serve(acme: Launcher, config: dict[str, Any] | None = None, *, workers: int = 2) -> Server:
    """A server of shop.py, which answers with marks."""
    return acme({**ROUTES, **(config or {})}, workers=workers, files={"shop.py": MARK})


def pids(server: Server) -> set[int]:
    return {worker["pid"] for worker in server.status()["workers"]}


def all_gone(server: Server, old: set[int]) -> None:
    wait_until(lambda: not old & set(server.worker_pids()), f"{old} have left")


# -- nothing is lost


def test_twenty_reloads_under_load_lose_nothing(acme: Launcher) -> None:
    server = serve(acme)
    before = pids(server)
    with under_load(server) as outcome:
        for number in range(20):
            answer = server.order("reload")
            assert answer["ok"] and answer["generation"] == number + 2
            more_answers(outcome, 20)
    nothing_lost(outcome)
    status = server.status()
    assert status["pid"] == server.pid and status["state"] == "serving" and status["generation"] == 21
    assert [worker["generation"] for worker in status["workers"]] == [21, 21]
    assert not before & pids(server)
    assert len(outcome.by_worker) >= 20, "the clients really talked to one worker after the other"
    wait_until(lambda: len(server.worker_pids()) == 2, "everybody who was replaced has left")


def test_a_hangup_is_a_reload(acme: Launcher) -> None:
    server = serve(acme)
    before = pids(server)
    with under_load(server) as outcome:
        server.tell(signal.SIGHUP)
        server.wait_for_log("reloaded: generation 2")
        all_gone(server, before)
    nothing_lost(outcome)


def test_the_new_code_and_the_new_configuration_hold(acme: Launcher) -> None:
    server = serve(acme)
    other = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'other']\n"
    (server.cwd / "shop.py").write_text(other)
    assert server.get("/").text != "other", "nothing changes before it is asked for"
    route = {"path": "/moved", "type": "redirect", "redirect_to": "/", "status_code": 301}
    server.configure({"routes": [*ROUTES["routes"], route], "server": {"keep_alive_timeout": "7s"}})
    answer = server.order("reload")
    assert "server.keep_alive_timeout" in answer["changed"] and answer["left"] == []
    wait_until(lambda: not server.status()["leaving"], "those before to have left")
    for _ in range(10):
        assert server.get("/").text == "other"
        assert server.get("/moved").status == 301


def test_what_needs_a_restart_is_named_and_stays(acme: Launcher) -> None:
    server = serve(acme)
    server.configure({**ROUTES, "server": {"backlog": 77, "keep_alive_timeout": "7s"}})
    answer = server.order("reload")
    assert answer["ok"] and "server.keep_alive_timeout" in answer["changed"]
    assert [sentence for sentence in answer["left"] if "server.backlog" in sentence]
    server.wait_for_log(r"left by the reload: .*server\.backlog")


def test_more_and_fewer_workers(acme: Launcher) -> None:
    server = serve(acme, workers=1)
    with under_load(server) as outcome:
        for count in (3, 2, 1):
            server.configure({**ROUTES, "server": {"workers": count}})
            assert server.order("reload")["workers"] == count
            numbers = [worker["number"] for worker in server.status()["workers"]]
            assert numbers == list(range(1, count + 1))
            wait_until(lambda: len(server.worker_pids()) == count, f"{count} workers")  # noqa: B023
            more_answers(outcome)
    nothing_lost(outcome)


def test_orders_during_a_reload_are_answered_by_the_next(acme: Launcher) -> None:
    server = serve(acme)
    (server.cwd / "shop.py").write_text("import time\ntime.sleep(0.5)\n" + MARK)
    with under_load(server) as outcome:
        server.tell(signal.SIGHUP)
        wait_until(lambda: server.status()["state"] == "reloading", "the first is under way")
        for _ in range(3):
            server.tell(signal.SIGHUP)
        answers: list[dict[str, Any]] = []
        orders = [
            threading.Thread(target=lambda: answers.append(server.order("reload")), daemon=True)
            for _ in range(3)
        ]
        for thread in orders:
            thread.start()
        for thread in orders:
            thread.join(3 * DEADLINE)
        wait_until(lambda: server.status()["state"] == "serving", "all are done")
    nothing_lost(outcome)
    assert [answer["generation"] for answer in answers] == [3, 3, 3], "one reload for all who asked meanwhile"
    assert server.status()["generation"] == 3


def test_a_worker_that_dies_during_a_reload_is_replaced_all_the_same(acme: Launcher) -> None:
    server = serve(acme)
    server.errors_expected = True
    (server.cwd / "shop.py").write_text("import time\ntime.sleep(0.5)\n" + MARK)
    victim = server.status()["workers"][1]["pid"]
    server.tell(signal.SIGHUP)
    wait_until(lambda: server.status()["state"] == "reloading", "it is under way")
    os.kill(victim, signal.SIGKILL)
    server.wait_for_log("reloaded: generation 2")
    assert [worker["generation"] for worker in server.status()["workers"]] == [2, 2]


# -- addresses


def test_a_worker_that_cannot_follow_does_not_keep_the_next_reload_from_coming(acme: Launcher) -> None:
    server = serve(acme)
    server.errors_expected = True
    # Whatever only one process can have: the first worker starts with it, the second can't.
    only_one = (
        "import fcntl\nlock = open('only-one', 'w')\nfcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    (server.cwd / "shop.py").write_text(only_one + MARK)
    answer = server.order("reload")
    assert not answer["ok"] and answer["generation"] == 2
    assert "generation 2 holds, but worker 2 can't start with it" in answer["error"]
    assert (
        server.status()["state"] == "serving" and server.status()["last_reload"]["error"] == answer["error"]
    )
    assert [worker["generation"] for worker in server.status()["workers"] if worker["state"] == "ready"] == [
        2,
        1,
    ]
    (server.cwd / "shop.py").write_text(MARK)
    assert server.order("reload")["ok"]
    assert [worker["generation"] for worker in server.status()["workers"]] == [3, 3]


def test_a_reload_that_hangs_is_ended_by_the_next(acme: Launcher) -> None:
    server = serve(acme, {"server": {"timeout": "1s"}}, workers=1)
    server.errors_expected = True
    (server.cwd / "shop.py").write_text("import time\ntime.sleep(1000)\n")
    server.tell(signal.SIGHUP)
    server.wait_for_log("has been starting for")
    (server.cwd / "shop.py").write_text(MARK)
    answer = server.order("reload")
    assert answer["ok"] and answer["generation"] == 2
    server.wait_for_log("reload refused, nothing was changed: it did not get ready, and another reload")


def test_a_new_address_is_opened_and_the_old_one_drained(acme: Launcher) -> None:
    slow = "from scripts.benchmarks.apps import sleep as app\n"
    server = acme(ROUTES, files={"shop.py": slow}, workers=2)
    old, new = server.addresses[0], f"127.0.0.1:{free_port()}"
    with server.connect(old) as under_way, server.connect(old) as idle:
        assert idle.request("/").status == 200
        under_way.send(b"GET /?4 HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: sum(w["in_flight"] for w in server.status()["workers"]) == 1, "it is running")
        server.configure({**ROUTES, "server": {"port": int(new.rpartition(":")[2])}})
        answer = server.order("reload")
        assert answer["ok"] and answer["changed"] == ["server.port"]
        with server.connect(new) as wire:
            assert wire.request("/").text == "Hello, World!"
        reply = under_way.reply()
        assert reply.text == "Hello, World!" and reply.header("Connection") == "close"
        assert idle.closed()

    def refused() -> bool:
        try:
            server.connect(old).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, "nobody listens on the old address")
    assert server.status()["addresses"] == [new]


def test_an_address_that_stays_loses_nothing_while_another_comes_and_goes(acme: Launcher) -> None:
    server = serve(acme, {"server": {"host": "127.0.0.1"}})
    same = ROUTES | {"server": {"host": "127.0.0.1", "port": server.port}}
    server.configure(same)
    with under_load(server) as outcome:
        for host in ("localhost", "127.0.0.1", "localhost", "127.0.0.1"):
            server.configure(ROUTES | {"server": {"host": host, "port": server.port}})
            assert server.order("reload")["ok"]
            more_answers(outcome)
    nothing_lost(outcome)


# -- what can't hold changes nothing


def break_source(source: str) -> Callable[[Server], None]:
    return lambda server: (server.cwd / "shop.py").write_text(source) and None


def break_config(config: str | dict[str, Any]) -> Callable[[Server], None]:
    return lambda server: server.configure(config)


def probe(server: Server) -> None:
    (server.cwd / "shop.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('500 Oh', [('Content-Length', '0')])\n"
        "    return []\n"
    )
    server.configure({**ROUTES, "server": {"probe": "/health"}})


BROKEN: dict[str, tuple[Callable[[Server], None], str]] = {
    "import error": (break_source("import no_such_module\n"), "no_such_module"),
    "syntax error": (break_source("def app(:\n"), "SyntaxError|invalid syntax"),
    "exception": (break_source("raise ValueError('shut today')\n"), "shut today"),
    "exit": (break_source("import os\nos._exit(7)\n"), "7"),
    "no application": (break_source("nothing = 1\n"), "app"),
    "the probe is answered 500": (probe, "/health|500"),
    "broken YAML": (break_config("routes: [\n"), r"50-test\.yaml"),
    "unknown key": (break_config({**ROUTES, "server": {"wokers": 2}}), "wokers"),
    "a bad value": (break_config({**ROUTES, "server": {"timeout": "soon"}}), "timeout"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_is_refused_and_the_old_goes_on(acme: Launcher, how: str) -> None:
    server = serve(acme)
    server.errors_expected = True
    before = pids(server)
    damage, cause = BROKEN[how]
    with under_load(server) as outcome:
        damage(server)
        answer = server.order("reload")
        said = f"{answer.get('error')} {answer.get('problems')} {answer.get('traceback')}"
        assert not answer["ok"]
        wait_until(lambda: set(server.worker_pids()) == before, "the workers are those of before")
        more_answers(outcome)
        status = server.status()
        assert status["state"] == "serving" and status["generation"] == 1 and pids(server) == before
        assert status["last_reload"]["ok"] is False and status["last_reload"]["error"]
        # It is mended, and the next reload holds.
        (server.cwd / "shop.py").write_text(MARK)
        server.configure(ROUTES)
        assert server.order("reload")["generation"] == 2
    nothing_lost(outcome)
    assert re.search(cause, said), said
    server.wait_for_log(rf"error .*reload refused, nothing was changed: (.|\n)*({cause})")


def test_an_address_in_use_is_refused(acme: Launcher) -> None:
    server = serve(acme)
    server.errors_expected = True
    before = pids(server)
    with socket.create_server(("127.0.0.1", 0)) as taken, under_load(server) as outcome:
        port = taken.getsockname()[1]
        server.configure({**ROUTES, "server": {"port": port}})
        answer = server.order("reload")
        assert not answer["ok"] and str(port) in answer["error"]
        more_answers(outcome)
    nothing_lost(outcome)
    assert pids(server) == before and server.status()["addresses"] == list(server.addresses)
    server.wait_for_log(rf"reload refused, nothing was changed: .*{port}")


def test_an_address_opened_for_a_reload_that_fails_is_closed_again(acme: Launcher) -> None:
    server = serve(acme)
    server.errors_expected = True
    port = free_port()
    server.configure({**ROUTES, "server": {"port": port}})
    (server.cwd / "shop.py").write_text("import no_such_module\n")
    assert not server.order("reload")["ok"]
    with pytest.raises(ConnectionRefusedError):
        server.connect(f"127.0.0.1:{port}").close()
    assert server.get("/").status == 200


def test_a_reload_is_refused_while_the_server_stops(acme: Launcher) -> None:
    server = acme(ROUTES, files={"shop.py": "from scripts.benchmarks.apps import sleep as app\n"})
    with server.connect() as wire:
        wire.send(b"GET /?2 HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: server.status()["workers"][0]["in_flight"] == 1, "it is running")
        server.tell(signal.SIGTERM)
        wait_until(lambda: server.status()["state"] == "stopping", "it stops")
        answer = server.order("reload")
        assert not answer["ok"] and "stop" in answer["error"]
        assert wire.reply().status == 200
    assert server.wait().status == 0
