"""Durations, sizes and percentages: what is read, what is refused, and that writing and reading agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("30d", 2592000.0),
        ("1.5h", 5400.0),
        ("0", 0.0),
        ("3600", 3600.0),
        ("0.1", 0.1),
        (" 5 s ", 5.0),
        (90, 90.0),
        ("1e-06", 0.000001),
        (0.25, 0.25),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5x",
        "-1s",
        "1 hour",
        "5M",
        "1m30s",
        "1e+3",
        "1e999",
        "inf",
        "nan",
        "٣s",
        ".5s",
        "9" * 33,
        True,
    ],
)
def test_what_is_no_duration(text: str | bool) -> None:
    with pytest.raises(ValueError, match=r"duration|boolean"):
        units.parse_duration(text)


@pytest.mark.parametrize("number", [-1, float("inf"), float("nan")])
def test_no_duration_is_negative_or_endless(number: float) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        units.parse_duration(number)
    with pytest.raises(ValueError, match="not a quantity"):
        units.format_duration(number)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1KB", 1024),
        ("10MB", 10 * 1024**2),
        ("1.5GB", 1536 * 1024**2),
        ("2TB", 2 * 1024**4),
        ("10B", 10),
        ("4096", 4096),
        ("1kb", 1024),
        ("0", 0),
        (512, 512),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KB", "1K", "1KiB", "-1", "1 000", "0x10", "1e9", "lots", "9" * 33])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        units.parse_size(text)


def test_a_size_is_a_whole_number_of_bytes() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        units.parse_size("0.3KB")


@pytest.mark.parametrize(
    ("text", "fraction"), [("90%", 0.9), ("0.9", 0.9), ("100%", 1.0), ("0", 0.0), ("12.5%", 0.125)]
)
def test_percentages(text: str, fraction: float) -> None:
    assert units.parse_percent(text) == fraction


@pytest.mark.parametrize("text", ["90", "101%", "1.1", "-1%", "%", "", "a%"])
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(ValueError, match="percentage"):
        units.parse_percent(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "500ms"),
        (30.0, "30s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (86400.0, "1d"),
        (0.0, "0s"),
        (0.0001, "0.0001s"),
    ],
)
def test_durations_are_written_in_the_longest_unit_that_is_whole(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(10485760, "10MB"), (1000, "1000"), (0, "0"), (1 << 40, "1TB")])
def test_sizes_are_written_in_the_largest_unit_that_is_whole(size: int, text: str) -> None:
    assert units.format_size(size) == text


def test_a_negative_size_is_not_written() -> None:
    with pytest.raises(ValueError, match="size"):
        units.format_size(-1)


@given(st.floats(0, 1e9).filter(lambda seconds: seconds == 0 or seconds > 1e-15))
def test_a_duration_reads_back_as_it_was(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@given(st.integers(0, 1 << 60))
def test_a_size_reads_back_as_it_was(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.floats(0, 1).filter(lambda fraction: fraction == 0 or fraction > 1e-12))
def test_a_percentage_reads_back_as_it_was(fraction: float) -> None:
    assert units.parse_percent(units.format_percent(fraction)) == fraction
