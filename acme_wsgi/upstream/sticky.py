"""One visitor, one backend: the cookie that says which, and what it means for caches.

    value = base64url( tag of the backend, 9 bytes | expires, 5 bytes | MAC of both, 16 bytes )

The tag is a keyed hash: without the key nobody can tell which backend it means, not even by trying URLs,
nor which of two comes first in the configuration. It doesn't depend on the other backends, so that a
visitor stays where he is when backends come and go. The MAC keeps visitors from choosing a backend, and
`expires` (seconds since 1970) from keeping it longer than meant. The key lies in the runtime directory:
cookies outlive restarts.

Law: functions of texts and a key; the one file is read and made in `load_key`. Imports no gevent. A browser
sends a cookie (RFC 6265) with whatever is in it: reading one never raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
import re
import stat
import tempfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

from acme_wsgi.config.schema.upstream import StickySessions
from acme_wsgi.errors import AcmeError

KEY_FILE = "sticky.key"
KEY_SIZE = 32
"""Bytes."""

MAX_TRIED = 8
"""So many cookies of our name are looked at; a browser sends one."""

_TAG, _EXPIRES, _MAC = 9, 5, 16
_SIGNED = _TAG + _EXPIRES
_LENGTH = (_SIGNED + _MAC) * 4 // 3
_VALUE = re.compile(rf"[A-Za-z0-9_-]{{{_LENGTH}}}")
_LATEST = (1 << 8 * _EXPIRES) - 1


# -- the key -----------------------------------------------------------------------------------------------


class StickyKeyError(AcmeError):
    """The key can't be read or made, or others may know it.

    :ivar exit_status: what a command exits with
    """

    exit_status = 1


def load_key(directory: str, tell: Callable[[str], object] | None = None) -> bytes:
    """The key of this server's cookies, made when it is first asked for.

    To be called once, before the workers are forked: they must have the same one. Blocks on the disk.

    :param directory: server.runtime_dir; if it isn't there, the key is a new one each time
    :param tell: called with a sentence for the log when that is so
    :returns: 32 random bytes; the same ones for all who ask at once
    :raises StickyKeyError: the file is damaged, others may know its content, or it can't be read or made
    """
    path = Path(directory) / KEY_FILE
    try:
        if not path.parent.is_dir():
            if tell is not None:
                tell(f"there is no {directory!r} to keep the key of sticky sessions: a restart ends them")
            return os.urandom(KEY_SIZE)
        with contextlib.suppress(FileNotFoundError):
            return _read_key(path)
        _make_key(path)
        return _read_key(path)
    except OSError as error:
        raise StickyKeyError(f"the key of sticky sessions, {str(path)!r}: {error.strerror}") from error


def _read_key(path: Path) -> bytes:
    # A FIFO or a link that somebody else put there neither holds us up nor leads us elsewhere.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        # Who owns the directory could put any file there.
        trusted = {0, os.geteuid(), path.parent.stat().st_uid}
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in trusted:
            raise _unusable(path, "others may read or write it")
        key = file.read(KEY_SIZE + 1)
    if len(key) != KEY_SIZE:
        raise _unusable(path, f"it doesn't hold {KEY_SIZE} bytes")
    return key


def _make_key(path: Path) -> None:
    """Make the file, whole from its first moment on; or leave the one that somebody else has just made."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{KEY_FILE}-", dir=path.parent)  # mode 0600
    try:
        with open(descriptor, "wb", buffering=0) as file:
            file.write(os.urandom(KEY_SIZE))
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)  # noqa: PTH108


def _unusable(path: Path, reason: str) -> StickyKeyError:
    return StickyKeyError(
        f"{str(path)!r} can't be the key of sticky sessions: {reason}; "
        "remove it, and a new one is made (visitors will be given a backend anew)"
    )


# -- the cookie --------------------------------------------------------------------------------------------


