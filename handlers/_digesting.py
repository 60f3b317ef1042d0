"""The digests of large files: computed once, piece by piece, while requests are answered without them.

Law: one file at a time, one piece at a time in an I/O thread, so that others get at their files in between.
In a worker threading is patched: the thread that goes through the queue is a greenlet.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from acme_wsgi import iothreads
from acme_wsgi.handlers._contents import PIECE, Digests, Key, key_of

if TYPE_CHECKING:
    from acme_wsgi.files.openfile import OpenFile

log = logging.getLogger("acme.handlers.static")

MOST_WAITING = 1000
"""Files in the queue; beyond it a file goes without a digest until it is asked for again."""

_PIECES = 8


class Digesting:
    """The queue of one worker. What is found out goes into `digests`."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._queue: dict[tuple[str, Key], tuple[OpenFile, bool, threading.Event]] = {}
        self._running = False

    def begin(self, algorithm: str, file: OpenFile, cached: bool) -> threading.Event:
        """Have a file's digest computed; the event tells when that is done, well or not.

        :param cached: leave the file's pages in memory
        """
        key = algorithm, key_of(file)
        known = self._queue.get(key)
        if known is not None:
            return known[2]
        done = threading.Event()
        if len(self._queue) >= MOST_WAITING:
            done.set()
            return done
        self._queue[key] = file, cached, done
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="digests", daemon=True).start()
        return done

    def _run(self) -> None:
        try:
            while self._queue:
                key = next(iter(self._queue))
                file, cached, done = self._queue[key]
                try:
                    self._digest(key[0], file, cached)
                except OSError as error:
                    log.warning("the digest of a file can't be computed: %s", error)
                finally:
                    del self._queue[key]
                    done.set()
        finally:
            self._running = False

    def _digest(self, algorithm: str, file: OpenFile, cached: bool) -> None:
        hashed = hashlib.new(algorithm, usedforsecurity=False)
        at = 0
        while at < file.size:
            got = iothreads.run(_take, hashed.update, file, at, cached)
            if not got:
                return
            at += got
        if iothreads.run(file.unchanged):
            self._digests.put(algorithm, file, hashed.hexdigest())


def _take(update: Callable[[Any], object], file: OpenFile, at: int, cached: bool) -> int:
    """Some pieces from `at` on; how many bytes these were, 0 at the end or when the file has changed."""
    if not file.unchanged():
        return 0
    begin = at
    for _ in range(_PIECES):
        piece = os.pread(file.fileno(), PIECE, at)
        update(piece)
        at += len(piece)
    if not cached:
        os.posix_fadvise(file.fileno(), begin, at - begin, os.POSIX_FADV_DONTNEED)
    return at - begin
