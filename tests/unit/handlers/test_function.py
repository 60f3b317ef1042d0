"""Functions as handlers: everything they may return, and everything they may not."""

from __future__ import annotations

import gzip
import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from fakes import FakeRequest, Received, receive
from werkzeug.datastructures import Headers
from werkzeug.exceptions import NotFound, abort
from werkzeug.utils import redirect, send_file
from werkzeug.wrappers import Response as WerkzeugResponse

from acme_wsgi.errors import BootError, HTTPError
from acme_wsgi.handlers import Context
from acme_wsgi.handlers.function import Request, adapt, build
from acme_wsgi.http.writer import FileBody, Response

HTML = "text/html; charset=utf-8"


def call(value: Any, request: FakeRequest | None = None) -> Response:
    return adapt(lambda _: value, "handler test:page")(request or FakeRequest())


def get(value: Any, request: FakeRequest | None = None) -> Received:
    return receive(call(value, request))


class Name(str):
    """A str that isn't exactly str, as template engines return."""


@pytest.mark.parametrize(
    ("value", "content_type", "body"),
    [
        ("grüß", HTML, "grüß".encode()),
        (Name("x"), HTML, b"x"),
        ("", HTML, b""),
        (b"\x00\xff", "application/octet-stream", b"\x00\xff"),
        (bytearray(b"ab"), "application/octet-stream", b"ab"),
        ({"a": [1, "ü"]}, "application/json", '{"a":[1,"ü"]}'.encode()),
        (OrderedDict(a=1), "application/json", b'{"a":1}'),
        ([1, None], "application/json", b"[1,null]"),
        ([], "application/json", b"[]"),
    ],
)
def test_values(value: Any, content_type: str, body: bytes) -> None:
    assert get(value) == Received("200 OK", [("Content-Type", content_type)], body)


def test_json_of_what_has_one_obvious_spelling() -> None:
    moment = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)
    value = {"d": date(2024, 2, 29), "t": moment, "n": Decimal("1.10"), "u": UUID(int=1)}
    assert json.loads(get(value).body) == {
        "d": "2024-02-29",
        "t": "2024-02-29T12:00:00+00:00",
        "n": "1.10",
        "u": "00000000-0000-0000-0000-000000000001",
    }


