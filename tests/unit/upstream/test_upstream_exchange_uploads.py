"""Bodies on their way to a backend: passed on as they come, ended by a refusal, kept until wanted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from acme_wsgi.errors import BackendError
from acme_wsgi.http.writer import Response
from acme_wsgi.upstream.payload import Payload
from acme_wsgi.upstream.shape import CHUNKED
from tests.unit.engine_harness import body_of
from tests.unit.files.in_loop import until
from tests.unit.upstream.bench import MB, OK, Bench, Uploading, counted, endless, head
from tests.unit.upstream.far import exactly, reset, to_end, with_reactor

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets


# -- uploads ----------------------------------------------------------------------------------------------


@with_reactor
def test_a_body_that_is_here_leaves_with_the_head() -> None:
    bench = Bench()
    attempt = bench.start(Payload(5, b"12345"), method="POST")
    far = bench.far()
    assert b"Content-Length: 5\r\n" in head(far) and exactly(far, 5) == b"12345"
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks"
    bench.check(idle=1)


@with_reactor
def test_a_body_that_comes_is_passed_on_as_it_comes() -> None:
    data = body_of(3 * MB)
    pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(len(data), None, reader=Uploading(*pieces)), method="POST")
    assert exactly(far, len(data)) == data
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks"
    attempt = bench.start(Payload(CHUNKED, None, first=b"first", reader=Uploading(b"second")), method="POST")
    assert b"Transfer-Encoding: chunked\r\n" in head(far)
    expected = b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"
    assert exactly(far, len(expected)) == expected
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks"
    bench.check(idle=1)


@with_reactor
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("away", [None, socket.socket.close])
def test_a_refusal_ends_the_upload(said: bytes, away: Callable[[socket.socket], None] | None) -> None:
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(10**12, None, reader=endless()), method="POST")
    far.sendall(said + counted(b"too much", b"413 Content Too Large"))
    if away:
        to_be_read = exactly(far, 10**6)
        assert len(to_be_read) == 10**6
    assert (attempt.response.status, attempt.body()) == ("413 Content Too Large", b"too much")
    assert [status for status, _ in attempt.request.interims] == ([103] if b"103" in said else [])
    assert bench.verdict() == "ok"
    bench.check(idle=0)
    far.close()


@with_reactor
def test_a_refusal_from_a_backend_that_has_closed_already_is_heard() -> None:
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(10**12, None, reader=endless()), method="POST")
    far.sendall(counted(b"too much", b"413 Content Too Large"))
    far.close()
    outcome = attempt.outcome
    if isinstance(outcome, Response):
        assert outcome.status == "413 Content Too Large" and attempt.body() == b"too much"
    else:
        assert isinstance(outcome, BackendError)  # the reset was faster than the answer
    bench.verdict()
    bench.check(idle=0)


@with_reactor
def test_an_early_answer_that_is_no_refusal_does_not_end_the_upload() -> None:
    data = body_of(MB)
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(len(data), None, reader=Uploading(data)), method="POST")
    far.sendall(OK + b"Content-Length: 4\r\n\r\n")
    assert exactly(far, len(data)) == data
    far.sendall(b"fine")
    assert attempt.body() == b"fine" and bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
def test_a_switch_of_protocols_amid_an_upload_is_nonsense() -> None:
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(10**12, None, reader=endless()), method="POST")
    far.sendall(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    error = attempt.error()
    assert error.status == 502 and "without having been asked" in str(error)
    assert bench.verdict() == "failed"
    bench.check(idle=0)
    far.close()


@with_reactor
def test_a_backend_that_dies_amid_an_upload() -> None:
    for away in (reset, socket.socket.close):
        bench = Bench(buffers=8192)
        attempt, far = bench.heard(Payload(CHUNKED, None, reader=endless()), method="POST")
        away(far)
        error = attempt.error()
        assert (error.status, error.connecting) == (502, False) and bench.verdict() == "failed"
        bench.check(idle=0)


# -- expectations -----------------------------------------------------------------------------------------


@with_reactor
def test_an_expected_body_is_sent_once_the_backend_says_so() -> None:
    bench = Bench()
    reader = Uploading(b"12345")
    attempt = bench.start(Payload(5, None, reader=reader, expect=True), method="POST")
    far = bench.far()
    assert b"Expect: 100-continue\r\n" in head(far)
    far.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    until(lambda: attempt.request.interims)
    assert reader.given == 0
    far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert exactly(far, 5) == b"12345"
    far.sendall(counted(b"thanks"))
    assert attempt.body() == b"thanks" and bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
def test_a_refused_expectation_asks_for_no_body() -> None:
    bench = Bench()
    reader = Uploading(b"12345")
    attempt, far = bench.heard(Payload(5, None, reader=reader, expect=True), method="POST")
    far.sendall(counted(b"no", b"417 Expectation Failed"))
    assert attempt.response.status == "417 Expectation Failed" and reader.given == 0
    assert to_end(far) == b"" and bench.verdict() == "ok"
    bench.check(idle=0)


@with_reactor
def test_a_backend_that_does_not_know_of_expectations_gets_the_body_all_the_same() -> None:
    bench = Bench()
    attempt, far = bench.heard(Payload(5, None, reader=Uploading(b"12345"), expect=True), method="POST")
    began = time.monotonic()
    assert exactly(far, 5) == b"12345"
    assert 0.5 < time.monotonic() - began < 5
    far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + counted(b"thanks"))
    assert attempt.body() == b"thanks"
    bench.check(idle=1)


@with_reactor
def test_a_backend_that_dies_over_an_expectation_has_not_answered() -> None:
    bench = Bench()
    reader = Uploading(b"12345")
    attempt, far = bench.heard(Payload(5, None, reader=reader, expect=True), method="POST")
    far.close()
    assert attempt.error().status == 502 and reader.given == 0 and bench.verdict() == "failed"
    bench.check(idle=0)
