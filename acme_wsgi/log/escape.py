"""What may stand raw in a log line, and what becomes of the rest.

Law: pure functions of strings. Whatever comes from outside passes through here before it is written, so that
no line can be forged (CR, LF), no terminal driven (ESC) and no field left early (quotes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MASK = "***"

# Apache's ap_escape_logitem: quotes, backslashes, and everything that isprint(3) refuses in the C locale.
_APACHE_NAMED = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_APACHE = {
    code: _APACHE_NAMED.get(chr(code), chr(code) if 0x20 <= code < 0x7F else f"\\x{code:02x}")
    for code in range(256)
}
_WIDE = re.compile(r"[^\x00-\x7f]")

_TEXT_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def apache(value: object, limit: int) -> str:
    """A field of a `common` or `combined` line, escaped as Apache does, cut to ``limit`` characters.

    Not every value is a string: some come from an environ that an application has had in its hands.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
        text = text[:limit] + "..."
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    escaped = text.translate(_APACHE)
    # A latin-1 character is one byte of the wire; anything wider came from Python code and is shown as UTF-8.
    return escaped if escaped.isascii() else _WIDE.sub(_as_utf8, escaped)


def _as_utf8(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match.group().encode("utf-8", "surrogatepass"))


def text(value: str, limit: int) -> str:
    """Free text for people: printable Unicode stays, controls, bidi marks and surrogates are escaped."""
    if len(value) > limit:
        value = value[:limit] + "..."
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() else _TEXT_NAMED.get(c) or _hex(c) for c in value)


def _hex(char: str) -> str:
    point = ord(char)
    if point <= 0xFF:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


def wire(value: str) -> str:
    """A header's or target's bytes (PEP 3333: one character each) as text: as UTF-8 where they are that."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


class HeaderMask:
    """The headers whose values no log shows (``logging.mask_headers``); names in any case."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._names

    def shown(self, name: str, value: str) -> str:
        """The value of a header as a log may show it: itself, or ``***``."""
        return MASK if name.lower() in self._names else value

    def mapping(self, headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> dict[str, str]:
        """Headers as one mapping with the masked values hidden; several lines of one name are joined."""
        pairs: Iterable[tuple[str, str]] = headers.items() if isinstance(headers, Mapping) else headers
        result: dict[str, str] = {}
        for name, value in pairs:
            value = self.shown(name, value)
            result[name] = f"{result[name]}, {value}" if name in result and value != MASK else value
        return result
