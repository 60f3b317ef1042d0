"""The body of a request before it leaves: how long it is, what of it is here, and who waits for what."""

from __future__ import annotations

import io
from typing import Any

import pytest

from acme_wsgi.errors import BodyError
from acme_wsgi.upstream.payload import EMPTY, NOTHING, WHOLE, Payload, payload_of
from acme_wsgi.upstream.shape import CHUNKED, NO_BODY

UPGRADE = {"HTTP_CONNECTION": "Upgrade", "HTTP_UPGRADE": "websocket"}


class Input:
    """wsgi.input as the engine has it: read() of a length waits for that many bytes, or the end."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = io.BytesIO(data)
        self.reads: list[int] = []

    def read(self, size: int) -> bytes:
        self.reads.append(size)
        return self._data.read(size)

    read1 = read

    def ready_before(self, other: object) -> bool:
        raise NotImplementedError


def payload(data: bytes | None = None, method: str = "POST", **environ: Any) -> tuple[Payload, Input]:
    """Of a request with this body: with a length unless told otherwise; None: without one."""
    reader = Input(data or b"")
    told: dict[str, Any] = {"SERVER_PROTOCOL": "HTTP/1.1", "wsgi.input": reader}
    if data is not None and "HTTP_TRANSFER_ENCODING" not in environ:
        told["CONTENT_LENGTH"] = str(len(data))
    return payload_of({**told, **environ}, method, 60.0), reader


CHUNKS = {"HTTP_TRANSFER_ENCODING": "chunked"}
EXPECT = {"HTTP_EXPECT": "100-continue"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "REPORT"])
def test_most_requests_say_nothing_of_a_body(method: str) -> None:
    found, reader = payload(method=method)
    assert found is NOTHING and not reader.reads
    assert (found.length, found.data, found.expect, found.upgrade) == (NO_BODY, b"", False, False)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_where_one_is_to_be_expected_its_absence_is_said(method: str) -> None:
    found, reader = payload(method=method)
    assert found is EMPTY and not reader.reads
    assert (found.length, found.data) == (0, b"")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("length", [0, 1, 100, WHOLE])
def test_a_small_one_is_here_and_can_be_sent_again(method: str, length: int) -> None:
    found, reader = payload(b"x" * length, method)
    assert (found.length, found.data, found.first) == (length, b"x" * length, b"")
    assert reader.reads == [length]
    assert not found.expect and not found.upgrade


@pytest.mark.parametrize("length", [WHOLE + 1, 1 << 40])
def test_a_large_one_is_left_to_whoever_sends_it(length: int) -> None:
    found, reader = payload(CONTENT_LENGTH=str(length))
    assert (found.length, found.data, found.first, found.expect) == (length, None, b"", False)
    assert found.reader is reader and not reader.reads


@pytest.mark.parametrize("length", [0, 1, WHOLE - 1])
def test_small_chunks_become_a_length(length: int) -> None:
    found, reader = payload(b"x" * length, **CHUNKS)
    assert (found.length, found.data) == (length, b"x" * length)
    assert reader.reads == [WHOLE]


@pytest.mark.parametrize("length", [WHOLE, WHOLE + 1, 3 * WHOLE])
def test_many_chunks_are_passed_on_as_they_come(length: int) -> None:
    found, reader = payload(b"x" * length, **CHUNKS)
    assert (found.length, found.data, found.first) == (CHUNKED, None, b"x" * WHOLE)
    assert found.reader is reader and reader.reads == [WHOLE]


@pytest.mark.parametrize(
    ("environ", "length"),
    [({"CONTENT_LENGTH": "5"}, 5), ({"CONTENT_LENGTH": "999999"}, 999999), (CHUNKS, CHUNKED)],
)
def test_who_waits_for_a_100_is_not_read_before_it(environ: dict[str, str], length: int) -> None:
    found, reader = payload(**environ, **EXPECT)
    assert (found.length, found.data, found.first, found.expect) == (length, None, b"", True)
    assert found.reader is reader and not reader.reads


@pytest.mark.parametrize(
    "environ", [{"CONTENT_LENGTH": "0"}, {"CONTENT_LENGTH": "3", "SERVER_PROTOCOL": "HTTP/1.0"}, {}]
)
def test_who_has_nothing_to_wait_for_does_not(environ: dict[str, str]) -> None:
    found, _ = payload(**environ, **EXPECT)
    assert not found.expect and found.data is not None


def test_a_body_that_breaks_off_is_the_clients_error() -> None:
    class Broken(Input):
        def read(self, size: int) -> bytes:
            raise BodyError("cut")

    with pytest.raises(BodyError):
        payload(CONTENT_LENGTH="5", **{"wsgi.input": Broken()})


@pytest.mark.parametrize("size", [5, WHOLE + 1])
def test_where_a_route_takes_the_expectation_out_the_body_is_read_as_any_other(size: int) -> None:
    told = {"SERVER_PROTOCOL": "HTTP/1.1", "CONTENT_LENGTH": str(size), "wsgi.input": Input(b"x" * size)}
    found = payload_of({**told, **EXPECT}, "POST", 60.0, frozenset({"HTTP_EXPECT"}))
    assert not found.expect and found.length == size
    assert found.data == (b"x" * size if size <= WHOLE else None)


# -- another protocol -------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", ["Upgrade", "upgrade", "keep-alive, UPGRADE", " ,upgrade ,x"])
@pytest.mark.parametrize("protocol", ["websocket", "WebSocket", "echo/2, chat", "irc/6.9", "httpx", "tlsx/1"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_upgrade_that_connection_names_is_passed_on(connection: str, protocol: str, method: str) -> None:
    found, reader = payload(method=method, HTTP_CONNECTION=connection, HTTP_UPGRADE=protocol)
    assert found.upgrade and found.tunnel_idle == 60.0
    assert (found.length, found.data) == (NO_BODY, b"") and not reader.reads


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_UPGRADE": "websocket"},
        {"HTTP_CONNECTION": "upgrade"},
        {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "keep-alive, x-upgrade, upgrade2"},
        {**UPGRADE, "SERVER_PROTOCOL": "HTTP/1.0"},
        {**UPGRADE, "CONTENT_LENGTH": "0"},
        {**UPGRADE, "CONTENT_LENGTH": "3"},
        {**UPGRADE, **CHUNKS},
    ],
)
def test_one_that_does_not_count_is_not(environ: dict[str, str]) -> None:
    found, _ = payload(method="GET", **environ)
    assert not found.upgrade


@pytest.mark.parametrize(
    "protocol",
    ["h2c", "H2C", "websocket, h2c", "h2c,websocket", "\th2c ", "HTTP/2.0", "http", "TLS/1.3",
     "tls/1.0, HTTP/1.1", "h2", "h2 /1", "HTTP /2", "", ",", "websocket,"],
)  # fmt: skip
def test_one_to_http_would_lead_past_the_routes(protocol: str) -> None:
    found, _ = payload(method="GET", HTTP_CONNECTION="Upgrade", HTTP_UPGRADE=protocol)
    assert found is NOTHING


def test_one_that_a_route_takes_out_is_a_plain_request() -> None:
    told = {"SERVER_PROTOCOL": "HTTP/1.1", **UPGRADE}
    assert payload_of(told, "GET", 60.0, frozenset({"HTTP_UPGRADE"})) is NOTHING
