"""Backends taken out and in again with the real command, while real requests are in flight on them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.server import ROOT, Launcher, Server, wait_until
from tests.wire import DEADLINE, Reply

pytestmark = pytest.mark.slow  # whole servers, started and stopped


class Backend:
    """A server that says its name; a request for /hold is answered when `release` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = 0
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/hold":
                    outer.held += 1
                    outer.release.wait(DEADLINE)
                body = outer.name.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Nothing: the tests' output is not this server's log."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(DEADLINE)


@pytest.fixture
def pair() -> Iterator[tuple[Backend, Backend]]:
    made = Backend("one"), Backend("two")
    yield made
    for backend in made:
        backend.close()


Pair = tuple[Backend, Backend]


def configuration(*backends: Backend, **balancing: Any) -> dict[str, Any]:
    return {
        "load_balancing": balancing,
        "backends": [{"url": backend.url} for backend in backends],
        "routes": [{"path": "/*", "type": "proxy"}],
    }


def manage(server: Server, *arguments: str) -> subprocess.Popen[str]:
    """`acme-server` for this server; it is not waited for."""
    command = [sys.executable, "-m", "acme_wsgi.cli.manage", *arguments]
    return subprocess.Popen(
        [*command, "--runtime-dir", str(server.cwd / "run")],
        cwd=server.cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def managed(server: Server, *arguments: str) -> tuple[int, str, str]:
    """Its exit status, and what it wrote."""
    with manage(server, *arguments) as process:
        out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


def who(server: Server, times: int = 8) -> set[str]:
    """Who answers."""
    return {server.get("/").text for _ in range(times)}


def member(server: Server, url: str) -> dict[str, Any]:
    """What status says of a backend."""
    (group,) = server.status()["backends"]
    found: dict[str, Any] = next(each for each in group["members"] if each["url"] == url)
    return found


@pytest.fixture
def hold(pair: Pair) -> Iterator[Callable[[Server], tuple[Backend, list[Reply]]]]:
    """Starts a request that one of the backends keeps; gives that backend, and where its answer will be."""
    threads = []

    def begin(server: Server) -> tuple[Backend, list[Reply]]:
        replies: list[Reply] = []
        thread = threading.Thread(target=lambda: replies.append(server.get("/hold")), daemon=True)
        threads.append(thread)
        before = [backend.held for backend in pair]
        thread.start()

        def taken() -> Backend | None:
            found = [each for each, held in zip(pair, before, strict=True) if each.held > held]
            return found[0] if found else None

        return wait_until(taken, "a backend has the request"), replies

    yield begin
    for backend in pair:
        backend.release.set()
    for thread in threads:
        thread.join(DEADLINE)


def test_no_new_requests_and_the_old_ones_end(
    acme: Launcher, pair: Pair, hold: Callable[[Server], tuple[Backend, list[Reply]]]
) -> None:
    server = acme(configuration(*pair), workers=2)
    assert who(server) == {"one", "two"}
    holder, replies = hold(server)
    other = next(each for each in pair if each is not holder)
    with manage(server, "drain", holder.url, "--wait") as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "1 request left\n"
        assert who(server) == {other.name}
        assert member(server, holder.url)["state"] == "draining"
        assert member(server, holder.url)["active"] == 1
        assert waiting.poll() is None and not replies
        holder.release.set()
        out, _ = waiting.communicate(timeout=DEADLINE)
    assert (waiting.returncode, out.split()[0]) == (0, holder.url)
    wait_until(lambda: replies, "the request ends")
    assert (replies[0].status, replies[0].text) == (200, holder.name)
    server.wait_for_log(f"backend {holder.url} is empty")
    # A reload that keeps it keeps it out.
    assert server.order("reload")["ok"]
    assert who(server) == {other.name}
    assert managed(server, "drain", holder.url, "--undo") == (0, f"{holder.url} takes requests again\n", "")
    assert who(server) == {"one", "two"}


def test_who_waits_for_a_connection_goes_elsewhere(
    acme: Launcher, pair: Pair, hold: Callable[[Server], tuple[Backend, list[Reply]]]
) -> None:
    """Also what may not be sent twice: nothing of it has been sent yet."""
    one, _ = pair
    made = configuration(*pair)
    made["backends"][0]["weight"] = 100
    made["server"] = {"connection_pool": {"max_per_worker": 1}}
    server = acme(made)
    holder, replies = hold(server)
    assert holder is one
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(server.connect()) for _ in range(3)]
        for wire in waiting:
            wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        wait_until(lambda: member(server, one.url)["active"] == 4, "all wait for it")
        assert managed(server, "drain", one.url)[0] == 0
        one.release.set()
        assert [wire.reply().text for wire in waiting] == ["two"] * 3
    assert replies[0].text == "one"
    assert member(server, one.url)["failures"] == 0


def test_the_waiting_ends_with_the_time(
    acme: Launcher, pair: Pair, hold: Callable[[Server], tuple[Backend, list[Reply]]]
) -> None:
    server = acme(configuration(*pair, connection_draining={"timeout": "1s"}))
    holder, _ = hold(server)
    status, _, err = managed(server, "drain", holder.url, "--wait")
    assert status == 1
    assert err.splitlines()[-1].startswith("drained, but 1 request still in flight after 1 s")
    assert member(server, holder.url)["state"] == "draining"


