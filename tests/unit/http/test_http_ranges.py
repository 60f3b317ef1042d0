"""Ranges: what a field asks for, and that no field asks for more than the representation."""

from __future__ import annotations

import re
from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.http.ranges import (
    GAP,
    MAX_PARTS,
    MAX_SPECS,
    Range,
    Unsatisfiable,
    multipart,
    parse,
    unsatisfied,
)

SIZE = 10_000


@pytest.mark.parametrize(
    ("field", "ranges"),
    [
        ("bytes=0-499", [(0, 499)]),
        ("bytes=500-999", [(500, 999)]),
        ("bytes=-500", [(9500, 9999)]),
        ("bytes=9500-", [(9500, 9999)]),
        ("bytes=0-", [(0, 9999)]),
        ("bytes=0-0", [(0, 0)]),
        ("bytes=-1", [(9999, 9999)]),
        ("bytes=-99999", [(0, 9999)]),
        ("bytes=9000-99999", [(9000, 9999)]),
        ("bytes=0-0,-1", [(0, 0), (9999, 9999)]),
        ("Bytes = 0-0", [(0, 0)]),
        ("bytes= 0-0 , 1000-1001 ", [(0, 0), (1000, 1001)]),
        ("bytes=,0-0,,", [(0, 0)]),
        # the order asked for stays
        ("bytes=5000-5001,0-1", [(5000, 5001), (0, 1)]),
        # those that touch, overlap, or are hardly apart become one, at the place of the first
        ("bytes=500-600,601-999", [(500, 999)]),
        ("bytes=500-700,601-999", [(500, 999)]),
        ("bytes=5000-6000,0-1,5500-5600", [(5000, 6000), (0, 1)]),
        ("bytes=9000-9001,100-200,0-99", [(9000, 9001), (0, 200)]),
        (f"bytes=0-0,{GAP + 1}-{GAP + 1}", [(0, GAP + 1)]),
        (f"bytes=0-0,{GAP + 2}-{GAP + 2}", [(0, 0), (GAP + 2, GAP + 2)]),
        # what can't be satisfied is left out
        ("bytes=20000-,0-0", [(0, 0)]),
        ("bytes=-0,0-0", [(0, 0)]),
        ("bytes=0-" + "9" * 5000, [(0, 9999)]),
        ("bytes=-" + "9" * 5000, [(0, 9999)]),
        ("bytes=" + "0" * 5000 + "7-8", [(7, 8)]),
    ],
)
def test_ranges(field: str, ranges: list[tuple[int, int]]) -> None:
    assert parse(field, SIZE) == [Range(*pair) for pair in ranges]


@pytest.mark.parametrize(
    "field",
    [
        "", "bytes", "bytes=", "bytes=,", "lines=0-1", "bytes=a-b", "bytes=1", "bytes=-", "bytes=5-4",
        "bytes=0-1,5-4", "bytes=0x0-1", "bytes=+1-2", "bytes=1 -2", "bytes=--1", "bytes=1-2-3",
        "bytes=0-1;2-3", "bytes=\xb2-\xb3", "bytes=0-1\n",
    ],
)  # fmt: skip
def test_what_is_ignored(field: str) -> None:
    assert parse(field, SIZE) is None


@pytest.mark.parametrize("field", ["bytes=10000-", "bytes=10000-10001", "bytes=-0", "bytes=99999-,-0"])
def test_what_cannot_be_satisfied(field: str) -> None:
    with pytest.raises(Unsatisfiable):
        parse(field, SIZE)
    assert unsatisfied(SIZE) == "bytes */10000"


def test_an_empty_representation() -> None:
    assert parse("bytes=-5", 0) is None
    with pytest.raises(Unsatisfiable):
        parse("bytes=0-", 0)


def test_too_many_are_ignored() -> None:
    apart = [f"{number * 1000}-{number * 1000}" for number in range(MAX_PARTS + 1)]
    assert parse("bytes=" + ",".join(apart), 10**6) is None
    assert len(parse("bytes=" + ",".join(apart[:-1]), 10**6) or ()) == MAX_PARTS
    assert parse("bytes=" + ",".join(["0-"] * MAX_SPECS), SIZE) == [Range(0, SIZE - 1)]
    assert parse("bytes=" + ",".join(["0-"] * (MAX_SPECS + 1)), SIZE) is None


@given(
    st.integers(0, 5000),
    st.lists(st.tuples(st.integers(0, 6000) | st.none(), st.integers(0, 6000) | st.none()), max_size=80),
)
def test_nothing_is_sent_twice_and_nothing_asked_for_is_missing(
    size: int, pairs: list[tuple[int | None, int | None]]
) -> None:
    text = ",".join(f"{'' if a is None else a}-{'' if b is None else b}" for a, b in pairs)
    asked: set[int] = set()
    for first, last in pairs:
        if first is not None:
            asked |= set(range(first, min(size - 1 if last is None else last, size - 1) + 1))
        elif last is not None:
            asked |= set(range(max(0, size - last), size))
    try:
        found = parse(f"bytes={text}", size)
    except Unsatisfiable:
        assert not asked
        return
    if found is None:
        return
    sent = [number for part in found for number in range(part.first, part.last + 1)]
    assert len(sent) == len(set(sent))
    assert asked <= set(sent) <= set(range(size))


@given(st.text(max_size=200), st.integers(0, 2000))
def test_no_field_breaks_it(text: str, size: int) -> None:
    for field in (text, f"bytes={text}"):
        try:
            found = parse(field, size)
        except Unsatisfiable:
            continue
        assert found is None or all(0 <= part.first <= part.last < size for part in found)


def test_a_multipart_body_is_what_others_read() -> None:
    content = bytes(range(256)) * 40
    parts = [Range(5000, 5100), Range(0, 0), Range(10200, 10239)]
    media_type, pieces = multipart(parts, len(content), "text/plain; charset=utf-8")
    body = b"".join(
        piece if isinstance(piece, bytes) else content[piece.first : piece.last + 1] for piece in pieces
    )
    message = message_from_bytes(f"Content-Type: {media_type}\r\n\r\n".encode() + body)
    assert message.get_content_type() == "multipart/byteranges"
    boundary = message.get_boundary()
    assert boundary is not None
    found = re.findall(
        rb"--" + boundary.encode() + rb"\r\nContent-Type: text/plain; charset=utf-8\r\n"
        rb"Content-Range: bytes (\d+)-(\d+)/10240\r\n\r\n(.*?)\r\n(?=--" + boundary.encode() + rb")",
        body,
        re.DOTALL,
    )
    assert [(int(first), int(last)) for first, last, _ in found] == [(5000, 5100), (0, 0), (10200, 10239)]
    assert [data for _, _, data in found] == [content[part.first : part.last + 1] for part in parts]
    assert body.endswith(b"\r\n--" + boundary.encode() + b"--\r\n")


def test_boundaries_differ() -> None:
    assert multipart([Range(0, 0)], 1, "a/b")[0] != multipart([Range(0, 0)], 1, "a/b")[0]
