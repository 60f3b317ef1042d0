"""Response heads: what is written, what is refused, how the body's end is told."""

from __future__ import annotations

import pytest

from acme_wsgi.http.writer import FileBody, Response, render_head

OK = "200 OK"


def lines(*args: object, **options: object) -> list[str]:
    return render_head(*args, **options)[0].decode("latin-1").split("\r\n")  # type: ignore[arg-type]


def test_a_plain_head() -> None:
    assert lines(OK, [("Content-Type", "text/plain")], 5, request_id="id") == [
        "HTTP/1.1 200 OK",
        "Content-Type: text/plain",
        "Content-Length: 5",
        "Date: Thu, 01 Jan 1970 00:00:00 GMT",
        "Server: acme",
        "X-Request-ID: id",
        "",
        "",
    ]


@pytest.mark.parametrize("name", ["Date", "Server", "X-Request-ID", "dAtE"])
def test_what_the_application_says_itself_is_not_said_again(name: str) -> None:
    found = [line for line in lines(OK, [(name, "own")]) if line.lower().startswith(name.lower() + ":")]
    assert found == [f"{name}: own"]


@pytest.mark.parametrize(
    ("status", "length", "options", "framing"),
    [
        (OK, 5, {}, (False, 5, False)),
        (OK, -1, {}, (True, -1, False)),
        (OK, -1, {"minor": 0}, (False, -1, True)),
        (OK, 0, {}, (False, 0, False)),
        (OK, 5, {"head_only": True}, (False, 5, False)),
        (OK, -1, {"head_only": True}, (False, -1, False)),
        (OK, 0, {"head_only": True}, (False, -1, False)),
        ("204 No Content", 5, {}, (False, -1, False)),
        ("204 No Content", -1, {"minor": 0}, (False, -1, False)),
        ("304 Not Modified", -1, {}, (False, -1, False)),
        ("304 Not Modified", 5, {}, (False, 5, False)),
        (OK, 5, {"close": True}, (False, 5, True)),
    ],
)
def test_the_framing(
    status: str, length: int, options: dict[str, bool], framing: tuple[bool, int, bool]
) -> None:
    head, found = render_head(status, [], length, **options)  # type: ignore[arg-type]
    assert found == framing
    assert (b"Transfer-Encoding: chunked" in head) == framing[0]
    assert (b"Content-Length: %d" % framing[1] in head) == (framing[1] >= 0)
    assert (b"Connection: close" in head) == framing[2]


def test_http_1_0_is_told_that_the_connection_stays() -> None:
    assert "Connection: keep-alive" in lines(OK, [], 1, minor=0)
    assert "Connection: keep-alive" not in lines(OK, [], 1)


def test_the_applications_content_length_and_connection_are_taken_over_once() -> None:
    head, framing = render_head(OK, [("content-length", "7"), ("Connection", "close")], 5)
    assert framing == (False, 7, True)
    assert head.lower().count(b"content-length") == head.lower().count(b"connection: close") == 1


BAD_FIELDS = [
    ("X", "a\r\nInjected: 1"), ("X", "a\nb"), ("X", "a\rb"), ("X", "a\0b"), ("X", "a\x7fb"),
    ("X Y", "a"), ("X:", "a"), ("", "a"), ("X\r\n", "a"), ("X\xe9", "a"), ("X", "\u20ac"), ("\u20ac", "a"),
    ("Content-Length", "5, 5"), ("Content-Length", "-1"), ("Content-Length", ""),
    ("Content-Length", "1" * 19),
    ("Content-Length", "+5"), ("Connection", "upgrade"), ("Keep-Alive", "timeout=1"), ("Upgrade", "h2c"),
    ("Transfer-Encoding", "chunked"), ("TE", "trailers"), ("Trailer", "X"),
]  # fmt: skip


@pytest.mark.parametrize("field", BAD_FIELDS, ids=repr)
def test_a_field_that_could_split_or_misframe_is_refused(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        render_head(OK, [("A", "b"), field])


@pytest.mark.parametrize(
    "field", [["X", "a"], ("X",), ("X", "a", "b"), ("X", b"a"), (b"X", "a"), ("X", None), None]
)
def test_a_field_that_is_no_pair_of_str_is_refused(field: object) -> None:
    with pytest.raises(TypeError):
        render_head(OK, [field])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "status",
    [
        "",
        "2",
        "20",
        "2000 OK",
        "200OK",
        "abc OK",
        "100 Continue",
        "199 X",
        "600 X",
        "200 O\r\nX: y",
        "200 \u20ac",
    ],
)
def test_a_bad_status_is_refused(status: str) -> None:
    with pytest.raises(ValueError):
        render_head(status, [])


def test_two_lengths_are_refused_and_so_is_a_head_without_bound() -> None:
    with pytest.raises(ValueError, match="more than one Content-Length"):
        render_head(OK, [("Content-Length", "1"), ("content-length", "1")])
    with pytest.raises(ValueError, match="1 MB"):
        render_head(OK, [("X", "y" * 2_000_000)])


def test_the_values_are_plain_attributes() -> None:
    response = Response(OK, [("A", "b")])
    assert (response.status, response.headers, response.body, response.close) == (OK, [("A", "b")], b"", None)
    with open(__file__, "rb") as file:
        part = FileBody(file, 1, 2)
        assert (part.file, part.offset, part.count) == (file, 1, 2)
