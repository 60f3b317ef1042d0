"""Which file a path stands for: try_files, index, the extension allow-list, compressed siblings; and what the
asset pipeline has made of it.

Law: knows names below a root and the route's keys, no HTTP. Everything here may wait for a disk and is called
in the I/O threads.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from acme_wsgi.files.beneath import Beneath, Listed
from acme_wsgi.files.guard import Seen
from acme_wsgi.files.openfile import OpenFile

if TYPE_CHECKING:
    from acme_wsgi.assets import Asset, Mounted

MOST_LISTED = 10_000
"""Entries of a directory that are shown."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file to be served.

    :ivar name: relative to the root; its extension tells the media type, unless `media_type` does
    :ivar coded: its compressed forms by token
    :ivar tag: names its content; "" if only a look into the file tells
    :ivar immutable: what this URL stands for never changes
    :ivar modified_ns: when its content became what it is; None: when the file was changed
    """

    name: bytes
    file: OpenFile
    coded: dict[str, OpenFile]
    tag: str = ""
    immutable: bool = False
    media_type: str | None = None
    modified_ns: int | None = None


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
    :param assets: what is asked first, by URL; `prefix` makes one of a name
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
        prefix: str = "",
        assets: Mounted | None = None,
    ) -> None:
        self.beneath = beneath
        self._tries, self._last = _compile_tries(tries)
        self._index = tuple(name.encode() for name in index)
        self._listing = listing
        self._extensions = tuple(extension.lower().encode() for extension in extensions)
        self._prefix = prefix
        self._assets = assets
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
            except _Gone:
                outcome = Refused(404)
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
        if self._assets is not None:
            asset = self._assets.find(f"{self._prefix}/{name.decode('latin-1')}")
            if asset is not None:
                return self._made(name, asset, depends)
        return self._plain(name, depends)

    def _made(self, name: bytes, asset: Asset, depends: Depends) -> Found:
        """What the pipeline has for a URL: a file of its own, or the original."""
        if asset.gone or asset.path is None:
            raise _Gone
        self._note_sources(asset, depends)
        if asset.path in asset.source:
            original = self._relative(asset.path)
            found = self._plain(name if original is None else original, depends)
            if asset.stamp != (found.file.size, found.file.mtime_ns):
                return found  # newer than what the pipeline knows
            return replace(
                found,
                coded={**self._packed(asset), **found.coded},  # what lies beside the file goes before ours
                tag=asset.tag,
                immutable=asset.immutable,
                media_type=asset.media_type,
                modified_ns=asset.modified,
            )
        file, coded = _open_made(asset.path), self._packed(asset)
        return Found(name, file, coded, asset.tag, asset.immutable, asset.media_type, asset.modified)

    def _packed(self, asset: Asset) -> dict[str, OpenFile]:
        """The compressed forms that the pipeline has ready, as far as this route sends such files."""
        coded = {}
        for token, path in asset.coded.items():
            if token in self._siblings:
                with suppress(FileNotFoundError):  # somebody has deleted it: it is made for who asks
                    coded[token] = _open_made(path)
        return coded

    def _note_sources(self, asset: Asset, depends: Depends) -> None:
        """What an asset was made from: when that changes, the path stands for something else."""
        for path in asset.source:
            relative = self._relative(path)
            if relative is None:
                continue  # below another route's root: the pipeline tells when it has changed
            depends[relative] = None
            with suppress(FileNotFoundError):
                depends[relative] = self.beneath.stat(relative)

    def _relative(self, path: str) -> bytes | None:
        """An absolute path as one below the root; None if it lies elsewhere."""
        root = os.path.realpath(self.beneath.root) + "/"
        return os.fsencode(path.removeprefix(root)) if path.startswith(root) else None

    def _plain(self, name: bytes, depends: Depends) -> Found:
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
            try:
                return self._listed(name)
            except (FileNotFoundError, NotADirectoryError):
                return None  # it went meanwhile
        return None if self._tries else Refused(403)

    def _listed(self, name: bytes) -> Directory:
        entries = self.beneath.listing(name, MOST_LISTED + 1)
        shown = [entry for entry in entries[:MOST_LISTED] if entry.is_directory or self.served(entry.name)]
        return Directory(shown, len(entries) > MOST_LISTED)


class _Gone(Exception):
    """A URL of the pipeline's whose content is no longer there."""


def _open_made(path: str) -> OpenFile:
    """A file of the pipeline's own directory, where nobody else may write."""
    return OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))


def _compile_tries(tries: tuple[str, ...]) -> tuple[tuple[bytes, ...], int]:
    """The names to try, and the status when there is none of them."""
    last = 404
    if tries and tries[-1].startswith("="):
        last, tries = int(tries[-1][1:]), tries[:-1]
    return tuple(text.encode() for text in tries), last
