"""Which content coding a client gets, by its Accept-Encoding (RFC 9110 section 12.5.3).

Law: pure functions of the field's text and of what the server has to offer; knows nothing of how anything is
encoded.
"""

from __future__ import annotations

import re
from functools import lru_cache

REMEMBERED = 512
"""So many different fields are remembered; browsers have a dozen between them."""

LONGEST_REMEMBERED = 256
"""Characters: a longer field is read anew each time, so that the table's size is known."""

# A weight of RFC 9110 section 12.4.2; OWS may stand around the semicolon.
_ELEMENT = re.compile(
    r"[ \t]*(?P<coding>[!#$%&'*+.^_`|~0-9A-Za-z-]+)"
    r"(?:[ \t]*;[ \t]*[qQ]=(?P<weight>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?[ \t]*"
)

# RFC 9110 section 8.4.1: what recipients should take for the same.
_SAME = {"x-gzip": "gzip", "x-compress": "compress"}


def negotiate(accept_encoding: str | None, offered: tuple[str, ...]) -> str:
    """The best coding for a client: a token of `offered`, or "" for the body as it is.

    The client's weights go first, then the order of `offered`. "" too where nothing is acceptable,
    not even the body as it is: an answer that the client may not read serves it better than a 406.

    :param accept_encoding: the field's value, several lines joined by commas; None: it was not sent, so the
        client has no preference and may know no coding at all
    :param offered: content codings in lower case, as in Content-Encoding; the server's favourite first
    """
    if not accept_encoding or not offered:
        return ""
    if len(accept_encoding) > LONGEST_REMEMBERED:
        return _choose(accept_encoding, offered)
    return _remembered(accept_encoding, offered)


def refuses_identity(accept_encoding: str | None) -> bool:
    """Does the client rule out the body as it is: `identity;q=0`, or `*;q=0` and no other word on it?"""
    if not accept_encoding or "0" not in accept_encoding:
        return False
    weights = _weights(accept_encoding)
    return weights.get("identity", weights.get("*", 1)) == 0


def _choose(accept_encoding: str, offered: tuple[str, ...]) -> str:
    weights = _weights(accept_encoding)
    others = weights.get("*", 0)
    best = max(offered, key=lambda token: weights.get(token, others))  # the first of equals
    weight = weights.get(best, others)
    if weight == 0 or weights.get("identity", others) > weight:
        return ""
    return best


_remembered = lru_cache(REMEMBERED)(_choose)


def _weights(accept_encoding: str) -> dict[str, int]:
    """Coding -> weight in thousandths. What isn't as the grammar wants it is passed over."""
    weights: dict[str, int] = {}
    for element in accept_encoding.split(","):
        match = _ELEMENT.fullmatch(element)
        if match is not None:
            coding = match["coding"].lower()
            weight = match["weight"]
            weights[_SAME.get(coding, coding)] = 1000 if weight is None else round(float(weight) * 1000)
    return weights
