"""From the configuration to groups of backends: who may answer which route, and by which keys on the board.

Law: plain data, made once for each generation and never changed; the arbiter makes it, workers read it. Which
backend gets a request is the board's to say, how it is reached is link.pyx's. Imports no gevent.

A *peer* is a backend as a server: URL and health check settings; its health and its counters are its own,
over all groups, workers and generations. A *group* is the weighted list that a route balances over. Keys are
what makes an entry of the board the same one after a reload.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from acme_wsgi.config import Config, Route
from acme_wsgi.config.schema.server import ConnectionPool
from acme_wsgi.config.schema.upstream import (
    MAX_BACKENDS,
    Backend,
    ConnectionDraining,
    HealthCheck,
    RouteLoadBalancing,
    StickySessions,
)
from acme_wsgi.config.urls import masked, normal
from acme_wsgi.errors import ConfigError, Problem
from acme_wsgi.upstream.board import IP_HASH, LEAST_CONN, MAX_MEMBERS, ROUND_ROBIN, Board

ALGORITHMS = {"round_robin": ROUND_ROBIN, "least_conn": LEAST_CONN, "ip_hash": IP_HASH}

MAX_LEAVING = MAX_MEMBERS
"""Backends that a group may have lost and still serve sticky clients with; the latest ones."""

_KEY = 16  # bytes of a key
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """A backend in a group.

    :ivar url: as configured, with its password
    :ivar shown: the URL for people
    :ivar weight: its share of the group's requests, relative to the others'
    :ivar check: how it is checked
    :ivar strict: the path of the check was written: the backend has it, and anything but 2xx and 3xx is bad.
        Where nobody has said so, a backend that answers is well if it isn't 5xx: few have a /health
    :ivar key: 16 bytes: which entry of the board
    :ivar identity: 16 bytes: which URL; the same however it is checked
    """

    url: str = field(repr=False)
    shown: str
    weight: int
    check: HealthCheck
    key: bytes
    identity: bytes
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Leaving:
    """A backend that a reload has taken out of a group, and that sticky clients may use to the end.

    :ivar url, shown, key, identity: as those of `PeerPlan`
    :ivar until_ns: when that ends (CLOCK_MONOTONIC)
    :ivar group: 16 bytes: the entry of the board where it is alone: nobody's choice, but still counted
    """

    url: str = field(repr=False)
    shown: str
    key: bytes
    identity: bytes
    until_ns: int

    @property
    def group(self) -> bytes:
        return _digest("leaving", self.key)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What a proxy route balances over.

    :ivar name: "backends" for the list of the whole server, else "route PATH"; told apart by method and host
    :ivar members: in the order of the configuration, at most MAX_MEMBERS
    :ivar algorithm: one of the board's numbers
    :ivar key: 16 bytes: which entry of the board; routes with the same members and algorithm share it
    """

    name: str
    members: tuple[PeerPlan, ...]
    algorithm: int
    key: bytes
    sticky: StickySessions
    draining: ConnectionDraining
    leaving: tuple[Leaving, ...] = ()

    @property
    def everybody(self) -> tuple[PeerPlan | Leaving, ...]:
        """Its members, and those that sticky clients may still use."""
        return (*self.members, *self.leaving)

    @property
    def patience(self) -> float:
        """Seconds that a backend taken out may go on with what it has."""
        return self.draining.timeout if self.draining.enabled else 0.0


Plans = Mapping[int, GroupPlan]
"""The group of each proxy route, by the route's number."""


# -- made of the configuration ----------------------------------------------------------------------------


def plan(config: Config) -> dict[int, GroupPlan]:
    """The groups of all proxy routes.

    :raises ConfigError: a route has no backend, too many, or contradicts itself; all such routes
    """
    plans: dict[int, GroupPlan] = {}
    problems: list[Problem] = []
    for number, route in enumerate(config.routes):
        if route.type != "proxy":
            continue
        fault = _fault(config, route)
        if fault:
            key, message = fault
            problems.append(config.problem(f"routes[{number}].{key}", message, _written(config, number, key)))
        else:
            plans[number] = _group(config, number, route)
    if problems:
        raise ConfigError(problems)
    return plans


def _fault(config: Config, route: Route) -> tuple[str, str] | None:
    """What keeps a route from having a group: the key, and what is wrong with it.

    The loader has looked already; a configuration may have been made otherwise.
    """
    if route.backend is not None and route.backends:
        return "backend", "written beside backends"
    backends = _backends(config, route)
    if not backends:
        return "backends", "missing; a route of type proxy needs backend or backends"
    if len(backends) > MAX_BACKENDS:
        return "backends", f"{len(backends)} backends; allowed: {MAX_BACKENDS}"
    return None


def _written(config: Config, number: int, key: str) -> str:
    """The key at whose place a route's problem is told."""
    dotted = f"routes[{number}].{key}"
    return dotted if dotted in config.origins else f"routes[{number}]"


def _backends(config: Config, route: Route) -> tuple[Backend, ...]:
    if route.backend is not None:
        return (Backend(url=route.backend),)
    return route.backends or config.backends


