"""The request parser against the corpus, and against every byte value in every place.

Knows acme_wsgi.http.h1 and the corpus. Each message is fed whole, byte by byte and cut at every position; the
result must be the same each time.
"""

from __future__ import annotations

import re
import string

import pytest

from acme_wsgi.http.h1 import ParseError, parse_head
from tests.unit.http.corpus import MAX_FIELDS, MAX_SIZE, Accept, Reject, accepts, rejects
from tests.unit.http.receiver import Message, Outcome, Refusal, receive, single_bytes

NEXT = b"GET /next HTTP/1.1\r\nHost: next.test\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: smuggled.test\r\n\r\n"

TCHAR = set(b"!#$%&'*+-.^_`|~" + (string.ascii_letters + string.digits).encode())
FIELD_VALUE = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}
TARGET = set(range(0x21, 0x7F)) - set(b"#")

each_accept = pytest.mark.parametrize("case", accepts(), ids=lambda case: case.name)
each_reject = pytest.mark.parametrize("case", rejects(), ids=lambda case: case.name)


def expected(case: Accept) -> Message:
    return Message(
        method=case.method,
        target=case.target,
        path=case.path,
        query=case.query,
        minor=case.minor,
        host=case.host,
        headers=case.headers,
        framing=case.framing,
        content_length=case.content_length,
        keep_alive=case.keep_alive,
        expect_continue=case.expect_continue,
        upgrade=case.upgrade,
        body=case.body,
    )


def test_the_corpus_is_there() -> None:
    assert len(accepts()) >= 60
    assert len(rejects()) >= 150


@each_accept
def test_accept_whole(case: Accept) -> None:
    assert receive([case.raw]) == Outcome((expected(case),), (len(case.raw),), None, 0)


@each_accept
def test_accept_consumes_exactly_the_head(case: Accept) -> None:
    head = parse_head(case.raw + NEXT, MAX_SIZE)
    assert head is not None
    assert head.consumed == case.head_size


@each_accept
def test_accept_is_incomplete_until_its_last_byte(case: Accept) -> None:
    for size in range(case.head_size):
        assert parse_head(case.raw[:size], MAX_SIZE) is None, f"complete after {size} bytes"


@each_accept
def test_accept_byte_by_byte(case: Accept) -> None:
    assert receive(single_bytes(case.raw)) == Outcome((expected(case),), (len(case.raw),), None, 0)


@each_accept
def test_accept_cut_at_every_position(case: Accept) -> None:
    whole = Outcome((expected(case),), (len(case.raw),), None, 0)
    for cut in range(1, len(case.raw)):
        assert receive([case.raw[:cut], case.raw[cut:]]) == whole, f"cut at {cut}"


@each_accept
def test_accept_leaves_what_follows_alone(case: Accept) -> None:
    outcome = receive([case.raw + NEXT])
    assert outcome.refusal is None
    assert outcome.waiting == 0
    assert [(m.method, m.path, m.host) for m in outcome.messages] == [
        (case.method, case.path, case.host),
        ("GET", "/next", "next.test"),
    ]


@each_reject
def test_reject_whole(case: Reject) -> None:
    outcome = receive([case.raw])
    assert outcome.messages == ()
    assert outcome.refusal == Refusal(case.status, case.where)


@each_reject
def test_reject_byte_by_byte(case: Reject) -> None:
    outcome = receive(single_bytes(case.raw))
    assert outcome.messages == ()
    assert outcome.refusal == Refusal(case.status, case.where)


@pytest.mark.slow
@each_reject
def test_reject_cut_at_every_position(case: Reject) -> None:
    for cut in range(1, len(case.raw)):
        outcome = receive([case.raw[:cut], case.raw[cut:]])
        assert outcome.messages == (), f"cut at {cut}"
        assert outcome.refusal == Refusal(case.status, case.where), f"cut at {cut}"


@each_reject
def test_nothing_after_a_reject_is_a_request(case: Reject) -> None:
    outcome = receive([case.raw + SMUGGLED, SMUGGLED])
    assert outcome.messages == ()
    assert outcome.refusal is not None


