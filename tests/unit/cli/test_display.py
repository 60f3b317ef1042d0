"""Numbers and tables for people."""

from __future__ import annotations

import pytest

from acme_wsgi.cli import display
from acme_wsgi.cli.display import Column


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (0.04, "0"), (0.3, "0.3"), (7, "7"), (9.96, "10"), (12.34, "12.3"), (99.96, "100"),
        (999.4, "999"),
        (999.6, "1k"), (12_345, "12.3k"), (999_960, "1M"), (123_456, "123k"), (1_200_000, "1.2M"),
        (5e15, "5000T"),
    ],
)  # fmt: skip
def test_numbers(value: float, shown: str) -> None:
    assert display.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (800, "800 B"),
        (4200, "4.1 KB"),
        (43_000_000, "41 MB"),
        (1 << 30, "1 GB"),
        (1023 << 10, "1 MB"),
    ],
)
def test_sizes(value: int, shown: str) -> None:
    assert display.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 us"),
        (0.000_085, "85 us"),
        (0.0041, "4.1 ms"),
        (0.012, "12 ms"),
        (0.9999, "1 s"),
        (75.0, "75 s"),
    ],
)
def test_short_times(value: float, shown: str) -> None:
    assert display.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 s"), (-3, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min"),
        (86400 * 5 + 7300, "5 d 2 h"),
    ],
)  # fmt: skip
def test_long_times(value: float, shown: str) -> None:
    assert display.age(value) == shown


def test_percentages() -> None:
    assert [display.percent(value) for value in (0, 0.34, 12.3, 180, None)] == [
        "0 %", "0.3 %", "12 %", "180 %", "-",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [None, "12", True, [], {}, float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    for form in (display.number, display.size, display.duration, display.percent, display.age):
        assert form(value) == "-"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), ("", "-"), ("a\x1b[2Jb\nc", "a\\x1b[2Jb\\nc"), (5, "5"), ("x" * 1000, "x" * 200 + "...")],
)
def test_texts_hold_no_controls_and_end(value: object, shown: str) -> None:
    assert display.text(value) == shown


COLUMNS = (Column("name", left=True), Column("a", spare=1), Column("long title", spare=2), Column("z"))
ROWS = [["one", "1", "22", "333"], ["three", "12345", "-", ""]]


def test_a_table_is_aligned() -> None:
    assert display.table(COLUMNS, ROWS, None) == [
        "name       a  long title    z",
        "one        1          22  333",
        "three  12345           -",
    ]


def test_a_table_leaves_out_what_has_no_room() -> None:
    assert display.table(COLUMNS, ROWS, 20)[0] == "name       a    z"
    assert display.table(COLUMNS, ROWS, 12)[0] == "name     z"
    assert display.table(COLUMNS, ROWS, 6) == ["name …", "one  …", "three"]
    for width in range(1, 40):
        assert all(len(line) <= width for line in display.table(COLUMNS, ROWS, width))


def test_a_table_without_rows_has_its_head() -> None:
    assert display.table(COLUMNS, [], None) == ["name  a  long title  z"]


def test_facts_go_on_in_the_next_line() -> None:
    items = ["p50 4 ms", "p90 5 ms", "p99 12 ms"]
    assert display.facts("latency", items, None) == ["latency      p50 4 ms   p90 5 ms   p99 12 ms"]
    assert display.facts("latency", items, 33) == [
        "latency      p50 4 ms   p90 5 ms",
        "             p99 12 ms",
    ]
    assert display.facts("latency", items, 15) == ["latency      p…", "             p…", "             p…"]