def _group(config: Config, number: int, route: Route) -> GroupPlan:
    general = config.load_balancing
    balancing: RouteLoadBalancing | None = route.load_balancing
    check = route.health_check if route.health_check is not None else general.health_check
    sections = (f"routes[{number}].health_check", "load_balancing.health_check")
    strict = any(f"{section}.path" in config.origins for section in sections)
    members = tuple(_peer(backend, check, strict) for backend in _backends(config, route))
    algorithm = ALGORITHMS[(balancing or general).algorithm]
    own = route.backend is not None or bool(route.backends)
    return GroupPlan(
        name=_name(route) if own else "backends",
        members=members,
        algorithm=algorithm,
        key=_digest("group", algorithm, *((member.key, member.weight) for member in members)),
        sticky=(balancing or general).sticky_sessions,
        draining=(balancing or general).connection_draining,
    )


def _peer(backend: Backend, check: HealthCheck, strict: bool) -> PeerPlan:
    url = normal(backend.url)
    settings = (
        check.enabled, check.path, check.interval, check.timeout,
        check.healthy_threshold, check.unhealthy_threshold, strict,
    )  # fmt: skip
    return PeerPlan(
        url=backend.url,
        shown=masked(backend.url),
        weight=backend.weight,
        check=check,
        strict=strict,
        key=_digest("peer", url, *settings),
        identity=_digest("url", url),
    )


def _name(route: Route) -> str:
    """What sets a route apart, for people and across reloads: its path, and method and host if there are."""
    more = "; ".join(", ".join(each) for each in (route.method, route.host) if each)
    return f"route {route.path} ({more})" if more else f"route {route.path}"


def _digest(*values: object) -> bytes:
    return blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=_KEY).digest()


# -- from one generation to the next ----------------------------------------------------------------------


def follow(plans: Plans, previous: Iterable[GroupPlan], now_ns: int) -> dict[int, GroupPlan]:
    """`plans` with what their groups have lost since the `previous` generation.

    Who came back has lost nothing; who left before has the time that was left to it.
    """
    before: dict[str, list[GroupPlan]] = {}
    for group in previous:
        before.setdefault(group.name, []).append(group)
    return {
        number: replace(group, leaving=_leaving(group, before.get(group.name, ()), now_ns))
        for number, group in plans.items()
    }


def _leaving(group: GroupPlan, before: Iterable[GroupPlan], now_ns: int) -> tuple[Leaving, ...]:
    if not (group.sticky.enabled and group.draining.enabled):
        return ()
    here = {member.identity for member in group.members}
    until = now_ns + round(group.draining.timeout * _NS)
    found: dict[bytes, Leaving] = {}
    for old in before:
        for gone in old.leaving:
            if gone.identity not in here and gone.until_ns > now_ns:
                found.setdefault(gone.identity, gone)
        for member in old.members:
            if member.identity not in here:
                found[member.identity] = Leaving(member.url, member.shown, member.key, member.identity, until)
    latest = sorted(found.values(), key=lambda gone: gone.until_ns, reverse=True)
    return tuple(latest[:MAX_LEAVING])


# -- on the board -----------------------------------------------------------------------------------------


def enrol(board: Board, plans: Plans) -> None:
    """Give every peer and every group of `plans` its entry on the board; the arbiter's alone.

    Entries that are there already keep their state. Raises BoardFull.
    """
    for group in plans.values():
        peers = [
            board.enrol(
                member.key,
                unhealthy_threshold=member.check.unhealthy_threshold,
                healthy_threshold=member.check.healthy_threshold,
            )
            for member in group.members
        ]
        weights = (member.weight for member in group.members)
        board.group(group.key, group.algorithm, list(zip(peers, weights, strict=True)))
        for gone in group.leaving:  # its peer is there: it had a place in the generation before
            board.group(gone.group, ROUND_ROBIN, [(board.peer(gone.key), 1)])


def keys(plans: Plans) -> tuple[set[bytes], set[bytes]]:
    """The keys of the peers and of the groups that whoever has these plans may use."""
    peers = {each.key for group in plans.values() for each in group.everybody}
    groups = {group.key for group in plans.values()}
    return peers, groups | {gone.group for group in plans.values() for gone in group.leaving}


def is_sticky(plans: Plans) -> bool:
    """Whether any group keeps visitors on one backend."""
    return any(group.sticky.enabled for group in plans.values())


# -- what a worker is given -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Everything that a worker knows of backends when it starts.

    :ivar board: shared by all processes
    :ivar plans: of this worker's generation
    :ivar pool: how connections are kept
    :ivar slot: the worker's slot on the board
    :ivar sticky_key: what cookies are sealed with; b"" if no group is sticky
    :ivar generation: 1, and one more with each reload
    :ivar pid: this process's
    """

    board: Board
    plans: Plans
    pool: ConnectionPool
    slot: int = 0
    sticky_key: bytes = field(default=b"", repr=False)
    generation: int = 1
    pid: int = field(default_factory=os.getpid)


def alone(config: Config) -> Upstreams | None:
    """A board of one's own, where no arbiter has made one; None if no route needs it. Raises ConfigError."""
    plans = plan(config)
    if not plans:
        return None
    board = Board(1)
    enrol(board, plans)
    return Upstreams(board, plans, config.server.connection_pool, sticky_key=secrets.token_bytes(32))
