"""Request bodies as the application gets them: whole, in pieces, cut, malformed, too large, unread.

Knows the wire and tests/apps/protocol.py. The law behind all of it: a body that did not arrive whole is an
error in the application's read, never a clean end; and what was not read is never taken for the next request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from hashlib import sha256

import pytest

from tests.server import Launcher, Server, wait_until
from tests.wire import Wire

MB = 1 << 20
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here."""
    launcher = Launcher(tmp_path_factory.mktemp("bodies"))
    try:
        yield launcher(app="tests.apps.protocol:app")
        launcher.finish()
    finally:
        launcher.kill()


def post(path: str, *fields: bytes) -> bytes:
    """The head of a POST."""
    return b"\r\n".join((b"POST %s HTTP/1.1" % path.encode(), b"Host: test", *fields, b"", b""))


def sized(path: str, body: bytes) -> bytes:
    return post(path, b"Content-Length: %d" % len(body)) + body


def chunks(body: bytes, *sizes: int) -> bytes:
    """The body as chunks; the sizes are used in turn."""
    encoded, position, index = b"", 0, 0
    while position < len(body):
        piece = body[position : position + sizes[index % len(sizes)]]
        encoded += b"%x\r\n%s\r\n" % (len(piece), piece)
        position += len(piece)
        index += 1
    return encoded + b"0\r\n\r\n"


def chunked(path: str, body: bytes, *sizes: int) -> bytes:
    return post(path, CHUNKED) + chunks(body, *sizes)


def events(server: Server) -> list[str]:
    noted: list[str] = json.loads(server.get("/events").text)
    return noted


def goes_on(wire: Wire) -> bool:
    """Whether the connection takes another request."""
    return wire.request("/stream?n=1").text == "xxxxx"


def sum_of(body: bytes) -> str:
    return f"{len(body)} {sha256(body).hexdigest()}"


# ------------------------------------------------------------------- whole bodies


LINES = b"abcdef\nghijkl\nmno\n\npqr\nlast"
AS_READ = ["abc", "def\n", "ghij", "kl\n", "mno\n", "", "\npqr\nlast", "", "", ""]


def test_every_way_to_read_by_length(server: Server) -> None:
    with server.connect() as wire:
        assert json.loads(wire.send(sized("/forms", LINES)).reply().text) == AS_READ
        assert goes_on(wire)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_every_way_to_read_chunks(server: Server, size: int) -> None:
    with server.connect() as wire:
        assert json.loads(wire.send(chunked("/forms", LINES, size)).reply().text) == AS_READ
        assert goes_on(wire)


@pytest.mark.parametrize(
    "encode", [sized, lambda path, body: chunked(path, body, 3)], ids=["length", "chunked"]
)
def test_every_way_to_read_what_trickles_in(server: Server, encode: object) -> None:
    assert callable(encode)
    with server.connect() as wire:
        assert json.loads(wire.trickle(encode("/forms", LINES)).reply().text) == AS_READ
        assert goes_on(wire)


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536, 65_537, 1_000_000, 9 * MB])
def test_bodies_of_all_sizes_arrive_unchanged(server: Server, length: int) -> None:
    body = random.Random(length).randbytes(length)
    with server.connect() as wire:
        assert wire.send(sized("/digest", body)).reply().text == sum_of(body)
        assert wire.send(chunked("/digest", body, 1000, 1, 70_000)).reply().text == sum_of(body)
        assert wire.send(sized("/digest?size=1000", body)).reply().text == sum_of(body)
        assert wire.send(chunked("/digest?size=1000", body, 65_536)).reply().text == sum_of(body)
        assert goes_on(wire)


def test_a_body_in_odd_segments(server: Server) -> None:
    body = random.Random(1).randbytes(300_000)
    for raw in (sized("/digest?size=777", body), chunked("/digest?size=777", body, 999, 1, 4096)):
        with server.connect() as wire:
            for index in range(0, len(raw), 7919):
                wire.send(raw[index : index + 7919])
            assert wire.reply().text == sum_of(body)
            assert goes_on(wire)


def test_a_body_that_looks_like_a_request_is_a_body(server: Server) -> None:
    body = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n" * 10
    with server.connect() as wire:
        for raw in (
            sized("/digest", body),
            chunked("/digest", body, 13),
            sized("/ignore", body),
            chunked("/ignore", body, 13),
        ):
            assert wire.send(raw).reply().status == 200
            assert goes_on(wire)
    assert not any("smuggled" in event for event in events(server))


# ------------------------------------------------------------------- cut and malformed bodies

