"""The compressed forms of files that take long to make: made once for each version, beside the requests.

What was begun is finished and kept, whoever still waits for it. So a form may take longer than any request
may wait, and outlive what a path is known to stand for, which on some file systems is a second.

Law: one at a time, in the thread for what takes long. Knows versions of files, no path and no request.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from acme_wsgi import iothreads
from acme_wsgi.compression import compress
from acme_wsgi.handlers._contents import has_settled, key_of, whole
from acme_wsgi.handlers._fillers import Later

if TYPE_CHECKING:
    from acme_wsgi.files.openfile import OpenFile
    from acme_wsgi.handlers._contents import Key

log = logging.getLogger("acme.handlers.static")

MOST_WAITING = 100
"""Forms in the queue; beyond it a file is sent as it is until it is asked for again."""

HELD = 32 << 20
"""Bytes of forms that are kept; what wasn't asked for lately makes room."""

OVERHEAD = 512
"""Bytes that one of them takes besides its own; measured roughly."""

AS_IT_IS = b""
"""In place of a form that isn't smaller than the file, or too large to be kept."""


class Encodings:
    """The forms of one worker's files."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int, Key], bytes] = {}
        self._held = 0
        self._later: Later[tuple[str, int, Key | OpenFile], bytes | None] = Later(MOST_WAITING)

    def get(self, token: str, level: int, file: OpenFile, patience: float) -> bytes | None:
        """A file in a coding, or AS_IT_IS; None: not yet, or it has changed.

        :param patience: seconds to wait for it, from when it was first asked for
        """
        key = token, level, key_of(file)
        data = self._made.pop(key, None)
        if data is not None:
            self._made[key] = data  # the last to make room
            return data
        settled = has_settled(file)
        # What changes within a tick of the clock has the same key, and is another file to us.
        whose = (token, level, key[2] if settled else file)
        work = self._later.begin(whose, lambda: self._make(token, level, file, settled))
        if work is None:
            return None
        work.done.wait(max(0.0, work.since + patience - time.monotonic()))
        return None if work.value is None else work.value[0]

    def _make(self, token: str, level: int, file: OpenFile, settled: bool) -> bytes | None:
        try:
            data, certain = iothreads.run_long(_encode, token, level, file, settled)
        except (OSError, MemoryError) as error:
            log.warning("a file can't be compressed: %s", error)
            return None
        if data is not None and certain:
            self._keep((token, level, key_of(file)), data)
        return data

    def _keep(self, key: tuple[str, int, Key], data: bytes) -> None:
        if len(data) + OVERHEAD > HELD:
            data = AS_IT_IS
        if key in self._made:
            self._held -= len(self._made.pop(key)) + OVERHEAD
        while self._made and self._held + len(data) + OVERHEAD > HELD:
            oldest = self._made.pop(next(iter(self._made)))
            self._held -= len(oldest) + OVERHEAD
        self._made[key] = data
        self._held += len(data) + OVERHEAD


def _encode(token: str, level: int, file: OpenFile, settled: bool) -> tuple[bytes | None, bool]:
    """In the thread: the form, and whether it is certain to be that of this version."""
    body = whole(file)
    if body is None:
        return None, False
    data = compress(token, level, body)
    certain = settled or (has_settled(file) and whole(file) == body)
    return data if len(data) < len(body) else AS_IT_IS, certain
