"""Attempts of all kinds at once, before a backend that does anything: each is counted once."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acme_wsgi.errors import BackendError, BodyError, ClientDisconnected
from acme_wsgi.http.writer import Response
from acme_wsgi.upstream.payload import NOTHING, Payload
from acme_wsgi.upstream.shape import CHUNKED
from tests.unit.upstream.bench import MB, OK, Attempt, Bench, Uploading, counted, in_chunks
from tests.unit.upstream.far import reset, with_reactor

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_each_attempt_is_counted_once_whatever_happens(seed: int) -> None:
    with_reactor(lambda: storm(random.Random(seed)))()


def storm(rng: random.Random) -> None:
    """Attempts of all kinds before a backend that does anything; clients leave and are killed."""
    import gevent

    bench = Bench(rng.randrange(1, 4), buffers=8192, read=0.05, write=0.05, queue=rng.choice([0.01, 1]))
    bench.listener.settimeout(None)
    forms = [
        counted(b"body"),
        in_chunks(b"bo", b"dy"),
        OK + b"\r\nbody",
        counted(b"b", b"500 Oops"),
        b"nonsense",
    ]

    def serve(far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while far.recv(100_000):
                form = rng.choice(forms)
                cuts = sorted(rng.sample(range(len(form)), rng.randrange(4)))
                for low, high in itertools.pairwise([0, *cuts, len(form)]):
                    if rng.random() < 0.1:
                        rng.choice([reset, socket.socket.close])(far)
                    far.sendall(form[low:high])
                    gevent.sleep(0)
                if form.startswith(OK + b"\r\n"):
                    far.close()

    def accept() -> None:
        while True:
            gevent.spawn(serve, bench.listener.accept()[0])

    accepting = gevent.spawn(accept)
    attempts: list[Attempt] = []

    def finish(attempt: Attempt) -> None:
        with contextlib.suppress(BackendError, ClientDisconnected):
            if isinstance(attempt.greenlet.get(), Response):
                attempt.body()

    tasks = []
    for _ in range(60):
        size = rng.choice([5, MB])
        payloads = [
            NOTHING,
            Payload(5, b"12345"),
            Payload(size, None, reader=Uploading(bytes(size))),
            Payload(CHUNKED, None, reader=Uploading(bytes(size), BodyError("cut"))),
        ]
        attempt = bench.start(rng.choice(payloads), fresh=rng.random() < 0.1)
        attempts.append(attempt)
        tasks.append(gevent.spawn(finish, attempt))
        if rng.random() < 0.3:
            rng.choice(attempts).request.on_leave()
        if rng.random() < 0.1:
            rng.choice(tasks).kill(block=False)
        if rng.random() < 0.1:
            rng.choice(attempts).greenlet.kill(block=False)
        gevent.sleep(rng.choice([0, 0.001]))
    gevent.joinall(tasks, timeout=10)
    for attempt in attempts:
        attempt.greenlet.join(10)
        assert attempt.greenlet.dead
        if isinstance(attempt.greenlet.value, Response) and attempt.greenlet.value.close is not None:
            attempt.greenlet.value.close()
    accepting.kill()
    assert bench.peer()["requests"] == 60
    bench.shelf.drop_idle()
    bench.check(idle=0)
