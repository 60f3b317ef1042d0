"""The sorts of problems that ``validate`` tells apart.

Its law: a sort adds nothing to a problem but its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from acme_wsgi.config.nodes import Place, printable
from acme_wsgi.errors import Problem


@dataclass(frozen=True, slots=True)
class Conflict(Problem):
    """Two things written contradict each other; the message names both."""

    @classmethod
    def at(cls, place: Place, key: str | None, message: str, hint: str | None = None) -> Self:
        return cls(place.file, place.line, place.column, key and printable(key), message, hint)


@dataclass(frozen=True, slots=True)
class Unreadable(Problem):
    """A file that the configuration refers to can't be used."""

    @classmethod
    def at(cls, place: Place, key: str | None, message: str, hint: str | None = None) -> Self:
        return cls(place.file, place.line, place.column, key and printable(key), message, hint)
