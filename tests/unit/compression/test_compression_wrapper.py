"""What goes around a handler: which responses are encoded, what their heads say, and who sees an error."""

from __future__ import annotations

import gzip
import io
import logging
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import brotli
import pytest
from fakes import FakeRequest, Received, receive
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.compression import bodies
from acme_wsgi.compression.wrapper import with_compression
from acme_wsgi.config.schema.content import Compression
from acme_wsgi.handlers.wsgi import adapt
from acme_wsgi.http.writer import FileBody, Parts, Prepared, Response

HTML = ("Content-Type", "text/html; charset=utf-8")
PAGE = b"".join(b"<li>item %d of the list</li>\n" % number for number in range(400))
EVENTS = Compression(types=("text/event-stream",))


def decode(got: Received) -> bytes:
    coding = got.header("Content-Encoding")
    if coding == "br":
        return cast(bytes, brotli.decompress(got.body))
    return gzip.decompress(got.body) if coding == "gzip" else got.body


def answer(
    body: Any = PAGE,
    *headers: tuple[str, str],
    accept: str | None = "gzip",
    method: str = "GET",
    status: str = "200 OK",
    settings: Compression = Compression(),  # noqa: B008 - frozen
    **environ: str,
) -> Received:
    """What a client gets of a response with an HTML Content-Type and `headers`."""
    fields = [*headers] if any(name.lower() == "content-type" for name, _ in headers) else [HTML, *headers]
    before = fields.copy()
    if accept is not None:
        environ["HTTP_ACCEPT_ENCODING"] = accept
    handler = with_compression(lambda request: Response(status, fields, body), settings)
    got = receive(handler(FakeRequest(method=method, **environ)))
    assert fields == before, "the application's own list was changed"
    return got


def untouched(got: Received) -> bool:
    return all(got.header(name) is None for name in ("Content-Encoding", "Vary"))


# -- whole bodies


@pytest.mark.parametrize(
    ("accept", "coding"), [("gzip", "gzip"), ("gzip, deflate, br", "br"), ("br;q=0, *", "gzip")]
)
def test_a_page_is_encoded_as_the_client_likes_it(accept: str, coding: str) -> None:
    got = answer(accept=accept)
    assert got.header("Content-Encoding") == coding
    assert got.header("Vary") == "Accept-Encoding"
    assert len(got.body) < len(PAGE) / 3
    assert decode(got) == PAGE


@pytest.mark.parametrize("accept", [None, "", "identity", "gzip;q=0, br;q=0", "zstd"])
def test_who_takes_no_coding_gets_none_and_caches_are_told(accept: str | None) -> None:
    got = answer(accept=accept)
    assert (got.body, got.header("Content-Encoding"), got.header("Vary")) == (PAGE, None, "Accept-Encoding")


def test_the_configured_order_and_algorithms_count() -> None:
    both = "br, gzip"
    assert (
        answer(accept=both, settings=Compression(algorithms=("gzip", "brotli"))).header("Content-Encoding")
        == "gzip"
    )
    assert (
        answer(accept=both, settings=Compression(algorithms=("gzip",))).header("Content-Encoding") == "gzip"
    )
    assert answer(accept="br", settings=Compression(algorithms=("gzip",))).header("Content-Encoding") is None


def test_the_level_counts() -> None:
    text = b" ".join(b"%d" % (number * number % 7919) for number in range(5000))
    sizes = [len(answer(text, settings=Compression(level=level)).body) for level in (1, 9)]
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize(
    ("kind", "encoded"),
    [
        ("text/html", True),
        ("TEXT/HTML;charset=utf-8", True),
        ("text/html ; charset=utf-8", True),
        ("application/json", True),
        ("image/svg+xml", True),
        ("text/plain", False),
        ("image/png", False),
        ("application/octet-stream", False),
        ("", False),
        ("text/html, text/plain", False),
    ],
)
def test_only_the_listed_types_are_encoded(kind: str, encoded: bool) -> None:
    got = answer(PAGE, ("content-type", kind))
    assert (got.header("Content-Encoding") == "gzip") is encoded
    assert encoded or untouched(got)


