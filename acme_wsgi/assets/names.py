"""The names of assets: versioned URLs, and what a reference in a style sheet or a page points at.

Law: text in, text out; no file is looked at. A reference is only ever understood or left: whatever is unclear
(another host, a scheme, escapes that might mean several things) is None.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

_HASH = "[0-9a-f]{8}"
HASH_DIGITS = 8
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Characters of a path that need no escaping in any of the places that references stand in.
_SAFE = "/~!$+:@"


@dataclass(frozen=True, slots=True)
class Versioning:
    """The form of versioned URLs, ``/static/{file}-{hash}.{ext}``.

    What stands before the first brace up to its last slash is the directory in which (and below which) URLs
    are versioned. The rest names the file: a versioned URL lies in the directory of its plain one, so that
    relative references in it go on meaning what they meant.

    :ivar directory: with its slash at the end
    :ivar name: what becomes of the file's name
    """

    directory: str
    name: str

    @classmethod
    def of(cls, pattern: str) -> Versioning:
        """Read `static.versioning.pattern`.

        :raises ValueError: the hash would move files to other directories
        """
        head, _, _ = pattern.partition("{")
        directory = head[: head.rindex("/") + 1]
        name = pattern[len(directory) :]
        if "/" in name:
            raise ValueError(
                f"{pattern}: no slash may follow the first brace;"
                " relative references in a file would point elsewhere"
            )
        return cls(_wire(directory), _wire(name))

    def versioned(self, url: str, digest: str) -> str:
        """The URL with a hash in it; "" if URLs like this one aren't versioned."""
        directory, name = _split(url)
        stem, dot, extension = name.rpartition(".")
        if not directory.startswith(self.directory) or not dot or not stem or not extension:
            return ""
        made = {"{file}": stem, "{hash}": digest[:HASH_DIGITS], "{ext}": extension}
        return directory + re.sub(r"\{(?:file|hash|ext)\}", lambda match: made[match[0]], self.name)

    def plain(self, url: str) -> str:
        """The URL without its hash; "" if it isn't a versioned one."""
        directory, name = _split(url)
        if not directory.startswith(self.directory):
            return ""
        match = _expression(self.name).fullmatch(name)
        return f"{directory}{match['file']}.{match['ext']}" if match else ""


@lru_cache(maxsize=16)
def _expression(name: str) -> re.Pattern[str]:
    parts = {"{file}": "(?P<file>.+)", "{hash}": _HASH, "{ext}": r"(?P<ext>[^.]+)"}
    return re.compile(
        "".join(parts.get(part, re.escape(part)) for part in re.split(r"(\{(?:file|hash|ext)\})", name)),
        re.DOTALL,
    )


def _split(url: str) -> tuple[str, str]:
    """A URL's directory, with its slash, and the last segment."""
    cut = url.rindex("/") + 1 if "/" in url else 0
    return url[:cut], url[cut:]


def _wire(text: str) -> str:
    """Text as paths of requests have it: its UTF-8 bytes, each a character."""
    return text if text.isascii() else text.encode().decode("latin-1")


def resolve(reference: str, base: str) -> str | None:
    """The URL path that a reference means.

    :param reference: as written, bytes as latin-1 text
    :param base: URL path of the file that it stands in
    :returns: None where it leaves the server, names no file, or isn't clear
    """
    path = _path_of(reference)
    if not path or path.startswith("//") or _SCHEME.match(path):
        return None
    if any(char <= " " or char in "\\\x7f" for char in path) or "//" in path:
        return None
    path = unquote(path, encoding="latin-1")
    if "\0" in path or "%" in path or path.endswith("/"):
        return None
    joined = path if path.startswith("/") else _split(base)[0] + path
    segments: list[str] = []
    for segment in joined.split("/")[1:]:
        if segment == "..":
            if not segments:
                return None
            segments.pop()
        elif segment != ".":
            segments.append(segment)
    return "/" + "/".join(segments)


def redirected(reference: str, url: str) -> str:
    """The reference with another last segment, that of `url`; the rest stays as it was written."""
    path = _path_of(reference)
    return path[: path.rfind("/") + 1] + escaped(_split(url)[1]) + reference[len(path) :]


def moved(reference: str, url: str, base: str) -> str:
    """The relative reference that means `url` in a file at `base`; query and fragment stay as written."""
    rest = reference[len(_path_of(reference)) :]
    return escaped(posixpath.relpath(url, _split(base)[0])) + rest


def is_relative(reference: str) -> bool:
    """Whether what it means depends on the directory of the file that it stands in."""
    return bool(reference) and reference[0] not in "/\\#" and not _SCHEME.match(reference)


def escaped(path: str) -> str:
    """A path as it stands in a URL."""
    return quote(path.encode("latin-1"), safe=_SAFE)


def _path_of(reference: str) -> str:
    return re.split(r"[?#]", reference, maxsplit=1)[0]
