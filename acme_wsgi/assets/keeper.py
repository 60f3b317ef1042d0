"""What happens to assets while the server runs: changes are built, and all is compressed as small as it gets.

    every worker    looks at the state file each second, and takes over what is new
    one of them     the keeper: looks at the sources, builds, compresses, removes what nobody needs

Law: a greenlet and two threads of its own; the worker's I/O threads are left to requests. Work goes through
service.py. Imports gevent when it is started, never before.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from acme_wsgi import compression
from acme_wsgi.assets import build, records, tree
from acme_wsgi.assets.home import length
from acme_wsgi.assets.records import Entry, Key, State
from acme_wsgi.assets.service import Assets
from acme_wsgi.assets.sites import Mount
from acme_wsgi.config.schema.content import Compression

SHARE = 50
"""The pause between two looks is at least so many times as long as a look took."""

BEST = {"br": 11, "gzip": 9}
WORTH = 0.95
"""A compressed form is kept if it has at most this part of the size."""

PAGES = 3.0
"""Seconds that pages may take at a time; a pause follows that is as long as all the building took."""

_SWITCH = 0.0005  # seconds that the thread which builds may keep the loop waiting for the interpreter
_TICK = 1.0  # seconds between two looks of a worker at the state
_SWEEP = 60.0  # seconds between two looks for what nobody needs, or two words on what only oneself needs
_SAVE = 5.0  # seconds between two times that compressed forms are published while they are made
_AGAIN = 30.0  # seconds after which a keeper that failed tries again
_NICE = 10

T = TypeVar("T")
log = logging.getLogger("acme.assets")


@dataclass(frozen=True, slots=True)
class Task:
    """One asset to be compressed in one way."""

    entry: Entry
    coding: str


class Keeper:
    """The life of the assets in one worker."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        self.configuration = assets.plan.configuration
        self.keeps = False
        self._seen = assets.generation
        self._due = 0.0
        self._swept = 0.0
        self._wish = False  # set by any thread: look now
        self._told: set[tuple[str, str]] = set()
        self._failed = ""  # why nothing could be done the last time
        self._refused = ""  # why not all could be compressed the last time
        self._compress_again = math.inf  # when that is to be tried again
        self._thread: Any = None
        self._background: Any = None
        self._compressing: Any = None
        self._looked_at = -1  # the generation whose assets were last looked through for what isn't compressed

    def start(self) -> None:
        """Begin, in the worker, on its loop."""
        import gevent
        from gevent.threadpool import ThreadPool

        self._thread = ThreadPool(1)
        self._background = ThreadPool(1)
        self.assets.hurry = self._hurry
        gevent.spawn(self._run)

    def _hurry(self) -> None:
        self._wish = True

    def _run(self) -> None:
        import gevent

        while True:
            try:
                self.step()
                self._failed = ""
            except (OSError, ValueError, MemoryError) as error:
                if str(error) != self._failed:
                    self._failed = str(error)
                    log.error("assets are served as they were last built: %s", error)
                gevent.sleep(_AGAIN)
            gevent.sleep(_TICK)

    def step(self) -> None:
        """What is due."""
        if not self.keeps and self.assets.home.become_keeper(self.configuration):
            self.keeps = True
            self._complain(self.assets.state)
        if self.keeps:
            self._keep()
        elif self.assets.unshared:
            self._spare_own()
        self._call(self.assets.reload)
        if self.assets.generation != self._seen:
            self._seen = self.assets.generation
            self.assets.call_back()

    def _call(self, function: Callable[[], T]) -> T:
        """In the thread, while the loop goes on."""
        return _in(self._thread, function)

    def _spare_own(self) -> None:
        """See that the keeper, who can't know this worker's state, doesn't remove what that needs."""
        now = time.monotonic()
        if now - self._swept >= _SWEEP:
            self._swept = now
            self._call(lambda: self.assets.home.spare(self.assets.state.objects()))

    # -- the keeper ----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        now = time.monotonic()
        if self._wish or now >= self._due:
            self._wish = False
            said: list[str] = []
            state = self._call(lambda: self._look(said))
            goes_on = state is not None and state.pending and not state.failures
            share = 1 if goes_on else SHARE
            self._due = time.monotonic() + max(_TICK, share * (time.monotonic() - now))
            for line in said:
                log.info("%s", line)
            if state is not None:
                self._complain(state)
        if now - self._swept >= _SWEEP:
            self._swept = now
            self._call(self._sweep)
        if self.assets.unshared:
            return  # nobody could be told what is compressed
        again = self._looked_at != self.assets.generation or now >= self._compress_again
        if self._background is None:
            self.compress_all()
        elif self._compressing is None and again:
            import gevent

            self._looked_at = self.assets.generation
            self._compressing = gevent.spawn(self._compress_in_background)

    def _look(self, said: list[str]) -> State | None:
        """Build if sources have changed or pages have had to wait; returns what was built."""
        assets = self.assets
        found = tree.look(assets.plan.sites)
        due = assets.state.pending > 0 or assets.has_room_again()
        if not due and not build.changed(assets.state, found):
            return None
        usual = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            with assets.home.building():
                previous = assets.state if assets.unshared else assets.load_state()
                return assets.rebuild(previous, found, said.append, PAGES)
        finally:
            sys.setswitchinterval(usual)

    def _complain(self, state: State) -> None:
        """Say what is wrong with sources, and what could not be read or written, once each."""
        wrong = [*state.complaints.items(), *state.failures.items()]
        for path, what in wrong:
            if (path, what) not in self._told:
                log.warning("asset %s: %s", path, what) if path else log.warning("assets: %s", what)
        self._told = set(wrong)

    def _sweep(self) -> None:
        assets, now = self.assets, time.time()
        needed = assets.state.objects()
        with assets.home.building():
            assets.home.touch(self.configuration)
            assets.home.forget(self.configuration, now)
            for text in assets.home.others(self.configuration):
                other = records.load(text)
                if other is not None:
                    needed |= other.objects()
            needed |= (assets.load_state() or State()).objects()
            assets.home.sweep(needed, now)
            assets.home.clear_temporary(now)

    # -- compression ---------------------------------------------------------------------------------------

    def _tasks(self) -> list[Task]:
        """What isn't compressed yet, smallest first."""
        found = []
        for entry in self.assets.state.entries:
            mount = self.assets.plan.sites.owner(entry.hosts, entry.url)
            settings = mount.compression if mount is not None else None
            if mount is None or settings is None or not self._is_worth(entry, settings):
                continue
            found += [
                Task(entry, coding)
                for coding in compression.tokens(settings)
                if coding in BEST and coding not in entry.coded
            ]
        return sorted(found, key=lambda task: task.entry.size)

    @staticmethod
    def _is_worth(entry: Entry, settings: Compression) -> bool:
        kind = _media_type(entry.url)
        return settings.min_size <= entry.size <= settings.max_size and compression.compressible(
            kind, settings.types
        )

    def _compress_in_background(self) -> None:
        self._compress_again = math.inf
        began = time.monotonic()
        try:
            self.compress_all()
        except OSError as error:
            self._refuse("the list of what is compressed", error, began)
        except (ValueError, MemoryError) as error:
            log.error("assets can't be compressed: %s", error)
        finally:
            self._compressing = None

    def compress_all(self) -> None:
        """Compress what isn't, and publish it in portions. Where a form can't be kept, the rest waits."""
        tasks = self._call(self._tasks)
        if not tasks:
            return
        if not self._refused:
            log.info("compressing %d assets in the background", len({task.entry.key for task in tasks}))
        began = spoke = time.monotonic()
        done: dict[tuple[Key, str], dict[str, str]] = {}
        before = after = 0
        refused = False
        for number, task in enumerate(tasks, 1):
            try:
                name = self._apart(lambda task=task: self._compress(task))  # type: ignore[misc]
            except OSError as error:
                self._refuse(f"{task.entry.url} in its smallest form", error, began)
                refused = True
                break
            if name is None:
                continue  # it has changed meanwhile, and comes again
            done.setdefault((task.entry.key, task.entry.tag), {})[task.coding] = name
            before += task.entry.size
            after += length(name) if name else task.entry.size
            if time.monotonic() - spoke >= _SAVE:
                spoke = time.monotonic()
                self._call(lambda: self._publish(done))
                log.info("compressed assets: %d of %d", number, len(tasks))
        if done:
            self._call(lambda: self._publish(done))
        if not refused:
            self._refused = ""
            took = time.monotonic() - began
            log.info("compressed assets: all %d, %d bytes to %d, in %.1f s", len(tasks), before, after, took)

    def _refuse(self, what: str, error: OSError, began: float) -> None:
        """Have it tried again, and say so, but not each time."""
        now = time.monotonic()
        self._compress_again = now + max(_AGAIN, SHARE * (now - began))
        if what != self._refused:
            self._refused = what
            log.warning("assets are compressed anew for clients: %s can't be kept: %s", what, error.strerror)

    def _apart(self, function: Callable[[], T]) -> T:
        """In the thread for what has time."""
        return _in(self._background, function)

    def _compress(self, task: Task) -> str | None:
        """One asset, in one way; the object's name, "" if it isn't smaller, None if the asset is gone."""
        if self._background is not None:
            # For this thread alone: the loop goes first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        entry = task.entry
        try:
            content = self._content(entry)
        except (OSError, ValueError):
            return None
        small = compression.compress(task.coding, BEST[task.coding], content)
        if len(small) > len(content) * WORTH:
            return ""
        return self.assets.home.put(small, compression.extension(task.coding))

    def _content(self, entry: Entry) -> bytes:
        if entry.made:
            return self.assets.home.read(entry.made)
        mount: Mount | None = self.assets.plan.sites.owner(entry.hosts, entry.url)
        if mount is None:
            raise ValueError("nobody serves it")
        relative = entry.url.removeprefix(mount.prefix).removeprefix("/").encode("latin-1")
        source = tree.Source(mount, entry.url, relative, entry.sources[0], entry.stamps[0])
        content, stamp = tree.read(source, tree.LARGEST)
        if stamp != entry.stamps[0]:
            raise ValueError("it has changed")
        return content

    def _publish(self, done: dict[tuple[Key, str], dict[str, str]]) -> None:
        """Put what was compressed into the state as it is by now."""
        assets = self.assets
        with assets.home.building():
            state = assets.load_state()
            if state is None:
                return
            state.entries = [
                replace(entry, coded={**entry.coded, **done.get((entry.key, entry.tag), {})})
                for entry in state.entries
            ]
            assets.publish(state)
        assets.reload()


def _in(pool: Any, function: Callable[[], T]) -> T:
    """In a pool's thread; in this one where there is no loop, and no pool."""
    if pool is None:
        return function()
    from acme_wsgi import iothreads

    return iothreads.apply(pool, function)


_TYPES = {
    ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript", ".html": "text/html",
    ".htm": "text/html", ".json": "application/json", ".map": "application/json", ".svg": "image/svg+xml",
    ".xml": "application/xml", ".txt": "text/plain", ".webmanifest": "application/manifest+json",
}  # fmt: skip


def _media_type(url: str) -> str:
    return _TYPES.get("." + url.rpartition(".")[2].lower(), "application/octet-stream")
