"""Which static route answers a URL: what a reference on one page means to the routes.

Law: knows patterns, hosts and directories as they are configured, no file and no request. In doubt (several
hosts, regular expressions) nobody is the owner, and references to the URL are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from acme_wsgi.config.schema.content import Compression

GET = "GET"


@dataclass(frozen=True, slots=True)
class Mount:
    """A static route that serves by path: a prefix, an exact path or the fallback.

    :ivar number: its place among all routes
    :ivar prefix: taken off the URL before it is looked up in `root`
    :ivar only: the one URL of a route with an exact path, else ""
    :ivar extensions: those that it serves, in lower case; none: all
    """

    number: int
    hosts: tuple[str, ...]
    prefix: str
    root: str
    only: str = ""
    extensions: tuple[str, ...] = ()
    compression: Compression | None = None

    def serves(self, url: str) -> bool:
        """Whether the route's extensions allow the URL; case doesn't count."""
        return not self.extensions or url.lower().endswith(self.extensions)


@dataclass(frozen=True, slots=True)
class Place:
    """Any route, as far as it says which URLs are its.

    :ivar exact: the URL, or None
    :ivar prefix: of ``/a/*`` the "/a", of ``/*`` the empty text, or None
    :ivar expression: of any other route; where it matches, nobody knows
    :ivar regex: it is searched in text, instead of matching all of the path
    :ivar mount: what it serves, if it is a static route
    """

    hosts: tuple[str, ...] = ()
    methods: frozenset[str] = frozenset()
    exact: str | None = None
    prefix: str | None = None
    regex: bool = False
    expression: re.Pattern[str] | None = None
    mount: Mount | None = None


@dataclass(slots=True)
class Sites:
    """All routes."""

    places: Sequence[Place]
    mounts: list[Mount] = field(init=False)
    _exact: dict[str, list[Place]] = field(init=False)
    _prefix: dict[str, list[Place]] = field(init=False)
    _regex: list[Place] = field(init=False)

    def __post_init__(self) -> None:
        self.mounts = [place.mount for place in self.places if place.mount is not None]
        self._exact, self._prefix, self._regex = {}, {}, []
        for place in self.places:
            if place.exact is not None:
                self._exact.setdefault(place.exact, []).append(place)
            elif place.prefix is not None:
                self._prefix.setdefault(place.prefix, []).append(place)
            else:
                self._regex.append(place)

    def owner(self, hosts: tuple[str, ...], url: str) -> Mount | None:
        """The static route that answers a GET of `url` to these hosts, None if none does, or who knows."""
        for group in self._levels(url):
            if any(self._doubtful(place, hosts) for place in group):
                return None
            ours = [place for place in group if place.hosts == hosts]
            ours += [place for place in group if not place.hosts and hosts]
            for place in ours:
                if not place.methods or GET in place.methods:
                    return place.mount
        return None

    def _levels(self, url: str) -> list[list[Place]]:
        """The routes that match, those of one pattern together, the first to be asked first."""
        levels = [self._exact.get(url, [])]
        head = url
        while head:
            levels.append(self._prefix.get(head, []))
            head = head.rpartition("/")[0]
        levels.append([place for place in self._regex if self._matches(place, url)])
        levels.append(self._prefix.get("", []))
        return levels

    @staticmethod
    def _matches(place: Place, url: str) -> bool:
        if place.expression is None:
            return True
        if not place.regex:
            return place.expression.fullmatch(url) is not None
        text = url.encode("latin-1").decode("utf-8", "surrogateescape")
        return place.expression.search(text) is not None

    @staticmethod
    def _doubtful(place: Place, hosts: tuple[str, ...]) -> bool:
        """Whether it depends on the request's host if this route is meant, or on more than its path."""
        if place.exact is None and place.prefix is None:
            return not place.hosts or not hosts or _overlap(place.hosts, hosts)
        return bool(place.hosts) and place.hosts != hosts and (not hosts or _overlap(place.hosts, hosts))


def _overlap(these: tuple[str, ...], those: tuple[str, ...]) -> bool:
    return any(_same(one, other) or _same(other, one) for one in these for other in those)


def _same(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))
