"""What several keys say together: what follows from what, what contradicts what, what does nothing yet.

Its law: looks at a built configuration and at where its values were written; a contradiction names both
halves with their places. A key that failed to be read takes part in nothing here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from acme_wsgi.config import grammar, templates, urls
from acme_wsgi.config.keys import Items, Section, Table, specs
from acme_wsgi.config.kinds import DURATION
from acme_wsgi.config.nodes import Place
from acme_wsgi.config.problems import Conflict
from acme_wsgi.config.schema import Config
from acme_wsgi.config.schema.limits import Middleware
from acme_wsgi.config.schema.routes import Rewrite, Route
from acme_wsgi.config.schema.upstream import MAX_BACKENDS, Backend
from acme_wsgi.errors import Problem

_NOWHERE = Place("configuration")


def derive(config: Config, places: Mapping[str, Place]) -> Config:
    """`config` with the keys that follow others: cache.size and cache.l1.size name one tier."""
    cache = config.cache
    if "cache.l1.size" not in places:
        l1 = dataclasses.replace(cache.l1, size=cache.size)
        return dataclasses.replace(config, cache=dataclasses.replace(cache, l1=l1))
    if "cache.size" not in places:
        return dataclasses.replace(config, cache=dataclasses.replace(cache, size=cache.l1.size))
    return config


def check(config: Config, places: Mapping[str, Place], failed: set[str]) -> list[Problem]:
    """The contradictions in `config`."""
    return list(_Checks(config, places, failed).all())


def warn(config: Config, places: Mapping[str, Place]) -> list[Problem]:
    """What `config` asks for that this version doesn't do, or that something else keeps from happening."""
    return [*_unbuilt(config, "", True, places), *_shared_cookies(config, places)]