@each_reject
def test_a_reject_is_explained_without_quoting_it(case: Reject) -> None:
    """The error's text goes into the response: printable, short, and no bytes of the client's in it."""
    if case.where != "head":
        return
    with pytest.raises(ParseError) as caught:
        parse_head(case.raw, MAX_SIZE)
    assert re.fullmatch(r"[ -~]{3,200}", str(caught.value))
    assert "example.com" not in str(caught.value)


# ------------------------------------------------------------------- every byte value in every place


def accepted(raw: bytes) -> bool:
    """Whether the head is taken; an incomplete one would be a third outcome, which none of these may have."""
    try:
        head = parse_head(raw, MAX_SIZE)
    except ParseError:
        return False
    assert head is not None, f"neither taken nor refused: {raw!r}"
    assert head.consumed == len(raw)
    return True


def allowed(template: bytes) -> set[int]:
    """The byte values with which the template (`@` marks the place) is taken."""
    return {value for value in range(256) if accepted(template.replace(b"@", bytes([value]), 1))}


HOST = b"Host: example.com\r\n"


@pytest.mark.parametrize("template", [b"@ET / HTTP/1.1", b"G@T / HTTP/1.1", b"GE@ / HTTP/1.1"])
def test_bytes_of_a_method(template: bytes) -> None:
    assert allowed(template + b"\r\n" + HOST + b"\r\n") == TCHAR


@pytest.mark.parametrize("template", [b"GET /a?@ HTTP/1.1", b"GET /a?b@c HTTP/1.1"])
def test_bytes_of_a_query(template: bytes) -> None:
    assert allowed(template + b"\r\n" + HOST + b"\r\n") == TARGET


@pytest.mark.parametrize("template", [b"GET /@ HTTP/1.1", b"GET /a@c HTTP/1.1"])
def test_bytes_of_a_path(template: bytes) -> None:
    assert allowed(template + b"\r\n" + HOST + b"\r\n") == TARGET - set(b"%")


@pytest.mark.parametrize(
    ("template", "values"),
    [
        (b"GET / @TTP/1.1", b"H"),
        (b"GET / HTT@/1.1", b"P"),
        (b"GET / HTTP@1.1", b"/"),
        (b"GET / HTTP/@.1", b"1"),
        (b"GET / HTTP/1@1", b"."),
        (b"GET / HTTP/1.@", b"0123456789"),
        (b"GET / HTTP/1.1@", b""),
        (b"@GET / HTTP/1.1", bytes(sorted(TCHAR))),
        (b"GET@/ HTTP/1.1", b" "),
        (b"GET /@HTTP/1.1", b" "),
    ],
)
def test_bytes_of_a_version_and_between_the_parts(template: bytes, values: bytes) -> None:
    assert allowed(template + b"\r\n" + HOST + b"\r\n") == set(values)


@pytest.mark.parametrize("template", [b"@bc: d", b"a@c: d", b"ab@: d"])
def test_bytes_of_a_field_name(template: bytes) -> None:
    # A colon ends the name earlier; before the first byte of a name it leaves none.
    also = set() if template.startswith(b"@") else {ord(":")}
    assert allowed(b"GET / HTTP/1.1\r\n" + HOST + template + b"\r\n\r\n") == TCHAR | also


@pytest.mark.parametrize("template", [b"a:@", b"a: @", b"a: @b", b"a: b@c", b"a: b@", b"a: b c@ d "])
def test_bytes_of_a_field_value(template: bytes) -> None:
    assert allowed(b"GET / HTTP/1.1\r\n" + HOST + template + b"\r\n\r\n") == FIELD_VALUE


@pytest.mark.parametrize("place", range(26))
@pytest.mark.parametrize("around", [b"a", b"\xff", b"\t", b"\x20", b"~", b"\x80"])
def test_bytes_of_a_long_field_value(place: int, around: bytes) -> None:
    """A value is looked at several bytes at a time; each must count in every place, whatever is beside."""
    template = b"a: b" + around * place + b"@" + around * (25 - place) + b"c"
    assert allowed(b"GET / HTTP/1.1\r\n" + HOST + template + b"\r\n\r\n") == FIELD_VALUE


