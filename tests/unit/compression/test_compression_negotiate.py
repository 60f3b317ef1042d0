"""Accept-Encoding: weights, wildcards, the body as it is, and text that is no Accept-Encoding at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.compression.negotiate import LONGEST_REMEMBERED, negotiate, refuses_identity

BOTH = ("br", "gzip")


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        (None, ""),
        ("", ""),
        ("gzip", "gzip"),
        ("br", "br"),
        ("gzip, deflate, br, zstd", "br"),
        ("gzip,br", "br"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", ""),
        ("identity", ""),
        ("*", "br"),
        ("*;q=0", ""),
        ("gzip, *;q=0", "gzip"),
        ("br;q=0, *", "gzip"),
        ("br;q=0, gzip;q=0", ""),
        ("gzip;q=1.0, br;q=0.9", "gzip"),
        ("gzip;q=0.5, br;q=0.501", "br"),
        ("gzip;q=0.001", "gzip"),
        ("gzip;q=0.000", ""),
        ("gzip ; q=0.3 , br\t;\tq=0.2", "gzip"),
        ("gzip;Q=0", ""),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity, gzip", "gzip"),
        ("identity;q=0", ""),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("gzip;q=0.2, *;q=0.5", "br"),
        # no weights of RFC 9110 12.4.2: the element says nothing
        ("gzip;q=2", ""),
        ("gzip;q=0.1234", ""),
        ("gzip;q=-1", ""),
        ("gzip;q=", ""),
        ("gzip;level=9", ""),
        ("br, gzip;q=nonsense", "br"),
        (", ,gzip,", "gzip"),
        ("gz ip", ""),
        ("brr", ""),
    ],
)
def test_the_best_coding(field: str | None, coding: str) -> None:
    assert negotiate(field, BOTH) == coding


def test_the_servers_order_decides_among_equals() -> None:
    assert negotiate("gzip, br", ("gzip", "br")) == "gzip"
    assert negotiate("gzip;q=0.5, br;q=0.5", ("gzip", "br")) == "gzip"


def test_only_what_is_offered_is_chosen() -> None:
    assert negotiate("br, gzip;q=0.1", ("gzip",)) == "gzip"
    assert negotiate("br", ("gzip",)) == ""
    assert negotiate("br", ()) == ""
    assert negotiate("identity;q=0.5, br, gzip;q=0.2", ("gzip",)) == ""


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        (None, False),
        ("", False),
        ("gzip;q=0", False),
        ("identity", False),
        ("identity;q=0", True),
        ("identity;q=0.0, gzip", True),
        ("*;q=0", True),
        ("*;q=0, gzip", True),
        ("*;q=0, identity;q=0.1", False),
        ("identity;q=0.001", False),
    ],
)
def test_the_body_as_it_is_may_be_ruled_out(field: str | None, refused: bool) -> None:
    assert refuses_identity(field) is refused


def test_a_long_field_counts_like_a_short_one() -> None:
    padding = ", ".join(f"coding-{number}" for number in range(LONGEST_REMEMBERED))
    assert negotiate(f"{padding}, gzip;q=0.5, br;q=0.4", BOTH) == "gzip"


@given(st.text(max_size=400), st.permutations(BOTH))
def test_any_text_is_survived(field: str, offered: list[str]) -> None:
    assert negotiate(field, tuple(offered)) in ("", *offered)
    assert refuses_identity(field) in (True, False)


weights = st.integers(0, 1000)


@given(weights, weights, weights)
def test_weights_are_obeyed(br: int, gzip: int, identity: int) -> None:
    field = f"br;q={br / 1000:.3f}, gzip;q={gzip / 1000:.3f}, identity;q={identity / 1000:.3f}"
    chosen = negotiate(field, BOTH)
    best = max(br, gzip)
    if best == 0 or identity > best:
        assert chosen == ""
    else:
        assert chosen == ("br" if br >= gzip else "gzip")
    assert refuses_identity(field) is (identity == 0)
