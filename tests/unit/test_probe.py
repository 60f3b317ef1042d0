"""The rehearsal: what it accepts, what keeps a worker from serving, and that nobody else ever hears of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from acme_wsgi.errors import BootError
from acme_wsgi.http.writer import Response
from tests.unit.engine_harness import OK, Rig, in_engine


def ask(rig: Rig, what: str = "/health", timeout: float = 10.0) -> None:
    from acme_wsgi.probe import probe

    probe(rig.engine, what, timeout)


def fails(rig: Rig, what: str = "/health", timeout: float = 10.0) -> BootError:
    with pytest.raises(BootError) as caught:
        ask(rig, what, timeout)
    return caught.value


@in_engine(start=False)
def test_an_answer_below_500_will_do_and_leaves_no_trace(rig: Rig) -> None:
    asked: list[tuple[str | None, ...]] = []

    def dispatch(request: Any) -> Response:
        environ = request.environ
        asked.append(
            tuple(
                environ.get(name)
                for name in ("REQUEST_METHOD", "REQUEST_URI", "HTTP_HOST", "HTTP_USER_AGENT", "REMOTE_ADDR")
            )
        )
        return Response("404 Not Found", [], b"x")

    rig.dispatch = dispatch
    before = rig.slot.snapshot()
    ask(rig, "/health?deep=1")
    ask(rig, "*")
    assert asked == [("GET", "/health?deep=1", "localhost", "acme-probe", "")]
    assert rig.slot.snapshot() == before
    assert rig.log.entries == [] and rig.log.total == 0
    # Who came meanwhile waits in the listener's queue and is served from the start on.
    client = socket.create_connection(rig.listener.getsockname())
    assert len(asked) == 1 and rig.engine.connections == 0
    rig.engine.start()
    client.close()
    with rig.connect() as wire:
        assert wire.request("/").status == 404
    rig.until(lambda: rig.count("requests_total") == 1 and rig.count("connections") == 0, "all counted")
    assert rig.count("connections_total") == 2


@in_engine(start=False)
def test_an_error_says_which_probe_and_what_it_answered(rig: Rig) -> None:
    rig.dispatch = lambda request: Response("503 No\x7fDatabase", [], b"x")
    rig.errors_expected = True
    error = fails(rig)
    assert error.where == "the probe GET /health"
    assert error.cause.startswith("answered 500 ")  # a reason with a control character is an error itself
    rig.dispatch = lambda request: Response("503 No Database", [], b"x")
    assert fails(rig).cause == "answered 503 No Database"

    def broken(request: Any) -> Response:
        raise RuntimeError("no such table")

    rig.dispatch = broken
    assert fails(rig).cause == "answered 500 Internal Server Error"
    assert any("no such table" in line or "GET /health failed" in line for line in rig.records.lines)
    assert rig.count("requests_total") == rig.count("errors") == 0


@in_engine(start=False)
def test_no_answer_in_time(rig: Rig) -> None:
    import gevent

    ended: list[str] = []

    def slow(request: Any) -> Response:
        gevent.sleep(1.5)
        ended.append(request.path)
        return Response(OK, [], b"late")

    rig.dispatch = slow
    began = time.monotonic()
    assert fails(rig, timeout=0.05).cause == "no answer within 0.05 s"
    assert time.monotonic() - began < 1.4
    # What is still under way is nobody's when the engine starts nevertheless.
    rig.engine.start()
    assert rig.engine.connections == 0
    rig.until(lambda: ended, "the handler's end")
    assert rig.count("requests_total") == rig.count("in_flight") == rig.count("disconnects") == 0


@in_engine(start=False)
def test_hints_and_streams_are_understood(rig: Rig) -> None:
    pieces: list[int] = []

    def stream() -> Iterator[bytes]:
        for number in range(5):
            pieces.append(number)
            yield b"x" * 100_000

    def dispatch(request: Any) -> Response:
        request.early_hints([("Link", "</a.css>; rel=preload")])
        if request.path == "/bad":
            return Response("500 Bad", [], b"")
        return Response(OK, [], stream())

    rig.dispatch = dispatch
    ask(rig)
    assert len(pieces) == 5
    assert fails(rig, "/bad").cause == "answered 500 Bad"


@in_engine(start=False)
def test_a_stream_without_end_does_not_hold_the_boot_up(rig: Rig) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1000

    rig.dispatch = lambda request: Response(OK, [], endless())
    began = time.monotonic()
    ask(rig, timeout=0.2)
    assert time.monotonic() - began < 5
    rig.engine.start()


@in_engine("server.trusted_proxies=['unix:']", start=False)
def test_it_is_no_proxy_even_where_those_are_trusted(rig: Rig) -> None:
    ask(rig)
    ask(rig, "*")


@in_engine(start=False)
def test_an_answer_that_is_cut_is_none(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        rig.engine.close_all()
        return Response(OK, [], b"")

    rig.dispatch = dispatch
    assert fails(rig).cause == "the connection was closed without an answer"
