"""The assets of a running worker: which file is served at a URL, and which URL is an asset's.

Law: answers from what was built; builds itself only before the worker is ready. `find` may look at files, so
it is called where that may wait; it may be called from any thread. Imports no gevent.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from acme_wsgi.assets import build, names, records, tree
from acme_wsgi.assets.home import Home
from acme_wsgi.assets.plan import Plan
from acme_wsgi.assets.records import Asset, Entry, Key, State
from acme_wsgi.assets.sites import Mount
from acme_wsgi.files.media import media_type

BOOT = 3.0
"""Seconds that pages may take before a worker is ready. The others come later, and are served as they are."""

_TOLD = 1000  # paths that asset_url remembers to have complained of

log = logging.getLogger("acme.assets")


@dataclass(frozen=True, slots=True)
class Table:
    """What a state says, ready to be asked. It is replaced as a whole.

    :ivar plain: by the assets' own URLs
    :ivar versioned: by those with a hash
    """

    plain: dict[Key, tuple[Entry, Asset]] = field(default_factory=dict)
    versioned: dict[Key, tuple[Entry, Asset]] = field(default_factory=dict)

    @classmethod
    def of(cls, state: State, home: Home) -> Table:
        """From a state, with the paths as this process reaches them."""
        table = cls()
        for entry in state.entries:
            table.plain[entry.key] = entry, _asset(entry, home, immutable=False)
            if entry.versioned:
                table.versioned[entry.hosts, entry.versioned] = entry, _asset(entry, home, immutable=True)
        return table


def _asset(entry: Entry, home: Home, *, immutable: bool) -> Asset:
    return Asset(
        path=home.object_path(entry.made) if entry.made else entry.sources[0],
        immutable=immutable,
        tag=entry.tag,
        coded={coding: home.object_path(name) for coding, name in entry.coded.items() if name},
        source=entry.sources,
        media_type=media_type(entry.url.rpartition("/")[2]),  # a versioned name may end in anything
        stamp=None if entry.made else entry.stamps[0],
        modified=entry.modified,
    )


class Assets:
    """All assets of this server.

    :ivar generation: grows with each change
    :ivar hurry: called, from any thread, when a source was seen to have changed
    :ivar unshared: bytes of the state that nobody else knows because it could not be written, 0 if it was
    """

    def __init__(self, plan: Plan, home: Home) -> None:
        self.plan, self.home = plan, home
        self.generation = 0
        self.state = State()
        self.hurry: Callable[[], None] | None = None
        self.unshared = 0
        self._table = Table()
        self._mark: tuple[int, int, int] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._told: set[str] = set()

    # -- for static routes ---------------------------------------------------------------------------------

    def mounted(self, number: int) -> Mounted | None:
        """The assets of the route with this number; None if it has none."""
        mount = next((mount for mount in self.plan.sites.mounts if mount.number == number), None)
        return None if mount is None else Mounted(self, mount)

    def find(self, mount: Mount, url: str) -> Asset | None:
        """What `Mounted.find` says."""
        key = (mount.hosts, url)
        table = self._table
        found = table.versioned.get(key)
        if found is not None:
            return self._versioned(*found)
        found = table.plain.get(key)
        if found is not None:
            return self._plain(*found, mount)
        plain = self.plan.versioning.plain(url) if self.plan.versioning is not None else ""
        known = table.plain.get((mount.hosts, plain)) if plain else None
        if known is None or not known[0].versioned:
            return None
        if self.reload():
            return self.find(mount, url)
        if _exists_beside(known[0], url):
            return None
        if self.unshared:  # another worker may have built what it names so
            return self._plain(*known, mount) or _as_it_lies(known[0])
        return Asset(None, gone=True)

    def _plain(self, entry: Entry, asset: Asset, mount: Mount) -> Asset | None:
        if _is_current(entry) and (entry.bundled or self._is_same_root(mount)):
            return asset
        self._wake_keeper()
        # A file is served as it is until it has been built again; a bundle has nothing else to be.
        return asset if entry.bundled else None

    def _versioned(self, entry: Entry, asset: Asset) -> Asset:
        if entry.made or _is_current(entry):
            return asset
        self._wake_keeper()
        return _as_it_lies(entry)

    def _is_same_root(self, mount: Mount) -> bool:
        """Whether the root is the directory it was: a deployment may have switched the symlink that it is."""
        try:
            found = os.stat(mount.root)  # noqa: PTH116 - for each request that comes here
        except OSError:
            return False
        return self.state.roots.get(mount.root) == (found.st_dev, found.st_ino)

    def _wake_keeper(self) -> None:
        if self.hurry is not None:
            self.hurry()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, on the loop, soon after each change."""
        self._callbacks.append(callback)

    def call_back(self) -> None:
        """Tell everybody who asked that something changed."""
        for callback in self._callbacks:
            callback()

    # -- for handlers and templates ------------------------------------------------------------------------

    def url(self, path: str) -> str:
        """What `asset_url` says."""
        if self.plan.versioning is None or "://" in path or path.startswith("//"):
            return path
        cut = min((at for at in (path.find("?"), path.find("#")) if at >= 0), default=len(path))
        plain = unquote_to_bytes(path[:cut]).decode("latin-1")
        for hosts in self._all_hosts():
            found = self._table.plain.get((hosts, plain))
            if found is not None and found[0].versioned:
                return names.escaped(found[0].versioned) + path[cut:]
        if path not in self._told and len(self._told) < _TOLD:
            self._told.add(path)
            log.warning("asset_url(%r): no asset has a versioned URL by that name; it stays as it is", path)
        return path

    def _all_hosts(self) -> list[tuple[str, ...]]:
        """Routes for any host first."""
        groups = {mount.hosts for mount in self.plan.sites.mounts}
        return sorted(groups, key=lambda hosts: (bool(hosts), hosts))

    # -- keeping up ----------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Build, or wait for who builds, and take over what there is; before the worker is ready.

        :raises ConfigError: nothing has been built, and nothing may be written
        """
        with self.home.building():
            previous = self.load_state()
            if previous is None:
                self.home.insist_on_writing()
            found = tree.look(self.plan.sites)
            elder = self._elder()
            if previous is None or self._is_to_be_built(previous, found, elder):
                self.rebuild(previous, found, log.info, BOOT, elder)
        self.reload()

    def load_state(self) -> State | None:
        """What the file says now."""
        return records.load(self.home.state(self.plan.configuration))

    def _elder(self) -> dict[Key, Entry]:
        """What was last said of each URL by states of other settings."""
        youngest: dict[Key, Entry] = {}
        for text in self.home.others(self.plan.configuration):
            for entry in (records.load(text) or State()).entries:
                if youngest.setdefault(entry.key, entry).modified < entry.modified:
                    youngest[entry.key] = entry
        return youngest

    def _is_to_be_built(self, previous: State, found: tree.Tree, elder: Mapping[Key, Entry]) -> bool:
        again = bool(previous.room) and self.home.has_room(previous.room)
        overtaken = any(_is_overtaken(entry, elder.get(entry.key)) for entry in previous.entries)
        return again or overtaken or build.changed(previous, found) or not self._is_whole(previous)

    def _is_whole(self, state: State) -> bool:
        served = (name for entry in state.entries for name in (entry.made, *entry.coded.values()))
        return all(self.home.has(name) for name in served if name)

    def rebuild(
        self,
        previous: State | None,
        found: tree.Tree,
        say: Callable[[str], None],
        seconds: float,
        elder: Mapping[Key, Entry] | None = None,
    ) -> State:
        """Build and publish; called with the lock for building. For `seconds` and `elder` see `build`."""
        began = time.monotonic()
        state = build.build(self.plan, self.home, previous, found, say, seconds, elder)
        try:
            if self.unshared or state != previous:
                self.publish(state)
        except OSError as error:
            state.failures[self.home.shown] = f"what was built can't be kept: {error.strerror}"
            if previous is not None and not self.unshared and self._is_whole(previous):
                return state  # all workers go on with what they share
            self._keep_to_itself(state)
        if previous is not None and previous.entries == state.entries:
            return state  # files that were read again, and are the same
        later = f"; {state.pending} pages come later" if state.pending else ""
        made = sum(1 for entry in state.entries if entry.made)
        say(
            f"assets: {len(found.sources)} files, {made} served in another form,"
            f" {sum(1 for entry in state.entries if entry.versioned)} with versioned URLs,"
            f" built in {time.monotonic() - began:.1f} s{later}"
        )
        return state

    def publish(self, state: State) -> None:
        """Let every worker have it; OSError if it can't be written."""
        self.home.put_state(self.plan.configuration, records.dump(state), build.manifest(state.entries))

    def _keep_to_itself(self, state: State) -> None:
        """Serve from a state that could not be written, until there is one that could."""
        changed = state.entries != self.state.entries
        self.state, self._mark = state, self.home.mark(self.plan.configuration)
        self.unshared = len(records.dump(state))
        if changed:
            self._table = Table.of(state, self.home)
            self.generation += 1

    def has_room_again(self) -> bool:
        """Whether something that could not be written may fit by now."""
        least = self.unshared or self.state.room
        return bool(least) and self.home.has_room(least)

    def reload(self) -> bool:
        """Take over what another process has built; whether there was anything new."""
        mark = self.home.mark(self.plan.configuration)
        if mark is None or mark == self._mark:
            return False
        state = self.load_state()
        if state is None:
            return False
        self.unshared = 0
        if self._mark is not None and state.entries == self.state.entries:
            self.state, self._mark = state, mark
            return False
        # Several threads may do so at once. Should the older state win, the next look sets it right.
        self.state, self._table, self._mark = state, Table.of(state, self.home), mark
        self.generation += 1
        return True


