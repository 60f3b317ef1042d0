"""How results are shown: a table for eyes, a JSON document for programs. Computes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Value = float | int | str | bool | None


@dataclass(frozen=True)
class Column:
    """One column: its key in the JSON rows, its heading, how a value is written."""

    key: str
    heading: str
    form: str = "{}"


@dataclass
class Table:
    """A titled table. Each row is a mapping from column keys (and more, for the JSON only) to values."""

    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Markdown, aligned: readable on a terminal and in a page."""
        cells = [[column.heading for column in self.columns]]
        cells += [[_write(column, row.get(column.key)) for column in self.columns] for row in self.rows]
        widths = [max(len(line[index]) for line in cells) for index in range(len(self.columns))]
        lines = [self.title, ""]
        for number, line in enumerate(cells):
            padded = [
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append(f"| {' | '.join(padded)} |")
            if number == 0:
                # a colon behind the dashes sets the column to the right
                rules = [
                    "-" * width if index == 0 else "-" * (width - 1) + ":"
                    for index, width in enumerate(widths)
                ]
                lines.append(f"| {' | '.join(rules)} |")
        return "\n".join([*lines, *(f"\n{remark}" for remark in self.remarks)])

    def document(self) -> dict[str, Any]:
        """The same for programs: unrounded."""
        return {"title": self.title, "rows": self.rows, "remarks": self.remarks}


def _write(column: Column, value: Value) -> str:
    if value is None:
        return "-"
    return column.form.format(value)


def as_json(
    scenario: str,
    settings: dict[str, Any],
    machine: dict[str, Any],
    versions: dict[str, str],
    tables: Sequence[Table],
    left_out: dict[str, str],
    failures: dict[str, str],
) -> str:
    """The whole run as one JSON document."""
    return json.dumps(
        {
            "scenario": scenario,
            "settings": settings,
            "machine": machine,
            "versions": versions,
            "left_out": left_out,
            "failures": failures,
            "tables": [table.document() for table in tables],
        },
        indent=2,
        default=str,
    )