@pytest.mark.parametrize(
    ("template", "values"),
    [
        (b"GET / HTTP/1.1@\nHost: h\r\n\r\n", b"\r"),
        (b"GET / HTTP/1.1\r@Host: h\r\n\r\n", b"\n"),
        (b"GET / HTTP/1.1\r\nHost: h@\n\r\n", b"\r"),
        (b"GET / HTTP/1.1\r\nHost: h\r@\r\n", b"\n"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n@\n", b"\r"),
    ],
)
def test_bytes_of_line_ends(template: bytes, values: bytes) -> None:
    assert allowed_or_waiting(template) == set(values)


def allowed_or_waiting(template: bytes) -> set[int]:
    """As `allowed`, where another byte may leave the head unfinished, which is no acceptance either."""
    taken = set()
    for value in range(256):
        try:
            head = parse_head(template.replace(b"@", bytes([value]), 1), MAX_SIZE)
        except ParseError:
            continue
        if head is not None:
            taken.add(value)
    return taken


@pytest.mark.parametrize("template", [b"@ost.test", b"h@st", b"host@", b"h:8@"])
def test_bytes_of_a_host(template: bytes) -> None:
    digits = set(string.digits.encode())
    unreserved = set((string.ascii_letters + string.digits + "-._~").encode())
    taken = allowed(b"GET / HTTP/1.1\r\nHost: " + template + b"\r\n\r\n")
    blank = set(b" \t")  # trimmed at either end
    if template == b"h:8@":
        assert taken == digits | blank
    elif template == b"host@":
        assert taken == unreserved | blank | {ord(":")}
    elif template == b"h@st":
        assert taken == unreserved
    else:
        assert taken == unreserved | blank


@pytest.mark.parametrize("template", [b"@", b"5@", b"@5"])
def test_bytes_of_a_content_length(template: bytes) -> None:
    taken = allowed(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: " + template + b"\r\n\r\n")
    blank = set(b" \t") if len(template) > 1 else set()
    assert taken == set(string.digits.encode()) | blank


# ------------------------------------------------------------------- limits


@pytest.mark.parametrize("size", [64, 512, 8192, 65536])
def test_a_head_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(size: int) -> None:
    start = b"GET / HTTP/1.1\r\nHost: h\r\nX: "
    head = start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"
    assert len(head) == size
    assert parse_head(head, size) is not None
    assert parse_head(head + NEXT, size) is not None
    with pytest.raises(ParseError) as caught:
        parse_head(head, size - 1)
    assert caught.value.status == 431


def test_an_endless_head_is_refused_as_soon_as_the_limit_is_passed() -> None:
    start = b"GET / HTTP/1.1\r\nHost: h\r\nX: "
    assert parse_head(start + b"a" * (256 - len(start) - 4), 256) is None
    with pytest.raises(ParseError) as caught:
        parse_head(start + b"a" * (257 - len(start)), 256)
    assert caught.value.status == 431


def test_an_endless_request_line_is_refused_as_soon_as_the_limit_is_passed() -> None:
    with pytest.raises(ParseError) as caught:
        parse_head(b"GET /" + b"a" * 252, 256)
    assert caught.value.status == 414


def test_as_many_fields_as_the_limit_are_taken_and_one_more_is_not() -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * (MAX_FIELDS - 1)
    assert parse_head(head + b"\r\n", MAX_SIZE) is not None
    with pytest.raises(ParseError) as caught:
        parse_head(head + b"A: b\r\n\r\n", MAX_SIZE)
    assert caught.value.status == 431


@pytest.mark.parametrize("length", [0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1])
def test_content_lengths_are_read_exactly(length: int) -> None:
    head = parse_head(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length, MAX_SIZE)
    assert head is not None
    assert head.content_length == length


def test_pipelined_requests_come_out_in_order() -> None:
    stream = b"".join(case.raw for case in accepts())
    outcome = receive([stream])
    assert outcome.refusal is None
    assert outcome.waiting == 0
    assert outcome.messages == tuple(expected(case) for case in accepts())


def test_pipelined_requests_in_odd_pieces_come_out_in_order() -> None:
    stream = b"".join(case.raw for case in accepts())
    pieces = (stream[index : index + 977] for index in range(0, len(stream), 977))
    assert receive(pieces).messages == tuple(expected(case) for case in accepts())
