"""Numbers and tables as people read them in a terminal.

Law: pure functions of values. What comes in may be anything that another process has said, so whatever isn't
a number is shown as a dash, and no text leaves here with a control character in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from acme_wsgi.log import escape

DASH = "-"
"""What stands where nothing is known."""

_TEXT_LIMIT = 200
_LABEL = 13  # width of what stands at the left of facts
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def text(value: object) -> str:
    """A text in one line, without controls, not endless; a dash for none."""
    return DASH if value is None or value == "" else escape.text(str(value), _TEXT_LIMIT)


def number(value: object) -> str:
    """``0``, ``0.3``, ``7``, ``12.3``, ``123``, ``12.3k``, ``1.2M``."""
    return _scaled(value, ("", "k", "M", "G", "T"), 1000, 99.95)


def size(value: object) -> str:
    """Bytes: ``800 B``, ``4.1 KB``, ``41 MB``, ``1.2 GB``; 1 KB is 1024 bytes."""
    return _scaled(value, (" B", " KB", " MB", " GB", " TB"), 1024, 9.95)


def duration(value: object) -> str:
    """A short time in seconds: ``85 us``, ``4.1 ms``, ``1.2 s``."""
    if _is_number(value) and isinstance(value, int | float):
        return _scaled(value * 1e6, (" us", " ms", " s"), 1000, 9.95)
    return DASH


def percent(value: object) -> str:
    """``0.3 %``, ``180 %``."""
    found = _scaled(value, ("",), 1000, 9.95)
    return found if found == DASH else f"{found} %"


def age(value: object) -> str:
    """A long time in seconds, in its two largest units: ``45 s``, ``3 h 12 min``, ``5 d 2 h``."""
    if not _is_number(value) or not isinstance(value, int | float):
        return DASH
    whole = max(int(value), 0)
    steps = ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s"))
    for unit, name, below, small in steps:
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // below} {small}"
    return f"{whole} s"


def _scaled(value: object, units: Sequence[str], step: int, fine: float) -> str:
    """A number in the unit that keeps it short; with a decimal as long as it is below `fine`."""
    if not _is_number(value) or not isinstance(value, int | float):
        return DASH
    rest = float(value)
    last = units[-1]
    for unit in units:
        if rest < 999.5 or unit == last:
            shown = f"{rest:.1f}" if abs(rest) < fine else f"{rest:.0f}"
            return shown.removesuffix(".0") + unit
        rest /= step
    return DASH


def _is_number(value: object) -> bool:
    """Whether it is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


# -- tables -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    :ivar title: its head
    :ivar left: aligned left; numbers aren't
    :ivar spare: the higher, the sooner it is left out where there is no room; 0 never
    """

    title: str
    left: bool = False
    spare: int = 0


def room_of(stream: TextIO) -> tuple[int | None, int | None]:
    """How many characters a line and how many lines a page may have there; None where nothing says so."""
    if not stream.isatty():
        return None, None
    # Not shutil's: it believes COLUMNS, which is as old as the shell that exported it.
    found = os.get_terminal_size(stream.fileno())
    return found.columns or None, found.lines or None


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The lines of a table; columns that have no room are left out, the most expendable first."""
    kept = list(range(len(columns)))
    sizes = [max(len(column.title), *(len(row[at]) for row in rows), 0) for at, column in enumerate(columns)]
    while width is not None and sum(sizes[at] + 2 for at in kept) - 2 > width:
        worst = max(kept, key=lambda at: columns[at].spare)
        if not columns[worst].spare:
            break
        kept.remove(worst)
    lines = []
    for row in ([column.title for column in columns], *rows):
        cells = (row[at].ljust(sizes[at]) if columns[at].left else row[at].rjust(sizes[at]) for at in kept)
        lines.append(cut("  ".join(cells).rstrip(), width))
    return lines


def facts(label: str, items: Sequence[str], width: int | None) -> list[str]:
    """``label  item   item   item``, in as many lines as the width makes necessary."""
    lines, line, fresh = [], label.ljust(_LABEL), True
    for item in items:
        if not fresh and width is not None and len(line) + 3 + len(item) > width:
            lines.append(line)
            line, fresh = " " * _LABEL, True
        line += item if fresh else f"   {item}"
        fresh = False
    return [cut(each, width) for each in (*lines, line)]


def cut(line: str, width: int | None) -> str:
    """A line that fits."""
    return line if width is None or len(line) <= width else line[: max(width - 1, 0)] + "…"