@dataclass(frozen=True, slots=True)
class Mounted:
    """The assets of one static route."""

    assets: Assets
    mount: Mount

    @property
    def generation(self) -> int:
        """Grows with each change of any asset."""
        return self.assets.generation

    def find(self, path: str) -> Asset | None:
        """What is served at a path, or None where the route goes on as if there were no assets.

        It may wait for a disk, so it is called in an I/O thread, and any number of those may call it.

        :param path: of the file's URL, as requests have it: for a directory's index that of the index
        """
        return self.assets.find(self.mount, path)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, on the loop, soon after each change."""
        self.assets.on_change(callback)


def _is_current(entry: Entry) -> bool:
    """Whether the files are those that it was built from."""
    try:
        for path, stamp in zip(entry.sources, entry.stamps, strict=True):
            found = os.stat(path)  # noqa: PTH116 - for each request that comes here
            if (found.st_size, found.st_mtime_ns) != stamp:
                return False
    except OSError:
        return False
    return True


def _is_overtaken(entry: Entry, other: Entry | None) -> bool:
    """Whether another content was served at the URL since, under other settings."""
    return other is not None and other.tag != entry.tag and other.modified >= entry.modified


def _as_it_lies(entry: Entry) -> Asset:
    """A file of which the pipeline knows no more than where it is."""
    return Asset(entry.sources[0], source=entry.sources)


def _exists_beside(entry: Entry, url: str) -> bool:
    """Whether a file of this very name lies beside the asset, and came after the last look."""
    directory = os.path.dirname(entry.sources[0])  # noqa: PTH120
    return os.path.lexists(os.path.join(os.fsencode(directory), url.rpartition("/")[2].encode("latin-1")))  # noqa: PTH118
