"""The settings of a worker, each seen by its effect: stack size, I/O threads, connections."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.server import Launcher, Server, wait_until
from tests.wire import Wire

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.basic:app"
MB = 1 << 20


def stack_limit(server: Server) -> int:
    [pid] = server.worker_pids()
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max stack size"):
            return int(line.split()[3])
    raise AssertionError("no such limit")


# -- worker_stack_size

DEEP = {2 * MB: 100, 8 * MB: 1_200, 64 * MB: 10_000}
"""Levels of recursion through C code that a stack of a size has room for, with something to spare."""


@pytest.mark.parametrize("size", sorted(DEEP))
def test_a_handler_recurses_as_deep_as_the_stack_allows_and_never_crashes(acme: Launcher, size: int) -> None:
    server = acme({"server": {"worker_stack_size": size}}, app=APP)
    [pid] = server.worker_pids()
    assert stack_limit(server) == size
    assert server.get(f"/recurse/{DEEP[size]}").text == str(DEEP[size])
    for deeper in (level for other, level in DEEP.items() if other > size):
        assert server.get(f"/recurse/{deeper}").text == "RecursionError"
    assert server.get("/recurse/1000000").text == "RecursionError"
    assert server.worker_pids() == [pid], "the worker lives"


def test_recursion_that_a_handler_does_not_catch_is_a_500(acme: Launcher) -> None:
    source = "def app(environ, start_response):\n    def f(n): return sorted([n], key=f)\n    f(1)\n"
    server = acme(app="deep:app", files={"deep.py": source})
    server.errors_expected = True
    [pid] = server.worker_pids()
    assert server.get("/").status == 500
    server.wait_for_log("RecursionError")
    assert server.worker_pids() == [pid]


def test_a_stack_larger_than_the_kernel_leaves_room_for_by_itself(acme: Launcher) -> None:
    """Beyond 128 MB the mappings are in the way, unless the server was executed with the larger limit."""
    small_at_first = ("prlimit", "--stack=8388608:unlimited")
    server = acme({"server": {"worker_stack_size": "256MB"}}, app=APP, wrap=small_at_first)
    assert stack_limit(server) == 256 * MB
    assert server.get("/recurse/45000").text == "45000"


def test_a_stack_above_the_hard_limit(acme: Launcher) -> None:
    ended = acme.fails(
        {"server": {"worker_stack_size": "16MB"}}, app=APP, wrap=("prlimit", "--stack=8388608:8388608")
    )
    assert ended.status == 1 and "server.worker_stack_size" in ended.stderr and "hard limit" in ended.stderr


def test_io_threads_have_the_stack_too(acme: Launcher) -> None:
    source = (
        "import gevent\nfrom tests.apps import basic\ndef app(environ, start_response):\n"
        "    pool = gevent.get_hub().threadpool\n    start_response('200 OK', [])\n"
        "    return [pool.apply(basic._recurse, (environ, environ['PATH_INFO'][1:])).encode()]\n"
    )
    server = acme({"server": {"worker_stack_size": "16MB"}}, app="pool:app", files={"pool.py": source})
    assert server.get("/2500").text == "2500"
    assert server.get("/1000000").text == "RecursionError"


# -- io_threads


@pytest.mark.parametrize(("threads", "workers", "most"), [(1, 1, "1"), (6, 1, "6"), (6, 2, "3"), (1, 2, "1")])
def test_io_threads_are_a_limit_over_all_workers(
    acme: Launcher, threads: int, workers: int, most: str
) -> None:
    server = acme({"server": {"io_threads": threads}}, app=APP, workers=workers)
    for _ in range(2):
        assert server.get("/threads/12").text == most


def test_a_blocking_call_in_an_io_thread_holds_nobody_up(acme: Launcher) -> None:
    source = (
        "import gevent\nfrom gevent import monkey\nsleep = monkey.get_original('time', 'sleep')\n"
        "def app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    if environ['PATH_INFO'] == '/block':\n        gevent.get_hub().threadpool.apply(sleep, (1.5,))\n"
        "    return [b'done']\n"
    )
    server = acme(app="pool:app", files={"pool.py": source})
    with server.connect() as slow, server.connect() as quick:
        slow.send(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(5):
            assert quick.request("/").text == "done"
        assert slow.silent(0.2), "it still blocks, and the others were served meanwhile"
        assert slow.reply().text == "done"


# -- max_connections


def test_an_idle_connection_makes_room(acme: Launcher) -> None:
    server = acme({"server": {"max_connections": 3}}, app=APP)
    with server.connect() as first, server.connect() as second, server.connect() as third:
        for wire in (first, second, third):
            assert wire.request("/").status == 200
        with server.connect() as fourth:
            assert fourth.request("/").status == 200
            assert first.closed(), "the one idle for longest"
            assert second.request("/").status == third.request("/").status == 200


def test_while_none_is_idle_new_connections_wait_and_are_never_reset(acme: Launcher) -> None:
    server = acme({"server": {"max_connections": 2}}, app=APP)
    with server.connect() as first, server.connect() as second:
        for wire in (first, second):
            wire.send(b"GET /sleep/1 HTTP/1.1\r\nHost: a\r\n\r\n")
        wires = [server.connect().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(5)]
        assert wires[0].silent(0.3)
        assert first.reply().text == second.reply().text == "slept\n"
        for wire in wires:
            assert wire.reply().text == "hello\n"
            wire.close()


def test_the_limit_holds_over_all_workers(acme: Launcher) -> None:
    server = acme({"server": {"max_connections": 4}}, app=APP, workers=2)
    wires: list[Wire] = []
    for _ in range(12):
        wire = server.connect()
        assert wire.request("/").status == 200
        wires.append(wire)
    wait_until(lambda: sum(map(_open, wires)) <= 4, "at most four are open")
    assert _open(wires[-1]) and sum(map(_open, wires)) == 4
    for wire in wires:
        wire.close()


def _open(wire: Wire) -> bool:
    return wire.silent(0.05)


# -- file descriptors


def test_the_limit_of_open_files_is_raised_to_the_hard_one(acme: Launcher) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = acme(app=APP, wrap=("prlimit", f"--nofile=64:{hard}"))
    [pid] = server.worker_pids()
    assert f"Max open files            {hard}" in Path(f"/proc/{pid}/limits").read_text()


def test_a_limit_of_open_files_below_max_connections_is_warned_of(acme: Launcher) -> None:
    server = acme({"server": {"max_connections": 5000}}, app=APP, wrap=("prlimit", "--nofile=1000:1000"))
    server.wait_for_log(r"max_connections is 5000 a worker, but a process may open only 1000 files")
