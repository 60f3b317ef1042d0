"""Workers that stand still, seen from outside while they do: told where, counted, and replaced in the end."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from tests.server import Launcher, Server, wait_until
from tests.wire import Wire

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

SHOP = """
import collections, itertools, os, re, time

def spin():
    while True: pass  # spinning

def compute():
    collections.deque(itertools.repeat(0), maxlen=0)  # computing: C code that never lets go

def search():
    return re.match("(a+)+$", "a" * 64 + "b")  # searching

def wait():
    time.sleep(3600)  # waiting

def pause():
    end = time.monotonic() + 1.6
    while time.monotonic() < end:
        pass

def pid():
    pass

def app(environ, start_response):
    globals()[environ["PATH_INFO"].strip("/")]()
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""


def line_of(marker: str) -> int:
    """The number of the line with this comment."""
    return next(number for number, line in enumerate(SHOP.split("\n"), 1) if f"# {marker}" in line)


def serve(acme: Launcher, timeout: str, workers: int = 1) -> Server:
    routes = [{"path": "/*", "type": "wsgi", "app": "shop:app"}]
    config = {"server": {"timeout": timeout}, "routes": routes}
    server = acme(config, workers=workers, files={"shop.py": SHOP})
    server.errors_expected = True
    return server


def begin(server: Server, path: str) -> Wire:
    """Send a request without waiting for its answer."""
    return server.connect().send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


def stack_after(server: Server, pattern: str) -> str:
    """The line that matches and the stack that was logged with it."""
    return server.wait_for_log(f"{pattern}.*\\n(    \\|.*\\n)*").group()


def test_an_endless_loop_is_reported_within_two_seconds_and_replaced_at_the_timeout(acme: Launcher) -> None:
    server = serve(acme, "4s", workers=2)
    before = set(server.worker_pids())
    with begin(server, "/spin") as wire:
        started = time.monotonic()
        where = rf"in GET /spin \(route /\*\), at shop\.py:{line_of('spinning')} in spin"
        early = rf"warning \S+ arbiter\[\d+\]: worker (\d) \(pid (\d+)\) has stood still for 1\.\d s {where}$"
        found = server.wait_for_log(early)
        assert time.monotonic() - started < 2
        victim = int(found[2])
        [survivor] = before - {victim}
        while not re.search("it is replaced", server.stderr):
            assert server.get("/pid").text == str(survivor)
        assert time.monotonic() - started > 4
        last = stack_after(
            server, rf"error .*worker {found[1]} .* has stood still for [45]\.\d s {where}; it is replaced"
        )
        assert f'shop.py", line {line_of("spinning")} in spin' in last
        assert wire.rest() == b""
    server.wait_for_log(rf"worker {found[1]} \(pid {victim}\) was ended by SIGKILL .*\(stood still for")
    wait_until(lambda: len(set(server.worker_pids()) - {victim}) == 2, "two workers again")
    assert survivor in server.worker_pids()
    assert server.stderr.count("has stood still") == 2, "once early, once in the end"


def test_the_other_requests_of_a_replaced_worker_are_told_with_their_stacks(acme: Launcher) -> None:
    server = serve(acme, "2s")
    wires = [begin(server, "/wait") for _ in range(3)]
    # An answer after them: they have begun.
    assert server.get("/pid").status == 200
    wires.append(begin(server, "/spin"))
    first = stack_after(server, "warning .*has stood still")
    assert "in spin" in first and "in wait" not in first
    others = stack_after(server, "error .*its other stacks")
    assert re.search(r"\| 3 greenlets \((GET /wait, request [0-9a-f]+, [\d.]+ s(; )?){3}\):", others)
    assert f'shop.py", line {line_of("waiting")} in wait' in others
    for wire in wires:
        assert wire.rest() == b""
        wire.close()


def test_c_code_that_holds_the_interpreter_is_told_by_thread_and_last_request(acme: Launcher) -> None:
    server = serve(acme, "2s")
    with begin(server, "/compute") as wire:
        where = rf"at shop\.py:{line_of('computing')} in compute; the request begun last is GET /compute$"
        server.wait_for_log(rf"warning .*has stood still for [\d.]+ s, {where}")
        assert "Current thread" in stack_after(server, "error .*it is replaced")
        assert wire.rest() == b""
    assert server.get("/pid").status == 200


def test_a_regular_expression_without_end_is_told_with_both_lines(acme: Launcher) -> None:
    server = serve(acme, "2s")
    with begin(server, "/search") as wire:
        where = rf"at shop\.py:{line_of('searching')} in search, now in re/__init__\.py:\d+$"
        server.wait_for_log(rf"warning .* in GET /search \(route /\*\), {where}")
        assert wire.rest() == b""


def test_a_standstill_that_ends_by_itself_is_told_with_its_length(acme: Launcher) -> None:
    server = serve(acme, "10s")
    [pid] = server.worker_pids()
    assert server.get("/pause").text == str(pid)
    found = server.wait_for_log(
        r"warning .* goes on, after it stood still for ([\d.]+) s in GET /pause \(route /\*\)$"
    )
    assert 1.6 <= float(found[1]) < 3
    assert server.get("/pid").text == str(pid)
    assert server.stderr.count("has stood still") == 1


def test_a_worker_that_was_stopped_and_goes_on(acme: Launcher) -> None:
    server = serve(acme, "10s")
    [pid] = server.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    found = stack_after(server, "warning .*has stood still for")
    assert "it did not answer: stopped, or stuck in the kernel" in found
    os.kill(pid, signal.SIGCONT)
    server.wait_for_log("goes on, after it stood still for")
    assert server.get("/pid").text == str(pid)


def test_a_handler_that_waits_for_ever_is_unwound_and_nobody_stands_still(acme: Launcher) -> None:
    server = serve(acme, "1s")
    [pid] = server.worker_pids()
    assert server.get("/wait").status == 503
    said = stack_after(server, "error .*GET /wait: timeout of 1 s exceeded")
    assert f'shop.py", line {line_of("waiting")}, in wait' in said
    assert server.get("/pid").text == str(pid)
    assert server.stderr.count("in wait") == 1, "told once"
    assert "stood still" not in server.stderr
