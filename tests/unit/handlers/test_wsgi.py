"""The WSGI adapter against PEP 3333, sentence by sentence."""

from __future__ import annotations

import gzip
import io
import os
import sys
import tempfile
import warnings
import wsgiref.validate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeRequest, Received, receive

from acme_wsgi.errors import BootError
from acme_wsgi.handlers import Context
from acme_wsgi.handlers.wsgi import FileWrapper, adapt, build, file_body, with_routing_args
from acme_wsgi.http.writer import FileBody, Response

PLAIN = [("Content-Type", "text/plain")]


def call(application: Any, request: FakeRequest | None = None) -> Response:
    return adapt(application, "application test:app")(request or FakeRequest())


def get(application: Any, request: FakeRequest | None = None) -> Received:
    return receive(call(application, request))


class Closing:
    """An iterable that counts its close() calls."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        chunk = next(self.chunks)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        self.closed += 1


def test_one_bytes_in_a_list_is_the_body_itself() -> None:
    body = b"Hello"

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [body]

    response = call(app)
    assert (response.status, response.headers) == ("200 OK", PLAIN)
    assert response.body is body
    assert response.close is None


@pytest.mark.parametrize("result", [[b"ab", b"", b"cd"], (b"ab", b"cd"), (b"abcd",)])
def test_small_lists_and_tuples_become_one_body(result: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return result

    assert call(app).body == b"abcd"


@pytest.mark.parametrize("result", [[], (), [b""], iter([]), [b"", b""], iter([b"", b""])])
def test_an_empty_iterable_is_an_empty_body(result: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("204 No Content", [])
        return result

    assert call(app).body == b""


def test_big_lists_are_not_copied_together() -> None:
    chunks = [bytes(40000), bytes(40000)]

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return chunks

    response = call(app)
    assert all(sent is chunk for sent, chunk in zip(response.body, chunks, strict=True))


def test_start_response_in_the_first_next() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        yield b""
        yield b"late"
        yield b"r"

    assert get(app).body == b"later"


def test_only_the_first_chunk_is_pulled_before_the_head() -> None:
    pulled = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        for chunk in (b"", b"1", b"2"):
            pulled.append(chunk)
            yield chunk

    response = call(app)
    assert pulled == [b"", b"1"]
    assert receive(response).body == b"12"


def test_never_calling_start_response_is_an_error_that_closes() -> None:
    result = Closing(b"x")
    with pytest.raises(AssertionError, match="test:app: start_response"):
        call(lambda environ, start_response: result)
    assert result.closed == 1


@pytest.mark.parametrize("result", [[b"x"], (b"x", b"y"), []])
def test_lists_without_start_response_are_an_error_too(result: Any) -> None:
    with pytest.raises(AssertionError, match="start_response"):
        call(lambda environ, start_response: result)


def test_a_second_start_response_needs_exc_info() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        start_response("200 OK", PLAIN)
        return [b""]

    with pytest.raises(AssertionError, match="again without exc_info"):
        call(app)


def test_exc_info_replaces_a_head_that_is_not_sent() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-Wrong", "1")])
        try:
            raise KeyError("x")
        except KeyError:
            start_response("500 Sorry", PLAIN, sys.exc_info())
        return [b"sorry"]

    assert get(app) == Received("500 Sorry", PLAIN, b"sorry")


def test_exc_info_is_raised_again_once_the_first_chunk_is_out() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        yield b"first"
        try:
            raise KeyError("too late")
        except KeyError:
            start_response("500 Sorry", PLAIN, sys.exc_info())
        yield b"never"

    response = call(app)
    with pytest.raises(KeyError, match="too late"):
        receive(response)
    assert response.status == "200 OK"


def test_exc_info_is_raised_again_after_write() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)(b"out")
        try:
            raise KeyError("too late")
        except KeyError:
            start_response("500 Sorry", PLAIN, sys.exc_info())
        return []

    with pytest.raises(KeyError, match="too late"):
        call(app)


def test_exc_info_may_come_with_the_first_call() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        try:
            raise KeyError("x")
        except KeyError:
            start_response("500 Sorry", PLAIN, sys.exc_info())
        return [b"sorry"]

    assert get(app).status == "500 Sorry"


def test_write_sends_head_and_data_at_once_and_the_result_follows() -> None:
    request = FakeRequest()
    result = Closing(b"", b"c", b"d")

    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        assert request.sent == []
        write(b"a")
        assert request.sent == [("200 OK", PLAIN), b"a"]
        write(b"b")
        return result

    response = call(app, request)
    assert request.sent == [("200 OK", PLAIN), b"a", b"b", b"c", b"d"]
    assert receive(response).body == b""
    assert result.closed == 1


def test_write_of_an_empty_string_sends_the_head() -> None:
    request = FakeRequest()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)(b"")
        return [b"rest"]

    call(app, request)
    assert request.sent == [("200 OK", PLAIN), b"", b"rest"]


def test_write_then_a_file_wrapper_sends_the_file_behind_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"file")
    request = FakeRequest()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)(b"first ")
        return environ["wsgi.file_wrapper"](open(tmp_path / "f", "rb"))

    receive(call(app, request))
    assert request.sent == [("200 OK", PLAIN), b"first ", b"file"]


def test_write_after_the_response_was_handed_over_is_refused() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        yield b"a"
        write(b"b")

    with pytest.raises(AssertionError, match="handed over"):
        get(app)


def test_write_needs_bytes() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)("text")
        return []

    with pytest.raises(TypeError, match=r"test:app: write\(\) needs bytes, not str"):
        call(app)


def test_close_is_called_once_by_the_end_and_not_before() -> None:
    result = Closing(b"a", b"b")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return result

    response = call(app)
    assert result.closed == 0
    assert receive(response).body == b"ab"
    assert result.closed == 1


def test_close_is_called_when_the_first_next_fails() -> None:
    result = Closing(KeyError("broken"))

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return result

    with pytest.raises(KeyError, match="broken"):
        call(app)
    assert result.closed == 1


def test_close_is_called_when_a_later_next_fails() -> None:
    result = Closing(b"a", KeyError("broken"))

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return result

    response = call(app)
    with pytest.raises(KeyError, match="broken"):
        receive(response)
    assert result.closed == 1


def test_a_list_subclass_keeps_its_close() -> None:
    closed = []

    class ClosingList(list):  # type: ignore[type-arg]
        def close(self) -> None:
            closed.append(self)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return ClosingList([b"x"])

    assert get(app).body == b"x"
    assert len(closed) == 1


def test_exceptions_of_the_application_pass_through() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call(app)


@pytest.mark.parametrize("name", ["Transfer-Encoding", "proxy-connection", "UPGRADE", "Connection", "TE"])
def test_hop_by_hop_headers_are_refused(name: str) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [*PLAIN, (name, "upgrade")])
        return [b""]

    with pytest.raises(ValueError, match=f"test:app: the hop-by-hop header '{name}'"):
        call(app)


def test_asking_to_keep_the_connection_is_harmless_and_not_passed_on() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Connection", "keep-alive"), ("Keep-Alive", "timeout=5"), *PLAIN])
        return [b""]

    assert call(app).headers == PLAIN


def test_connection_close_closes_the_connection_and_is_not_passed_on() -> None:
    request = FakeRequest()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [*PLAIN, ("connection", "Close")])
        return [b""]

    assert call(app, request).headers == PLAIN
    assert request.closes_connection


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (b"200 OK", PLAIN, "status must be str, not bytes"),
        (200, PLAIN, "status must be str, not int"),
        (["200 OK"], PLAIN, "status must be str, not list"),
        ("OK", PLAIN, "bad status 'OK'"),
        ("2000 OK", PLAIN, "bad status"),
        ("103 Early Hints", PLAIN, "bad status"),
        ("٢٠٠ OK", PLAIN, "bad status"),
        ("200 OK", tuple(PLAIN), "headers must be a list, not tuple"),
        ("200 OK", None, "headers must be a list, not NoneType"),
        ("200 OK", [("A",)], "a header must be a tuple of two str"),
        ("200 OK", [("A", "b", "c")], "a header must be a tuple of two str"),
        ("200 OK", ["ab"], "a header must be a tuple of two str"),
        ("200 OK", [("X-Fresh-Name", 1)], "a header must be a tuple of two str"),
        ("200 OK", [(b"Content-Type", "x")], "a header must be a tuple of two str"),
        ("200 OK", [([], "x")], "a header must be a tuple of two str"),
        ("200 OK", [7], "a header must be a tuple of two str"),
    ],
)
def test_bad_arguments_raise_into_the_application(status: Any, headers: Any, message: str) -> None:
    raised = []

    def app(environ: Any, start_response: Any) -> Any:
        try:
            start_response(status, headers)
        except (TypeError, ValueError) as error:
            raised.append(error)
            raise
        return [b""]

    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call(app)
    assert raised == [caught.value]
    assert str(caught.value).startswith("application test:app: ")
    assert caught.value.__context__ is None


def test_a_status_without_a_phrase_gets_one() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("404", PLAIN)
        return [b""]

    assert call(app).status == "404 Not Found"


@pytest.mark.parametrize(
    "result", [["text"], ["a", "b"], iter(["text"]), iter([b"", "text"]), [None], "text"]
)
def test_chunks_must_be_bytes(result: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return result

    with pytest.raises(TypeError, match="test:app: a body chunk must be bytes, not "):
        call(app)


def test_a_later_chunk_that_is_not_bytes_names_the_application() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        yield b"good"
        yield "bad"

    with pytest.raises(TypeError, match="test:app: a body chunk must be bytes, not str"):
        get(app)


def test_returning_none_names_the_application() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)

    with pytest.raises(TypeError, match="test:app: must return an iterable of bytes, not NoneType"):
        call(app)


# -- wsgi.file_wrapper


def test_a_real_file_is_a_file_body_from_its_position(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    file = open(tmp_path / "f", "rb")  # noqa: SIM115 - whether it is closed is the point
    assert file.read(3) == b"012"

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](file, 8192)

    response = call(app)
    assert isinstance(response.body, FileBody)
    assert (response.body.offset, response.body.count) == (3, 7)
    assert not file.closed
    assert receive(response).body == b"3456789"
    assert file.closed


def test_the_applications_content_length_bounds_the_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("206 Partial Content", [("content-length", "4")])
        return environ["wsgi.file_wrapper"](open(tmp_path / "f", "rb"))

    response = call(app)
    assert isinstance(response.body, FileBody)
    assert response.body.count == 4
    receive(response)


def test_what_is_no_real_file_is_read_in_blocks() -> None:
    class Source:
        def __init__(self) -> None:
            self.sizes: list[int] = []
            self.blocks = [b"ab", b"cd", b""]

        def read(self, size: int) -> bytes:
            self.sizes.append(size)
            return self.blocks.pop(0)

    source = Source()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        wrapper = environ["wsgi.file_wrapper"](source, 17)
        assert not hasattr(wrapper, "close")
        return wrapper

    assert get(app).body == b"abcd"
    assert source.sizes == [17, 17, 17]


def test_a_file_inside_gzip_is_not_mistaken_for_the_content(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "f.gz", "wb") as file:
        file.write(b"plain text")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](gzip.open(tmp_path / "f.gz", "rb"))

    assert get(app).body == b"plain text"


def test_temporary_files_are_real_files() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"content")
        file.flush()
        file.seek(2)
        body = file_body(file)
        assert body is not None
        assert (body.offset, body.count) == (2, 5)


def test_unbuffered_files_are_real_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with open(tmp_path / "f", "rb", buffering=0) as file:
        body = file_body(file)
        assert body is not None
        assert body.count == 10


def test_a_position_behind_the_end_is_an_empty_body(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with open(tmp_path / "f", "rb") as file:
        file.seek(99)
        body = file_body(file)
        assert body is not None
        assert body.count == 0


def test_pipes_text_and_memory_are_no_real_files(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb"):
        assert file_body(pipe) is None
    with open(tmp_path / "t", "w+") as text:
        assert file_body(text) is None
    assert file_body(io.BytesIO(b"x")) is None
    with open(tmp_path / "t", "rb") as closed:
        pass
    assert file_body(closed) is None


# -- conformance


def plain(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", list(PLAIN))
    return [b"plain"]


def generator(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", list(PLAIN))
    yield b"one "
    yield b"two"


def writing(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", list(PLAIN))(b"written ")
    return [b"returned"]


def reading(environ: Any, start_response: Any) -> Any:
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", list(PLAIN))
    return [body]


def failing(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", list(PLAIN))
    try:
        raise KeyError
    except KeyError:
        start_response("500 Internal Server Error", list(PLAIN), sys.exc_info())
    return [b"failed"]


@pytest.mark.parametrize("application", [plain, generator, writing, reading, failing])
def test_the_reference_validator_stays_silent(application: Any) -> None:
    request = FakeRequest(method="POST", path="/v", body=b"posted")
    del request.environ["wsgi.file_wrapper"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        received = get(wsgiref.validate.validator(application), request)
    whole = b"".join(part for part in request.sent if isinstance(part, bytes)) + received.body
    expected = {
        plain: b"plain",
        generator: b"one two",
        writing: b"written returned",
        reading: b"posted",
        failing: b"failed",
    }
    assert whole == expected[application]


def test_captured_parameters_reach_the_application() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return [repr(environ["wsgiorg.routing_args"]).encode()]

    request = FakeRequest("/users/7")
    request.params = {"id": "7"}
    context = Context("route /users/:id", lambda spec: None, frozenset({"id"}))
    assert receive(with_routing_args(adapt(app, "app"), context)(request)).body == b"((), {'id': '7'})"


def test_nothing_goes_around_an_application_without_parameters() -> None:
    handle = adapt(plain, "app")
    assert with_routing_args(handle, Context("route /*", lambda spec: None)) is handle


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """An application for another protocol."""


class AsgiFramework:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As frameworks are: an instance."""


@pytest.mark.parametrize(
    ("loaded", "message"),
    [(asgi, "ASGI application"), (AsgiFramework(), "ASGI application"), ({}, "is callable; this is dict")],
)
def test_what_is_no_wsgi_application_fails_at_the_start(loaded: Any, message: str) -> None:
    route: Any = SimpleNamespace(app="test:app")
    with pytest.raises(BootError, match=message):
        build(route, Context("route /*", lambda spec: loaded))


def test_build_serves_what_it_loads() -> None:
    route: Any = SimpleNamespace(app="test:app")
    handle = build(route, Context("route /*", {"test:app": plain}.__getitem__))
    assert receive(handle(FakeRequest())).body == b"plain"


def test_the_file_wrapper_has_close_only_if_the_file_has() -> None:
    assert hasattr(FileWrapper(io.BytesIO()), "close")
    assert list(FileWrapper(io.BytesIO(b"abc"), 2)) == [b"ab", b"c"]
