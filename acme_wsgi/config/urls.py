"""URLs of servers that we talk to, as they are compared and as they may be shown.

Its law: pure functions of texts that the grammar has let through; nothing is looked up.
"""

from __future__ import annotations

from urllib.parse import urlsplit

MASK = "***"

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
