"""Which backend a request is sent to: the visitor's own where sessions are sticky, else the board's choice.

Law: chooses, counts retries, and seals cookies. It opens no connection and knows of a request only its
environ.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from acme_wsgi.upstream.board import IP_HASH
from acme_wsgi.upstream.budget import RetryBudget
from acme_wsgi.upstream.exchange import Lane
from acme_wsgi.upstream.plan import GroupPlan
from acme_wsgi.upstream.sticky import Sticky, uncacheable, without

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_MASK = (1 << 64) - 1

Cookie = str
"""The value of a Set-Cookie field; "" where none is to be set."""


class Departing:
    """A backend that a reload has taken out: visitors who have its cookie go on with it until then."""

    def __init__(self, lane: Lane, until_ns: int) -> None:
        self.lane = lane
        self.until_ns = until_ns


class Balancer:
    """The backends of one group, as this worker reaches them."""

    def __init__(
        self, plan: GroupPlan, lanes: Sequence[Lane], departing: Sequence[Departing], key: bytes
    ) -> None:
        """Compute the tags of cookies, if sessions are sticky.

        :param lanes: the members of `plan`, in its order
        :param departing: those of `plan.leaving`, in its order
        :param key: what cookies are sealed with
        """
        self.plan = plan
        self.lanes = tuple(lanes)
        self.group = self.lanes[0].group
        self.budget = RetryBudget()
        self._departing = tuple(departing)
        self._hashes = plan.algorithm == IP_HASH
        names = [each.identity for each in plan.everybody]
        self._sticky = Sticky(key, plan.sticky, names) if plan.sticky.enabled else None
        # Sticky visitors of a backend that is taken out may stay for so long.
        self._patience_ns = int(plan.patience * 1e9)
        self.simple = not self._hashes and self._sticky is None
        """Nothing of the request matters: `next` does for it."""

    def next(self, tried: int, repeatable: bool) -> Lane | None:
        """The next backend in turn; None when none is usable.

        :param tried: a bit for each member that has failed this request
        :param repeatable: another backend can be asked after this one has failed: such requests are the
            first to go to one of which nobody knows yet whether it is well again
        """
        member = self.group.pick(tried, 0, repeatable)
        return self.lanes[member] if member >= 0 else None

    def choose(self, environ: dict[str, Any], tried: int, repeatable: bool) -> tuple[Lane | None, Cookie]:
        """The backend for a request, and the cookie that its response has to set."""
        if self._sticky is None:
            return self._pick(environ, tried, repeatable), ""
        cookies = environ.get("HTTP_COOKIE", "")
        found = self._sticky.member(cookies, time.time()) if cookies else None
        if found is not None:
            lane = self._kept(found[0], tried, repeatable)
            if lane is not None:
                return lane, self._seal(environ, found[0]) if found[1] else ""
        lane = self._pick(environ, tried, repeatable)
        return lane, self._seal(environ, lane.member) if lane is not None else ""

    def hide(self, environ: dict[str, Any]) -> None:
        """Which backend a visitor stays with is none of a backend's business: take the cookie out."""
        cookies = environ.get("HTTP_COOKIE")
        if self._sticky is None or cookies is None:
            return
        rest = without(cookies, self._sticky.name)
        if rest:
            environ["HTTP_COOKIE"] = rest
        else:
            del environ["HTTP_COOKIE"]

    @staticmethod
    def seal(headers: list[tuple[str, str]], cookie: Cookie) -> list[tuple[str, str]]:
        """A response's headers with the cookie: for this visitor alone from then on."""
        return [*uncacheable(headers), ("Set-Cookie", cookie)]

    # -- choosing

    def _pick(self, environ: dict[str, Any], tried: int, repeatable: bool) -> Lane | None:
        place = hash_of(environ.get("REMOTE_ADDR", "")) if self._hashes else 0
        member = self.group.pick(tried, place, repeatable)
        return self.lanes[member] if member >= 0 else None

    def _kept(self, member: int, tried: int, repeatable: bool) -> Lane | None:
        """The backend of a visitor's cookie, if it can still be used."""
        if member >= len(self.lanes):
            departing = self._departing[member - len(self.lanes)]
            usable = time.monotonic_ns() < departing.until_ns and not tried
            return departing.lane if usable and departing.lane.group.usable(0) else None
        if tried & 1 << member:
            return None
        # A pick among this one alone: if it may only be given one trial at a time, that is claimed here.
        if self.group.pick(_MASK ^ 1 << member, 0, repeatable) == member:
            return self.lanes[member]
        peer = self.group.peer(member)
        since = peer.draining_since or peer.removed_since
        if since and time.monotonic_ns() - since < self._patience_ns:
            return self.lanes[member]
        return None

    def _seal(self, environ: dict[str, Any], member: int) -> Cookie:
        assert self._sticky is not None
        return self._sticky.value(member, time.time(), environ.get("wsgi.url_scheme") == "https")


def hash_of(address: str) -> int:
    """64 bits of a client's address, the same in every process (FNV-1a)."""
    value = _FNV_OFFSET
    for byte in address.encode("utf-8", "surrogateescape"):
        value = (value ^ byte) * _FNV_PRIME & _MASK
    return value
