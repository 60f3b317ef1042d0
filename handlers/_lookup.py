"""Which file a path stands for: try_files, index, the extension allow-list, siblings compressed beforehand.

Law: knows names below a root and the route's keys, no HTTP. Everything here may wait for a disk and is called
in the I/O threads.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from acme_wsgi.files.beneath import Beneath, Listed
from acme_wsgi.files.guard import Seen
from acme_wsgi.files.openfile import OpenFile

MOST_LISTED = 10_000
"""Entries of a directory that are shown."""

_CODE = re.compile(r"=([45][0-9]{2})\Z")


@dataclass(frozen=True, slots=True)
class Found:
    """A file to be served. `name` is relative to the root; `coded` are its compressed siblings by token."""

    name: bytes
    file: OpenFile
    coded: dict[str, OpenFile]


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory to be listed."""

    entries: list[Listed]
    more: bool


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A directory, asked for without its slash."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing to be served: an HTTP status of 400 to 599."""

    status: int


Depends = dict[bytes, Seen]
"""Relative path -> what was found there."""

Outcome = Found | Directory | Elsewhere | Refused


class Lookup:
    """The names of one route.

    :param tries: try_files; empty: the path itself, be it a file or a directory
    :param siblings: content-coding token -> the extension of files compressed beforehand (".br")

    Raises ValueError for a try_files that can't be meant.
    """

    def __init__(
        self,
        beneath: Beneath,
        *,
        tries: tuple[str, ...],
        index: tuple[str, ...],
        listing: bool,
        extensions: tuple[str, ...],
        siblings: Mapping[str, str],
    ) -> None:
        self.beneath = beneath
        self._tries, self._last = _compile_tries(tries)
        self._index = tuple(name.encode() for name in index)
        self._listing = listing
        self._extensions = tuple(extension.lower().encode() for extension in extensions)
        self._siblings = {token: extension.encode() for token, extension in siblings.items()}

    def find(self, relative: bytes) -> tuple[Outcome, Depends]:
        """What a path stands for, and what was found at every name whose change could alter that.

        :param relative: the path below the root, without a slash at the front
        """
        depends: Depends = {}
        for name in self._candidates(relative):
            try:
                outcome = self._try(name, relative, depends)
            except PermissionError:
                outcome = Refused(403)
            if outcome is not None:
                return outcome, depends
        return Refused(self._last), depends

    def served(self, name: bytes) -> bool:
        """Whether the allow-list has a file's extension."""
        return not self._extensions or name.lower().endswith(self._extensions)

    def _candidates(self, relative: bytes) -> Iterator[bytes]:
        if not self._tries:
            yield relative
            return
        for template in self._tries:
            name = template.replace(b"$uri", b"/" + relative)
            if not template.endswith(b"/") and name.endswith(b"/"):
                name = name.rstrip(b"/")  # only `$uri/` means a directory
                if template == b"$uri":
                    continue
            yield re.sub(rb"/{2,}", b"/", name).lstrip(b"/")

    def _try(self, name: bytes, asked: bytes, depends: Depends) -> Outcome | None:
        """None: there is nothing of that name."""
        if name == b"" or name.endswith(b"/"):
            return self._directory(name, asked, depends)
        try:
            return self._file(name, depends)
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            return None if self._tries else Elsewhere()

    def _file(self, name: bytes, depends: Depends) -> Found | None:
        depends[name] = None
        if not self.served(name):
            found = depends[name] = self.beneath.stat(name)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError  # a directory may be called anything
            return None
        file = depends[name] = self.beneath.open(name)
        coded = {}
        for token, extension in self._siblings.items():
            sibling = depends[name + extension] = self._sibling(name + extension)
            if sibling is None:
                continue
            if sibling.mtime_ns >= file.mtime_ns:
                coded[token] = sibling
            else:
                sibling.close()  # made of another version; when it changes, we look again
        return Found(name, file, coded)

    def _sibling(self, name: bytes) -> OpenFile | None:
        try:
            return self.beneath.open(name)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return None

    def _directory(self, name: bytes, asked: bytes, depends: Depends) -> Outcome | None:
        depends[name.rstrip(b"/")] = None
        try:
            found = self.beneath.stat(name)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(found.st_mode):
            return None
        depends[name.rstrip(b"/")] = found
        if asked and not asked.endswith(b"/"):
            return Elsewhere()  # found by `$uri/`: its relative links need the slash
        for index in self._index:
            try:
                page = self._file(name + index, depends)
            except (FileNotFoundError, IsADirectoryError):
                continue
            if page is not None:
                return page
        if self._listing:
            return self._listed(name)
        return None if self._tries else Refused(403)

    def _listed(self, name: bytes) -> Directory:
        entries = self.beneath.listing(name, MOST_LISTED + 1)
        shown = [entry for entry in entries[:MOST_LISTED] if entry.is_directory or self.served(entry.name)]
        return Directory(shown, len(entries) > MOST_LISTED)


def _compile_tries(tries: tuple[str, ...]) -> tuple[tuple[bytes, ...], int]:
    """The names to try, and the status when there is none of them."""
    last = 404
    if tries and tries[-1].startswith("="):
        code = _CODE.match(tries[-1])
        if code is None:
            raise ValueError(f"try_files: {tries[-1]!r}: an error status looks like =404")
        last, tries = int(code[1]), tries[:-1]
    for text in tries:
        if text.startswith("="):
            raise ValueError(f"try_files: {text!r}: an error status can only be the last")
        if "$" in text.replace("$uri", ""):
            raise ValueError(f"try_files: {text!r}: there is no other variable than $uri")
        if not text.startswith(("/", "$uri")) or "\0" in text:
            raise ValueError(f"try_files: {text!r}: a name starts with / or $uri")
        if ".." in text.split("/"):
            raise ValueError(f"try_files: {text!r} leads out of the root")
    return tuple(text.encode() for text in tries), last
