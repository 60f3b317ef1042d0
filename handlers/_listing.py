"""A directory as a page: its entries as links, with sizes and times for people.

Law: a pure function of names that others made up. Every name is escaped for where it stands; no link leaves
the directory. Knows no file system.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from urllib.parse import quote

from acme_wsgi.files.beneath import Listed

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def page(path: str, entries: Iterable[Listed], *, more: bool, parent: bool) -> bytes:
    """The HTML page of a directory, UTF-8.

    :param path: its URL path as the request has it (bytes as latin-1 text)
    :param entries: in the order in which they are shown
    :param more: there are more entries than these
    :param parent: link to the directory above
    """
    title = html.escape("Index of " + _shown(path.encode("latin-1")))
    rows = ['<tr><td><a href="../">../</a></td><td></td><td></td></tr>'] if parent else []
    rows += [_row(entry) for entry in entries]
    rest = "<p>There are more files than are shown here.</p>\n" if more else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>\n"
        "<style>body{font:15px/1.5 sans-serif;margin:2em}td,th{padding:0 2em 0 0;text-align:left}"
        "td:nth-child(2),th:nth-child(2){text-align:right;white-space:nowrap}</style></head>\n"
        f"<body><h1>{title}</h1>\n"
        "<table><thead><tr><th>Name</th><th>Size</th><th>Changed (UTC)</th></tr></thead>\n"
        "<tbody>\n" + "\n".join(rows) + f"\n</tbody></table>\n{rest}</body></html>\n"
    ).encode()


def human_size(size: int) -> str:
    """A number of bytes for people: ``1.4 MB``, where 1 KB is 1024 bytes."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    unit = 0
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.1f} {_UNITS[unit]}"


def _row(entry: Listed) -> str:
    slash = "/" if entry.is_directory else ""
    # quote() leaves letters, digits and _.-~ alone; "./" keeps a name from being anything but a name.
    link = "./" + quote(entry.name, safe="") + slash
    size = "" if entry.is_directory else human_size(entry.size)
    changed = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.mtime_ns // 1_000_000_000))
    name = html.escape(_shown(entry.name))
    return f'<tr><td><a href="{link}">{name}{slash}</a></td><td>{size}</td><td>{changed}</td></tr>'


def _shown(name: bytes) -> str:
    """A name as text; what isn't UTF-8, or can't be seen, as a replacement character."""
    text = name.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
