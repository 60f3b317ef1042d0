"""The chunked decoder: however a body is encoded and cut, the same comes out, or the same error.

Knows acme_wsgi.http.h1.ChunkedDecoder only. The malformed bodies stand in the corpus; here are
the properties.
"""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.http.chunked import ChunkedDecoder
from acme_wsgi.http.h1 import ParseError

TCHAR = "!#$%&'*+-.^_`|~" + string.ascii_letters + string.digits
token = st.text(TCHAR, min_size=1, max_size=12).map(str.encode)
field_value = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f").filter(
        lambda c: not 0x80 <= ord(c) <= 0x9F
    ),
    max_size=20,
).map(lambda text: text.encode("latin-1").strip(b" "))
extension = st.one_of(
    st.just(b""),
    token.map(lambda name: b";" + name),
    st.tuples(token, token).map(lambda pair: b";%s=%s" % pair),
    st.tuples(token, st.text(string.ascii_letters + " ,;=", max_size=10)).map(
        lambda pair: b';%s="%s"' % (pair[0], pair[1].encode())
    ),
)
size_style = st.tuples(st.integers(0, 4), st.booleans())


def encode_size(size: int, style: tuple[int, bool]) -> bytes:
    zeros, upper = style
    digits = f"{size:X}" if upper else f"{size:x}"
    return b"0" * zeros + digits.encode()


@st.composite
def encoded(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and one of the many ways to write it as chunks."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    raw = b"".join(
        encode_size(len(chunk), draw(size_style)) + draw(extension) + b"\r\n" + chunk + b"\r\n"
        for chunk in chunks
    )
    last = b"0" * draw(st.integers(1, 4)) + draw(extension) + b"\r\n"
    trailers = b"".join(
        b"%s: %s\r\n" % pair for pair in draw(st.lists(st.tuples(token, field_value), max_size=3))
    )
    return b"".join(chunks), raw + last + trailers + b"\r\n"


@given(encoded(), st.lists(st.integers(1, 50), max_size=20), st.binary(max_size=30))
def test_any_encoding_in_any_pieces_gives_the_body(
    case: tuple[bytes, bytes], sizes: list[int], after: bytes
) -> None:
    body, raw = case
    stream = raw + after
    decoder = ChunkedDecoder()
    decoded = b""
    position = 0
    pieces = [*sizes, len(stream) + 1]
    while not decoder.done:
        piece = stream[position : position + pieces.pop(0)]
        decoded += decoder.feed(piece)
        position += len(piece)
    assert decoded == body
    assert decoder.consumed_total == len(raw)


@given(encoded())
def test_a_cut_body_is_never_done(case: tuple[bytes, bytes]) -> None:
    body, raw = case
    decoder = ChunkedDecoder()
    decoded = b""
    for index in range(len(raw) - 1):
        decoded += decoder.feed(raw[index : index + 1])
        assert not decoder.done
        assert body.startswith(decoded)
        assert decoder.consumed_total == index + 1


@given(encoded(), st.data())
def test_one_changed_byte_never_decodes_to_another_length_unnoticed(
    case: tuple[bytes, bytes], data: st.DataObject
) -> None:
    """A change is refused, left incomplete, or harmless; whatever it is, all cuts agree on it."""
    _, raw = case
    position = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:position] + bytes([data.draw(st.integers(0, 255))]) + raw[position + 1 :]
    assert decode(changed, len(changed)) == decode(changed, 1) == decode(changed, 7)


def decode(raw: bytes, step: int) -> tuple[str, bytes, int]:
    decoder = ChunkedDecoder()
    decoded = b""
    for index in range(0, len(raw), step):
        try:
            decoded += decoder.feed(raw[index : index + step])
        except ParseError as error:
            return (f"refused with {error.status}", b"", 0)
        if decoder.done:
            break
    return ("done" if decoder.done else "waiting", decoded, decoder.consumed_total)


def allowed(template: bytes) -> set[int]:
    """The byte values with which the body (`@` marks the place) is complete and good."""
    return {
        value for value in range(256) if decode(template.replace(b"@", bytes([value]), 1), 4096)[0] == "done"
    }


@pytest.mark.parametrize(
    ("template", "values"),
    [
        (b"@\r\n\r\n", b"0"),
        (b"@1\r\na\r\n0\r\n\r\n", b"0"),
        (b"1\r\na@\n0\r\n\r\n", b"\r"),
        (b"1\r\na\r@0\r\n\r\n", b"\n"),
        (b"1@\na\r\n0\r\n\r\n", b"\r"),
        (b"1\r@a\r\n0\r\n\r\n", b"\n"),
        (b"1@\r\na\r\n0\r\n\r\n", b";"),
        (b"0\r\n\r@", b"\n"),
        (b"0\r@\r\n", b"\n"),
    ],
)
def test_bytes_of_the_frame(template: bytes, values: bytes) -> None:
    assert allowed(template) == set(values)


def test_bytes_of_a_size() -> None:
    for value in range(256):
        size = bytes([value])
        is_digit = size in (b"%c" % digit for digit in string.hexdigits.encode())
        raw = (
            size
            + b"\r\n"
            + b"x" * (int(size, 16) if is_digit else 0)
            + (b"\r\n0\r\n\r\n" if size != b"0" else b"\r\n")
        )
        assert (decode(raw, 4096)[0] == "done") == is_digit, f"byte {value:#x}"


def test_bytes_of_a_trailer_name() -> None:
    assert allowed(b"0\r\na@: b\r\n\r\n") == set(TCHAR.encode()) | {ord(":")}


def test_bytes_of_a_trailer_value() -> None:
    assert allowed(b"0\r\na: b@c\r\n\r\n") == {9, *range(0x20, 0x7F), *range(0x80, 0x100)}


def test_a_huge_chunk_is_taken_as_it_comes() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"7fffffffffffffff\r\n") == b""
    for _ in range(10):
        assert decoder.feed(b"x" * 65536) == b"x" * 65536
    assert not decoder.done
    assert decoder.consumed_total == 18 + 10 * 65536


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"0", b"0" * 10),
        (b"1;", b"a" * 10),
        (b"1", b" " * 10),
        (b"0\r\nA: ", b"b" * 10),
        (b"0\r\n", b"A" * 10),
        (b"0\r\n", b"A: b\r\n"),
        (b"", b"1;" + b"a" * 50 + b"\r\nx\r\n"),
    ],
)
def test_what_has_no_end_is_refused_within_a_bound(start: bytes, more: bytes) -> None:
    """Sizes, extensions and trailers cost no memory and no time without end."""
    decoder = ChunkedDecoder()
    decoder.feed(start)
    with pytest.raises(ParseError) as caught:
        for _ in range(20_000):
            decoder.feed(more)
    assert caught.value.status == 400
    assert decoder.consumed_total <= 40_000


def test_small_chunks_are_no_flood_by_themselves() -> None:
    """A body in chunks of one byte without extensions is slow, not forbidden."""
    decoder = ChunkedDecoder()
    assert decoder.feed(b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n") == b"x" * 20_000
    assert decoder.done
