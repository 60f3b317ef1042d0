"""Conditions: RFC 9110 section 13, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.http import http_date as format_date

from acme_wsgi.http.conditional import (
    Validators,
    entity_tags,
    http_date,
    judge,
    range_applies,
    strong_match,
    weak_match,
)

MODIFIED = 784111777
SAME = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
STRONG = Validators('"abc"', MODIFIED)
WEAK = Validators('W/"abc"', MODIFIED)
BARE = Validators()


def fields(**named: str) -> dict[str, str]:
    return {f"HTTP_{name.upper()}": value for name, value in named.items()}


@pytest.mark.parametrize(
    ("first", "second", "strong", "weak"),
    [  # the table of RFC 9110 8.8.3.2
        ('W/"1"', 'W/"1"', False, True),
        ('W/"1"', 'W/"2"', False, False),
        ('W/"1"', '"1"', False, True),
        ('"1"', '"1"', True, True),
    ],
)
def test_comparison(first: str, second: str, strong: bool, weak: bool) -> None:
    assert strong_match(first, second) is strong_match(second, first) is strong
    assert weak_match(first, second) is weak_match(second, first) is weak


@pytest.mark.parametrize(
    ("field", "tags"),
    [
        ('"a"', ['"a"']),
        ('"a", W/"b" ,"c,d"', ['"a"', 'W/"b"', '"c,d"']),
        (', ,"a",,"b",', ['"a"', '"b"']),
        ('""', ['""']),
        ('"\xe4"', ['"\xe4"']),
        ('"a" "b"', []),
        ('"a", b, "c"', ['"a"']),
        ("abc", []),
        ('w/"a"', []),
        ('"a', []),
        ("", []),
    ],
)
def test_lists_of_tags(field: str, tags: list[str]) -> None:
    assert list(entity_tags(field)) == tags


@pytest.mark.parametrize(
    ("named", "current", "status"),
    [
        ({}, STRONG, None),
        ({"if_match": '"abc"'}, STRONG, None),
        ({"if_match": '"x", "abc"'}, STRONG, None),
        ({"if_match": "*"}, BARE, None),
        ({"if_match": '"x"'}, STRONG, 412),
        ({"if_match": '"abc"'}, WEAK, 412),
        ({"if_match": 'W/"abc"'}, STRONG, 412),
        ({"if_match": '"abc"'}, BARE, 412),
        ({"if_unmodified_since": SAME}, STRONG, None),
        ({"if_unmodified_since": LATER}, STRONG, None),
        ({"if_unmodified_since": EARLIER}, STRONG, 412),
        ({"if_unmodified_since": EARLIER}, BARE, None),
        ({"if_unmodified_since": "yesterday"}, STRONG, None),
        ({"if_none_match": '"abc"'}, STRONG, 304),
        ({"if_none_match": 'W/"abc"'}, STRONG, 304),
        ({"if_none_match": '"abc"'}, WEAK, 304),
        ({"if_none_match": "*"}, BARE, 304),
        ({"if_none_match": '"x"'}, STRONG, None),
        ({"if_none_match": '"abc"'}, BARE, None),
        ({"if_modified_since": SAME}, STRONG, 304),
        ({"if_modified_since": LATER}, STRONG, 304),
        ({"if_modified_since": EARLIER}, STRONG, None),
        ({"if_modified_since": SAME}, BARE, None),
        ({"if_modified_since": f"{SAME}, {SAME}"}, STRONG, None),
        # one overrules the other
        ({"if_match": '"abc"', "if_unmodified_since": EARLIER}, STRONG, None),
        ({"if_none_match": '"x"', "if_modified_since": LATER}, STRONG, None),
        # the order of 13.2.2: a failed If-Match is told before a 304
        ({"if_match": '"x"', "if_none_match": '"abc"'}, STRONG, 412),
        ({"if_match": '"abc"', "if_none_match": '"abc"'}, STRONG, 304),
        ({"if_unmodified_since": EARLIER, "if_modified_since": LATER}, STRONG, 412),
        ({"if_match": '"abc"', "if_modified_since": SAME}, STRONG, 304),
    ],
)
def test_conditions(named: dict[str, str], current: Validators, status: int | None) -> None:
    assert judge("GET", fields(**named), current) == status
    assert judge("HEAD", fields(**named), current) == status


def test_other_methods_never_get_a_304() -> None:
    assert judge("PUT", fields(if_none_match="*"), STRONG) == 412
    assert judge("PUT", fields(if_modified_since=LATER), STRONG) is None
    assert judge("PUT", fields(if_match='"abc"'), STRONG) is None


@pytest.mark.parametrize(
    ("field", "current", "applies"),
    [
        (None, BARE, True),
        ('"abc"', STRONG, True),
        ('"x"', STRONG, False),
        ('W/"abc"', STRONG, False),
        ('"abc"', WEAK, False),
        ('"abc", "abc"', STRONG, False),
        ('"abc"', BARE, False),
        (SAME, STRONG, True),
        (LATER, STRONG, False),
        (EARLIER, STRONG, False),
        (SAME, BARE, False),
        ("nonsense", STRONG, False),
        ("", STRONG, False),
    ],
)
def test_if_range(field: str | None, current: Validators, applies: bool) -> None:
    environ = {} if field is None else {"HTTP_IF_RANGE": field}
    assert range_applies(environ, current) is applies


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        (SAME, MODIFIED),
        ("Sunday, 06-Nov-94 08:49:37 GMT", MODIFIED),
        ("Sun Nov  6 08:49:37 1994", MODIFIED),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("", None),
        ("0", None),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 99999999999 08:49:37 GMT", None),
        (SAME + " " * 100, None),
        (None, None),
    ],
)
def test_dates(field: str | None, seconds: int | None) -> None:
    assert http_date(field) == seconds


@given(st.integers(0, 253402300799))
def test_every_date_that_we_write_is_read(seconds: int) -> None:
    assert http_date(format_date(seconds)) == seconds


@given(st.text(st.characters(max_codepoint=255)), st.sampled_from(["GET", "HEAD", "POST"]))
def test_no_field_breaks_it(text: str, method: str) -> None:
    for name in ("MATCH", "NONE_MATCH", "MODIFIED_SINCE", "UNMODIFIED_SINCE"):
        assert judge(method, {f"HTTP_IF_{name}": text}, STRONG) in (None, 304, 412)
    assert range_applies({"HTTP_IF_RANGE": text}, STRONG) in (True, False)
