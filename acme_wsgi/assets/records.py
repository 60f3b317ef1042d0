"""What the pipeline knows of an asset, in memory and in the state file that the workers share.

Law: records and their JSON, nothing else. URLs are paths as requests have them: bytes as latin-1 text. Names
of files in the cache are names within its directory of objects, never paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 5
"""Of the state file, and of what is made: what an earlier program left in another format is built anew."""

Stamp = tuple[int, int]
"""Size in bytes and mtime in nanoseconds: what tells two versions of a file apart without reading it."""

YOUNG = -1
"""As mtime: the file was written so lately that another write might not show; it is read again."""

Key = tuple[tuple[str, ...], str]
"""The hosts of a static route (none: any), and a URL path below it."""


@dataclass(frozen=True, slots=True)
class Asset:
    """What a static route serves at a URL.

    :ivar path: the file to serve, absolute: in the cache directory, or the original; None if `gone`
    :ivar gone: a versioned URL whose content is no longer there: 404
    :ivar immutable: the content of this URL never changes (RFC 8246)
    :ivar tag: names the content, for the ETag; "" where the file's own is to be taken
    :ivar coded: content coding -> file that holds the content so coded, for those that are ready
    :ivar source: the original files
    :ivar media_type: by the plain URL's extension; that of a versioned one may say nothing, or another thing
    :ivar stamp: (size, mtime_ns) of the file that `tag` describes; None in the cache, where none ever changes
    :ivar modified: when the content became what it is, in nanoseconds since the epoch; None: as the file says
    """

    path: str | None
    gone: bool = False
    immutable: bool = False
    tag: str = ""
    coded: Mapping[str, str] = field(default_factory=dict)
    source: tuple[str, ...] = ()
    media_type: str | None = None
    stamp: tuple[int, int] | None = None
    modified: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One asset as it was built.

    :ivar versioned: its URL with the hash, "" if it has none
    :ivar made: name of the object that is served, "" for the original itself
    :ivar bundled: it has no file of its own name
    :ivar joined: of a bundle, the object that it is without references to versions; "" for a file
    :ivar tag: names the content that is served
    :ivar size: of that content, in bytes
    :ivar modified: when it became that, in nanoseconds since the epoch
    :ivar coded: content coding -> name of the object; "" where coding it gains nothing
    """

    hosts: tuple[str, ...]
    url: str
    sources: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    tag: str
    size: int
    modified: int
    made: str = ""
    bundled: bool = False
    joined: str = ""
    versioned: str = ""
    coded: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.hosts, self.url


@dataclass(slots=True)
class State:
    """All that was built, and what spares work the next time.

    :ivar roots: directory of a route -> (device, inode) of what it was
    :ivar known: path -> (stamp, digest of the content)
    :ivar references: digest of a style sheet or page -> what build.py found in it
    :ivar made: recipe -> name of the object that came of it, "" where the file is served as it is
    :ivar complaints: what is wrong with a source, by path
    :ivar failures: what the file system refused, by path or URL; none of it is a result, all is tried again
    :ivar room: bytes that the smallest of what was refused takes, 0 if nothing was
    :ivar pending: so many pages are served as they are until there is time for them
    """

    entries: list[Entry] = field(default_factory=list)
    roots: dict[str, Stamp] = field(default_factory=dict)
    known: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    complaints: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    room: int = 0
    pending: int = 0

    def objects(self) -> set[str]:
        """The names of all objects that this state needs."""
        needed = {name for name in self.made.values() if name}
        for entry in self.entries:
            needed.update(name for name in (entry.made, entry.joined, *entry.coded.values()) if name)
        return needed


def dump(state: State) -> bytes:
    """The state as the file holds it."""
    return json.dumps({"format": FORMAT, **asdict(state)}, separators=(",", ":")).encode()


def load(text: bytes) -> State | None:
    """The state in a file; None if it is damaged or of another format."""
    try:
        found = json.loads(text)
        if found.pop("format") != FORMAT:
            return None
        return State(
            entries=[_entry(each) for each in found["entries"]],
            roots={root: _stamp(identity) for root, identity in found["roots"].items()},
            known={path: (_stamp(stamp), str(digest)) for path, (stamp, digest) in found["known"].items()},
            references=found["references"],
            made=found["made"],
            complaints=found["complaints"],
            failures=found["failures"],
            room=int(found["room"]),
            pending=int(found["pending"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _entry(found: dict[str, Any]) -> Entry:
    found["hosts"], found["sources"] = tuple(found["hosts"]), tuple(found["sources"])
    found["stamps"] = tuple(_stamp(stamp) for stamp in found["stamps"])
    return Entry(**found)


def _stamp(found: list[int]) -> Stamp:
    first, second = found
    return int(first), int(second)
