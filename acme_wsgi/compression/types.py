"""Which responses are encoded, as far as their fields say it: the patterns of `compression.types` against a
Content-Type, and what a Cache-Control has against it.

Law: pure functions of texts; images and videos are left out by the settings, not by any opinion in here.
"""

from __future__ import annotations

from collections.abc import Collection


def compressible(content_type: str, types: Collection[str]) -> bool:
    """Is a Content-Type, whatever its parameters, one of `types` (in lower case: "text/html", "text/*")?"""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in types or f"{kind.partition('/')[0]}/*" in types


def may_transform(cache_control: str) -> bool:
    """Does a Cache-Control leave the body to be encoded: no `no-transform` (RFC 9111 section 5.2.2.6)?"""
    return "no-transform" not in cache_control.lower()
