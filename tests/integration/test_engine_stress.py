"""Many clients at once who pipeline, send and read slowly, and go away whenever they like, against an
application that echoes in every way there is. Every response is compared with what its request asked for.

The choices come from a seeded generator: a failure can be repeated with its seed.
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest

from acme_wsgi.http.writer import FileBody, Response
from tests.unit.engine_harness import OK, Rig, body_of, in_engine
from tests.wire import Wire

CLIENTS = 24
DUPLEX = ("/piece_by_piece", "/sleepy", "/written")
"""These begin to answer before they have read everything. Unless the body is here by then, the server can't
know that its end will be found, and announces the connection's.
"""
MOST_GREENLETS = 3 * CLIENTS
"""Far more than can be at work at once, far less than one per connection."""

SIZES = (0, 1, 100, 5_000, 16_384, 65_536, 70_000, 300_000)
BODY = body_of(max(SIZES))


# -- the application ----------------------------------------------------------------------------------------


def all_at_once(request: Any, source: Any) -> Response:
    return Response(OK, [], source.read())


def piece_by_piece(request: Any, source: Any) -> Response:
    return Response(OK, [], iter(lambda: source.read(7000), b""))


def line_by_line(request: Any, source: Any) -> Response:
    return Response(OK, [], b"".join(source))


def written(request: Any, source: Any) -> Response:
    write = request.start(OK, [])
    while piece := source.read(30_000):
        write(piece)
    return Response(OK, [], b"")


def as_file(request: Any, source: Any) -> Response:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the response closes it
    body = source.read()
    file.write(b"before" + body)
    file.flush()
    return Response(OK, [], FileBody(file, 6, len(body)), file.close)


def sleepy(request: Any, source: Any) -> Response:
    import gevent

    def pieces() -> Iterator[bytes]:
        while piece := source.read(20_000):
            gevent.sleep(0.001)
            yield piece

    gevent.sleep(0.002)
    return Response(OK, [], pieces())


def digest(request: Any, source: Any) -> Response:
    import gevent

    gevent.sleep(0)
    return Response(OK, [], sha256(source.read()).hexdigest().encode())


def ignoring(request: Any, source: Any) -> Response:
    return Response(OK, [], b"ignored")


FUNCTIONS = (all_at_once, piece_by_piece, line_by_line, written, as_file, sleepy, digest, ignoring)
ECHOES = {f"/{function.__name__}": function for function in FUNCTIONS}


def application(request: Any) -> Response:
    return ECHOES[request.path](request, request.environ["wsgi.input"])


# -- the clients --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """A request's bytes, and the body that must answer it."""

    sent: bytes
    expected: bytes
    head_only: bool


def make_exchange(chance: random.Random, last: bool) -> Exchange:
    path = chance.choice(list(ECHOES))
    body = BODY[: chance.choice(SIZES if last or path not in DUPLEX else SIZES[:4])]
    method = "HEAD" if path == "/all_at_once" and chance.random() < 0.3 else "POST"
    lines = [f"{method} {path} HTTP/1.1", "Host: a", "X-Filler: " + "f" * chance.choice((1, 300, 3000))]
    if last:
        lines.append("Connection: close")
    if chance.random() < 0.5 and path != "/ignoring":
        lines.append("Transfer-Encoding: chunked")
        payload = chunked(chance, body)
    else:
        body = body[:100_000] if path == "/ignoring" else body
        lines.append(f"Content-Length: {len(body)}")
        payload = body
    expected = {"/digest": sha256(body).hexdigest().encode(), "/ignoring": b"ignored"}.get(path, body)
    head = "\r\n".join([*lines, "", ""]).encode()
    return Exchange(head + payload, b"" if method == "HEAD" else expected, method == "HEAD")


def chunked(chance: random.Random, body: bytes) -> bytes:
    parts, at = [], 0
    while at < len(body):
        size = chance.choice((100, 4096, 16_384, 66_000)) if len(body) > 1000 else chance.randint(1, 50)
        piece = body[at : at + size]
        extension = chance.choice((b"", b"", b";a=b"))
        parts.append(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece))
        at += size
    return b"".join([*parts, b"0\r\n", chance.choice((b"", b"X-Trailer: 1\r\n")), b"\r\n"])


def send(chance: random.Random, wire: Wire, data: bytes) -> None:
    """All of it, in pieces of chance."""
    import gevent

    slow = chance.random() < 0.4
    at = 0
    while at < len(data):
        size = chance.choice((1, 10, 2000, 60_000)) if slow else 200_000
        wire.send(data[at : at + size])
        at += size
        if slow:
            gevent.sleep(chance.choice((0, 0, 0.001, 0.003)))
            slow = chance.random() < 0.95


def client(rig: Rig, seed: int) -> int:
    """One connection's life; returns how many responses it compared."""
    import gevent

    chance = random.Random(seed)
    count = chance.randint(1, 6)
    exchanges = [make_exchange(chance, number == count - 1) for number in range(count)]
    data = b"".join(exchange.sent for exchange in exchanges)
    leaves = chance.random() < 0.3
    if leaves:
        data = data[: chance.randint(0, len(data))]
    wire = rig.connect(receive_buffer=chance.choice((0, 0, 4096)))

    def sending() -> None:
        try:
            send(chance, wire, data)
        except OSError:
            assert leaves, f"seed {seed}: the server broke the connection"

    sender = gevent.spawn(sending)
    compared = 0
    try:
        if leaves:
            gevent.sleep(chance.choice((0, 0.001, 0.01)))
            if chance.random() < 0.5:
                sender.join()
            if chance.random() < 0.3:
                wire.end()
                wire.rest()
            wire.reset() if chance.random() < 0.5 else wire.close()
            return 0
        for exchange in exchanges:
            reply = wire.reply(head=exchange.head_only)
            assert (reply.status, reply.body) == (200, exchange.expected), f"seed {seed}: {reply.headers}"
            compared += 1
            if chance.random() < 0.2:
                gevent.sleep(0.003)
        assert wire.rest() == b"", f"seed {seed}: bytes after the last response"
        return compared
    finally:
        sender.kill()
        wire.close()


def stress(rig: Rig, first: int, connections: int) -> None:
    from gevent.pool import Pool

    rig.dispatch = application
    seeds = range(first, first + connections)
    compared = sum(Pool(CLIENTS).imap_unordered(lambda seed: client(rig, seed), seeds))
    assert compared > connections
    rig.until(lambda: rig.count("connections") == 0, "no connection left")
    assert rig.count("in_flight") == 0
    assert rig.count("errors") == 0
    assert rig.count("timeouts") == 0
    assert rig.engine.greenlets <= MOST_GREENLETS


def resident() -> int:
    """This process's resident memory in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@in_engine()
def test_any_mixture_of_clients_gets_exactly_its_responses(rig: Rig) -> None:
    stress(rig, 1, 150)


@pytest.mark.slow
@in_engine()
def test_a_long_stress_leaves_memory_and_objects_as_they_were(rig: Rig) -> None:
    stress(rig, 1000, 200)
    gc.collect()
    objects, memory = len(gc.get_objects()), resident()
    for first in range(2000, 4000, 500):
        stress(rig, first, 200)
    gc.collect()
    assert len(gc.get_objects()) < objects + 1000
    assert resident() < memory + 16_000_000