@pytest.mark.parametrize("value", [{"x": object()}, {"x": float("nan")}, [{1, 2}]])
def test_what_json_cannot_say_is_an_error(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        call(value)


@pytest.mark.parametrize(
    ("value", "status", "headers", "body"),
    [
        (("made", 201), "201 Created", [("Content-Type", HTML)], b"made"),
        (("made", HTTPStatus.CREATED), "201 Created", [("Content-Type", HTML)], b"made"),
        (("odd", "299 Odd"), "299 Odd", [("Content-Type", HTML)], b"odd"),
        (("big", 413), "413 Content Too Large", [("Content-Type", HTML)], b"big"),
        (("", 204), "204 No Content", [], b""),
        ((None, 204), "204 No Content", [], b""),
        ((None, 404, {"X": "1"}), "404 Not Found", [("X", "1")], b""),
        (("t", 200, {"content-type": "text/plain"}), "200 OK", [("content-type", "text/plain")], b"t"),
        (({"a": 1}, 400, [("X", "1")]), "400 Bad Request",
         [("Content-Type", "application/json"), ("X", "1")], b'{"a":1}'),
        (("c", 200, {"Set-Cookie": ["a=1", "b=2"], "Age": 5}), "200 OK",
         [("Content-Type", HTML), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Age", "5")], b"c"),
        (("h", 200, Headers([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])), "200 OK",
         [("Content-Type", HTML), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], b"h"),
    ],
)  # fmt: skip
def test_tuples(value: Any, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
    assert get(value) == Received(status, headers, body)


def test_a_tuple_may_carry_a_response_and_its_cookies_stay() -> None:
    response = WerkzeugResponse("x", content_type="text/plain")
    response.set_cookie("a", "1")
    received = get((response, 202, [("Set-Cookie", "b=2"), ("Content-Type", "text/css")]))
    assert received.status == "202 Accepted"
    assert [value for name, value in received.headers if name == "Set-Cookie"] == ["a=1; Path=/", "b=2"]
    assert received.header("Content-Type") == "text/css"


@pytest.mark.parametrize(
    "value",
    [None, 7, 1.5, True, object(), {1, 2}, (), ("x",), ("x", 200, {}, 4), (("x", 200), 200), ("x", 3.0),
     ("x", None),
     ("x", 99), ("x", 1000), ("x", "fine"), ("x", {"X": "1"}), ("x", 200, "X: 1"), ("x", 200, [("X",)]),
     ("x", 200, {"X": None}), ("x", 200, {1: "x"}), ("x", 200, {"Transfer-Encoding": "chunked"})],
)  # fmt: skip
def test_what_cannot_be_returned_names_the_handler(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^handler test:page"):
        call(value)


def test_none_says_what_to_return_instead() -> None:
    with pytest.raises(
        TypeError, match=r"returned None; return a Response, str, .*for an empty answer: '', 204"
    ):
        call(None)


def test_iterators_stream_str_and_bytes() -> None:
    def chunks() -> Iterator[Any]:
        yield ""
        yield "grüß "
        yield b"bytes"

    response = call(chunks())
    assert response.headers == [("Content-Type", HTML)]
    assert not isinstance(response.body, bytes)
    assert receive(response).body == "grüß bytes".encode()


def test_a_stream_of_bytes_is_binary_unless_the_handler_says_otherwise() -> None:
    assert get(iter([b"x"])).header("Content-Type") == "application/octet-stream"
    stream = (iter([b"x"]), 200, {"Content-Type": "text/event-stream"})
    assert get(stream).headers == [("Content-Type", "text/event-stream")]


def test_an_empty_stream_is_an_empty_body() -> None:
    assert get(iter([])).body == b""


def test_a_stream_is_pulled_only_once_before_the_head_and_closed_after() -> None:
    events = []

    def chunks() -> Iterator[str]:
        try:
            for number in range(3):
                events.append(number)
                yield str(number)
        finally:
            events.append("closed")

    response = call(chunks())
    assert events == [0]
    assert response.close is not None
    response.close()
    assert events == [0, "closed"]


def test_a_stream_that_fails_at_once_is_closed_and_raises() -> None:
    closed = []

    class Failing:
        def __iter__(self) -> Failing:
            return self

        def __next__(self) -> bytes:
            raise KeyError("first")

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(KeyError, match="first"):
        call(Failing())
    assert closed == [True]


@pytest.mark.parametrize("chunks", [[7], [b"", 7], ["a", 7]])
def test_chunks_are_str_or_bytes(chunks: Any) -> None:
    with pytest.raises(TypeError, match="test:page: a chunk must be str or bytes, not int"):
        get(iter(chunks))


# -- files


def test_an_open_file_is_sent_as_a_file_with_the_type_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "style.css").write_bytes(b"0123456789")
    file = open(tmp_path / "style.css", "rb")  # noqa: SIM115 - whether it is closed is the point
    file.seek(4)
    response = call(file)
    assert isinstance(response.body, FileBody)
    assert not file.closed
    assert receive(response) == Received("200 OK", [("Content-Type", "text/css; charset=utf-8")], b"456789")
    assert file.closed


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("a.tar.gz", "application/gzip"), ("a.png", "image/png"), ("noname", "application/octet-stream")],
)
def test_types_of_names(tmp_path: Path, name: str, content_type: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert get(open(tmp_path / name, "rb")).header("Content-Type") == content_type  # noqa: SIM115


def test_files_in_memory_and_inside_gzip_are_read(tmp_path: Path) -> None:
    assert get(io.BytesIO(b"memory")).body == b"memory"
    with gzip.open(tmp_path / "f.gz", "wb") as file:
        file.write(b"unpacked")
    assert get(gzip.open(tmp_path / "f.gz", "rb")).body == b"unpacked"  # noqa: SIM115


def test_text_files_are_refused_and_closed(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x")
    file = open(tmp_path / "t.txt")  # noqa: SIM115
    with pytest.raises(TypeError, match="open as text; open it with 'rb'"):
        call(file)
    assert file.closed


def test_a_file_is_closed_when_what_comes_with_it_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    file = open(tmp_path / "f", "rb")  # noqa: SIM115
    with pytest.raises(ValueError, match="bad status"):
        call((file, 99))
    assert file.closed


# -- werkzeug's responses


def test_a_werkzeug_response_keeps_status_headers_and_cookies() -> None:
    value = WerkzeugResponse("grüß", status=418, content_type="text/plain; charset=utf-8")
    value.set_cookie("a", "1")
    value.set_cookie("b", "2")
    closed = []
    value.call_on_close(lambda: closed.append(True))
    received = get(value)
    assert received.status.startswith("418 ")
    assert received.body == "grüß".encode()
    assert received.header("Content-Length") == "6"
    assert len([1 for name, _ in received.headers if name == "Set-Cookie"]) == 2
    assert closed == [True]


def test_a_streamed_werkzeug_response() -> None:
    closed = []

    def chunks() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    received = get(WerkzeugResponse(chunks(), content_type="text/plain"))
    assert received.body == b"ab"
    assert received.header("Content-Length") is None
    assert closed == [True]


def test_send_file_is_sent_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(b"0123456789")
    request = FakeRequest()
    response = call(send_file(tmp_path / "f.bin", request.environ), request)
    assert isinstance(response.body, FileBody)
    assert (response.body.offset, response.body.count) == (0, 10)
    assert receive(response).header("Content-Length") == "10"


def test_send_file_answers_ranges(tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(b"0123456789")
    request = FakeRequest(HTTP_RANGE="bytes=2-4")
    received = get(send_file(tmp_path / "f.bin", request.environ, conditional=True), request)
    assert (received.status[:3], received.body) == ("206", b"234")


def test_a_response_to_head_keeps_its_length() -> None:
    assert get(WerkzeugResponse("12345"), FakeRequest(method="HEAD")).header("Content-Length") == "5"


def test_http_exceptions_are_their_responses() -> None:
    def missing(request: Request) -> str:
        raise NotFound("no such page")

    received = receive(adapt(missing, "handler test:missing")(FakeRequest()))
    assert received.status.upper() == "404 NOT FOUND"
    assert b"no such page" in received.body
    assert get(NotFound("returned")).status.startswith("404")


def test_abort_with_a_response() -> None:
    def moved(request: Request) -> str:
        abort(redirect("/there", 308))

    received = receive(adapt(moved, "handler test:moved")(FakeRequest()))
    assert (received.status[:3], received.header("Location")) == ("308", "/there")


def test_other_exceptions_pass_through() -> None:
    def broken(request: Request) -> str:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        adapt(broken, "handler test:broken")(FakeRequest())

    def refusing(request: Request) -> str:
        raise HTTPError(429)

    with pytest.raises(HTTPError, match="429"):
        adapt(refusing, "handler test:refusing")(FakeRequest())


def test_connection_close_from_a_response() -> None:
    request = FakeRequest()
    assert get(("x", 200, {"Connection": "close"}), request).headers == [("Content-Type", HTML)]
    assert request.closes_connection


# -- the request


def test_the_request_knows_the_parameters() -> None:
    def page(request: Request) -> dict[str, Any]:
        return {
            "id": request.path_params["id"],
            "same": request.params == request.path_params,
            "q": request.args["q"],
        }

    request = FakeRequest("/users/7", query="q=1")
    request.params = {"id": "7"}
    received = receive(adapt(page, "handler test:page")(request))
    assert json.loads(received.body) == {"id": "7", "same": True, "q": "1"}


def test_uploads_are_closed_with_the_response() -> None:
    boundary = b"--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\ncontent\r\n--b--\r\n"
    streams = []

    def upload(request: Request) -> str:
        streams.append(request.files["f"].stream)
        return "ok"

    request = FakeRequest(method="POST", body=boundary, CONTENT_TYPE="multipart/form-data; boundary=b")
    response = adapt(upload, "handler test:upload")(request)
    assert streams[0].read() == b"content"
    receive(response)
    assert streams[0].closed


# -- build


async def asynchronous(request: Request) -> str:
    return "x"


async def stream(request: Request) -> Any:
    yield "x"


@pytest.mark.parametrize(
    ("loaded", "message"), [(asynchronous, "async"), (stream, "async"), (7, "is a function")]
)
def test_what_is_no_plain_function_fails_at_the_start(loaded: Any, message: str) -> None:
    with pytest.raises(BootError, match=message):
        build(SimpleNamespace(handler="test:x"), Context("route /x", lambda spec: loaded))  # type: ignore[arg-type]


def test_a_coroutine_is_refused_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="test:page returned coroutine"):
            call(asynchronous(None))  # type: ignore[arg-type]