CUT = {
    "length": sized("/catch", b"helloworld")[:-3],
    "length-nothing": sized("/catch", b"helloworld")[:-10],
    "chunk-data": chunked("/catch", b"helloworld", 8)[:-16],
    "chunk-line": post("/catch", CHUNKED) + b"5\r\nhello\r\n5",
    "chunk-end": post("/catch", CHUNKED) + b"5\r\nhello\r",
    "no-last-chunk": post("/catch", CHUNKED) + b"5\r\nhello\r\n",
    "last-chunk-unfinished": post("/catch", CHUNKED) + b"5\r\nhello\r\n0\r\n",
    "trailer-unfinished": post("/catch", CHUNKED) + b"5\r\nhello\r\n0\r\nA: b\r\n",
    "nothing-of-chunked": post("/catch", CHUNKED),
}


@pytest.mark.parametrize("raw", CUT.values(), ids=CUT.keys())
def test_a_cut_body_is_an_error_in_every_read(server: Server, raw: bytes) -> None:
    """The client still listens: it hears what the application made of it, and that was no end."""
    with server.connect() as wire:
        outcomes = wire.send(raw).end().reply().text.split("; ")
        assert outcomes[-2:] == ["OSError BodyError"] * 2
        assert "end" not in outcomes
        assert wire.closed()


LARGE = {
    "length": sized("/read-or-note", b"x" * 1_000_000)[:300_000],
    "chunk-data": chunked("/read-or-note", b"x" * 1_000_000, 500_000)[:300_000],
    "no-last-chunk": chunked("/read-or-note", b"x" * 300_000, 1000)[:-5],
}


@pytest.mark.parametrize("raw", LARGE.values(), ids=LARGE.keys())
def test_a_client_that_goes_away_amid_its_body_is_an_error_too(server: Server, raw: bytes) -> None:
    before = len(events(server))
    with server.connect() as wire:
        wire.send(raw).reset()
    seen = wait_until(lambda: events(server)[before:], "the application's read has ended")
    assert len(seen) == 1
    assert seen[0].startswith("read failed: ")


@pytest.mark.parametrize("name", ["length", "chunk-data", "no-last-chunk"])
def test_a_client_that_goes_away_amid_a_small_body_is_no_request(server: Server, name: str) -> None:
    """A small body is awaited before the application is called; never for one that can't come."""
    before = events(server)
    with server.connect() as wire:
        wire.send(CUT[name].replace(b"/catch", b"/read-or-note")).reset()
    for _ in range(5):
        assert events(server) == before


