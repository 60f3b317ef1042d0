"""The backends of a running server, as `status` and `stats` show them.

Law: pure functions of what the server said, which passes through acme_wsgi/cli/display.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from acme_wsgi.cli import display
from acme_wsgi.cli.client import mappings
from acme_wsgi.cli.display import Column

_COLUMNS = (
    Column("backend", left=True),
    Column("state", left=True),
    Column("since", spare=2),
    Column("weight", spare=3),
    Column("active"),
    Column("requests"),
    Column("failures"),
    Column("latency", spare=1),
    Column("last check", left=True, spare=4),
)


def lines(groups: object, width: int | None) -> Iterator[str]:
    """A table for each group, with an empty line before it; nothing where there are none.

    :param groups: the answer's `backends`
    """
    for group in mappings(groups):
        rows = [_row(member) for member in mappings(group.get("members"))]
        rows += [_row(gone) for gone in mappings(group.get("leaving"))]
        yield ""
        yield display.cut(_title(group), width)
        yield from display.table(_COLUMNS, rows, width)


def _title(group: Mapping[str, Any]) -> str:
    """``backends: least_conn, sticky, for /api/*``."""
    routes = group.get("routes")
    names = [display.text(each) for each in routes] if isinstance(routes, list) else []
    parts = [display.text(group.get("algorithm"))]
    if group.get("sticky") is True:
        parts.append("sticky")
    name = display.text(group.get("group"))
    # A group of a route's own has the route's name.
    if names and not (len(names) == 1 and name.startswith("route ")):
        parts.append(f"for {', '.join(names)}")
    return f"{name}: {', '.join(parts)}"


def _row(member: Mapping[str, Any]) -> list[str]:
    state = display.text(member.get("state"))
    if "seconds_left" in member:
        state += f", {display.age(member['seconds_left'])} left"
    return [
        display.text(member.get("url")),
        state,
        display.age(member.get("since")),
        _count(member.get("weight")),
        _count(member.get("active")),
        _count(member.get("requests")),
        _count(member.get("failures")),
        display.duration(member.get("latency")),
        _last_check(member),
    ]


def _last_check(member: Mapping[str, Any]) -> str:
    if member.get("checked_actively") is False:
        return "off"
    checked = member.get("checked")
    said = display.text(member.get("last_check"))
    return said if checked is None else f"{said}, {display.age(checked)} ago"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else display.DASH
