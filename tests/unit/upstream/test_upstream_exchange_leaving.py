"""Clients that leave, and greenlets that are killed: the request ends, and no backend is blamed."""

from __future__ import annotations

from typing import Any

import pytest

from acme_wsgi.errors import BodyError, ClientDisconnected
from acme_wsgi.upstream.payload import NOTHING, Payload
from acme_wsgi.upstream.shape import CHUNKED
from tests.rogue import Unreachable
from tests.unit.files.in_loop import until
from tests.unit.upstream.bench import MB, OK, Bench, Uploading, counted, head, in_chunks
from tests.unit.upstream.far import MOMENT, to_end, was_read, with_reactor

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets


# -- before the head --------------------------------------------------------------------------------------


@with_reactor
def test_a_client_that_leaves_in_the_queue_is_not_sent() -> None:
    bench = Bench(1)
    first, far = bench.heard()
    second, third = bench.start(), bench.start()
    second.request.on_leave()
    far.sendall(counted(b"first"))
    assert first.body() == b"first" and isinstance(second.outcome, ClientDisconnected)
    head(far)  # the third's: who has left stands in nobody's way
    far.sendall(counted(b"third"))
    assert third.body() == b"third"
    until(lambda: not bench.peer()["active"])
    peer = bench.peer()
    assert (peer["requests"], peer["failures"]) == (3, 0)
    bench.check(idle=1)


@with_reactor
def test_a_client_that_leaves_while_a_connection_is_made_is_not_sent() -> None:
    with Unreachable() as unreachable:
        bench = Bench(port=unreachable.port, connect=MOMENT)
        attempt = bench.start()
        attempt.request.on_leave()
        assert isinstance(attempt.outcome, ClientDisconnected)
    assert bench.verdict() == "nothing"
    bench.check(idle=0)


@with_reactor
@pytest.mark.parametrize("said", [b"", OK, b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_client_that_leaves_before_the_head_ends_the_request(said: bytes) -> None:
    bench = Bench(unix=True)
    attempt, far = bench.heard()
    far.sendall(said)
    was_read(far)
    attempt.request.on_leave()
    assert to_end(far) == b""
    assert isinstance(attempt.outcome, ClientDisconnected) and bench.verdict() == "nothing"
    bench.check(idle=0)


# -- amid a body ------------------------------------------------------------------------------------------


@with_reactor
@pytest.mark.parametrize("form", [counted(b"body")[:-1], in_chunks(b"body")[:-5], OK + b"\r\nbody"])
@pytest.mark.parametrize("reading", [True, False])
def test_a_client_that_leaves_amid_the_body_ends_the_request(form: bytes, reading: bool) -> None:
    import gevent

    bench = Bench(unix=True)
    attempt, far = bench.heard()
    far.sendall(form)
    body: Any = attempt.response.body
    next(body)
    was_read(far)
    if reading:
        waiter = gevent.spawn(pytest.raises, ClientDisconnected, lambda: list(body))
        gevent.sleep(0)
        attempt.request.on_leave()
        waiter.get(timeout=5)
    else:
        attempt.request.on_leave()
        with gevent.Timeout(5), pytest.raises(ClientDisconnected):
            list(body)
    assert attempt.response.close is not None
    attempt.response.close()
    assert to_end(far) == b"" and bench.verdict() == "ok", "the backend had answered"
    bench.check(idle=0)


@with_reactor
def test_a_client_that_leaves_while_it_uploads_ends_the_request() -> None:
    bench = Bench(buffers=8192)
    for payload in (
        Payload(20 * MB, None, reader=Uploading(bytes(20 * MB))),
        Payload(CHUNKED, None, first=bytes(20 * MB), reader=Uploading()),
    ):
        attempt, far = bench.heard(payload, method="POST")
        attempt.request.on_leave()
        assert isinstance(attempt.outcome, ClientDisconnected) and bench.verdict() == "nothing"
        bench.check(idle=0)
        far.close()


@with_reactor
@pytest.mark.parametrize("error", [BodyError("cut"), ClientDisconnected("gone")])
@pytest.mark.parametrize("length", [10, CHUNKED])
def test_a_body_that_the_client_cuts_is_not_the_backends_fault(error: Exception, length: int) -> None:
    bench = Bench()
    attempt, far = bench.heard(Payload(length, None, reader=Uploading(b"12345", error)), method="POST")
    assert not to_end(far).endswith(b"0\r\n\r\n")
    assert attempt.outcome is error and bench.verdict() == "nothing"
    bench.check(idle=0)


@with_reactor
def test_who_leaves_after_the_end_changes_nothing() -> None:
    bench = Bench()
    attempt = bench.start()
    far = bench.far()
    far.sendall(counted(b"body"))
    assert attempt.body() == b"body"
    attempt.request.on_leave()
    bench.check(idle=1)
    assert bench.verdict() == "ok" and far.fileno() >= 0


# -- killed -----------------------------------------------------------------------------------------------


@with_reactor
def test_a_greenlet_that_is_killed_leaves_nothing_behind() -> None:
    bench = Bench(1, buffers=8192)
    for payload, said in (
        (NOTHING, b""),
        (NOTHING, OK),
        (Payload(20 * MB, None, reader=Uploading(bytes(20 * MB))), b""),
        (Payload(5, None, reader=Uploading(b"12345"), expect=True), b""),
    ):
        attempt, far = bench.heard(payload)
        far.sendall(said)
        queued = bench.start()
        queued.greenlet.kill()
        assert bench.peer()["active"] == 1
        attempt.greenlet.kill()
        assert bench.peer()["active"] == 0 and bench.peer()["failures"] == 0
        bench.check(idle=0)
        far.close()
