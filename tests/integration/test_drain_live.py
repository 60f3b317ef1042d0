"""Leaving: what a stopping server or worker still does for the clients it has."""

from __future__ import annotations

import os
import signal
import time

import pytest

from scripts.benchmarks.answers import REFUSED, RESET
from scripts.benchmarks.closed_loop import ClosedLoop, going
from tests.load import MARK, more_answers, nothing_lost, under_load
from tests.server import Launcher, wait_until
from tests.wire import Wire

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

SLEEP = "from scripts.benchmarks.apps import sleep as app\n"


def test_the_clients_see_what_a_killed_worker_had_in_its_hands(acme: Launcher) -> None:
    """The control of all tests that say "nothing lost": here something is, and exactly that is counted."""
    server = acme(app="shop:app", workers=2, files={"shop.py": MARK})
    server.errors_expected = True
    with under_load(server, kept=8, fresh=4) as outcome:
        victim = max(server.worker_pids(), key=lambda pid: outcome.by_worker[pid])
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: outcome.failures, "requests are lost")
        more_answers(outcome)
    assert 1 <= len(outcome.failures) <= 12
    assert set(outcome.kinds()) <= {"reset", "closed"}
    assert {failure.worker for failure in outcome.failures} <= {victim, 0}
    assert outcome.asked == outcome.answered + len(outcome.failures)


def test_a_worker_that_is_told_to_leave_loses_nothing(acme: Launcher) -> None:
    server = acme(app="shop:app", workers=2, files={"shop.py": MARK})
    server.errors_expected = True  # nobody told the arbiter: to it a worker is missing
    with under_load(server) as outcome:
        for _ in range(4):
            victim = server.worker_pids()[0]
            os.kill(victim, signal.SIGTERM)
            wait_until(lambda: victim not in server.worker_pids(), "it has left")  # noqa: B023
            wait_until(lambda: len(server.worker_pids()) == 2, "another one is there")
            more_answers(outcome)
    nothing_lost(outcome)


def test_a_stop_under_load_cuts_nobody_off(acme: Launcher) -> None:
    """Who comes too late is turned away; whoever was answered on a connection before is answered or told."""
    server = acme(app="shop:app", workers=2, files={"shop.py": MARK})
    loop = ClosedLoop((server.host, server.port), 8, fresh=4, marks=True, patience=2)
    with pytest.raises(ConnectionRefusedError), going(loop) as outcome:
        more_answers(outcome)
        server.stop()
        wait_until(lambda: outcome.kinds().get(REFUSED, 0) > 20, "all are turned away")
        # Until the loop itself gives up.
        wait_until(lambda: outcome.failures[-1].when < time.monotonic() - 0.5, "it has given up")
    assert set(outcome.kinds()) <= {REFUSED, RESET}, outcome.kinds()
    assert {failure.worker for failure in outcome.failures} == {0}, "none of them had been let in"


def test_a_thousand_idle_clients_do_not_hold_a_stop_up(acme: Launcher) -> None:
    server = acme(app="shop:app", files={"shop.py": SLEEP})
    clients = [server.connect() for _ in range(1000)]
    try:
        for client in clients:
            assert client.request("/").status == 200
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 3
        assert all(client.closed() for client in clients)
    finally:
        for client in clients:
            client.close()


def begin(wire: Wire, seconds: float) -> None:
    wire.send(f"GET /?{seconds} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


def test_an_open_request_finishes_while_idle_clients_are_closed(acme: Launcher) -> None:
    server = acme(app="shop:app", files={"shop.py": SLEEP})
    with server.connect() as idle, server.connect() as silent, server.connect() as busy:
        assert idle.request("/").status == 200
        begin(busy, 3)
        wait_until(lambda: server.status()["workers"][0]["in_flight"] == 1, "it is running")
        began = time.monotonic()
        server.tell(signal.SIGTERM)
        assert idle.closed() and silent.closed()
        assert time.monotonic() - began < 2
        assert server.process.poll() is None and busy.silent(0.1), "the request goes on"
        reply = busy.reply()
        assert reply.text == "Hello, World!" and reply.header("Connection") == "close"
        assert busy.closed()
        assert server.wait().status == 0
        assert time.monotonic() - began < 3 + 2


def test_what_is_still_open_after_shutdown_timeout_is_named(acme: Launcher) -> None:
    config = {"server": {"shutdown_timeout": "1s"}}
    server = acme(config, app="shop:app", files={"shop.py": SLEEP})
    with server.connect() as one, server.connect() as other:
        for wire, seconds in ((one, 30), (other, 31)):
            begin(wire, seconds)
        wait_until(lambda: server.status()["workers"][0]["in_flight"] == 2, "they are running")
        began = time.monotonic()
        ended = server.stop()
        assert 0.9 < time.monotonic() - began < 4
        assert one.closed() and other.closed()
    assert "2 requests still open after shutdown_timeout" in ended.stderr
    for seconds in (30, 31):
        assert f"/?{seconds}" in ended.stderr, "each has a line of its own"


def test_a_replaced_worker_finishes_its_request_long_after_the_reload(acme: Launcher) -> None:
    server = acme(app="shop:app", files={"shop.py": SLEEP})
    [old] = server.worker_pids()
    with server.connect() as busy:
        begin(busy, 2)
        wait_until(lambda: server.status()["workers"][0]["in_flight"] == 1, "it is running")
        assert server.order("reload")["ok"]
        assert [worker["pid"] for worker in server.status()["leaving"]] == [old]
        wait_until(lambda: server.status()["leaving"][0]["state"] == "draining", "it has heard of it")
        assert busy.reply().text == "Hello, World!"
    wait_until(lambda: old not in server.worker_pids(), "now it is gone")
    assert server.status()["leaving"] == []
