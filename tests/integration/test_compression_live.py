"""Compression as clients meet it: what they ask for is what they get, piece by piece, whole or not at all.

Knows the wire and tests/apps/compressible.py; decodes with other libraries than the server encodes with where
there is one.
"""

from __future__ import annotations

import gzip
import select
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import brotlicffi
import pytest

from tests.apps.compressible import BIG, PAGE, TAG
from tests.integration.test_frameworks import prepare_django, serves
from tests.server import Launcher, Server, wait_until
from tests.wire import Reply

pytestmark = pytest.mark.slow  # whole servers, started and stopped

TYPES = ["text/html", "text/css", "text/event-stream"]
APP = {"type": "wsgi", "app": "tests.apps.compressible:app"}
CONFIG = {
    "compression": {"types": TYPES},
    "routes": [
        {"path": "/off/*", "compression": False, **APP},
        {"path": "/gzip/*", "compression": {"algorithms": ["gzip"], "level": 9}, **APP},
        {"path": "/all/*", "compression": {"types": ["text/*"], "min_size": 1}, **APP},
        {"path": "/*", **APP},
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker: what keeps its loop from others shows."""
    launcher = Launcher(tmp_path_factory.mktemp("compression"))
    try:
        yield launcher(CONFIG)
        launcher.finish()
    finally:
        launcher.kill()


def get(server: Server, target: str, accept: str | None, *headers: str, method: str = "GET") -> Reply:
    lines = [*headers, *([] if accept is None else [f"Accept-Encoding: {accept}"])]
    return server.get(target, method=method, headers=lines)


def decoded(reply: Reply) -> bytes:
    coding = reply.header("Content-Encoding")
    if coding == "br":
        return bytes(brotlicffi.decompress(reply.body))
    return gzip.decompress(reply.body) if coding == "gzip" else reply.body


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("gzip, deflate, br, zstd", "br"),
        ("gzip, deflate", "gzip"),
        ("br;q=0.5, gzip;q=0.8", "gzip"),
        ("br;q=0, gzip;q=0", None),
        ("*", "br"),
        ("*;q=0.1, br;q=0", "gzip"),
        ("identity;q=0, *;q=0.1", "br"),
        ("deflate, zstd", None),
    ],
)
def test_the_clients_weights_decide(server: Server, accept: str | None, coding: str | None) -> None:
    reply = get(server, "/page", accept)
    assert (reply.status, reply.header("Content-Encoding")) == (200, coding)
    assert reply.header("Vary") == "Cookie, Accept-Encoding"
    assert reply.header("Content-Length") == str(len(reply.body))
    assert reply.header("ETag") == (TAG if coding is None else f"W/{TAG}")
    assert decoded(reply) == PAGE


def test_several_lines_of_accept_encoding_are_one_list(server: Server) -> None:
    reply = get(server, "/page", "br;q=0.1", "Accept-Encoding: gzip")
    assert reply.header("Content-Encoding") == "gzip"


def test_each_route_has_its_own(server: Server) -> None:
    everything = "gzip, br"
    assert get(server, "/off/page", everything).body == PAGE
    assert get(server, "/off/page", everything).header("Vary") == "Cookie"
    assert get(server, "/gzip/page", everything).header("Content-Encoding") == "gzip"
    assert get(server, "/text", everything).header("Content-Encoding") is None
    assert decoded(get(server, "/all/text", everything)) == PAGE
    assert get(server, "/all/text", everything).header("Content-Encoding") == "br"


def test_small_bodies_are_left_alone_unless_the_client_refuses_them(server: Server) -> None:
    assert get(server, "/tiny", "gzip").body == b"<p>tiny</p>\r\n"
    reply = get(server, "/tiny", "gzip, identity;q=0")
    assert (reply.header("Content-Encoding"), decoded(reply)) == ("gzip", b"<p>tiny</p>\r\n")


def test_head_has_the_head_of_get(server: Server) -> None:
    def head(reply: Reply) -> list[tuple[str, str]]:
        passing = ("Date", "X-Request-ID", "Content-Length")
        return [pair for pair in reply.headers if pair[0] not in passing]

    for accept in ("gzip", "br", None):
        whole, bare = get(server, "/page", accept), get(server, "/page", accept, method="HEAD")
        assert head(bare) == head(whole)
        assert bare.header("Content-Length") == (None if accept else str(len(PAGE)))


def test_a_client_that_has_the_page_is_told_so(server: Server) -> None:
    tag = get(server, "/page", "gzip").header("ETag")
    reply = get(server, "/page", "gzip", f"If-None-Match: {tag}")
    assert (reply.status, reply.header("ETag"), reply.body) == (304, tag, b"")


@pytest.mark.parametrize("target", ["/encoded", "/private"])
def test_what_must_not_be_touched_is_not(server: Server, target: str) -> None:
    for accept in ("br", "gzip, br", "identity;q=0, br"):
        reply = get(server, target, accept)
        assert reply.header("Content-Encoding") == ("gzip" if target == "/encoded" else None)
        assert decoded(reply) == PAGE


@pytest.mark.parametrize("coding", ["br", "gzip"])
def test_write_and_files_of_the_application(server: Server, coding: str) -> None:
    written = get(server, "/writes", coding)
    assert written.header("Transfer-Encoding") == "chunked"
    assert (written.header("Content-Encoding"), decoded(written)) == (coding, PAGE + b"and the rest")
    file = get(server, "/file", coding)
    assert (file.header("Content-Encoding"), decoded(file)) == (coding, PAGE)
    assert file.header("Content-Length") == str(len(file.body))


def test_http_1_0_gets_it_too(server: Server) -> None:
    raw = server.raw(b"GET /writes HTTP/1.0\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert gzip.decompress(body) == PAGE + b"and the rest"


def test_a_pipeline_keeps_its_order(server: Server) -> None:
    codings = ["br", "gzip", "identity"] * 5
    with server.connect() as wire:
        wire.send(
            *(f"GET /page HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {c}\r\n\r\n".encode() for c in codings)
        )
        replies = [wire.reply() for _ in codings]
    assert [reply.header("Content-Encoding") or "identity" for reply in replies] == codings
    assert all(decoded(reply) == PAGE for reply in replies)


# -- streams


@pytest.mark.parametrize("coding", ["gzip", "br", "identity"])
def test_server_sent_events_arrive_one_by_one(server: Server, coding: str) -> None:
    """The next event is made only when the last one was read: one kept back would never come."""
    connection = server.http()
    connection.request("GET", f"/events?{coding}", headers={"Accept-Encoding": coding})
    gunzip, unbrotli = zlib.decompressobj(31), brotlicffi.Decompressor()

    def read() -> bytes:
        data = answer.read1(65536)
        if coding == "identity" or not data:
            return data
        return gunzip.decompress(data) if coding == "gzip" else bytes(unbrotli.process(data))

    server.get(f"/next?{coding}")
    answer = connection.getresponse()
    assert answer.headers["Content-Encoding"] == (None if coding == "identity" else coding)
    assert answer.headers["Content-Length"] is None
    assert read() == b"data: 1\n\n"
    for number in range(2, 20):
        server.get(f"/next?{coding}")
        assert read() == b"data: %d\n\n" % number
    server.get(f"/last?{coding}")
    end = answer.read()
    assert (end == b"") is (coding == "identity")
    connection.close()


def test_a_client_that_leaves_ends_the_stream(server: Server) -> None:
    left = int(server.get("/left").text)
    with server.connect() as wire:
        wire.send(b"GET /events?left HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
        server.get("/next?left")
        assert wire.exactly(15) == b"HTTP/1.1 200 OK"
        wire.reset()

    def closed() -> bool:
        server.get("/next?left")
        return int(server.get("/left").text) == left + 1

    wait_until(closed, "close() of the stream")


def test_a_stream_that_fails_in_the_middle_does_not_look_whole(acme: Launcher) -> None:
    server = acme(CONFIG)
    server.errors_expected = True
    for target, message in (("/breaks", "LookupError: in the middle"), ("/short", "10 bytes less than its")):
        for coding in ("gzip", "br"):
            head = f"GET {target} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n"
            raw = server.raw(head.encode())
            assert b"Content-Encoding: " + coding.encode() in raw
            assert b"Content-Length" not in raw
            assert not raw.endswith(b"0\r\n\r\n")
            server.wait_for_log(message)
            old = server.raw(head.replace("1.1", "1.0").encode())
            with pytest.raises((EOFError, brotlicffi.error, zlib.error)):
                _whole(coding, old.partition(b"\r\n\r\n")[2])


def _whole(coding: str, data: bytes) -> bytes:
    """The decoded body; EOFError if its end is missing."""
    if coding == "gzip":
        return gzip.decompress(data)
    decoder = brotlicffi.Decompressor()
    body = bytes(decoder.process(data))
    if not decoder.is_finished():
        raise EOFError
    return body


# -- where the work is done


@pytest.mark.parametrize("target", ["/gzip/big", "/gzip/big-stream"])
def test_others_are_answered_while_a_big_body_is_encoded(server: Server, target: str) -> None:
    """One worker; /returned says that the body was handed over, and nothing of it has come yet."""
    meanwhile = 0
    for _ in range(10):
        with server.connect() as slow, server.connect() as quick:
            slow.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n".encode())
            while not select.select([slow.sock], [], [], 0)[0]:
                if quick.request("/returned").text == "1" and not select.select([slow.sock], [], [], 0)[0]:
                    meanwhile += 1
            body = decoded(slow.reply())
            assert body.removesuffix(b"end") == BIG
        if meanwhile > 5:
            break
    assert meanwhile > 5


# -- applications as they are written


def site(app: str, types: Sequence[str], **sections: Any) -> dict[str, Any]:
    return {**serves(app), "compression": {"types": [*types], "algorithms": ["gzip"]}, **sections}


def test_django(acme: Launcher, tmp_path: Path) -> None:
    env = {"SITE_DATA": str(tmp_path), "DJANGO_SETTINGS_MODULE": "tests.apps.frameworks.django_site.settings"}
    prepare_django(env)
    (tmp_path / "b.txt").write_bytes(b"line\n" * 100_000)
    server = acme(site("tests.apps.frameworks.django_site.wsgi:application", ["text/*"]), env=env)

    login = get(server, "/admin/login/", "gzip")
    assert (login.header("Content-Encoding"), login.header("Content-Length")) == (
        "gzip",
        str(len(login.body)),
    )
    assert b"Log in | Django site admin" in decoded(login)
    assert "Accept-Encoding" in (login.header("Vary") or "") and "Cookie" in (login.header("Vary") or "")
    assert b"line 9\n" in decoded(get(server, "/stream/10", "gzip"))
    file = get(server, "/file/b.txt", "gzip")
    assert (file.header("Content-Encoding"), decoded(file)) == ("gzip", b"line\n" * 100_000)
    style = get(server, "/static/admin/css/base.css", "gzip")
    assert style.header("Content-Encoding") == "gzip"
    plain = get(server, "/static/admin/css/base.css", None)
    assert decoded(style) == plain.body


def test_flask(acme: Launcher, tmp_path: Path) -> None:
    (tmp_path / "a.css").write_bytes(PAGE)
    env = {"FILES": str(tmp_path)}
    server = acme(site("tests.apps.frameworks.flask_app:app", ["text/plain", "text/css"]), env=env)
    stream = get(server, "/stream/100?word=piece", "gzip")
    assert stream.header("Content-Encoding") == "gzip"
    assert decoded(stream).decode().splitlines() == [f"piece {number}" for number in range(100)]
    file = get(server, "/file/a.css", "gzip")
    assert (file.header("Content-Encoding"), decoded(file)) == ("gzip", PAGE)
    tag = file.header("ETag")
    assert tag is not None and tag.startswith('W/"')
    again = get(server, "/file/a.css", "gzip", f"If-None-Match: {tag}")
    assert (again.status, again.header("ETag")) == (304, tag)
    part = get(server, "/file/a.css", "gzip", "Range: bytes=10-19")
    assert (part.status, part.header("Content-Encoding"), part.body) == (206, None, PAGE[10:20])