MALFORMED = {
    "size": b"5\r\nhello\r\nx\r\n",
    "size-0x": b"5\r\nhello\r\n0x5\r\nhello\r\n",
    "size-overflow": b"5\r\nhello\r\nfffffffffffffffff\r\n",
    "bare-lf": b"5\r\nhello\r\n5\nhello\r\n",
    "data-too-long": b"5\r\nhello!\r\n",
    "extension-control": b"5\r\nhello\r\n5;\x00\r\nhello\r\n",
    "extension-overlong": b"5\r\nhello\r\n5;" + b"a" * 20_000 + b"\r\nhello\r\n",
    "trailer": b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
    "trailer-request": b"5\r\nhello\r\n0\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_body_is_an_error_in_every_read(server: Server, body: bytes) -> None:
    """Also when the application swallows it and answers as if nothing had been: the connection ends."""
    with server.connect() as wire:
        wire.send(post("/catch", CHUNKED) + body + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        outcomes = wire.reply().text.split("; ")
        assert outcomes[-2:] == ["OSError BodyError"] * 2
        assert "end" not in outcomes
        assert wire.closed()


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_body_nobody_catches_is_a_400(server: Server, body: bytes) -> None:
    data = server.raw(post("/digest", CHUNKED) + body + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 400 ")
    assert data.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_body_nobody_reads_ends_the_connection(server: Server, body: bytes) -> None:
    data = server.raw(post("/ignore", CHUNKED) + body + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in data
    assert data.count(b"HTTP/1.1 ") == 1


def test_trailers_are_dropped(server: Server) -> None:
    trailers = b"X-Checksum: 1\r\nContent-Length: 3\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n"
    with server.connect() as wire:
        wire.send(post("/x", CHUNKED) + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n")
        told = json.loads(wire.reply().body)
        assert told["body"] == "hello"
        assert told["environ"]["HTTP_HOST"] == "test"
        assert "HTTP_X_CHECKSUM" not in told["environ"]
        assert goes_on(wire)


# ------------------------------------------------------------------- unread bodies


@pytest.mark.parametrize("length", [1, 1000, 100_000])
@pytest.mark.parametrize("path", ["/ignore", "/some?n=1"])
def test_a_small_unread_body_is_dropped_and_the_connection_kept(
    server: Server, path: str, length: int
) -> None:
    with server.connect() as wire:
        for _ in range(3):
            assert wire.send(sized(path, b"x" * length)).reply().header("Connection") is None
        assert goes_on(wire)


def test_an_unread_body_that_comes_after_the_answer_is_dropped(server: Server) -> None:
    """The answer does not wait for it, and what comes later is not a request."""
    body = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n" * 2000
    with server.connect() as wire:
        wire.send(post("/ignore", b"Content-Length: %d" % len(body)) + body[:70_000])
        reply = wire.reply()
        assert reply.text == "ignored"
        if reply.header("Connection") is None:
            wire.send(body[70_000:])
            assert goes_on(wire)
        else:
            assert wire.closed()
    assert not any("smuggled" in event for event in events(server))


def test_a_large_unread_body_ends_the_connection_but_not_the_answer(server: Server) -> None:
    """A client that sends first and reads then must get its answer; the server must not read it all."""
    with server.connect() as wire:
        wire.send(post("/ignore", b"Content-Length: %d" % (9 * MB)) + b"x" * 100_000)
        reply = wire.reply()
        assert reply.text == "ignored"
        assert reply.header("Connection") == "close"
        assert wire.closed()


def test_small_unread_chunks_are_dropped(server: Server) -> None:
    with server.connect() as wire:
        wire.send(chunked("/ignore", b"x" * 1000, 100))
        assert wire.reply().text == "ignored"
        assert goes_on(wire)


def test_unread_chunks_without_an_end_in_sight_end_the_connection(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post("/ignore", CHUNKED) + b"fffff\r\n" + b"x" * 100_000)
        reply = wire.reply()
        assert reply.text == "ignored"
        assert reply.header("Connection") == "close"
        assert wire.closed()


def test_a_half_read_body_is_dropped(server: Server) -> None:
    with server.connect() as wire:
        assert wire.send(sized("/some?n=4", b"abcdefgh" * 1000)).reply().text == "abcd"
        assert goes_on(wire)
        assert wire.send(chunked("/some?n=4", b"abcdefgh" * 1000, 3)).reply().text == "abcd"
        assert goes_on(wire)


# ------------------------------------------------------------------- limits


def test_a_body_over_the_limit_is_refused_before_it_comes(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post("/digest", b"Content-Length: %d" % (10 * MB + 1), b"Expect: 100-continue"))
        reply = wire.reply()
        assert reply.status == 413
        assert json.loads(reply.body)["error"]["code"] == "payload_too_large"
        assert reply.header("Connection") == "close"
        assert wire.closed()


def test_a_body_of_the_limit_is_taken(server: Server) -> None:
    body = bytes(10 * MB)
    with server.connect() as wire:
        assert wire.send(sized("/digest", body)).reply().text == sum_of(body)
        assert wire.send(chunked("/digest", body, 500_000)).reply().text == sum_of(body)


def test_chunks_over_the_limit_are_refused_as_soon_as_they_pass(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post("/digest", CHUNKED) + b"%x\r\n" % (10 * MB + 1) + bytes(10 * MB + 1))
        reply = wire.reply()
        assert reply.status == 413
        assert reply.header("Connection") == "close"
        assert wire.closed()


def test_a_413_reaches_a_client_that_is_still_sending(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post("/digest", b"Content-Length: %d" % (20 * MB)) + b"x" * 200_000)
        assert wire.reply().status == 413


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
def test_a_body_of_http_1_0_needs_a_length(server: Server, method: bytes) -> None:
    data = server.raw(method + b" /digest HTTP/1.0\r\nHost: test\r\n\r\nhello")
    assert data.startswith(b"HTTP/1.1 411 ")
    assert b'"length_required"' in data


def test_a_route_may_have_its_own_limit(acme: Launcher) -> None:
    small = {"path": "/digest", "type": "wsgi", "app": "tests.apps.protocol:app", "max_body_size": 100}
    large = {"path": "/*", "type": "wsgi", "app": "tests.apps.protocol:app"}
    server = acme({"routes": [small, large]})
    with server.connect() as wire:
        assert wire.send(sized("/digest", b"x" * 100)).reply().status == 200
        assert wire.send(sized("/x", b"x" * 101)).reply().status == 200
        assert wire.send(sized("/digest", b"x" * 101)).reply().status == 413
    with server.connect() as wire:
        assert wire.send(chunked("/digest", b"x" * 100, 7)).reply().status == 200
        assert wire.send(chunked("/digest", b"x" * 101, 7)).reply().status == 413
