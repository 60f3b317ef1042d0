"""wsgi.input: what each of its methods returns, however the client cut its bytes, and what it costs."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from acme_wsgi.errors import BodyError, HTTPError
from acme_wsgi.http.writer import Response
from tests.unit.engine_harness import OK, Rig, body_of, dialled, in_engine

LINES = b"".join(b"x" * (number % 97) + b"\n" for number in range(5000)) + b"no end"


def chunked(body: bytes, size: int) -> bytes:
    """A body in chunks of `size` bytes."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def framed(body: bytes, size: int) -> bytes:
    """A request with that body: in chunks, or with Content-Length for size 0."""
    if size:
        return b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, size)
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def both_framings(rig: Rig, body: bytes) -> None:
    """Send it in each framing, at once and in parts; the answer must be what the dispatch makes of `body`."""
    import gevent

    for size in (0, 7, 5000, 70_000):
        data = framed(body, size)
        for step in (len(data), 50_000):
            with rig.connect() as wire:
                for at in range(0, len(data), step):
                    wire.send(data[at : at + step])
                    gevent.sleep(0.001)
                assert wire.reply().body == body, (size, step)


@in_engine()
def test_read_returns_the_body(rig: Rig) -> None:
    rig.dispatch = lambda request: Response(OK, [], request.environ["wsgi.input"].read())
    for length in (1, 65_535, 65_536, 200_000):
        both_framings(rig, body_of(length))


