"""The digests of large files: computed once, piece by piece, while requests are answered without them.

Law: one file at a time, one piece at a time in an I/O thread, so that others get at their files in between.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from acme_wsgi import iothreads
from acme_wsgi.handlers._contents import PIECE, Digests, Key, key_of
from acme_wsgi.handlers._fillers import Later

if TYPE_CHECKING:
    import threading

    from acme_wsgi.files.openfile import OpenFile
    from acme_wsgi.handlers._static import Resource

log = logging.getLogger("acme.handlers.static")

MOST_WAITING = 1000
"""Files in the queue, and paths to one of them; beyond it a file goes without until it is asked for again."""

_PIECES = 8


class Digesting:
    """The queue of one worker. What is found out goes into `digests`."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._later: Later[tuple[str, Key], None] = Later(MOST_WAITING)
        self._served: dict[tuple[str, Key], set[Resource]] = {}

    def begin(self, algorithm: str, file: OpenFile, cached: bool, served: Resource) -> threading.Event | None:
        """Have a file's digest computed; the event tells when that is done, well or not. None: no room.

        :param cached: leave the file's pages in memory
        :param served: what goes out without it meanwhile; it is retired once the digest is known
        """
        key = algorithm, key_of(file)
        waiting = self._served.setdefault(key, set())
        if len(waiting) < MOST_WAITING:
            waiting.add(served)
        work = self._later.begin(key, lambda: self._compute(key, file, cached))
        if work is None:
            del self._served[key]
            return None
        return work.done

    def _compute(self, key: tuple[str, Key], file: OpenFile, cached: bool) -> None:
        known = False
        try:
            known = self._digest(key[0], file, cached)
        except OSError as error:
            log.warning("the digest of a file can't be computed: %s", error)
        finally:
            waiting = self._served.pop(key)
        if known:
            for resource in waiting:
                resource.retired = True

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
