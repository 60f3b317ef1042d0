"""One health check: what is asked, what counts as well, and that it is nobody else's connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from acme_wsgi import __version__
from acme_wsgi.upstream.pool import Shelf
from acme_wsgi.upstream.probing import probe
from tests.conversation import Conversation
from tests.rogue import Rogue, Unreachable, mute, reply, reserve
from tests.unit.engine_harness import Rig, in_engine
from tests.unit.upstream.services import made, urls

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets

Script = Callable[[Conversation], None]


def shelf_for(url: str, *sets: str) -> Shelf:
    return made(urls(url), *sets).balancer().lanes[0].shelf


def says(*data: bytes) -> Script:
    def script(conversation: Conversation) -> None:
        conversation.send(*data)
        conversation.close()

    return script


def result(rig: Rig, script: Script, timeout: float = 5.0) -> tuple[bool, str]:
    """What comes of a check of a backend that answers so; its connection must be gone then."""
    with Rogue(default=script) as rogue:
        shelf = shelf_for(rogue.url)
        found = probe(shelf, "/health", timeout)
        rig.until(lambda: rogue.connections and not rogue.open, "the connection closed")
        assert len(rogue.connections) == 1 and shelf.pool.open == 0 and not shelf.idle
        rogue.check()
        return found


@in_engine()
def test_what_is_asked(rig: Rig) -> None:
    with Rogue(default=says(reply(b"fine"))) as rogue:
        account = rogue.url.replace("http://", "http://user:s%20cret@") + "/base/"
        assert probe(shelf_for(account), "/up?deep=1", 5.0) == (True, "status 200")
        (request,) = rogue.requests
        assert (request.method, request.target, request.version) == ("GET", "/base/up?deep=1", "HTTP/1.1")
        assert request.headers == (
            ("Host", f"127.0.0.1:{rogue.port}"),
            ("User-Agent", f"acme/{__version__} (health check)"),
            ("Authorization", "Basic dXNlcjpzIGNyZXQ="),
            ("Connection", "close"),
        )


@in_engine()
def test_over_a_unix_socket(rig: Rig) -> None:
    with (
        TemporaryDirectory() as directory,
        Rogue(default=says(reply(b"")), path=Path(directory) / "s") as rogue,
    ):
        assert probe(shelf_for(rogue.url), "/up", 5.0) == (True, "status 200")
        assert rogue.requests[0].header("Host") == "localhost"
        assert rogue.requests[0].header("Authorization") is None


@in_engine()
def test_2xx_and_3xx_are_good(rig: Rig) -> None:
    for status, good in (
        ("200 OK", True),
        ("204 No Content", True),
        ("299 Fine", True),
        ("302 Found", True),
        ("399 Odd", True),
        ("400 Bad Request", False),
        ("404 Not Found", False),
        ("500 Internal Server Error", False),
        ("503 Service Unavailable", False),
    ):
        found = result(rig, says(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode()))
        assert found == (good, f"status {status[:3]}"), status


@in_engine()
def test_interim_responses_are_not_the_answer(rig: Rig) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert result(rig, says(hints * 3, reply(b"x"))) == (True, "status 200")
    assert result(rig, says(hints * 100, reply(b"x"))) == (False, "status 103")
    good, why = result(rig, says(hints))
    assert not good and "closed the connection" in why


@in_engine()
def test_the_body_is_nobodys_business(rig: Rig) -> None:
    def endless(conversation: Conversation) -> None:
        conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        conversation.gone()

    assert result(rig, endless) == (True, "status 200")


@in_engine()
def test_what_is_no_answer_is_bad(rig: Rig) -> None:
    for data in (b"", b"HTTP/1.1 200", b"hello\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n",
                 b"HTTP/0.9 200 OK\r\n\r\n", b"HTTP/1.1 999 Odd\r\n\r\n",
                 b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
                 b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000):  # fmt: skip
        good, why = result(rig, says(data))
        assert not good and why, data[:40]


@in_engine()
def test_a_reset_is_bad(rig: Rig) -> None:
    good, why = result(rig, lambda conversation: conversation.reset())
    assert not good and why == "it reset the connection"


@in_engine()
def test_one_limit_for_everything(rig: Rig) -> None:
    def drip(conversation: Conversation) -> None:
        conversation.drip(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 40, 0.01)

    for script in (mute, drip):
        begun = time.monotonic()
        with Rogue(default=script) as rogue:
            good, why = probe(shelf_for(rogue.url), "/health", 0.3)
            assert (good, why) == (False, "it took too long to answer")
            assert 0.29 <= time.monotonic() - begun < 3
            rig.until(lambda: not rogue.open, "the connection closed")


@in_engine()
def test_nobody_there(rig: Rig) -> None:
    holder, port = reserve()
    assert probe(shelf_for(f"http://127.0.0.1:{port}"), "/", 5.0) == (False, "Connection refused")
    holder.close()
    assert probe(shelf_for("unix:/nonexistent/app.sock"), "/", 5.0) == (False, "No such file or directory")
    with Unreachable() as unreachable:
        begun = time.monotonic()
        assert probe(shelf_for(unreachable.url), "/", 0.3) == (False, "it took too long to connect")
        assert time.monotonic() - begun < 3


@in_engine()
def test_a_backend_whose_connections_are_all_in_use_is_checked(rig: Rig) -> None:
    with Rogue(default=says(reply(b""))) as rogue:
        shelf = shelf_for(rogue.url, "server.connection_pool={max_per_worker: 1, min_idle: 0}")
        link = shelf.acquire(time.monotonic_ns() + 10**9, 10**9, False)
        assert shelf.pool.open == shelf.pool.limit == 1
        assert probe(shelf, "/", 5.0) == (True, "status 200")
        assert shelf.pool.open == 1 and shelf.busy == {link}
        shelf.release(link, True)
        # And it takes no idle one.
        assert probe(shelf, "/", 5.0) == (True, "status 200")
        assert len(rogue.connections) == 3 and shelf.idle == [link]
        shelf.drop_idle()
        rig.until(lambda: not shelf.pool.open and not rogue.open, "all closed")
