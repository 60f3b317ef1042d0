"""Bodies on their way to a backend: passed on as they come, ended by a refusal, kept until wanted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from acme_wsgi.errors import BackendError, BodyError
from acme_wsgi.http.writer import Response
from acme_wsgi.upstream.exchange import Exchange
from acme_wsgi.upstream.payload import Payload
from acme_wsgi.upstream.shape import CHUNKED
from tests.unit.engine_harness import body_of
from tests.unit.files.in_loop import until
from tests.unit.upstream.bench import MB, OK, Bench, Uploading, counted, endless, head
from tests.unit.upstream.far import MOMENT, exactly, reset, to_end, with_reactor

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
@pytest.mark.parametrize("before", [0, 10**6])
def test_a_refusal_ends_the_upload(said: bytes, before: int) -> None:
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(10**12, None, reader=endless()), method="POST")
    assert len(exactly(far, before)) == before
    far.sendall(said + counted(b"too much", b"413 Content Too Large"))
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


LONG = 8 * MB
"""More than the kernel takes at once."""

FORMS: list[tuple[bytes, Callable[[bytes], bytes], bytes]] = [
    (b"Content-Length: %d\r\n\r\n" % LONG, bytes, b""),
    (
        b"Transfer-Encoding: chunked\r\n\r\n",
        lambda piece: b"%x\r\n%b\r\n" % (len(piece), piece),
        b"0\r\n\r\n",
    ),
    (b"\r\n", bytes, b""),
]
"""How an answer may tell where it ends: what ends its head, how a piece of it looks, and its end."""


@with_reactor
@pytest.mark.parametrize("form", FORMS, ids=["length", "chunks", "end"])
@pytest.mark.parametrize("length", [LONG, CHUNKED])
def test_a_body_may_come_back_while_it_is_sent(
    form: tuple[bytes, Callable[[bytes], bytes], bytes], length: int
) -> None:
    """More than the sockets hold, by a backend that takes no more before it could say something."""
    import gevent

    ends_head, framed, end = form
    data = body_of(LONG)
    pieces = [data[at : at + 65536] for at in range(0, LONG, 65536)]
    bench = Bench(buffers=65536)
    attempt, far = bench.heard(Payload(length, None, reader=Uploading(*pieces)), method="POST")

    def echo() -> None:
        far.sendall(OK + ends_head)
        for piece in pieces:
            raw = piece if length >= 0 else b"%x\r\n%b\r\n" % (len(piece), piece)
            assert exactly(far, len(raw)) == raw
            far.sendall(framed(piece))
        far.sendall(end)
        if not end and ends_head == b"\r\n":
            far.shutdown(socket.SHUT_WR)

    backend = gevent.spawn(echo)
    assert attempt.body() == data
    backend.get(timeout=5)
    assert bench.verdict() == "ok"
    bench.check(idle=0 if ends_head == b"\r\n" else 1)
    if length < 0:
        assert exactly(far, 5) == b"0\r\n\r\n"


@with_reactor
def test_client_and_backend_may_talk_in_turn() -> None:
    reader = Uploading(b"one", b"two", b"three")
    reader.pauses = {1, 2}
    bench = Bench()
    attempt, far = bench.heard(Payload(CHUNKED, None, reader=reader), method="POST")
    assert exactly(far, 8) == b"3\r\none\r\n"
    far.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nONE\r\n")
    body = iter(attempt.response.body)
    assert next(piece for piece in body if piece) == b"ONE"
    reader.pauses.remove(1)
    import gevent

    asked = gevent.spawn(next, body)
    assert exactly(far, 8) == b"3\r\ntwo\r\n"
    far.sendall(b"3\r\nTWO\r\n")
    assert asked.get(timeout=5) == b"TWO"
    far.sendall(b"5\r\nTHREE\r\n0\r\n\r\n")
    asked = gevent.spawn(list, body)
    gevent.sleep(0.02)
    assert not asked.ready(), "the last piece of the answer waits for the last one of the request"
    reader.pauses.remove(2)
    assert asked.get(timeout=5) == [b"THREE"]
    assert exactly(far, 15) == b"5\r\nthree\r\n0\r\n\r\n"
    assert bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
@pytest.mark.parametrize("status", [b"200 OK", b"204 No Content"])
def test_an_early_answer_that_is_whole_does_not_end_the_upload(status: bytes) -> None:
    data = body_of(LONG)
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(LONG, None, reader=Uploading(data)), method="POST")
    far.sendall(b"HTTP/1.1 204 No Content\r\n\r\n" if b"204" in status else counted(b"fine"))
    if b"200" in status:
        assert isinstance(attempt.response.body, Exchange)
        import gevent

        gevent.spawn(lambda: attempt.body())
    assert exactly(far, LONG) == data
    assert attempt.response.status.encode() == status
    until(lambda: not bench.peer()["active"])
    assert bench.verdict() == "ok"
    bench.check(idle=1)


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
@pytest.mark.parametrize("whole", [True, False])
def test_a_backend_that_leaves_amid_an_upload_after_its_answer(
    whole: bool, away: Callable[[socket.socket], None]
) -> None:
    """A whole answer stands; half of one is cut."""
    reader = endless()
    bench = Bench(buffers=8192)
    attempt, far = bench.heard(Payload(10**12, None, reader=reader), method="POST")
    far.sendall(counted(b"fine") if whole else counted(b"fine")[:-1])
    body = iter(attempt.response.body)
    if whole:
        reader.pauses = {10**9}  # none: it goes on
        import gevent

        gevent.spawn_later(0.05, away, far)
        assert b"".join(body) == b"fine" and bench.verdict() == "ok"
    else:
        assert next(piece for piece in body if piece) == b"fin"
        away(far)
        with pytest.raises(BackendError):
            list(body)
        assert bench.verdict() == "failed"
    bench.check(idle=0)


@with_reactor
@pytest.mark.parametrize("whole", [True, False])
def test_a_backend_that_answers_and_takes_no_more(whole: bool) -> None:
    bench = Bench(buffers=8192, write=MOMENT)
    attempt, far = bench.heard(Payload(10**12, None, reader=endless()), method="POST")
    far.sendall(counted(b"fine") if whole else counted(b"fine")[:-1])
    if whole:
        assert attempt.body() == b"fine" and bench.verdict() == "ok"
    else:
        with pytest.raises(BackendError) as caught:
            attempt.body()
        assert caught.value.status == 504 and bench.verdict() == "failed"
    bench.check(idle=0)
    far.close()


@with_reactor
@pytest.mark.parametrize("whole", [True, False])
def test_a_client_whose_body_fails_after_the_answer(whole: bool) -> None:
    """Nothing is gained by losing what is here."""
    bench = Bench()
    reader = Uploading(b"one", BodyError("the request body arrives too slowly"))
    reader.pauses = {1}
    attempt, far = bench.heard(Payload(CHUNKED, None, reader=reader), method="POST")
    far.sendall(counted(b"fine") if whole else counted(b"fine")[:-1])
    body = iter(attempt.response.body)
    assert next(body) == b"", "the head does not wait"
    if not whole:
        assert next(body) == b"fin"
    reader.pauses.clear()
    if whole:
        assert b"".join(body) == b"fine" and bench.verdict() == "ok"
    else:
        with pytest.raises(BodyError):
            list(body)
        attempt.exchange.close()
    bench.check(idle=0)
    far.close()


@with_reactor
def test_a_reset_is_no_end_of_an_answer_that_only_the_end_delimits() -> None:
    """Whichever side meets it: the kernel tells it once, and then it looks like an end."""
    import gevent

    class Meanwhile(Uploading):
        def read1(self, size: int) -> bytes:
            if self.given == 3:
                reset(far)
                time.sleep(0.02)  # the loop doesn't see it before the next piece is sent
            return super().read1(size)

    bench = Bench()
    reader = Meanwhile(b"one", b"two", b"three", b"four")
    reader.pauses = {1}
    attempt, far = bench.heard(Payload(CHUNKED, None, reader=reader), method="POST")
    far.sendall(OK + b"\r\npart of it")
    body = iter(attempt.response.body)
    assert b"".join(next(body) for _ in range(2)) == b"part of it"
    reader.pauses.clear()
    with gevent.Timeout(5), pytest.raises(BackendError):
        list(body)
    assert bench.verdict() == "failed"
    bench.check(idle=0)


@with_reactor
def test_the_limit_of_the_whole_holds_while_both_talk() -> None:
    import gevent

    bench = Bench(total=3 * MOMENT)
    attempt, far = bench.heard(Payload(10**12, None, reader=endless()), method="POST")
    far.sendall(OK + b"Content-Length: 4\r\n\r\n")
    reading = gevent.spawn(to_end, far)
    with gevent.Timeout(5), pytest.raises(BackendError) as caught:
        attempt.body()
    assert caught.value.status == 504 and bench.verdict() == "failed"
    reading.get(timeout=5)
    bench.check(idle=0)


@with_reactor
def test_a_refusal_is_heard_while_the_client_pauses() -> None:
    reader = Uploading(b"one", b"two")
    reader.pauses = {1}
    bench = Bench()
    attempt, far = bench.heard(Payload(10**6, None, reader=reader), method="POST")
    far.sendall(counted(b"who are you", b"401 Unauthorized"))
    assert (attempt.response.status, attempt.body()) == ("401 Unauthorized", b"who are you")
    assert bench.verdict() == "ok"
    bench.check(idle=0)
    far.close()


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