class Sticky:
    """The cookies of one group of backends."""

    def __init__(self, key: bytes, settings: StickySessions, names: Sequence[bytes]) -> None:
        """Compute the backends' tags.

        :param key: what :func:`load_key` returned
        :param names: what each backend is known by, in the order of the group; the first of equals counts
        """
        tags = _derived(key, b"tag")
        self._mac_key = _derived(key, b"mac")
        self._tags = [hmac.digest(tags, name, "sha256")[:_TAG] for name in names]
        self._members: dict[bytes, int] = {}
        for member, tag in enumerate(self._tags):
            self._members.setdefault(tag, member)
        self.name = settings.cookie_name
        self._begin = settings.cookie_name + "="
        self._ttl = math.ceil(settings.ttl)

    def value(self, member: int, now: float, secure: bool) -> str:
        """A Set-Cookie field's whole value, for a visitor of this backend.

        :param now: seconds since 1970
        :param secure: the visitor uses https: the cookie must never go over anything else
        """
        expires = min(max(int(now), 0) + self._ttl, _LATEST)
        signed = self._tags[member] + expires.to_bytes(_EXPIRES, "big")
        text = urlsafe_b64encode(signed + self._mac(signed)).decode("ascii")
        end = "; Secure" if secure else ""
        return f"{self._begin}{text}; Max-Age={self._ttl}; Path=/; HttpOnly; SameSite=Lax{end}"

    def member(self, cookie_header: str, now: float) -> tuple[int, bool] | None:
        """The backend that a Cookie field names.

        :param cookie_header: the field, "" if there is none
        :param now: seconds since 1970
        :returns: the member's number, and whether the cookie should be set again, because less than half of
            its time is left; None: there is no cookie, it is forged or expired, or its backend isn't here
        """
        begin, tried = self._begin, 0
        at = cookie_header.find(begin)
        while at >= 0 and tried < MAX_TRIED:
            start = at + len(begin)
            if _begins_pair(cookie_header, at):
                tried += 1
                end = cookie_header.find(";", start)
                text = cookie_header[start : end if end >= 0 else None].rstrip(" \t")
                found = self._checked(text, now)
                if found is not None:
                    return found
            at = cookie_header.find(begin, start)
        return None

    def _checked(self, text: str, now: float) -> tuple[int, bool] | None:
        if not _VALUE.fullmatch(text):
            return None
        content = urlsafe_b64decode(text)
        member = self._members.get(content[:_TAG])
        if member is None:
            return None
        left = int.from_bytes(content[_TAG:_SIGNED], "big") - now
        if left <= 0 or not hmac.compare_digest(self._mac(content[:_SIGNED]), content[_SIGNED:]):
            return None
        return member, left < self._ttl / 2

    def _mac(self, signed: bytes) -> bytes:
        return hmac.digest(self._mac_key, signed, "sha256")[:_MAC]


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(purpose, key=key, person=b"acme sticky", digest_size=32).digest()


def _begins_pair(header: str, at: int) -> bool:
    """Whether a cookie's name begins there: in front are only blanks back to a semicolon or the beginning."""
    while at > 0 and header[at - 1] in " \t":
        at -= 1
    return at == 0 or header[at - 1] == ";"


def without(cookie_header: str, name: str) -> str:
    """A Cookie field without the cookies of that name, else unchanged; "" if nothing is left.

    What chooses a backend is none of the backend's business.
    """
    if name not in cookie_header:
        return cookie_header
    pairs = cookie_header.split(";")
    kept = [pair for pair in pairs if "=" not in pair or pair.partition("=")[0].strip(" \t") != name]
    return cookie_header if len(kept) == len(pairs) else ";".join(kept).strip(" \t")


# -- caches ------------------------------------------------------------------------------------------------

# A list's members; a comma within quotes is none of the list's.
_DIRECTIVE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', re.DOTALL)
_FOR_SHARED = frozenset(("private", "public", "s-maxage"))


def uncacheable(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A response's headers as they must be when our cookie goes with them: for this visitor alone.

    Cache-Control (RFC 9111 section 5.2.2) says `private`, not `public` and not `s-maxage`; what else it says
    stays, so the visitor's own browser may keep the response. The fields that are addressed to shared caches
    alone (RFC 9213, and what came before it) say `no-store`.
    """
    ours = ", ".join(["private", *_for_the_visitor(headers)])
    result: list[tuple[str, str]] = []
    written: set[str] = set()
    for name, value in headers:
        lower = name.lower()
        mine = ours if lower == "cache-control" else _for_caches(lower)
        if mine is None:
            result.append((name, value))
        elif lower not in written:
            written.add(lower)
            result.append((name, mine))
    if "cache-control" not in written:
        result.append(("Cache-Control", ours))
    return result


def _for_the_visitor(headers: list[tuple[str, str]]) -> list[str]:
    """The directives of all Cache-Control fields that hold for a private cache too."""
    found = (
        directive.strip()
        for name, value in headers
        if name.lower() == "cache-control"
        for directive in _DIRECTIVE.findall(value)
    )
    return [each for each in found if each and each.partition("=")[0].strip().lower() not in _FOR_SHARED]


def _for_caches(name: str) -> str | None:
    """What a field that only shared caches read is to say; None for any other field."""
    if name.endswith("cdn-cache-control") or name in ("surrogate-control", "edge-control"):
        return "no-store"
    return "0" if name == "x-accel-expires" else None
