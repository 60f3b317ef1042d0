"""Sizes as people write them on a command line: `13`, `4KB`, `100KB`, `1GB`. Imports nothing of the bench."""

from __future__ import annotations

import argparse
import re

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


def parse_size(text: str) -> int:
    """Bytes, at least one; KB, MB and GB are powers of 1024. Raises argparse.ArgumentTypeError."""
    found = re.fullmatch(r"([0-9]{1,12})([KMG]?)B?", text.strip().upper())
    size = int(found.group(1)) << _UNITS[found.group(2)] if found else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 13, 4KB, 1GB")
    return size


def parse_sizes(text: str) -> tuple[int, ...]:
    """Several, with commas between; each once, in their order. Raises argparse.ArgumentTypeError."""
    return tuple(dict.fromkeys(parse_size(part) for part in text.split(",")))


def write_size(size: int) -> str:
    """The shortest way to write it that is exact: `4 KB`."""
    for unit in ("G", "M", "K"):
        if size % (1 << _UNITS[unit]) == 0:
            return f"{size >> _UNITS[unit]} {unit}B"
    return f"{size} bytes"