@in_engine()
def test_read_of_a_size_returns_exactly_that_until_the_end(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        source = request.environ["wsgi.input"]
        pieces = []
        while piece := source.read(1234):
            pieces.append(piece)
        assert {len(piece) for piece in pieces[:-1]} <= {1234}
        assert source.read(1) == source.read() == source.readline() == b""
        return Response(OK, [], b"".join(pieces))

    rig.dispatch = dispatch
    both_framings(rig, body_of(150_000))


@in_engine()
def test_lines_are_those_of_a_file(rig: Rig) -> None:
    expected = LINES.splitlines(keepends=True)

    def dispatch(request: Any) -> Response:
        lines = list(request.environ["wsgi.input"])
        assert lines == expected
        return Response(OK, [], b"".join(lines))

    rig.dispatch = dispatch
    both_framings(rig, LINES)


@in_engine()
def test_any_mixture_of_reads_is_that_of_a_file(rig: Rig) -> None:
    import io

    def dispatch(request: Any) -> Response:
        chance = random.Random(request.environ["HTTP_X_SEED"])
        source, file = request.environ["wsgi.input"], io.BytesIO(LINES)
        while True:
            size = chance.choice((-1, 0, 1, 2, 50, 1000, 70_000, *range(1, 90, 13)))
            way = chance.choice(("read", "readline", "readline", "readlines"))
            if (way == "read" and size < 0) or way == "readlines":
                size = 300  # not everything at once
            expected = getattr(file, way)(size)
            found = getattr(source, way)(size)
            assert found == expected, (way, size, found, expected)
            if file.tell() == len(LINES):
                return Response(OK, [], b"same")

    rig.dispatch = dispatch
    for seed in range(30):
        data = framed(LINES, seed % 3 * 999).replace(b"Host: a", b"Host: a\r\nX-Seed: %d" % seed)
        with rig.connect() as wire:
            assert wire.send(data).reply().body == b"same", seed


@in_engine()
def test_a_million_short_lines_cost_no_more_than_their_bytes(rig: Rig) -> None:
    taken: list[float] = []

    def dispatch(request: Any) -> Response:
        source = request.environ["wsgi.input"]
        began = time.process_time()
        count = 0
        while source.readline(65536):
            count += 1
        taken.append(time.process_time() - began)
        return Response(OK, [], b"%d" % count)

    rig.dispatch = dispatch
    with rig.connect() as wire:
        assert wire.send(framed(b"\n" * 500_000, 0)).reply().body == b"500000"
    assert taken[0] < 3.0  # moving the rest for each line would take about 15 s


@in_engine("server.max_body_size=1000")
def test_a_body_over_the_limit_is_refused_in_the_read_and_in_every_one_after(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        for _ in range(3):
            with pytest.raises(HTTPError) as caught:
                request.environ["wsgi.input"].read()
            assert caught.value.status == 413
        raise caught.value

    rig.dispatch = dispatch
    with rig.connect() as wire:
        assert wire.send(framed(b"x" * 1001, 100)).reply().status == 413
        assert wire.closed()
    with rig.connect() as wire:
        assert wire.send(framed(b"x" * 1001, 0)).reply().status == 413


@in_engine()
def test_a_routes_limit_holds_for_its_request_alone(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        if request.path == "/small":
            request.limit_body(10)
        return Response(OK, [], request.environ["wsgi.input"].read())

    rig.dispatch = dispatch
    for size in (0, 4):
        with rig.connect() as wire:
            assert wire.send(framed(b"x" * 11, size)).reply().body == b"x" * 11
            reply = wire.send(framed(b"x" * 11, size).replace(b"/ ", b"/small ")).reply()
            assert reply.status == 413


@in_engine()
def test_a_malformed_chunk_is_an_error_in_this_read_and_all_later_ones(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        source = request.environ["wsgi.input"]
        first = source.read(3)
        for _ in range(2):
            with pytest.raises(BodyError):
                source.read(100)
        return Response(OK, [], first)

    rig.dispatch = dispatch
    for bad in (b"zz\r\n", b"3\rabc", b"3\r\nabcd\r\n", b"-1\r\n", b"3\nabc\r\n", b"0\r\n\x00\r\n"):
        with rig.connect() as wire:
            wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + bad)
            reply = wire.reply()
            assert (reply.status, reply.body) == (200, b"abc")
            assert reply.header("Connection") == "close"
            assert wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").rest() == b""


@in_engine()
def test_100_continue_is_sent_once_and_only_to_who_reads(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        body = request.environ["wsgi.input"].read() if request.path == "/read" else b"unread"
        return Response(OK, [], body)

    rig.dispatch = dispatch
    head = b"POST /read HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n"
    with rig.connect() as wire:
        assert wire.send(head).reply().status == 100
        assert wire.send(b"12345678").reply().body == b"12345678"
        assert wire.send(head, b"12345678").reply().status == 200  # it did not wait to be told
        assert wire.send(head).reply().status == 100
        assert wire.send(b"1234").silent(0.05)
        assert wire.send(b"5678").reply().body == b"12345678"
    with rig.connect() as wire:
        reply = wire.send(head.replace(b"/read", b"/no")).reply()
        assert (reply.status, reply.header("Connection")) == (200, "close")


@in_engine()
def test_read1_returns_what_is_there_and_takes_turns_with_the_others(rig: Rig) -> None:
    sizes: list[int] = []

    def dispatch(request: Any) -> Response:
        assert request.body is request.environ["wsgi.input"] and request.body.read1(0) == b""
        pieces = [
            request.body.readline(),
            request.body.read1(3),
            request.body.read1(100_000),
            request.body.read(2),
        ]
        while piece := request.body.read1(5000):
            sizes.append(len(piece))
            pieces.append(piece)
        assert request.body.done and request.body.total == len(LINES) and request.body.read1() == b""
        return Response(OK, [], b"".join(pieces))

    rig.dispatch = dispatch
    both_framings(rig, LINES)
    assert 0 < max(sizes) <= 5000


CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n11170\r\n" + bytes(70_000)
IN_PARTS = (
    (b"Content-Length: 70001\r\n\r\n" + bytes(70_000), b"x"),
    (CHUNKS + b"\r\n", b"1;ext", b"=x\r\nx", b"\r\n0\r\n", b"\r\n"),
    (CHUNKS, b"\r", b"\n1\r\n", b"x\r\n", b"0\r\n\r\n"),
)
"""A body of 70,000 zeros and an x, as it may come."""


@in_engine()
def test_who_waits_for_the_body_hears_of_another_stream_too(rig: Rig) -> None:
    """Whatever part of a chunk's framing has come, nobody waits in a read for more of it."""
    other, theirs = dialled()
    heard: list[str] = []
    body = bytearray()

    def dispatch(request: Any) -> Response:
        source = request.body
        while not source.done:
            if source.ready_before(other):
                body.extend(source.read1())
            else:
                heard.append(other.receive(10).decode())
        assert source.ready_before(other)
        return Response(OK, [], b"done")

    rig.dispatch = dispatch
    for parts in IN_PARTS:
        with rig.connect() as wire:
            wire.send(b"POST / HTTP/1.1\r\nHost: a\r\n")
            for number, part in enumerate(parts[:-1]):
                wire.send(part)
                for said in (f"{number}a", f"{number}b"):
                    theirs.sendall(said.encode())
                    rig.until(lambda: heard[-1:] == [said], "it has heard")  # noqa: B023
            assert wire.send(parts[-1]).reply().body == b"done"
        assert body == bytes(70_000) + b"x"
        body.clear()
    other.close()
    theirs.close()


@in_engine()
def test_a_body_that_is_cut_or_broken_is_no_reason_to_wait(rig: Rig) -> None:
    other, theirs = dialled()
    failures: list[Exception] = []

    def dispatch(request: Any) -> Response:
        try:
            while request.body.ready_before(other):
                request.body.read1()
        except (BodyError, ConnectionError) as error:
            failures.append(error)
            assert request.body.ready_before(other)
        return Response(OK, [], b"done")

    rig.dispatch = dispatch
    for framing, more in ((b"Content-Length: 70002", b"x"), (b"Transfer-Encoding: chunked", b"\r\n5\r\nab")):
        with rig.connect() as wire:
            size = b"11170\r\n" if b"chunked" in framing else b""
            wire.send(b"POST / HTTP/1.1\r\nHost: a\r\n", framing, b"\r\n\r\n", size, bytes(70_000), more)
            wire.end()
            rig.until(lambda: failures, "it has failed")
        failures.clear()
    with rig.connect() as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n", bytes(70_000))
        wire.send(b"\r\nnonsense\r\n")
        rig.until(lambda: failures, "it has failed")
    assert isinstance(failures[0], BodyError)
    other.close()
    theirs.close()


@in_engine()
def test_read1_does_not_wait_for_more_than_one_byte(rig: Rig) -> None:
    from gevent.event import Event

    seen = Event()

    def dispatch(request: Any) -> Response:
        first = request.body.read1(100_000)
        seen.set()
        return Response(OK, [], b"%d" % (len(first) + len(request.body.read())))

    rig.dispatch = dispatch
    with rig.connect() as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"x" * 70_000)
        assert seen.wait(10)
        wire.send(b"x" * 30_000)
        assert wire.reply().body == b"100000"
