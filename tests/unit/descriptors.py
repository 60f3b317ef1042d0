"""Which descriptors this process has open, to show that none is left behind.

    before = descriptors()
    ...
    assert left_open(before) == {}

Only what has come counts: things of an earlier test may be closed at any moment, by a thread of theirs that
ends or by the garbage collector. Where one takes the place of another, `leading_below(directory)` counts.
"""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

_OURS = "/proc/self/fd"


def descriptors() -> frozenset[str]:
    """The numbers of those that are open."""
    return frozenset(_targets())


def left_open(before: Set[str]) -> dict[str, str]:
    """Those that have been opened since and are open still, with what they lead to."""
    return {number: target for number, target in _targets().items() if number not in before}


def leading_below(directory: Path) -> list[str]:
    """What those lead to that are of files in a directory, deleted ones too."""
    return sorted(target for target in _targets().values() if target.startswith(f"{directory}/"))


def _targets() -> dict[str, str]:
    found = {}
    for number in os.listdir(_OURS):  # noqa: PTH208
        try:
            found[number] = os.readlink(f"{_OURS}/{number}")  # noqa: PTH115
        except FileNotFoundError:  # the listing's own
            continue
    return found
