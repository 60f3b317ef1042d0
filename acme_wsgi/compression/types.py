"""Which media types are worth encoding: the patterns of `compression.types` against a Content-Type.

Law: a pure function of texts; images and videos are left out by the settings, not by any opinion in here.
"""

from __future__ import annotations

from collections.abc import Collection


def compressible(content_type: str, types: Collection[str]) -> bool:
    """Is a Content-Type, whatever its parameters, one of `types` (in lower case: "text/html", "text/*")?"""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in types or f"{kind.partition('/')[0]}/*" in types