class _Checks:
    def __init__(self, config: Config, places: Mapping[str, Place], failed: set[str]) -> None:
        self.config = config
        self.places = places
        self.failed = failed

    def all(self) -> Iterator[Problem]:
        # Pairs of (smaller, greater): the first may not be above the second.
        yield from self._ordered("cache.l1.size", "cache.size")
        yield from self._ordered("database.min_idle", "database.pool_size")
        yield from self._ordered("server.connection_pool.min_idle", "server.connection_pool.max_per_worker")
        yield from self._pool()
        yield from self._backends(self.config.backends, "backends")
        yield from self._ordered("compression.min_size", "compression.max_size")
        yield from self._ordered("static.mmap.threshold", "static.mmap.max_size")
        yield from self._ordered(
            "load_balancing.health_check.timeout", "load_balancing.health_check.interval"
        )
        yield from self._cache()
        yield from self._middleware(self.config.middleware, "middleware")
        yield from self._health()
        yield from self._own_paths()
        for index, route in enumerate(self.config.routes):
            yield from self._route(route, f"routes[{index}]")

    def _ok(self, *dotted: str) -> bool:
        """Whether all these keys, and what they stand in, could be read."""
        return not any(part in self.failed for each in dotted for part in _and_around(each))

    def _place(self, dotted: str) -> Place:
        """Where a key is written, or else the nearest thing around it."""
        return next((self.places[part] for part in _and_around(dotted) if part in self.places), _NOWHERE)

    def _value(self, dotted: str) -> Any:
        value: Any = self.config
        for name in dotted.split("."):
            value = getattr(value, name)
        return value

    def _said(self, dotted: str) -> str:
        """A key with its value and where it is from, as half of a contradiction."""
        return f"{dotted} ({self.places.get(dotted, 'default')})"

    def _ordered(self, smaller: str, greater: str) -> Iterator[Problem]:
        if self._ok(smaller, greater) and self._value(smaller) > self._value(greater):
            here, there = (smaller, greater) if smaller in self.places else (greater, smaller)
            relation = "above" if here == smaller else "below"
            message = f"{self._shown(here)} is {relation} {self._said(there)}, which is {self._shown(there)}"
            yield Conflict.at(self._place(here), here, message)

    def _shown(self, dotted: str) -> str:
        value = self._value(dotted)
        *parents, name = dotted.split(".")
        section: Any = self.config
        for parent in parents:
            section = getattr(section, parent)
        spec = next(spec for spec in specs(type(section)) if spec.name == name)
        return str(spec.kind.show(value)) if hasattr(spec.kind, "show") else str(value)

    def _cache(self) -> Iterator[Problem]:
        l2 = self.config.cache.l2
        for name in ("host", "port", "db", "password", "password_file"):
            dotted = f"cache.l2.{name}"
            if l2.url is not None and dotted in self.places and self._ok("cache.l2.url", dotted):
                if name == "password" and l2.password_file is not None:
                    continue
                yield Conflict.at(
                    self.places[dotted],
                    dotted,
                    f"written beside {self._said('cache.l2.url')}",
                    "the URL says it all",
                )
        if (
            l2.type == "memcached"
            and l2.enabled
            and not l2.servers
            and self._ok("cache.l2.servers", "cache.l2.type")
        ):
            yield Conflict.at(
                self._place("cache.l2.type"), "cache.l2.servers", "missing; type memcached needs its servers"
            )

    def _health(self) -> Iterator[Problem]:
        for index, probe in enumerate(self.config.monitoring.health.checks):
            dotted = f"monitoring.health.checks[{index}]"
            if probe.type == "http" and probe.url is None and self._ok(f"{dotted}.url", f"{dotted}.type"):
                yield Conflict.at(
                    self._place(dotted), f"{dotted}.url", "missing; a check of type http needs it"
                )

    def _own_paths(self) -> Iterator[Problem]:
        """The server's own pages need a path each."""
        monitoring = self.config.monitoring
        own = {"monitoring.health.path": monitoring.health.path}
        if monitoring.metrics.enabled:
            own["monitoring.metrics.path"] = monitoring.metrics.path
        if monitoring.dashboard.enabled:
            own["monitoring.dashboard.path"] = monitoring.dashboard.path
        seen: dict[str, str] = {}
        for dotted, path in own.items():
            if path in seen and self._ok(dotted, seen[path]):
                here, there = (dotted, seen[path]) if dotted in self.places else (seen[path], dotted)
                yield Conflict.at(self._place(here), here, f"{path} is also the path of {self._said(there)}")
            seen.setdefault(path, dotted)

    def _middleware(self, middleware: tuple[Middleware, ...], dotted: str) -> Iterator[Problem]:
        for index, each in enumerate(middleware):
            below = f"{dotted}[{index}]"
            for by, name, value in (
                ("header", "key_header", each.key_header),
                ("cookie", "key_cookie", each.key_cookie),
            ):
                if not self._ok(f"{below}.key_by", f"{below}.{name}"):
                    continue
                if each.key_by == by and value is None:
                    yield Conflict.at(
                        self._place(f"{below}.key_by"), f"{below}.{name}", f"missing; key_by: {by} needs it"
                    )
                elif each.key_by != by and value is not None:
                    message = f"written, but {self._said(f'{below}.key_by')} is {each.key_by}"
                    yield Conflict.at(self._place(f"{below}.{name}"), f"{below}.{name}", message)

    def _route(self, route: Route, dotted: str) -> Iterator[Problem]:
        needed = {"wsgi": "app", "handler": "handler", "static": "root", "redirect": "redirect_to"}.get(
            route.type
        )
        if needed and getattr(route, needed) is None and self._ok(f"{dotted}.{needed}", f"{dotted}.type"):
            message = f"missing; a route of type {route.type} needs it"
            yield self._place(dotted).problem(f"{dotted}.{needed}", message)
        for place, text in enumerate(route.try_files[:-1]):
            below = f"{dotted}.try_files[{place}]"
            if text.startswith("=") and self._ok(below):
                yield self._place(below).problem(below, f"{text} can only be the last")
        if route.type == "proxy":
            yield from self._proxy(route, dotted)
        if route.middleware:
            yield from self._middleware(route.middleware, f"{dotted}.middleware")
        yield from self._route_sections(route, dotted)

    def _route_sections(self, route: Route, dotted: str) -> Iterator[Problem]:
        """What a route's own sections say together with what they take over from the server's."""
        health = route.health_check
        if health and health.timeout > health.interval and self._ok(f"{dotted}.health_check"):
            where = self.places.get(f"{dotted}.health_check.interval", "from load_balancing.health_check")
            message = f"above interval ({where})"
            yield Conflict.at(
                self._place(f"{dotted}.health_check.timeout"), f"{dotted}.health_check.timeout", message
            )
        compression = route.compression
        if compression and compression.min_size > compression.max_size and self._ok(f"{dotted}.compression"):
            message = (
                f"above max_size ({self.places.get(f'{dotted}.compression.max_size', 'from compression')})"
            )
            yield Conflict.at(
                self._place(f"{dotted}.compression.min_size"), f"{dotted}.compression.min_size", message
            )

    def _pool(self) -> Iterator[Problem]:
        pool, dotted = self.config.server.connection_pool, "server.connection_pool"
        names = (f"{dotted}.min_idle", f"{dotted}.reuse_connections")
        if pool.min_idle and not pool.reuse_connections and self._ok(*names):
            message = f"{pool.min_idle} connections kept, but {self._said(names[1])} is false"
            yield Conflict.at(self._place(names[0]), names[0], message)

    def _proxy(self, route: Route, dotted: str) -> Iterator[Problem]:
        if self._ok(f"{dotted}.backend", f"{dotted}.backends", "backends"):
            yield from self._route_backends(route, dotted)
        yield from self._backends(route.backends, f"{dotted}.backends")
        yield from self._added_headers(route, f"{dotted}.headers.add")
        if route.rewrite is not None and self._ok(f"{dotted}.rewrite.from", f"{dotted}.rewrite.to"):
            yield from self._rewrite(route.rewrite, f"{dotted}.rewrite.to")
        for name in ("proxy_connect_timeout", "proxy_read_timeout", "proxy_write_timeout"):
            part, whole = getattr(route, name), route.proxy_timeout
            names = (f"{dotted}.{name}", f"{dotted}.proxy_timeout")
            if part is not None and whole is not None and part > whole and self._ok(*names):
                limit = f"{self._said(names[1])}, which is {DURATION.show(whole)}"
                yield Conflict.at(self._place(names[0]), names[0], f"{DURATION.show(part)} is above {limit}")

    def _route_backends(self, route: Route, dotted: str) -> Iterator[Problem]:
        if route.backend is not None and route.backends:
            message = f"written beside {self._said(f'{dotted}.backends')}"
            yield Conflict.at(self._place(f"{dotted}.backend"), f"{dotted}.backend", message)
        elif route.backend is None and not route.backends and not self.config.backends:
            message = "missing; a route of type proxy needs backend or backends, here or for the whole server"
            yield self._place(dotted).problem(f"{dotted}.backends", message)

    def _backends(self, backends: tuple[Backend, ...], dotted: str) -> Iterator[Problem]:
        """No more than a route may have, each once, however its URL is spelled."""
        if not self._ok(dotted):
            return
        if len(backends) > MAX_BACKENDS:
            yield self._place(dotted).problem(dotted, f"{len(backends)} backends; allowed: {MAX_BACKENDS}")
        seen: dict[str, str] = {}
        for index, backend in enumerate(backends):
            here = f"{dotted}[{index}].url"
            if not self._ok(here):
                continue
            there = seen.setdefault(urls.normal(backend.url), here)
            # The very same text is found where the list is read.
            if there != here and backend.url != self._value_at(backends, there):
                message = f"the same backend as {self._said(there)}"
                yield Conflict.at(self._place(here), here, message)

    @staticmethod
    def _value_at(backends: tuple[Backend, ...], dotted: str) -> str:
        return backends[int(dotted.rpartition("[")[2].partition("]")[0])].url

    def _added_headers(self, route: Route, dotted: str) -> Iterator[Problem]:
        seen: dict[str, str] = {}
        for name, value in route.headers.add:
            below = f"{dotted}.{name}"
            first = seen.setdefault(name.lower(), name)
            if first != name and self._ok(dotted):
                yield Conflict.at(
                    self._place(below), below, f"the same header as {self._said(f'{dotted}.{first}')}"
                )
            if name.lower() == "host":
                try:
                    grammar.host_template(value)
                except ValueError as error:
                    yield self._place(below).problem(below, f"found {value!r}, allowed: {error}")

    def _rewrite(self, rule: Rewrite, dotted: str) -> Iterator[Problem]:
        try:
            templates.rewrite(rule.to, re.compile(rule.from_))
        except ValueError as error:
            where = self._said(f"{dotted.removesuffix('.to')}.from")
            hint = getattr(error, "hint", None)
            yield Conflict.at(self._place(dotted), dotted, f"found {rule.to!r}: {error}; {where}", hint)


