"""What proxy routes fill in for each request: values of added headers, and rewritten paths.

Its law: the one place that knows the spelling; from a text to its parts, and a ValueError that says what is
allowed. What a variable stands for in a request is its user's to know.

    headers.add    $remote_addr, $scheme, $host, $request_id; $$ is a dollar sign
    rewrite.to     \\1 to \\99, \\g<1>, \\g<name>: groups of rewrite.from; \\\\ is a backslash
"""

from __future__ import annotations

import re
from typing import NamedTuple

from acme_wsgi.config.kinds import Hinted, nearest

VARIABLES = ("remote_addr", "scheme", "host", "request_id")
"""What ``$name`` may be in the value of an added header."""

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*))?")
_GROUP = re.compile(r"\\(?:([1-9][0-9]?)(?![0-9])|g<([^>]*)>|(\\))?")


class Variable(NamedTuple):
    """A part that each request fills in: one of `VARIABLES`."""

    name: str


class Group(NamedTuple):
    """A part that the match fills in: a group of the regular expression, by number."""

    number: int


def header(text: str) -> tuple[str | Variable, ...]:
    """The parts of the value of an added header; literal text is ASCII. Raises ValueError."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("a text of ASCII characters, without control characters")
    if text != text.strip():
        raise ValueError("a text without spaces at its ends")
    parts: list[str | Variable] = []
    end = 0
    for found in _VARIABLE.finditer(text):
        _append(parts, text[end : found.start()])
        end = found.end()
        if found[1]:
            _append(parts, "$")
        else:
            parts.append(Variable(_known(found[2] or "")))
    _append(parts, text[end:])
    return tuple(parts)


def _known(name: str) -> str:
    """`name`, if it is a variable's."""
    if name in VARIABLES:
        return name
    allowed = f"a text with the variables {', '.join('$' + each for each in VARIABLES)}, and $$ for a $"
    near = nearest(name, list(VARIABLES)) if name else ""
    raise Hinted(allowed, f"did you mean ${near}?" if near else "")


def rewrite(text: str, pattern: re.Pattern[str]) -> tuple[str | Group, ...]:
    """The parts of a rewritten path; raises ValueError for a group that `pattern` doesn't have."""
    parts: list[str | Group] = []
    end = 0
    for found in _GROUP.finditer(text):
        _append(parts, text[end : found.start()])
        end = found.end()
        number, name, backslash = found.groups()
        if backslash:
            _append(parts, "\\")
        elif number or name:
            parts.append(Group(_number(number or name, pattern)))
        else:
            raise ValueError(r"after a backslash a group (\1, \g<name>) or another backslash")
    _append(parts, text[end:])
    if isinstance(parts[0], str) and not parts[0].startswith("/"):
        raise ValueError("a path that starts with /, or with a group that does")
    return tuple(parts)


def _number(reference: str, pattern: re.Pattern[str]) -> int:
    """The number of the group that is meant."""
    if reference in pattern.groupindex:
        return pattern.groupindex[reference]
    if reference.isascii() and reference.isdigit() and len(reference) <= 3:
        if int(reference) <= pattern.groups:
            return int(reference)
        have = {0: "no group", 1: "one group"}.get(pattern.groups, f"{pattern.groups} groups")
        raise ValueError(f"there is no group {reference}: the expression has {have}")
    near = nearest(reference, list(pattern.groupindex))
    raise Hinted(f"there is no group {reference!r}", f"did you mean {near}?" if near else "")


def _append(parts: list[str | Variable] | list[str | Group], text: str) -> None:
    """Add literal text; what is beside literal text becomes one part with it."""
    if not text:
        return
    if parts and isinstance(parts[-1], str):
        parts[-1] += text
    else:
        parts.append(text)
