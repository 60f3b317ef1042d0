"""The page that a proxy route answers with when no backend can.

Law: reads one regular file of a bounded size, at the start; no request waits for it. Imports no gevent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from stat import S_ISREG

from acme_wsgi.files import media

MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fallback:
    """A body and the Content-Type that its file's name says."""

    body: bytes
    content_type: str


def read(path: str) -> Fallback:
    """Read the file at `path`. It blocks: for the start, and for `validate`.

    :raises ValueError: it can't be used; the message says why
    """
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            if not S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError(f"{path!r} is no regular file")
            body = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path!r} can't be read: {error.strerror}") from None
    if len(body) > MAX_BYTES:
        raise ValueError(f"{path!r} is larger than {MAX_BYTES >> 20}MB")
    return Fallback(body, _content_type(path))


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would otherwise wait for a writer that never comes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _content_type(path: str) -> str:
    kind = media.media_type(os.path.basename(path))  # noqa: PTH119 - may hold any byte
    return f"{kind}; charset=utf-8" if media.is_text(kind) else kind