def test_a_type_may_be_a_family() -> None:
    got = answer(PAGE, ("Content-Type", "text/plain"), settings=Compression(types=("text/*",)))
    assert got.header("Content-Encoding") == "gzip"


def test_a_body_without_a_type_stays_as_it_is() -> None:
    handler = with_compression(lambda request: Response("200 OK", [], PAGE), Compression())
    assert untouched(receive(handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip"))))


def test_many_types_do_not_fill_the_memory() -> None:
    for number in range(1000):
        assert answer(PAGE, ("Content-Type", f"text/html; n={number}")).header("Content-Encoding") == "gzip"


@pytest.mark.parametrize(
    ("size", "encoded"), [(0, False), (999, False), (1000, True), (5000, True), (5001, False)]
)
def test_sizes_have_two_ends(size: int, encoded: bool) -> None:
    got = answer(bytes(size), settings=Compression(min_size=1000, max_size=5000))
    assert (got.header("Content-Encoding") == "gzip") is encoded
    assert got.header("Vary") == "Accept-Encoding"
    assert decode(got) == bytes(size)


def test_who_refuses_the_body_as_it_is_gets_small_ones_encoded_too() -> None:
    got = answer(b"tiny", accept="gzip, identity;q=0")
    assert (got.header("Content-Encoding"), decode(got)) == ("gzip", b"tiny")
    assert answer(b"", accept="gzip, identity;q=0").header("Content-Encoding") is None
    assert answer(b"tiny", accept="zstd, identity;q=0").body == b"tiny"


def test_what_does_not_get_smaller_stays_as_it_is() -> None:
    noise = random.Random(7).randbytes(2000)
    got = answer(noise, ("ETag", '"x"'))
    assert (got.body, got.header("Content-Encoding"), got.header("ETag")) == (noise, None, '"x"')
    assert got.header("Vary") == "Accept-Encoding"


# -- what must not be touched


@pytest.mark.parametrize(
    "header",
    [
        ("Content-Encoding", "gzip"),
        ("content-encoding", "identity"),
        ("Content-Range", "bytes 0-9/100"),
        ("Cache-Control", "no-transform"),
        ("cache-control", "public, No-Transform"),
        ("Content-Digest", "sha-256=:abc=:"),
        ("Repr-Digest", "sha-256=:abc=:"),
        ("Digest", "sha-256=abc"),
        ("Content-MD5", "abc"),
    ],
)
def test_some_fields_forbid_it(header: tuple[str, str]) -> None:
    got = answer(PAGE, header)
    assert (got.body, got.headers) == (PAGE, [HTML, header])


def test_no_transform_counts_in_any_line() -> None:
    assert untouched(answer(PAGE, ("Cache-Control", "no-transform"), ("Cache-Control", "public")))
    assert not untouched(answer(PAGE, ("Cache-Control", "public, max-age=5")))


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content", "206 Partial Content"])
def test_some_statuses_forbid_it(status: str) -> None:
    assert untouched(answer(PAGE, status=status))


@pytest.mark.parametrize("status", ["201 Created", "404 Not Found", "500 Internal Server Error", "200"])
def test_other_statuses_do_not(status: str) -> None:
    assert decode(answer(status=status)) == PAGE
    assert answer(status=status).header("Content-Encoding") == "gzip"


def test_parts_are_left_alone() -> None:
    parts = Parts([b"a" * 5000])
    handler = with_compression(lambda request: Response("200 OK", [HTML], parts), Compression())
    response = handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip"))
    assert (response.body, response.headers) == (parts, [HTML])


@pytest.mark.parametrize(
    "headers",
    [
        [("a", "b", "c")],
        ["nonsense"],
        [(1, "x")],
        [("Content-Type", 1)],
        [("Content-Type€", "x")],
        [["a", "b"]],
    ],
)
def test_fields_that_the_writer_refuses_are_left_to_it(headers: list[Any]) -> None:
    handler = with_compression(lambda request: Response("200 OK", headers, PAGE), Compression())
    response = handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip"))
    assert (response.headers, response.body) == (headers, PAGE)


@pytest.mark.parametrize("status", [None, "", "2", "20x", b"200 OK"])
def test_a_status_that_the_writer_refuses_is_left_to_it(status: Any) -> None:
    handler = with_compression(lambda request: Response(status, [HTML], PAGE), Compression())
    response = handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip"))
    assert response.status == status


def test_what_is_no_response_is_left_to_the_engine() -> None:
    handler = with_compression(lambda request: cast(Any, "text"), Compression())
    assert handler(FakeRequest()) == cast(Any, "text")


# -- heads


@pytest.mark.parametrize(("tag", "sent"), [('"abc"', 'W/"abc"'), ('W/"abc"', 'W/"abc"')])
def test_a_strong_tag_becomes_weak(tag: str, sent: str) -> None:
    assert answer(PAGE, ("ETag", tag)).header("ETag") == sent
    assert answer(PAGE, ("ETag", tag), accept=None).header("ETag") == tag


@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        (["Cookie"], "Cookie, Accept-Encoding"),
        (["Cookie", "Origin"], "Cookie, Origin, Accept-Encoding"),
        (["*"], "*"),
        (["Cookie, *"], "Cookie, *"),
        (["accept-encoding"], "accept-encoding"),
        (["Accept-Encoding , Cookie", "Origin"], "Accept-Encoding , Cookie, Origin"),
        (["X-Accept-Encoding"], "X-Accept-Encoding, Accept-Encoding"),
        ([""], "Accept-Encoding"),
    ],
)
def test_vary_is_added_to(lines: list[str], sent: str) -> None:
    for accept in ("gzip", None):
        assert answer(PAGE, *(("vary", line) for line in lines), accept=accept).header("Vary") == sent


