"""What a handler can do with its request before it returns, and what is refused after the request's end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from acme_wsgi.http.writer import Response
from tests.unit.engine_harness import OK, Rig, in_engine

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length


# -- interim responses ------------------------------------------------------------------------------------


@in_engine()
def test_any_interim_response_goes_before_the_final_one(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        for status in (100, 102, 103, 199):
            request.interim(status, [("X-Code", str(status))])
        for status in (99, 101, 200):
            with pytest.raises(ValueError, match="interim"):
                request.interim(status, [])
        with pytest.raises(ValueError, match="Content-Length"):
            request.interim(102, [("Content-Length", "1")])
        return Response(OK, [], request.body.read())

    rig.dispatch = dispatch
    with rig.connect() as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        for status, phrase in (
            (100, "Continue"),
            (102, "Processing"),
            (103, "Early Hints"),
            (199, "Informational"),
        ):
            reply = wire.reply()
            assert (reply.status, reply.reason, reply.header("X-Code")) == (status, phrase, str(status))
        wire.send(b"abcde")
        assert wire.reply().body == b"abcde", "no second 100"


@in_engine()
def test_no_interim_response_where_none_can_go(rig: Rig) -> None:
    def dispatch(request: Any) -> Response:
        if request.minor:
            request.start(OK, [])(b"begun")
        request.interim(102, [])
        return Response(OK, [], b"")

    rig.dispatch = dispatch
    for version in (b"1.0", b"1.1"):
        with rig.connect() as wire:
            wire.send(b"GET / HTTP/%s\r\nHost: a\r\n\r\n" % version)
            assert wire.reply().status == 200


@in_engine()
def test_headers_and_hints_may_be_any_iterable_even_one_that_blocks(rig: Rig) -> None:
    import gevent

    def slow(value: str) -> Iterator[tuple[str, str]]:
        for number in range(3):
            gevent.sleep(0.005)
            yield (f"X-{value}-{number}", value)

    def dispatch(request: Any) -> Response:
        who = request.path[1:]
        request.early_hints(slow(who))
        fields: Any = slow(who)
        return Response(OK, fields, who.encode())

    rig.dispatch = dispatch
    wires = [rig.connect() for _ in range(10)]
    for number, wire in enumerate(wires):
        wire.send(GET.replace(b"/ ", b"/%d " % number))
    for number, wire in enumerate(wires):
        hints, reply = wire.reply(), wire.reply()
        assert (hints.status, reply.status, reply.body) == (103, 200, b"%d" % number)
        for answer in (hints, reply):
            names = [name for name, _ in answer.headers if name.startswith(f"X-{number}-")]
            assert names == [f"X-{number}-{index}" for index in range(3)]
        wire.close()


# -- after its end ----------------------------------------------------------------------------------------


@in_engine()
def test_an_input_kept_after_the_end_of_its_request_refuses_to_be_read(rig: Rig) -> None:
    kept: list[Any] = []

    def dispatch(request: Any) -> Response:
        kept.append(request)
        kept.append(request.environ["wsgi.input"])
        return Response(OK, [], b"")

    rig.dispatch = dispatch
    with rig.connect() as wire:
        wire.send(post(5), b"abcde").reply()
    request, source = kept
    with pytest.raises(ValueError, match="over"):
        source.read()
    assert request.started
    with pytest.raises(AssertionError):
        request.start(OK, [])
    with pytest.raises(ValueError, match="after the end"):
        request.write(b"late")
    request.early_hints([("Link", "</a>")])
