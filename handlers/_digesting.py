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
    from acme_wsgi.handlers._static import Resource

log = logging.getLogger("acme.handlers.static")

MOST_WAITING = 1000
"""Files in the queue, and paths to one of them; beyond it a file goes without until it is asked for again."""

_PIECES = 8


class _Job:
    """One file that waits for its digest, and who waits for that."""

    __slots__ = ("cached", "done", "file", "served")

    def __init__(self, file: OpenFile, cached: bool) -> None:
        self.file = file
        self.cached = cached
        self.done = threading.Event()
        self.served: set[Resource] = set()

    def tell(self) -> None:
        for resource in self.served:
            resource.retired = True


class Digesting:
    """The queue of one worker. What is found out goes into `digests`."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._queue: dict[tuple[str, Key], _Job] = {}
        self._running = False

    def begin(self, algorithm: str, file: OpenFile, cached: bool, served: Resource) -> threading.Event | None:
        """Have a file's digest computed; the event tells when that is done, well or not. None: no room.

        :param cached: leave the file's pages in memory
        :param served: what goes out without it meanwhile; it is retired once the digest is known
        """
        key = algorithm, key_of(file)
        job = self._queue.get(key)
        if job is None:
            if len(self._queue) >= MOST_WAITING:
                return None
            job = self._queue[key] = _Job(file, cached)
        if len(job.served) < MOST_WAITING:
            job.served.add(served)
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="digests", daemon=True).start()
        return job.done

    def _run(self) -> None:
        try:
            while self._queue:
                key = next(iter(self._queue))
                job = self._queue[key]
                try:
                    if self._digest(key[0], job.file, job.cached):
                        job.tell()
                except OSError as error:
                    log.warning("the digest of a file can't be computed: %s", error)
                finally:
                    del self._queue[key]
                    job.done.set()
        finally:
            self._running = False

    def _digest(self, algorithm: str, file: OpenFile, cached: bool) -> bool:
        """Whether it is known now; a file that changes meanwhile has none."""
        hashed = hashlib.new(algorithm, usedforsecurity=False)
        at = 0
        while at < file.size:
            got = iothreads.run(_take, hashed.update, file, at, cached)
            if not got:
                return False
            at += got
        if not iothreads.run(file.unchanged):
            return False
        self._digests.put(algorithm, file, hashed.hexdigest())
        return True


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