def test_the_length_and_the_offer_of_ranges_go() -> None:
    got = answer(PAGE, ("content-length", str(len(PAGE))), ("Accept-Ranges", "bytes"))
    assert got.header("Content-Length") is None
    assert got.header("Accept-Ranges") is None
    plain = answer(PAGE, ("Content-Length", str(len(PAGE))), ("Accept-Ranges", "bytes"), accept=None)
    assert (plain.header("Content-Length"), plain.header("Accept-Ranges")) == (str(len(PAGE)), "bytes")


@pytest.mark.parametrize("length", ["5", "999999", "many", "-1", "", "1" * 30])
def test_a_wrong_length_is_left_to_the_writer(length: str) -> None:
    got = answer(PAGE, ("Content-Length", length))
    assert (got.body, got.header("Content-Length"), got.header("Content-Encoding")) == (PAGE, length, None)


def test_prepared_fields_are_looked_at_too() -> None:
    prepared = Prepared([HTML, ("X-A", "b")])
    handler = with_compression(lambda request: Response("200 OK", prepared, PAGE), Compression())
    got = receive(handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip")))
    assert decode(got) == PAGE
    assert got.headers == [HTML, ("X-A", "b"), ("Vary", "Accept-Encoding"), ("Content-Encoding", "gzip")]


# -- HEAD and 304


@pytest.mark.parametrize("body", [PAGE, b"", None])
def test_head_says_what_get_would(body: bytes | None) -> None:
    headers = (("ETag", '"x"'), ("Content-Length", str(len(PAGE))))
    given: Any = iter([PAGE]) if body is None else body
    got = answer(given, *headers, method="HEAD")
    whole = answer(PAGE, *headers)
    assert got.headers == whole.headers
    assert got.body in (b"", PAGE)


def test_head_without_a_length_promises_no_coding() -> None:
    got = answer(b"", ("ETag", '"x"'), method="HEAD")
    assert (got.header("Content-Encoding"), got.header("Vary")) == (None, "Accept-Encoding")
    assert got.header("ETag") == 'W/"x"'
    assert answer(b"", ("Content-Length", "5"), method="HEAD").header("Content-Length") == "5"


def test_a_304_names_the_tag_that_the_client_holds() -> None:
    def tag(held: str, given: str) -> tuple[str | None, str | None]:
        got = answer(b"", ("ETag", given), status="304 Not Modified", HTTP_IF_NONE_MATCH=held)
        return got.header("ETag"), got.header("Vary")

    assert tag('W/"x"', '"x"') == ('W/"x"', "Accept-Encoding")
    assert tag('"y", W/"x"', '"x"') == ('W/"x"', "Accept-Encoding")
    assert tag('"x"', '"x"') == ('"x"', "Accept-Encoding")
    assert tag('W/"x"', 'W/"x"') == ('W/"x"', "Accept-Encoding")


@pytest.mark.parametrize(
    ("given", "vary"),
    [
        ([("ETag", 'W/"k"'), ("Vary", "Cookie")], "Cookie, Accept-Encoding"),
        ([("Last-Modified", "Sun, 09 Sep 2001 01:46:40 GMT")], "Accept-Encoding"),
        ([HTML], "Accept-Encoding"),
        ([("Vary", "*")], "*"),
        ([("Content-Type", "image/png")], None),
        ([("Content-Encoding", "gzip")], None),
        ([("Cache-Control", "no-transform"), ("Vary", "Cookie")], "Cookie"),
    ],
)
def test_a_304_varies_as_the_200_would(given: list[tuple[str, str]], vary: str | None) -> None:
    """It rarely says of which type that would be; then it might be one of those that are encoded."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("304 Not Modified", given)(b"")
        return []

    handler = with_compression(lambda request: Response("304 Not Modified", given), Compression())
    for got in (receive(handler(FakeRequest())), written(application)):
        assert (got.status, got.header("Vary"), got.body) == ("304 Not Modified", vary, b"")


# -- streams


def streamed(
    pieces: Iterator[bytes], *headers: tuple[str, str], **options: Any
) -> tuple[Response, list[int]]:
    closed: list[int] = []
    handler = with_compression(
        lambda request: Response("200 OK", [HTML, *headers], pieces, lambda: closed.append(1)), Compression()
    )
    return handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip", **options)), closed


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_each_piece_of_a_stream_can_be_read_when_it_comes(coding: str) -> None:
    asked: list[int] = []

    def events() -> Iterator[bytes]:
        for number in range(5):
            asked.append(number)
            yield b"data: %d\n\n" % number

    kind = ("Content-Type", "text/event-stream")
    handler = with_compression(lambda request: Response("200 OK", [kind], events()), EVENTS)
    response = handler(FakeRequest(HTTP_ACCEPT_ENCODING=coding))
    assert ("Content-Encoding", coding) in response.headers
    assert asked == []
    gunzip, unbrotli = zlib.decompressobj(31), brotli.Decompressor()
    body = cast(Iterator[bytes], response.body)
    for number in range(5):
        encoded = next(body)
        assert asked[-1] == number
        got = gunzip.decompress(encoded) if coding == "gzip" else unbrotli.process(encoded)
        assert got == b"data: %d\n\n" % number
    last = next(body)
    assert (gunzip.decompress(last) if coding == "gzip" else unbrotli.process(last)) == b""
    assert gunzip.eof if coding == "gzip" else unbrotli.is_finished()
    assert list(body) == []


def test_a_stream_is_closed_by_the_engine_alone() -> None:
    response, closed = streamed(iter([b"a", b"b"]))
    assert gzip.decompress(b"".join(cast(Iterator[bytes], response.body))) == b"ab"
    assert closed == []
    assert response.close is not None
    response.close()
    assert closed == [1]


def _failing() -> Iterator[bytes]:
    raise LookupError("at the very beginning")
    yield b""


def _closed_file() -> FileBody:
    with open(__file__, "rb") as file:
        return FileBody(file, 0, len(PAGE))


@pytest.mark.parametrize(
    ("body", "error"), [(_failing(), LookupError), (_closed_file(), ValueError), (7, TypeError)]
)
def test_a_response_that_can_t_be_encoded_is_closed_once(body: Any, error: type[Exception]) -> None:
    closed: list[int] = []
    headers = [HTML, ("Content-Length", str(len(PAGE)))] if body != 7 else [HTML]
    handler = with_compression(
        lambda request: Response("200 OK", headers, body, lambda: closed.append(1)), Compression()
    )
    with pytest.raises(error):
        handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip"))
    assert closed == [1]


def test_an_exception_in_the_middle_leaves_the_stream_unfinished() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise LookupError("in the middle")

    response, _ = streamed(pieces())
    body = cast(Iterator[bytes], response.body)
    begun = next(body)
    with pytest.raises(LookupError):
        next(body)
    with pytest.raises(EOFError):
        gzip.decompress(begun)


def test_an_empty_stream_is_a_whole_encoded_nothing() -> None:
    response, _ = streamed(iter([b"", b""]))
    assert gzip.decompress(b"".join(cast(Iterator[bytes], response.body))) == b""


def test_a_piece_that_is_no_bytes_is_an_error() -> None:
    response, _ = streamed(iter(["text"]))  # type: ignore[list-item]
    with pytest.raises(TypeError, match="made of bytes, not str"):
        next(cast(Iterator[bytes], response.body))


def test_a_body_that_comes_whole_in_its_first_piece_has_a_length() -> None:
    """Django's and werkzeug's responses; what stands after the last yield still runs, and at its time."""
    ran: list[str] = []

    def pieces() -> Iterator[bytes]:
        yield PAGE
        ran.append("the end")

    response, closed = streamed(pieces(), ("Content-Length", str(len(PAGE))))
    body = cast(Iterator[bytes], response.body)
    whole = next(body)
    assert ("Content-Length", str(len(whole))) in response.headers
    assert gzip.decompress(whole) == PAGE
    assert ran == []
    assert list(body) == []
    assert (ran, closed) == (["the end"], [])


def test_what_comes_after_the_whole_body_is_the_engines_to_refuse() -> None:
    response, _ = streamed(iter([PAGE, b"more"]), ("Content-Length", str(len(PAGE))))
    whole, *more = cast(Iterator[bytes], response.body)
    assert ("Content-Length", str(len(whole))) in response.headers
    assert more == [b"more"]


def test_a_whole_first_piece_that_does_not_get_smaller_stays_as_it_is() -> None:
    noise = random.Random(7).randbytes(2000)
    response, _ = streamed(iter([noise]), ("Content-Length", "2000"))
    assert ("Content-Length", "2000") in response.headers
    assert list(cast(Iterator[bytes], response.body)) == [noise]


def test_a_stream_that_promised_and_gives_nothing_does_not_look_whole() -> None:
    response, _ = streamed(iter([]), ("Content-Length", "2000"))
    with pytest.raises(ValueError, match="2000 bytes less"):
        next(cast(Iterator[bytes], response.body))


def test_a_stream_shorter_than_it_promised_does_not_look_whole() -> None:
    response, _ = streamed(iter([b"x" * 1500]), ("Content-Length", "2000"))
    assert not any(name == "Content-Length" for name, _ in response.headers)
    body = cast(Iterator[bytes], response.body)
    next(body)
    with pytest.raises(ValueError, match="500 bytes less than its Content-Length"):
        next(body)


def test_a_stream_longer_than_it_promised_ends_there(caplog: pytest.LogCaptureFixture) -> None:
    response, _ = streamed(iter([b"x" * 1500, b"y" * 1500, b"z"]), ("Content-Length", "2000"), path="/long\n")
    with caplog.at_level(logging.ERROR):
        got = gzip.decompress(b"".join(cast(Iterator[bytes], response.body)))
    assert got == b"x" * 1500 + b"y" * 500
    assert [record.getMessage() for record in caplog.records] == [
        "GET '/long\\n' (request 0123456789abcdef): the application sent more than its Content-Length"
    ]


@pytest.mark.parametrize(("length", "encoded"), [("999", False), ("1000", True), ("5001", False)])
def test_a_streams_promised_length_counts_as_its_size(length: str, encoded: bool) -> None:
    settings = Compression(min_size=1000, max_size=5000)
    handler = with_compression(
        lambda request: Response("200 OK", [HTML, ("Content-Length", length)], iter([bytes(int(length))])),
        settings,
    )
    got = receive(handler(FakeRequest(HTTP_ACCEPT_ENCODING="gzip")))
    assert (got.header("Content-Encoding") == "gzip") is encoded
    assert decode(got) == bytes(int(length))


# -- write()


class WritingRequest(FakeRequest):
    """As the engine does it: who wraps a handler is asked about a head that leaves early."""

    on_start: Callable[..., Any] | None = None

    def start(self, status: str, headers: Any) -> Callable[[bytes], None]:
        assert self.on_start is not None
        headers, encode = self.on_start(status, list(headers))
        write = super().start(status, headers)
        return write if encode is None else lambda data: write(encode(data))


def written(application: Callable[..., Any], **environ: Any) -> Received:
    request = WritingRequest(**{"HTTP_ACCEPT_ENCODING": "gzip", **environ})
    response = with_compression(adapt(application, "application"), Compression())(request)
    rest = receive(response)
    status, headers = request.sent[0]
    return Received(status, headers, b"".join(request.sent[1:]) + rest.body)


def writes(environ: Any, start_response: Any) -> Any:
    write = start_response("200 OK", [HTML, ("ETag", '"x"')])
    write(b"one ")
    write(b"two ")
    return [b"three"]


def test_write_is_encoded() -> None:
    got = written(writes)
    assert got.headers == [HTML, ("ETag", 'W/"x"'), ("Vary", "Accept-Encoding"), ("Content-Encoding", "gzip")]
    assert gzip.decompress(got.body) == b"one two three"


def test_a_304_that_is_begun_by_write_names_no_coding() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("304 Not Modified", [HTML])(b"")
        return []

    assert written(application).header("Content-Encoding") is None


def test_write_is_flushed() -> None:
    seen: list[bytes] = []
    request = WritingRequest(HTTP_ACCEPT_ENCODING="gzip")

    def application(environ: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [HTML])
        gunzip = zlib.decompressobj(31)
        for piece in (b"one", b"two"):
            write(piece)
            seen.append(gunzip.decompress(request.sent[-1]))
        return []

    receive(with_compression(adapt(application, "application"), Compression())(request))
    assert seen == [b"one", b"two"]


@pytest.mark.parametrize("environ", [{"HTTP_ACCEPT_ENCODING": "zstd"}, {"method": "HEAD"}])
def test_write_is_not_encoded_where_nothing_would_be(environ: dict[str, Any]) -> None:
    got = written(writes, **environ)
    assert got.header("Vary") == "Accept-Encoding"
    assert got.body == b"one two three"


def test_write_of_a_type_not_listed_passes_as_it_is() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "image/png")])(b"png")
        return []

    got = written(application)
    assert (got.headers, got.body) == ([("Content-Type", "image/png")], b"png")


def test_writing_less_than_promised_does_not_look_whole() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [HTML, ("Content-Length", "2000")])(b"x" * 1500)
        return []

    with pytest.raises(ValueError, match="500 bytes less"):
        written(application)


def test_a_request_is_free_once_its_handler_has_returned() -> None:
    """The request refers to what it asks at its start: the other way round would be a circle."""
    import gc
    import weakref

    request = FakeRequest(HTTP_ACCEPT_ENCODING="gzip")
    gone = weakref.ref(request)
    with_compression(lambda request: Response("200 OK", [HTML], PAGE), Compression())(request)
    gc.disable()
    try:
        del request
        assert gone() is None
    finally:
        gc.enable()


def test_an_exception_of_the_handler_passes() -> None:
    def fails(request: Any) -> Response:
        raise LookupError("no")

    with pytest.raises(LookupError):
        with_compression(fails, Compression())(FakeRequest())


# -- files of an application's


def file_answer(
    path: Path, offset: int, count: int, kind: str = "text/html", **settings: Any
) -> tuple[Any, Received]:
    with path.open("rb", buffering=0) as file:
        body = FileBody(file, offset, count)
        handler = with_compression(
            lambda request: Response("200 OK", [("Content-Type", kind)], body), Compression(**settings)
        )
        response = handler(FakeRequest(HTTP_ACCEPT_ENCODING="br"))
        return response.body, receive(response)


def test_a_file_is_read_and_encoded(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_bytes(PAGE)
    body, got = file_answer(path, 29, 5000)
    assert isinstance(body, bytes)
    assert (got.header("Content-Encoding"), decode(got)) == ("br", PAGE[29:5029])


def test_a_file_of_another_type_or_too_big_is_left_to_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_bytes(PAGE)
    for options in ({"kind": "video/mp4"}, {"max_size": 4000}, {"min_size": 6000}):
        body, got = file_answer(path, 0, 5000, **options)  # type: ignore[arg-type]
        assert isinstance(body, FileBody)
        assert (got.header("Content-Encoding"), got.body) == (None, PAGE[:5000])


def test_a_file_that_has_become_shorter_is_left_to_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_bytes(PAGE[:3000])
    body, got = file_answer(path, 0, 5000)
    assert isinstance(body, FileBody)
    assert got.header("Content-Encoding") is None


# -- where the work is done


def test_big_bodies_are_encoded_in_an_io_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(function: Callable[..., Any], *args: Any) -> Any:
        ran.append(function.__name__)
        return function(*args)

    monkeypatch.setattr(bodies.iothreads, "run", run)
    assert decode(answer(PAGE)) == PAGE
    assert ran == []
    big = PAGE * 100
    assert decode(answer(big)) == big
    assert ran == ["compress"]
    assert decode(answer(iter([big, b"small"]))) == big + b"small"
    assert ran == ["compress", "_encode"]


# -- any of it

tokens = st.sampled_from(["gzip", "br", "*", "identity;q=0, br", "gzip;q=0.1", "zstd", ""])


@given(st.lists(st.binary(max_size=2000), max_size=8), tokens, st.booleans(), st.booleans())
def test_whatever_the_pieces_the_client_reads_the_body(
    pieces: list[bytes], accept: str, stream: bool, promise: bool
) -> None:
    whole = b"".join(pieces)
    headers = [("Content-Length", str(len(whole)))] if promise else []
    got = answer(iter(pieces) if stream else whole, *headers, accept=accept)
    assert decode(got) == whole
    assert "Accept-Encoding" in (got.header("Vary") or "")
    length = got.header("Content-Length")
    assert length is None or int(length) == len(got.body)


@given(st.binary(max_size=200))
def test_an_applications_own_gzip_is_not_encoded_again(body: bytes) -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(body * 20)
    got = answer(buffer.getvalue(), ("Content-Encoding", "gzip"), accept="br, gzip, identity;q=0")
    assert got.body == buffer.getvalue()


def test_what_may_be_held_stays_so_when_a_stream_is_encoded() -> None:
    def stream(request: Any) -> Response:
        return Response("200 OK", [HTML], iter([PAGE, PAGE]), buffer=70_000)

    response = with_compression(stream, Compression())(FakeRequest(HTTP_ACCEPT_ENCODING="gzip"))
    assert response.buffer == 70_000
    assert gzip.decompress(receive(response).body) == PAGE * 2


def test_an_empty_piece_still_comes_through() -> None:
    """It sends the head of a held stream ahead."""

    def stream(request: Any) -> Response:
        return Response("200 OK", [HTML], iter([b"", PAGE]), buffer=70_000)

    response = with_compression(stream, Compression())(FakeRequest(HTTP_ACCEPT_ENCODING="gzip"))
    first, *rest = response.body
    assert first == b"" and gzip.decompress(b"".join(rest)) == PAGE
