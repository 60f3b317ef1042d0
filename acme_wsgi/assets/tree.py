"""The files below static routes, with the URLs that they are served at.

Law: looks at directories and reads files, through files.Beneath alone: what a request couldn't get is no
asset. All of it may wait for a disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from acme_wsgi.assets.records import Key, Stamp
from acme_wsgi.assets.sites import Mount, Sites
from acme_wsgi.files.beneath import Beneath

MOST_FILES = 50_000
"""Files looked at, over all routes. The rest are served as they are."""

MOST_DEPTH = 32
LARGEST = 32 << 20
"""Bytes of the largest file that gets a versioned URL: each of them is read once."""

_CHUNK = 1 << 20
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Source:
    """A file that a static route serves.

    :ivar relative: its path below the route's root
    :ivar path: its absolute path, for people and for opening it as it is
    """

    mount: Mount
    url: str
    relative: bytes
    path: str
    stamp: Stamp

    @property
    def key(self) -> Key:
        return self.mount.hosts, self.url


@dataclass(slots=True)
class Tree:
    """What a look found.

    :ivar roots: directory of a route -> (device, inode)
    :ivar left_out: some files were more than are looked at
    """

    sources: dict[Key, Source] = field(default_factory=dict)
    roots: dict[str, Stamp] = field(default_factory=dict)
    left_out: bool = False

    def stamps(self) -> dict[str, Stamp]:
        """Path -> stamp."""
        return {source.path: source.stamp for source in self.sources.values()}


def look(sites: Sites) -> Tree:
    """Every file that is served. A root that isn't there has none."""
    tree = Tree()
    for mount in sites.mounts:
        try:
            found = Path(mount.root).stat()
        except OSError:
            continue
        tree.roots[mount.root] = (found.st_dev, found.st_ino)
        _walk(tree, sites, mount, Beneath(mount.root), os.path.realpath(mount.root))
    for key in [key for key in tree.sources if _is_sibling(tree, key)]:
        del tree.sources[key]
    return tree


def _is_sibling(tree: Tree, key: Key) -> bool:
    """Whether it is another file, compressed beforehand."""
    hosts, url = key
    return url.endswith((".br", ".gz")) and (hosts, url[:-3]) in tree.sources


def _walk(tree: Tree, sites: Sites, mount: Mount, beneath: Beneath, root: str) -> None:
    if mount.only:
        _add_one(tree, mount, beneath, root)
        return
    waiting: list[tuple[bytes, int]] = [(b"", 0)]
    while waiting:
        directory, depth = waiting.pop()
        try:
            listed = beneath.listing(directory, MOST_FILES + 1)
        except OSError:
            continue
        for entry in listed:
            relative = directory + b"/" + entry.name if directory else entry.name
            if entry.is_directory:
                if depth < MOST_DEPTH:
                    waiting.append((relative, depth + 1))
                continue
            if len(tree.sources) >= MOST_FILES:
                tree.left_out = True
                return
            url = f"{mount.prefix}/{relative.decode('latin-1')}"
            if mount.serves(url) and sites.owner(mount.hosts, url) is mount:
                _add(tree, mount, url, relative, root, (entry.size, entry.mtime_ns))


def _add_one(tree: Tree, mount: Mount, beneath: Beneath, root: str) -> None:
    relative = mount.only[1:].encode("latin-1")
    try:
        with closing(beneath.open(relative)) as file:
            _add(tree, mount, mount.only, relative, root, (file.size, file.mtime_ns))
    except OSError:
        return


def _add(tree: Tree, mount: Mount, url: str, relative: bytes, root: str, stamp: Stamp) -> None:
    path = f"{root}/{os.fsdecode(relative)}"
    source = Source(mount, url, relative, path, stamp)
    tree.sources[source.key] = source


def read(source: Source, most: int) -> tuple[bytes, Stamp]:
    """A file's content, of one version, and the stamp of that.

    :param most: bytes; a larger file raises ValueError
    :raises OSError: it can't be read, now
    """
    for _ in range(_TRIES):
        with closing(Beneath(source.mount.root).open(source.relative)) as file:
            if file.size > most:
                raise ValueError(f"larger than {most} bytes")
            content = b"".join(_chunks(file.fileno(), file.size))
            if len(content) == file.size and file.unchanged():
                return content, (file.size, file.mtime_ns)
    raise OSError(errno.EAGAIN, "it changes while it is read")


def digest(source: Source) -> tuple[str, Stamp]:
    """The SHA-256 of a file's content, of one version, and the stamp of that; raises as `read` does."""
    for _ in range(_TRIES):
        with closing(Beneath(source.mount.root).open(source.relative)) as file:
            hashed = hashlib.sha256()
            size = 0
            for chunk in _chunks(file.fileno(), file.size):
                hashed.update(chunk)
                size += len(chunk)
            if size == file.size and file.unchanged():
                return hashed.hexdigest(), (file.size, file.mtime_ns)
    raise OSError(errno.EAGAIN, "it changes while it is read")


def _chunks(descriptor: int, size: int) -> Iterator[bytes]:
    """A file's content in pieces, up to the size it had."""
    offset = 0
    while piece := os.pread(descriptor, min(_CHUNK, size - offset), offset):
        offset += len(piece)
        yield piece