def _shared_cookies(config: Config, places: Mapping[str, Place]) -> Iterator[Problem]:
    """Routes whose sticky cookies have one name on one host, but other backends: each would lose visitors."""
    seen: list[tuple[int, str, set[str], set[str]]] = []
    for index, route in enumerate(config.routes):
        sticky = (route.load_balancing or config.load_balancing).sticky_sessions
        if route.type != "proxy" or not sticky.enabled:
            continue
        backends = {each.url for each in route.backends or config.backends}
        backends = {route.backend} if route.backend is not None else backends
        hosts = set(route.host)
        for other, name, others, other_hosts in seen:
            if name == sticky.cookie_name and others != backends and _overlap(hosts, other_hosts):
                where = places.get(f"routes[{index}].path", _NOWHERE)
                why = f"routes[{other}] has other backends and a cookie of that name, so each loses visitors"
                dotted = f"routes[{index}].load_balancing.sticky_sessions.cookie_name"
                yield where.problem(dotted, f"{name}: {why}; give it a name of its own")
                break
        seen.append((index, sticky.cookie_name, backends, hosts))


def _overlap(hosts: set[str], others: set[str]) -> bool:
    """Whether a visitor of one can be one of the other; no hosts are all of them."""
    return not hosts or not others or bool(hosts & others)


def _and_around(dotted: str) -> Iterator[str]:
    """A dotted key and everything it stands in: ``a.b[0]``, ``a.b``, ``a``."""
    while dotted:
        yield dotted
        dotted = dotted[: max(dotted.rfind("."), dotted.rfind("["), 0)]


def _unbuilt(section: Any, dotted: str, built: bool, places: Mapping[str, Place]) -> Iterator[Problem]:
    """Keys that differ from their default though their feature doesn't exist yet."""
    cls: type[Section] = type(section)
    for spec in specs(cls):
        below = f"{dotted}.{spec.name}" if dotted else spec.name
        value = getattr(section, spec.attribute)
        built_here = built and spec.key.built
        if isinstance(spec.kind, Table):
            if value is not None:
                yield from _unbuilt(value, below, built_here, places)
        elif isinstance(spec.kind, Items) and built_here:
            for index, item in enumerate(value or ()):
                yield from _unbuilt(item, f"{below}[{index}]", True, places)
        elif below in places and ((not built_here and value != spec.default) or value in spec.key.unbuilt):
            what = f"{value} " if value in spec.key.unbuilt else ""
            yield places[below].problem(below, f"{what}has no effect: this version doesn't have it yet")
