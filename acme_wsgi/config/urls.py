"""URLs of servers that we talk to, as they are compared and as they may be shown.

Its law: pure functions of texts that the grammar has let through, but for `refused`; nothing is looked up.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

MASK = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USER = re.compile(r"[^:?]*[:?]")
_HOST = re.compile(r"(?:\[[^\]/?#]*\]|[^\[:/?#]*):")
_PORT = re.compile(r"[0-9]*(?:[/?#]|\Z)")

_PORTS = {"http": 80, "https": 443}


def masked(url: str) -> str:
    """`url` as it may be shown: without its password, and without a query, which may carry a secret too."""
    parts = urlsplit(url)
    if "@" not in parts.netloc and not parts.query:
        return url
    account, _, host = parts.netloc.rpartition("@")
    user, colon, _ = account.partition(":")
    netloc = f"{user}{':' + MASK if colon else ''}@{host}" if account else host
    return parts._replace(netloc=netloc, query=MASK if parts.query else "").geturl()


def refused(text: str) -> str:
    """A text that should have been a URL, as a message may show it: without what may be password or query.

    Where its parts are in doubt more is hidden: from the first colon to the last @, whatever stands there.
    """
    if text.startswith("unix:"):
        return _without_query(text)
    scheme = _SCHEME.match(text)
    begin = scheme.end() if scheme is not None else 0
    account, at, place = text[begin:].rpartition("@")
    if not at:
        return text[:begin] + _place(place)
    user = _USER.match(account)
    shown = text[:begin] + (f"{user[0]}{MASK}" if user is not None else account)
    # Behind a question mark the @ may stand in a query.
    return shown if "?" in account else f"{shown}@{_place(place)}"


def _place(text: str) -> str:
    """Host, port and path; a port that is none may be a password whose @ was forgotten."""
    host = _HOST.match(text)
    if host is not None and not _PORT.match(text, host.end()):
        return host[0] + MASK
    return _without_query(text)


def _without_query(text: str) -> str:
    path, mark, _ = text.partition("?")
    return f"{path}?{MASK}" if mark else path


def without_account(url: str) -> str:
    """`url` without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def normal(url: str) -> str:
    """The one spelling of all that name the same backend (RFC 3986 section 6.2).

    Scheme and host are in lower case, the scheme's own port and a slash at the end are gone. ``unix:///path``
    is ``unix:/path``.
    """
    if url.startswith("unix:"):
        return "unix:/" + url.removeprefix("unix:").lstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        return url
    account, at, place = parts.netloc.rpartition("@")
    place = place.lower().removesuffix(f":{_PORTS[parts.scheme]}").removesuffix(":")
    return parts._replace(netloc=f"{account}{at}{place}", path=parts.path.rstrip("/")).geturl()
