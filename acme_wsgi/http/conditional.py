"""Conditional requests: may this request be answered with the representation, or is 304 or 412 the answer?

Law: pure functions of the request's fields (as an environ has them) and of two validators. Knows no file, no
cache and no response; RFC 9110 section 13 and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from werkzeug.http import parse_date

CONDITIONS = (
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
)
"""The environ's names of the fields that `judge` looks at; If-Range counts only where there is a Range."""

# The three forms of RFC 9110 5.6.7; several dates or other zones are none, whatever mail makes of them.
_DATE = re.compile(
    r"(?:[A-Za-z]{3,9}, [0-9]{1,2}[ -][A-Za-z]{3}[ -](?:[0-9]{4}|[0-9]{2}) [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
    r"|[A-Za-z]{3} [A-Za-z]{3} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4})\Z"
)
# entity-tag = [ weak ] DQUOTE *etagc DQUOTE, in a list whose members may be empty (RFC 9110 8.8.3, 5.6.1)
_MEMBER = re.compile(r'[ \t,]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one state of a representation from the next.

    :ivar etag: as in the field, ``"abc"`` or ``W/"abc"``; None: it has none
    :ivar modified: seconds since the epoch, as in Last-Modified; None: it has none
    """

    etag: str | None = None
    modified: int | None = None


def judge(method: str, environ: Mapping[str, Any], current: Validators) -> int | None:
    """The status that the conditions ask for instead of the answer: 304, 412, or None (RFC 9110 13.2.2).

    For a representation that exists.
    """
    safe = method in ("GET", "HEAD")
    field = environ.get("HTTP_IF_MATCH")
    if field is not None:
        if not _matches(field, current.etag, strong=True):
            return 412
    else:
        date = http_date(environ.get("HTTP_IF_UNMODIFIED_SINCE"))
        if date is not None and current.modified is not None and current.modified > date:
            return 412
    field = environ.get("HTTP_IF_NONE_MATCH")
    if field is not None:
        if _matches(field, current.etag, strong=False):
            return 304 if safe else 412
    elif safe:
        date = http_date(environ.get("HTTP_IF_MODIFIED_SINCE"))
        if date is not None and current.modified is not None and current.modified <= date:
            return 304
    return None


def range_applies(environ: Mapping[str, Any], current: Validators) -> bool:
    """Whether If-Range lets the request's Range count; true without one (RFC 9110 13.1.5).

    A tag must match strongly, a date exactly. That a date is strong enough for that is the client's to know
    before it sends one (8.8.2.2).
    """
    field: str | None = environ.get("HTTP_IF_RANGE")
    if field is None:
        return True
    if '"' in field:
        return strong_match(field.strip(" \t"), current.etag)
    date = http_date(field)
    return date is not None and date == current.modified


def strong_match(tag: str, other: str | None) -> bool:
    """The strong comparison of RFC 9110 8.8.3.2: the same, and neither is weak."""
    return tag == other and not tag.startswith("W/")


def weak_match(tag: str, other: str | None) -> bool:
    """The weak comparison of RFC 9110 8.8.3.2."""
    return other is not None and tag.removeprefix("W/") == other.removeprefix("W/")


def entity_tags(field: str) -> Iterator[str]:
    """The members of an If-Match or If-None-Match; nothing from a malformed one on."""
    at = 0
    while found := _MEMBER.match(field, at):
        yield found[1]
        at = found.end()


def http_date(field: str | None) -> int | None:
    """Seconds since the epoch of an HTTP-date in any of its three forms (RFC 9110 5.6.7); None for anything
    else, which a recipient ignores.
    """
    if field is None or _DATE.match(field) is None:
        return None
    return _seconds(field)


# Browsers send back the few dates that we gave them.
@lru_cache(maxsize=1024)
def _seconds(field: str) -> int | None:
    try:
        moment = parse_date(field)
    except (ValueError, OverflowError):
        return None
    return int(moment.timestamp()) if moment is not None else None


def _matches(field: str, etag: str | None, *, strong: bool) -> bool:
    if field.strip(" \t") == "*":
        return True
    compare = strong_match if strong else weak_match
    return any(compare(tag, etag) for tag in entity_tags(field))
