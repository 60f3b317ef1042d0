"""Durations, sizes and percentages as people write them, and back.

Its law: knows numbers and their units, nothing of configuration, files or the network. Every failure is a
ValueError whose text can stand in an error message as it is. What a ``format_*`` function writes, the
``parse_*`` function beside it reads back as the same number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

#: Seconds in each unit of time, the longest first.
DURATION_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
#: Bytes in each unit of size, the largest first. 1KB is 1024 bytes.
SIZE_UNITS: Final = {"TB": 1 << 40, "GB": 1 << 30, "MB": 1 << 20, "KB": 1 << 10, "B": 1}

# A number of at most 32 digits: longer ones are no quantity that anybody measures.
_NUMBER = r"([0-9]{1,32}(?:\.[0-9]{1,32})?)"
# Fractions may have an exponent, because JSON writes small ones so.
_FRACTION = r"([0-9]{1,32}(?:\.[0-9]{1,32})?(?:e-?[0-9]{1,2})?)"
_DURATION = re.compile(_FRACTION + r" ?(ms|s|m|h|d)?")
_SIZE = re.compile(_NUMBER + r" ?([KMGT]?B)?", re.IGNORECASE)
_PERCENT = re.compile(_FRACTION + r" ?(%)?")

# What each text is, in words: the message with which anything else is refused.
DURATION_FORMS: Final = "a duration is a number of seconds or a number with ms, s, m, h or d (500ms, 30s, 5m)"
SIZE_FORMS: Final = "a size is a number of bytes or a number with KB, MB, GB or TB (10MB; 1KB = 1024 bytes)"
PERCENT_FORMS: Final = "a percentage is 0% to 100% or a fraction from 0 to 1 (90% or 0.9)"


def parse_duration(value: str | int | float) -> float:
    """Seconds in `value`: ``500ms``, ``30s``, ``5m``, ``2h``, ``30d`` or a bare number of seconds.

    Raises ValueError for anything else, negative numbers included.
    """
    match = _DURATION.fullmatch(_text(value))
    if match is None:
        raise ValueError(DURATION_FORMS)
    number, unit = Decimal(match[1]), match[2]
    if unit == "ms":
        return float(number / 1000)
    return float(number * DURATION_UNITS[unit or "s"])


def parse_size(value: str | int | float) -> int:
    """Bytes in `value`: ``1KB`` (1024 bytes), ``10MB``, ``1.5GB``, ``1TB`` or a bare number of bytes.

    Raises ValueError for anything else, and for a size that isn't a whole number of bytes.
    """
    match = _SIZE.fullmatch(_text(value))
    if match is None:
        raise ValueError(SIZE_FORMS)
    size = Decimal(match[1]) * SIZE_UNITS[(match[2] or "B").upper()]
    if size != size.to_integral_value():
        raise ValueError("not a whole number of bytes")
    return int(size)


def parse_percent(value: str | int | float) -> float:
    """The fraction from 0.0 to 1.0 in `value`: ``90%`` or ``0.9``.

    Raises ValueError for anything else. A bare number above 1 is refused: it may have been meant either way.
    """
    match = _PERCENT.fullmatch(_text(value))
    if match is None:
        raise ValueError(PERCENT_FORMS)
    fraction = Decimal(match[1]) / 100 if match[2] else Decimal(match[1])
    if fraction > 1:
        raise ValueError(PERCENT_FORMS)
    return float(fraction)


def format_duration(seconds: float) -> str:
    """`seconds` in the longest unit that makes a whole number: ``90.0`` -> ``90s``, ``0.5`` -> ``500ms``.

    Raises ValueError for a negative or infinite number.
    """
    exact = _decimal(seconds)
    if exact == 0:
        return "0s"
    for unit, length in DURATION_UNITS.items():
        if exact % length == 0:
            return f"{exact // length:f}{unit}"
    if exact * 1000 % 1 == 0:
        return f"{(exact * 1000).to_integral_value():f}ms"
    return f"{exact:f}s"


def format_size(size: int) -> str:
    """`size` bytes in the largest unit that expresses it in a whole number: ``10485760`` -> ``10MB``.


    Raises ValueError for a negative number.
    """
    if size < 0:
        raise ValueError(SIZE_FORMS)
    for unit, length in SIZE_UNITS.items():
        if unit != "B" and size and size % length == 0:
            return f"{size // length}{unit}"
    return str(size)


def format_percent(fraction: float) -> str:
    """`fraction` (0.0 to 1.0) as a percentage: ``0.9`` -> ``90%``. Raises ValueError outside that range."""
    exact = _decimal(fraction)
    if exact > 1:
        raise ValueError(PERCENT_FORMS)
    return f"{(exact * 100).normalize():f}%"


def _text(value: str | int | float) -> str:
    """`value` as its digits are written, without an exponent."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        raise ValueError("found a boolean")
    return f"{_decimal(value):f}"


def _decimal(number: int | float) -> Decimal:
    """`number` as the decimal that its shortest text stands for, so that 0.1 stays 0.1."""
    exact = Decimal(repr(number))
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"{number} is not a quantity: it is negative or not finite")
    return exact
