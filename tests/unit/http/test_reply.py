"""The parser of backends' replies against its corpus, and against every byte value in every place.

Knows acme_wsgi.http.reply and the corpus. Each message is fed whole, byte by byte and cut at every position;
the result must be the same each time.
"""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_wsgi.errors import HTTPError
from acme_wsgi.http.reply import ParsedReply, ReplyError, parse_reply
from acme_wsgi.http.writer import render_head
from tests.unit.http.corpus import MAX_FIELDS, MAX_SIZE
from tests.unit.http.receiver import single_bytes
from tests.unit.http.replies import Accept, Outcome, Reject, accepts, exchange, rejects

NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Smuggled: 1\r\n\r\nforged"

TCHAR = set(b"!#$%&'*+-.^_`|~" + (string.ascii_letters + string.digits).encode())
FIELD_VALUE = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}
DIGITS = set(string.digits.encode())

each_accept = pytest.mark.parametrize("case", accepts(), ids=lambda case: case.name)
each_reject = pytest.mark.parametrize("case", rejects(), ids=lambda case: case.name)


def parsed(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> ParsedReply:
    head = parse_reply(b"\r\n".join((status, *lines, b"", b"")), MAX_SIZE)
    assert head is not None
    return head


def refusal(raw: bytes, max_size: int = MAX_SIZE) -> str:
    with pytest.raises(ReplyError) as caught:
        parse_reply(raw, max_size)
    return caught.value.message


# ------------------------------------------------------------------- the corpus


def test_the_corpus_is_there() -> None:
    assert len(accepts()) >= 35
    assert len(rejects()) >= 75


@each_accept
def test_accept_whole(case: Accept) -> None:
    outcome = exchange([case.raw], case.asked)
    assert outcome.final == case.final
    assert outcome.end == len(case.raw)
    assert outcome.refusal is None


@each_accept
def test_accept_byte_by_byte(case: Accept) -> None:
    assert exchange(single_bytes(case.raw), case.asked) == exchange([case.raw], case.asked)


@each_accept
def test_accept_cut_at_every_position(case: Accept) -> None:
    whole = exchange([case.raw], case.asked)
    for cut in range(1, len(case.raw)):
        assert exchange([case.raw[:cut], case.raw[cut:]], case.asked) == whole, f"cut at {cut}"


@each_accept
def test_accept_leaves_what_follows_alone(case: Accept) -> None:
    if case.final.framing == "close":
        return  # all that follows is its body
    outcome = exchange([case.raw + NEXT], case.asked)
    assert outcome.final == case.final
    assert outcome.end == len(case.raw)


@each_accept
def test_accept_is_incomplete_until_the_last_byte_of_its_head(case: Accept) -> None:
    size = case.raw.index(b"\r\n\r\n") + 4
    for length in range(size):
        assert parse_reply(case.raw[:length], MAX_SIZE) is None, f"complete after {length} bytes"
    head = parse_reply(case.raw[:size], MAX_SIZE)
    assert head is not None
    assert head.consumed == size


@each_reject
def test_reject_whole(case: Reject) -> None:
    outcome = exchange([case.raw])
    assert (outcome.final, outcome.refusal) == (None, case.where)


@each_reject
def test_reject_byte_by_byte(case: Reject) -> None:
    outcome = exchange(single_bytes(case.raw))
    assert (outcome.final, outcome.refusal) == (None, case.where)


@each_reject
def test_reject_cut_at_every_position(case: Reject) -> None:
    for cut in range(1, len(case.raw)):
        outcome = exchange([case.raw[:cut], case.raw[cut:]])
        assert (outcome.final, outcome.refusal) == (None, case.where), f"cut at {cut}"


@each_reject
def test_nothing_after_a_reject_is_a_reply(case: Reject) -> None:
    assert exchange([case.raw + NEXT, NEXT]).final is None


@each_reject
def test_a_reject_is_explained_without_quoting_it(case: Reject) -> None:
    """The text goes into a log line: printable, short, and no bytes of the backend's in it."""
    if case.where == "head" and not case.raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
        assert re.fullmatch(r"[ -~]{3,120}", refusal(case.raw))


def test_a_refusal_is_a_bad_gateway() -> None:
    with pytest.raises(HTTPError) as caught:
        parse_reply(b"<html>")
    assert isinstance(caught.value, ReplyError)
    assert (caught.value.status, caught.value.code) == (502, "bad_gateway")


# ------------------------------------------------------------------- every byte value in every place


def taken(template: bytes) -> set[int]:
    """The byte values with which the head (`@` marks the place) is taken."""
    values = set()
    for value in range(256):
        raw = template.replace(b"@", bytes([value]), 1)
        try:
            head = parse_reply(raw, MAX_SIZE)
        except ReplyError:
            continue
        if head is not None:
            assert head.consumed == len(raw)
            values.add(value)
    return values


@pytest.mark.parametrize("position", range(7))
def test_bytes_of_the_protocol(position: int) -> None:
    start = b"HTTP/1."
    template = start[:position] + b"@" + start[position + 1 :] + b"1 200 OK\r\n\r\n"
    assert taken(template) == {start[position]}


@pytest.mark.parametrize("position", range(7))
def test_another_protocol_is_refused_with_its_first_byte_that_differs(position: int) -> None:
    start = b"HTTP/1."[:position]
    assert parse_reply(start) is None
    assert refusal(start + b"?") == "no HTTP/1 status line"


@pytest.mark.parametrize(
    ("template", "values"),
    [
        (b"HTTP/1.@ 200 OK", set(b"01")),
        (b"HTTP/1.1@200 OK", set(b" ")),
        (b"HTTP/1.1 @00 OK", set(b"12345")),
        (b"HTTP/1.1 2@0 OK", DIGITS),
        (b"HTTP/1.1 20@ OK", DIGITS),
        (b"HTTP/1.1 200@OK", set(b" ")),
        (b"HTTP/1.1 200@", set(b" ")),
        (b"HTTP/1.1 200 O@K", FIELD_VALUE),
        (b"HTTP/1.1 200 @", FIELD_VALUE),
    ],
)
def test_bytes_of_the_status_line(template: bytes, values: set[int]) -> None:
    assert taken(template + b"\r\n\r\n") == values


@pytest.mark.parametrize(
    ("template", "values"),
    [
        (b"@: v", TCHAR),
        (b"X@Y: v", TCHAR | {ord(":")}),
        (b"XY@: v", TCHAR | {ord(":")}),
        (b"X: @", FIELD_VALUE),
        (b"X: a@b", FIELD_VALUE),
        (b"Content-Length: @", DIGITS),
        (b"Content-Length: 1@2", DIGITS),
        (b"Content-Length: 1@", DIGITS | set(b" \t")),
        (b"Content-Length: @1", DIGITS | set(b" \t")),
        (b"Transfer-Encoding: @chunked", set(b" \t")),
        (b"Transfer-Encoding: chunked@", set(b" \t")),
        (b"Transfer-Encoding: chun@ed", set(b"kK")),
    ],
)
def test_bytes_of_a_field(template: bytes, values: set[int]) -> None:
    assert taken(b"HTTP/1.1 200 OK\r\n" + template + b"\r\n\r\n") == values


def test_every_status() -> None:
    for status in range(1000):
        raw = b"HTTP/1.1 %03d X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" % status
        if 100 <= status <= 599:
            head = parse_reply(raw)
            assert head is not None
            assert head.status == status
            assert head.extent == ("none" if status < 200 or status in (204, 304) else "close")
        else:
            assert "100 to 599" in refusal(raw)


# ------------------------------------------------------------------- limits


@pytest.mark.parametrize("size", [64, 512, 8192, 65536])
def test_a_head_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(size: int) -> None:
    start = b"HTTP/1.1 200 OK\r\nX: "
    head = start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"
    assert parse_reply(head, size) is not None
    assert parse_reply(head + NEXT, size) is not None
    assert refusal(head, size - 1) == "the head is too large"


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nX"])
def test_an_endless_head_is_refused_as_soon_as_the_limit_is_reached(start: bytes) -> None:
    assert parse_reply(start + b"a" * (255 - len(start)), 256) is None
    assert refusal(start + b"a" * (256 - len(start)), 256) == "the head is too large"


def test_as_many_fields_as_the_limit_are_taken_and_one_more_is_not() -> None:
    assert len(parsed(*[b"A: b"] * MAX_FIELDS).headers) == MAX_FIELDS
    with pytest.raises(ReplyError, match="too many header fields"):
        parsed(*[b"A: b"] * (MAX_FIELDS + 1))


def test_as_many_options_as_the_limit_are_taken_over_all_lines_and_one_more_is_not() -> None:
    half = b"Connection: " + b",, ".join([b"a"] * 50)
    assert parsed(half, half, b"A: b").forwarded == []
    with pytest.raises(ReplyError, match="too many options"):
        parsed(half, half, b"Connection: a")


@pytest.mark.parametrize("length", [0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1])
def test_content_lengths_are_read_exactly(length: int) -> None:
    assert parsed(b"Content-Length: %d" % length).content_length == length


@pytest.mark.parametrize("length", [2**63, 2**64, 2**64 + 5, 10**30])
def test_content_lengths_past_63_bits_are_refused(length: int) -> None:
    with pytest.raises(ReplyError):
        parsed(b"Content-Length: %d" % length)


# ------------------------------------------------------------------- what goes further


def test_forwarded_fields_are_text_in_their_order() -> None:
    head = parsed(b"Server: x", b"Set-Cookie: a", b"X-Latin: caf\xe9", b"set-cookie:", b"Content-Length: 5")
    assert head.forwarded == [
        ("Server", "x"),
        ("Set-Cookie", "a"),
        ("X-Latin", "caf\xe9"),
        ("set-cookie", ""),
        ("Content-Length", "5"),
    ]


def test_a_length_is_forwarded_in_its_one_spelling() -> None:
    assert parsed(b"content-length: 0005").forwarded == [("content-length", "5")]
    assert parsed(b"Content-Length: 000").forwarded == [("Content-Length", "0")]
    assert parsed(b"Content-Length: 0").forwarded == [("Content-Length", "0")]


def test_a_length_that_connection_names_still_frames_the_body() -> None:
    head = parsed(b"Content-Length: 5", b"Connection: content-length")
    assert (head.forwarded, head.content_length, head.extent) == ([], 5, "length")


def test_connection_drops_names_whole_and_without_case() -> None:
    head = parsed(b"X-A: 1", b"Connection:X-a,\tx-B ,,X-C", b"X-AB: 2", b"x-b: 3", b"X: 4", b"Close: 5")
    assert head.forwarded == [("X-AB", "2"), ("X", "4"), ("Close", "5")]
    assert parsed(b"Connection: close", b"Close: 5").forwarded == []


def test_connection_cannot_bring_a_dropped_field_back() -> None:
    assert parsed(b"Keep-Alive: 1", b"Connection: x", b"Connection: y").forwarded == []


def test_names_of_one_spelling_are_one_object() -> None:
    first = parsed(b"X-Seen-Before: 1", b"x-seen-before: 1").forwarded
    second = parsed(b"X-Seen-Before: 2", b"x-seen-before: 2").forwarded
    assert [name for name, _ in first] == ["X-Seen-Before", "x-seen-before"]
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert one is other


def test_more_names_than_the_table_holds_are_still_right() -> None:
    for index in range(3000):
        name = b"X-Many-%d" % index
        assert parsed(name + b": 1").forwarded == [(name.decode(), "1")]
    long = b"X-" + b"l" * 100
    assert parsed(long + b": 1").forwarded == [(long.decode(), "1")]


def test_the_status_line_of_a_response() -> None:
    assert parsed().status_line == "200 OK"
    assert parsed().status_line is parsed().status_line
    assert parsed(status=b"HTTP/1.1 200 Ok").status_line == "200 Ok"
    assert parsed(status=b"HTTP/1.1 200 Tr\xe8s").status_line == "200 Tr\xe8s"
    assert parsed(status=b"HTTP/1.1 200 Tr\xe9s").status_line == "200 Tr\xe9s"
    assert parsed(status=b"HTTP/1.1 200").status_line == "200 "
    assert parsed(status=b"HTTP/1.1 404 OK").status_line == "404 OK"
    assert parsed(status=b"HTTP/1.1 500 " + b"long " * 100).status_line == "500 " + "long " * 100


def test_what_persists() -> None:
    assert parsed().keep_alive
    assert not parsed(b"Connection: keep-alive, close").keep_alive
    assert not parsed(status=b"HTTP/1.0 200 OK").keep_alive
    assert parsed(b"Connection: keep-alive", status=b"HTTP/1.0 200 OK").keep_alive
    assert not parsed(b"Connection: keep-alive", b"Connection: close", status=b"HTTP/1.0 200 OK").keep_alive


# ------------------------------------------------------------------- properties

some = st.sampled_from
CASES: tuple[Accept | Reject, ...] = (*accepts(), *rejects())
CORPUS = tuple(case.raw for case in CASES if len(case.raw) < 2000)
PIECES = (b"\r\n", b"\n", b" ", b"\t", b":", b",", b"\x00", b"0")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message of the corpus with a few pieces replaced, inserted or taken out."""
    raw: bytes = draw(some(CORPUS))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(raw)))
        piece = draw(st.one_of(some(PIECES), st.binary(max_size=3)))
        raw = raw[:position] + piece + raw[position + draw(st.integers(0, 3)) :]
    return raw


def verdict(raw: bytes) -> ParsedReply | str | None:
    """What the parser makes of a head: values, the words of a refusal, or None."""
    try:
        return parse_reply(raw, MAX_SIZE)
    except ReplyError as error:
        return error.message


@given(mutated(), st.lists(st.integers(1, 80), max_size=8))
@settings(max_examples=400, deadline=None)
def test_cuts_change_nothing(raw: bytes, sizes: list[int]) -> None:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(raw[position : position + size])
        position += size
    assert exchange([*pieces, raw[position:]]) == exchange([raw])


@given(mutated())
@settings(max_examples=400, deadline=None)
def test_a_verdict_stands_whatever_follows(raw: bytes) -> None:
    """Once a prefix is taken or refused, every longer one is, in the same words."""
    last: ParsedReply | str | None = None
    for size in range(len(raw) + 1):
        now = verdict(raw[:size])
        assert last is None or now == last, f"changed at {size}"
        last = now


@given(some((b"", b"HTTP/1.1 200 OK\r\n")), st.binary(max_size=300))
@settings(max_examples=1000, deadline=None)
def test_garbage_is_taken_refused_or_awaited(start: bytes, tail: bytes) -> None:
    raw = start + tail
    found = verdict(raw)
    if isinstance(found, ParsedReply):
        assert raw[: found.consumed].endswith(b"\r\n\r\n")


@given(st.binary(max_size=200), st.integers(0, 64))
@settings(max_examples=300, deadline=None)
def test_small_limits_hold(tail: bytes, max_size: int) -> None:
    try:
        head = parse_reply(b"HTTP/1.1 200 OK\r\n" + tail, max_size)
    except ReplyError:
        return
    assert head is None or head.consumed <= max_size
    if head is None:
        assert len(tail) + 17 < max_size


@given(mutated())
@settings(max_examples=400, deadline=None)
def test_the_writer_takes_what_goes_further(raw: bytes) -> None:
    """A final reply that was taken never becomes a 500 for its fields or its status."""
    head = verdict(raw)
    if isinstance(head, ParsedReply) and head.status >= 200 and head.content_length < 10**18:
        text, (_, length, _) = render_head(head.status_line, head.forwarded, -1)
        assert text.startswith(b"HTTP/1.1 %d " % head.status)
        assert length == (head.content_length if "content-length" in names(head) else -1)


def names(head: ParsedReply) -> set[str]:
    """The names of the fields that go further, in lower case."""
    return {name.lower() for name, _ in head.forwarded}


def test_an_outcome_tells_interim_replies() -> None:
    case = next(case for case in accepts() if case.name == "interim-103")
    outcome = exchange([case.raw])
    assert outcome == Outcome((103, 103), case.final, len(case.raw), None)
