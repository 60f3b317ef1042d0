"""Statuses and header lists as applications and handlers give them, checked before they become a response.

Law: judges types, shapes and whose business a header is; the bytes inside (CR, LF, NUL, what latin-1 can't
hold) are the writer's to judge, once for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from acme_wsgi.errors import reason

if TYPE_CHECKING:
    from acme_wsgi.handlers import Request

# RFC 2616 section 13.5.1, which PEP 3333 names; they describe the connection, which is the server's.
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
        "trailers", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


def checked_status(status: object, who: str) -> str:
    """The status line's code and phrase; a missing phrase is filled in.

    :raises TypeError, ValueError: not a str, or not like "200 OK"; `who` gave it and is named
    """
    if not isinstance(status, str):
        raise TypeError(f"{who}: the status must be str, not {type(status).__name__}")
    code, _, phrase = status.partition(" ")
    if not (len(code) == 3 and code.isascii() and code.isdecimal() and code >= "200"):
        raise ValueError(f"{who}: bad status {status!r:.80}; it must look like '200 OK'")
    return str(status) if phrase else f"{code} {reason(int(code))}"


def checked_headers(headers: object, request: Request | None, who: str) -> list[tuple[str, str]]:
    """The headers without what belongs to the connection; ``Connection: close`` is obeyed and taken out.

    :raises TypeError: not a list of tuples of two str
    :raises ValueError: a hop-by-hop header; `who` gave it and is named
    """
    if not isinstance(headers, list):
        raise TypeError(f"{who}: the headers must be a list, not {type(headers).__name__}")
    kept = []
    for pair in headers:
        if not _is_header(pair):
            raise TypeError(f"{who}: a header must be a tuple of two str, not {pair!r:.200}")
        name, value = pair
        lowered = name.lower()
        if lowered not in _HOP_BY_HOP:
            kept.append(pair)
        elif lowered == "keep-alive" or (lowered == "connection" and value.strip().lower() == "keep-alive"):
            continue  # every copied example of server-sent events has it; it asks for what is so anyway
        elif lowered == "connection" and value.strip().lower() == "close":
            if request is not None:
                request.close_connection()
        else:
            raise ValueError(f"{who}: the hop-by-hop header {name!r:.80} is the server's (PEP 3333)")
    return kept


def _is_header(pair: object) -> bool:
    return (
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str)
    )
