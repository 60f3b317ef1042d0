"""A request's story on its connection: every way it can end, and what becomes of the connection after it."""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from acme_wsgi.errors import ClientDisconnected, HTTPError
from acme_wsgi.http.writer import FileBody, Response
from tests.unit.engine_harness import OK, Rig, body_of, in_engine

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(length: int, *lines: bytes) -> bytes:
    head = [b"POST / HTTP/1.1", b"Host: a", b"Content-Length: %d" % length, *lines, b"", b""]
    return b"\r\n".join(head)


def read_all(request: Any) -> Response:
    return Response(OK, [], request.environ["wsgi.input"].read())


class Closer:
    """Counts how often the response was closed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


# -- the end of the peer's bytes --------------------------------------------------------------------------


@in_engine()
def test_an_end_that_comes_with_the_request_closes_after_the_answer(rig: Rig) -> None:
    for _ in range(20):
        with rig.connect() as wire:
            wire.send(GET).end()
            assert wire.reply().body == b"hello"
            assert wire.closed()


@in_engine()
def test_an_end_that_comes_with_half_a_head_closes_at_once(rig: Rig) -> None:
    with rig.connect() as wire:
        wire.send(GET[:-2]).end()
        assert wire.closed()


@in_engine()
def test_an_end_that_comes_with_half_a_body_is_an_error_in_the_read(rig: Rig) -> None:
    rig.dispatch = read_all
    for cut in (0, 1, 7):
        with rig.connect() as wire:
            wire.send(post(10), b"x" * cut).end()
            assert wire.reply().status == 400
            assert wire.closed()


@in_engine()
def test_all_pipelined_requests_before_the_end_are_answered(rig: Rig) -> None:
    with rig.connect() as wire:
        wire.send(GET * 50).end()
        for _ in range(50):
            assert wire.reply().status == 200
        assert wire.closed()


# -- bodies nobody read -----------------------------------------------------------------------------------


@in_engine()
def test_a_body_that_is_read_while_it_is_answered_leaves_the_connection_open(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        request.reads_on = request.path != "/unsaid"

        def echo() -> Iterator[bytes]:
            while request.path != "/unread" and (piece := request.body.read1()):
                yield piece

        return Response(OK, [], echo())

    rig.dispatch = dispatch
    size = 1_000_000
    for path, announced, goes_on in (
        ("/read", None, True),
        ("/unread", None, False),
        ("/unsaid", "close", False),
    ):
        with rig.connect() as wire:
            wire.send(
                f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode(),
                bytes(size // 2),
            )
            head = wire.reply(head=True)
            assert head.header("Connection") == announced
            if goes_on:
                wire.send(bytes(size // 2))
                assert wire.body(head) == bytes(size)
                assert wire.request("/read").status == 200
            elif announced is None:
                assert wire.body(head) == b""
                assert wire.closed()


@in_engine()
def test_an_unread_body_is_dropped_whatever_pieces_it_comes_in(rig: Rig) -> None:
    # More than the worker's receive buffer holds, so that a full buffer of nothing but body is met.
    for size in (1, 1000, 65536, 131072, 200000):
        with rig.connect() as wire:
            wire.send(post(size), body_of(size), GET)
            assert wire.reply().body == b"hello"
            assert wire.reply().body == b"hello"


@in_engine()
def test_a_body_read_in_part_is_dropped_to_its_end(rig: Rig) -> None:
    rig.dispatch = lambda request: Response(OK, [], request.environ["wsgi.input"].read(10))
    body = body_of(150000)
    with rig.connect() as wire:
        for cut in (0, 11, 70000):
            wire.send(post(len(body)), body[:cut])
            if cut < 65536:  # a smaller part is waited for without the handler
                wire.send(body[cut:])
            assert wire.reply().body == body[:10]
            if cut >= 65536:
                wire.send(body[cut:])
        wire.send(GET)
        assert wire.reply().body == b""


@in_engine()
def test_a_body_too_large_to_drop_ends_the_connection(rig: Rig) -> None:
    with rig.connect() as wire:
        wire.send(post(10_000_000))
        rig.until(lambda: rig.count("in_flight") == 0, "parked")
        wire.send(b"x" * 70000)
        reply = wire.reply()
        assert reply.header("Connection") == "close"


# -- closers ----------------------------------------------------------------------------------------------


@in_engine()
def test_close_is_called_once_whatever_the_body_is(rig: Rig) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"file")
        file.flush()
        bodies = (b"bytes", FileBody(file, 0, 4), iter([b"a", b"b"]), iter([]))
        for body in bodies:
            closer = Closer()
            rig.dispatch = lambda request, b=body, c=closer: Response(OK, [], b, c)  # type: ignore[misc]
            with rig.connect() as wire:
                wire.send(GET).reply()
                rig.until(lambda: rig.count("in_flight") == 0, "the end")
            assert closer.calls == 1


@in_engine()
def test_close_is_called_once_when_the_body_fails(rig: Rig) -> None:
    rig.errors_expected = True
    closer = Closer()

    def failing() -> Iterator[bytes]:
        yield b"x"
        raise RuntimeError("no more")

    rig.dispatch = lambda request: Response(OK, [], failing(), closer)
    with rig.connect() as wire:
        # Only the body: a request id may end in a zero, too, and the head with it.
        assert b"0\r\n\r\n" not in wire.send(GET).rest().partition(b"\r\n\r\n")[2]
    assert closer.calls == 1


@in_engine()
def test_a_closer_that_blocks_and_events_that_come_meanwhile_end_the_request_once(rig: Rig) -> None:
    import gevent

    calls: list[int] = []

    def slow_closer() -> None:
        calls.append(1)
        gevent.sleep(0.1)

    large = b"x" * 8_000_000
    rig.dispatch = lambda request: Response(OK, [], large, slow_closer)
    with rig.connect() as wire:
        wire.send(GET)
        assert wire.reply().body == large
        wire.send(GET)  # an event while the first request's closer sleeps
        gevent.sleep(0.02)
        wire.send(GET)
        assert wire.reply().body == large
        assert wire.reply().body == large
    rig.until(lambda: rig.count("in_flight") == 0, "the end")
    assert len(calls) == 3 and rig.count("requests_total") == 3


@in_engine()
def test_a_closer_that_fails_is_logged_and_harms_nobody(rig: Rig) -> None:
    rig.errors_expected = True

    def bad() -> None:
        raise RuntimeError("in close")

    rig.dispatch = lambda request: Response(OK, [], b"fine", bad)
    with rig.connect() as wire:
        assert wire.send(GET).reply().body == b"fine"
        assert wire.send(GET).reply().body == b"fine"
    assert sum("close() of the response" in line for line in rig.records.lines) == 2


# -- clients that go away ---------------------------------------------------------------------------------


@in_engine()
def test_a_client_that_goes_away_at_any_point_leaves_nothing(rig: Rig) -> None:
    import gevent

    closers: list[Closer] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 100_000
            gevent.sleep(0)

    def dispatch(request: Any) -> Response:
        closers.append(Closer())
        body = request.environ["wsgi.input"].read()
        if request.path == "/stream":
            return Response(OK, [], pieces(), closers[-1])
        if request.path == "/large":
            return Response(OK, [], b"x" * 20_000_000, closers[-1])
        return Response(OK, [], body, closers[-1])

    rig.dispatch = dispatch
    whole = post(100, b"X-Filler: %s" % (b"y" * 3000)) + b"z" * 100
    for rude in (False, True):
        for cut in (0, 1, 20, 3000, len(whole) - 100, len(whole) - 1, len(whole)):
            wire = rig.connect().send(whole[:cut])
            gevent.sleep(0.002)
            wire.reset() if rude else wire.close()
        for target in (b"/stream", b"/large"):
            wire = rig.connect().send(GET.replace(b"/ ", target + b" "))
            wire.exactly(50_000)
            wire.reset() if rude else wire.close()
    rig.until(lambda: rig.count("connections") == 0, "all connections gone")
    assert rig.count("in_flight") == 0
    assert all(closer.calls <= 1 for closer in closers)
    assert sum(closer.calls for closer in closers) >= 4


@in_engine()
def test_a_handler_that_swallows_the_disconnect_is_not_served_another_client(rig: Rig) -> None:
    import gevent

    def dispatch(request: Any) -> Response:
        write = request.start(OK, [])
        try:
            for _ in range(1000):
                write(b"x" * 100_000)
                gevent.sleep(0)
        except ClientDisconnected:
            pass
        return Response(OK, [], b"swallowed")

    rig.dispatch = dispatch
    wire = rig.connect().send(GET)
    wire.exactly(1000)
    wire.reset()
    rig.until(lambda: rig.count("connections") == 0, "gone")


# -- the head and the framing -----------------------------------------------------------------------------


@in_engine()
def test_no_body_follows_a_head_204_or_304(rig: Rig) -> None:
    for status in ("204 No Content", "304 Not Modified"):
        for body in (b"body", iter([b"body"])):
            rig.dispatch = lambda request, s=status, b=body: Response(s, [], b)  # type: ignore[misc]
            with rig.connect() as wire:
                reply = wire.send(GET).reply()
                assert str(reply.status) == status[:3] and reply.header("Transfer-Encoding") is None
                assert wire.silent(0.02)
    rig.dispatch = lambda request: Response(OK, [], b"body")
    with rig.connect() as wire:
        reply = wire.request("/", method="HEAD")
        assert reply.header("Content-Length") == "4"
        assert wire.silent(0.02)


@in_engine()
def test_a_content_length_that_is_wrong_never_sends_more_and_closes(rig: Rig) -> None:
    rig.errors_expected = True
    for told, body, sent in ((3, b"abcdef", b"abc"), (10, b"abc", b"abc"), (3, iter([b"ab", b"cd"]), b"abc")):
        headers = [("Content-Length", str(told))]
        rig.dispatch = lambda request, h=headers, b=body: Response(OK, h, b)  # type: ignore[misc]
        with rig.connect() as wire:
            assert wire.send(GET).rest().partition(b"\r\n\r\n")[2] == sent
    assert sum("its Content-Length" in line for line in rig.records.lines) == 3


@in_engine()
def test_a_piece_may_be_a_subclass_of_bytes(rig: Rig) -> None:
    class Piece(bytes):
        pass

    rig.dispatch = lambda request: Response(OK, [], iter([Piece(b"a"), b"b"]))
    with rig.connect() as wire:
        assert wire.send(GET).reply().body == b"ab"


@in_engine()
def test_a_file_shorter_than_promised_is_cut_and_logged(rig: Rig) -> None:
    rig.errors_expected = True
    with tempfile.TemporaryFile() as file:
        file.write(b"four")
        file.flush()
        rig.dispatch = lambda request: Response(OK, [], FileBody(file, 0, 10))
        with rig.connect() as wire:
            assert wire.send(GET).rest().endswith(b"\r\n\r\nfour")
        rig.dispatch = lambda request: Response(OK, [], FileBody(file, 0, -1))
        with rig.connect() as wire:
            assert wire.send(GET).reply().status == 500


# -- what is left -----------------------------------------------------------------------------------------


@in_engine()
def test_a_request_leaves_no_garbage_for_the_collector(rig: Rig) -> None:
    """All is freed by counting alone, errors in the body included."""
    seen: list[weakref.ref[Any]] = []

    class Token:
        pass

    def dispatch(request: Any) -> Response:
        request.environ["test.token"] = token = Token()
        seen.append(weakref.ref(token))
        if request.method == "POST":
            try:
                request.environ["wsgi.input"].read()
            except OSError:
                return Response(OK, [], b"caught")
        if request.path == "/error":
            raise HTTPError(404)
        if request.path == "/stream":
            return Response(OK, [], iter([b"a"]))
        return Response(OK, [], b"x")

    rig.dispatch = dispatch
    gc.collect()
    gc.disable()
    with rig.connect() as wire:
        for target in (b"/", b"/error", b"/stream") * 5:
            wire.send(GET.replace(b"/ ", target + b" ")).reply()
    with rig.connect() as wire:
        wire.send(post(10), b"x").end()
        assert wire.reply().body == b"caught"
    rig.until(lambda: rig.count("connections") == 0, "all gone")
    assert [ref for ref in seen if ref() is not None] == []
    gc.enable()


@in_engine()
def test_close_all_ends_what_is_open_and_wakes_who_waits(rig: Rig) -> None:
    import gevent

    outcomes: list[str] = []

    def dispatch(request: Any) -> Response:
        try:
            request.environ["wsgi.input"].read()
        except OSError as error:
            outcomes.append(type(error).__name__)
            raise
        gevent.sleep(0.05)
        with pytest.raises(ClientDisconnected):
            request.start(OK, [])
        return Response(OK, [], iter([b"late"]), lambda: outcomes.append("closed"))

    rig.dispatch = dispatch
    reading, sleeping = rig.connect(), rig.connect()
    reading.send(post(100_000), b"x" * 70000)
    sleeping.send(GET)
    rig.until(lambda: rig.count("in_flight") == 2, "both handlers")
    gevent.sleep(0.01)
    rig.engine.close_all()
    assert rig.count("connections") == 0 and rig.count("in_flight") == 0
    rig.until(lambda: len(outcomes) == 2, "both handlers' ends")
    assert sorted(outcomes) == ["ClientDisconnected", "closed"]