def test_the_last_one_is_warned_about_and_answers_with_the_fallback(acme: Launcher, pair: Pair) -> None:
    config = configuration(*pair)
    config["routes"][0]["fallback"] = "busy.html"
    server = acme(config, files={"busy.html": "<p>busy</p>"})
    for backend in pair:
        status, out, _ = managed(server, "drain", backend.url)
        assert status == 0
    assert "group 'backends' has only backends that are drained or down" in out
    reply = server.get("/")
    assert (reply.status, reply.text) == (503, "<p>busy</p>")
    assert reply.header("Content-Type") == "text/html; charset=utf-8"


def test_an_unknown_one_is_refused_and_the_nearest_named(acme: Launcher, pair: Pair) -> None:
    server = acme(configuration(*pair))
    status, out, err = managed(server, "drain", pair[0].url.replace("http:", "htp:"), "--json")
    assert (status, err) == (1, "")
    answer = json.loads(out)
    assert answer["ok"] is False and "did you mean http://127.0.0.1:" in answer["error"]


def test_status_shows_what_each_backend_does(acme: Launcher, pair: Pair) -> None:
    server = acme(configuration(*pair, algorithm="least_conn"), workers=2)
    assert who(server) == {"one", "two"}
    status, out, _ = managed(server, "status")
    assert status == 0 and "backends: least_conn, for /*" in out.splitlines()
    (group,) = server.status()["backends"]
    assert sum(each["requests"] for each in group["members"]) == 8
    assert {(each["state"], each["active"], each["failures"]) for each in group["members"]} == {("up", 0, 0)}
    assert all(0 < each["latency"] < 1 for each in group["members"])


def test_a_reload_says_who_came_and_who_went(
    acme: Launcher, pair: Pair, hold: Callable[[Server], tuple[Backend, list[Reply]]]
) -> None:
    one, two = pair
    server = acme(configuration(one))
    _, replies = hold(server)
    server.configure(configuration(two))
    assert server.order("reload")["ok"]
    server.wait_for_log(
        f"backend {one.url} is taken out by the reload; 1 requests in flight may take 30 s once"
    )
    server.wait_for_log(f"backend {two.url} is taken in by the reload")
    assert who(server) == {"two"}
    one.release.set()
    wait_until(lambda: replies, "the request ends")
    assert (replies[0].status, replies[0].text) == (200, "one")


# -- no longer than they may, also in a worker that is replaced


def cut(server: Server, holder: Backend, replies: list[Reply]) -> None:
    """The held request is cut long before its end, and the client hears of it."""
    server.wait_for_log(f"backend {holder.url}: its time is over, 1 requests are cut")
    wait_until(lambda: replies, "the request ends")
    assert replies[0].status == 502


@pytest.mark.parametrize("draining", [{"timeout": "1s"}, {"enabled": False}])
def test_what_a_reload_takes_out_ends_what_it_has_in_its_time(
    acme: Launcher,
    pair: Pair,
    hold: Callable[[Server], tuple[Backend, list[Reply]]],
    draining: dict[str, Any],
) -> None:
    one, two = pair
    server = acme(configuration(one, connection_draining=draining), workers=2)
    _, replies = hold(server)
    server.configure(configuration(two, connection_draining=draining))
    assert server.order("reload")["ok"]
    cut(server, one, replies)
    assert who(server) == {"two"}


def test_what_is_drained_ends_in_its_time_though_its_worker_is_replaced(
    acme: Launcher, pair: Pair, hold: Callable[[Server], tuple[Backend, list[Reply]]]
) -> None:
    one, _ = pair
    server = acme(configuration(one, connection_draining={"timeout": "2s"}))
    _, replies = hold(server)
    assert server.order("drain", {"url": one.url})["ok"]
    assert server.order("reload")["ok"]
    cut(server, one, replies)


def test_nothing_fails_while_a_reload_puts_one_backend_in_the_place_of_another(
    acme: Launcher, pair: Pair
) -> None:
    impatient = {"connection_draining": {"enabled": False}}
    server = acme(configuration(pair[0], **impatient), workers=2)
    done = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while not done.is_set():
            statuses.append(server.get("/").status)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        for one in (pair[1], pair[0]):
            server.configure(configuration(one, **impatient))
            assert server.order("reload")["ok"]
            # A worker that is replaced may take one more connection before it hears of it.
            wait_until(lambda one=one: who(server) == {one.name}, f"{one.name} alone is asked")
    finally:
        done.set()
        asking.join(DEADLINE)
    assert set(statuses) == {200}


def test_a_visitor_of_a_backend_that_has_left_goes_elsewhere_when_its_time_is_over(
    acme: Launcher, pair: Pair
) -> None:
    balancing = {"sticky_sessions": {"enabled": True}, "connection_draining": {"timeout": "7s"}}
    one, two = pair
    server = acme(configuration(one, **balancing))
    cookie = server.get("/").header("Set-Cookie")
    assert cookie is not None
    server.configure(configuration(two, **balancing))
    assert server.order("reload")["ok"]
    two.release.set()
    reply = server.get("/hold", headers=[f"Cookie: {cookie.partition(';')[0]}"])
    assert one.held == 1, "it may go there until then"
    server.wait_for_log(f"backend {one.url}: its time is over, 1 requests are cut")
    assert two.held == 1 and reply.text == "two"
