"""Backends that an operator takes out of the traffic, and in again: `acme-server drain`.

    in use -> drained (gets no new requests) -> empty (nothing is in flight)     and back, with --undo

Law: sets the flag that the board's picks obey, counts what is left, answers the orders and tells the log.
What is cut after `connection_draining.timeout` is cut by the workers, who read the same flag and the same
setting. Imports no gevent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acme_wsgi.config.kinds import nearest
from acme_wsgi.config.urls import masked, normal, without_account
from acme_wsgi.errors import AcmeError
from acme_wsgi.upstream.board import Peer
from acme_wsgi.upstream.plan import GroupPlan, PeerPlan, Plans

if TYPE_CHECKING:
    from acme_wsgi.backends import Backends
    from acme_wsgi.control import Order

LOOK = 0.1
"""Seconds between two looks at a backend that somebody waits for."""

_MAX_URL = 4096
_MAX_NAMED = 10  # backends that an error names
_TAKES_NONE = ("down", "open", "draining")

log = logging.getLogger("acme.arbiter")


class UnknownBackend(AcmeError):
    """The running configuration has no such backend."""


@dataclass(slots=True)
class _Drained:
    """One URL that is taken out.

    :ivar since_ns: since when (CLOCK_MONOTONIC)
    :ivar patience: seconds that what it has may take
    :ivar visited: for so long, sticky clients may still come
    :ivar told: the log has heard how it ended
    :ivar removed: the configuration has it no longer
    """

    shown: str
    since_ns: int
    patience: float = 0.0
    visited: bool = False
    told: bool = False
    removed: bool = False

    def late(self, now_ns: int) -> bool:
        """Is its time over?"""
        return now_ns - self.since_ns >= self.patience * 1e9

    def empty(self, left: int, now_ns: int) -> bool:
        """With that many requests left: is nothing in flight, and can't anything come?"""
        return left == 0 and (not self.visited or self.late(now_ns))


@dataclass(slots=True)
class _Wait:
    """Who waits until backends are empty. `said`: the latest progress."""

    order: Order
    identities: list[bytes]
    facts: dict[str, Any]
    said: str = ""


class Draining:
    """All backends that are taken out, by their identity, and who waits for them."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._drained: dict[bytes, _Drained] = {}
        self._waits: list[_Wait] = []

    # -- orders ----------

    def obey(self, order: Order, plans: Plans) -> None:
        """Take a backend out, or in again; answered at once, or with `wait` when it is empty.

        :param plans: of the generation that holds
        :raises UnknownBackend: no backend of it has that URL
        """
        members = match(order.arguments.get("url"), plans)
        undo = order.arguments.get("undo") is True
        change = self._take_in if undo else self._take_out
        changed = [change(member) for member in members]
        warnings = [] if undo else list(self._left_without(members, plans))
        for warning in warnings:
            log.warning("%s", warning)
        identities = [member.identity for member in members]
        facts = {
            "backends": [member.shown for member in members],
            "groups": _groups_of(members, plans),
            "draining": not undo,
            "changed": any(changed),
            "in_flight": sum(map(self._in_flight, identities)),
            "patience": max((self._limits(each)[0] for each in identities), default=0.0),
            "warnings": warnings,
        }
        if undo or order.arguments.get("wait") is not True:
            order.reply(**facts)
        else:
            for warning in warnings:
                order.progress(f"warning: {warning}")
            self._waits.append(_Wait(order, identities, facts))
            self.look(time.monotonic_ns())

    def _take_out(self, member: PeerPlan) -> bool:
        """Whether that changes anything."""
        known = self._drained.get(member.identity)
        if known is not None and not known.removed:
            return False
        drained = self._drained[member.identity] = _Drained(member.shown, time.monotonic_ns())
        drained.patience, drained.visited = self._limits(member.identity)
        for peer in self._backends.peers(member.identity):
            peer.draining_since = drained.since_ns
        log.info(
            "backend %s is drained: it gets no new requests; %d in flight may take %g s",
            member.shown,
            self._in_flight(member.identity),
            drained.patience,
        )
        return True

    def _take_in(self, member: PeerPlan) -> bool:
        """Whether that changes anything."""
        if self._drained.pop(member.identity, None) is None:
            return False
        for peer in self._backends.peers(member.identity):
            peer.draining_since = 0
        log.info("backend %s takes requests again", member.shown)
        for wait in self._waits:
            if member.identity in wait.identities:
                wait.order.fail(f"{member.shown} was taken in again")
        self._waits = [wait for wait in self._waits if member.identity not in wait.identities]
        return True

    def _left_without(self, members: Iterable[PeerPlan], plans: Plans) -> Iterator[str]:
        """What the groups that are left without a backend have to expect."""
        out = {member.identity for member in members}
        told = set()
        for group in plans.values():
            if group.name in told or out.isdisjoint(member.identity for member in group.members):
                continue
            board = self._backends.board
            others = [board.peer(each.key).state() for each in group.members if each.identity not in out]
            if all(state in _TAKES_NONE for state in others):
                told.add(group.name)
                why = "has no other backend" if not others else "has only backends that are drained or down"
                yield f"group {group.name!r} {why}: new requests are answered 503"

    # -- going on ----------

    def keep(self, peers: Iterable[tuple[bytes, Peer]]) -> None:
        """New entries of a backend that is taken out are taken out as well."""
        for identity, peer in peers:
            drained = self._drained.get(identity)
            if drained is not None and not drained.removed:
                peer.draining_since = drained.since_ns

    def reloaded(self, configured: Iterable[bytes]) -> None:
        """A reload holds, with these backends: who isn't among them is forgotten, and comes back as new."""
        here = set(configured)
        for identity, drained in list(self._drained.items()):
            if identity not in here:
                drained.removed = True
            elif drained.removed:
                del self._drained[identity]
                for peer in self._backends.peers(identity):
                    peer.draining_since = 0

    def before_another_program(self) -> None:
        """The next program starts with a board of its own: whoever is taken out will be in again."""
        for drained in self._drained.values():
            if not drained.removed:
                log.warning(
                    "backend %s is drained: the next program won't know, drain it again", drained.shown
                )

    def due(self) -> float:
        """Seconds until the next look is worth it; infinity if nobody waits."""
        return LOOK if self._waits else float("inf")

    def look(self, now_ns: int) -> None:
        """Tell the log and those who wait how far it is."""
        for identity, drained in list(self._drained.items()):
            self._look_at(identity, drained, now_ns)
        self._waits = [wait for wait in self._waits if not self._answered(wait, now_ns)]

    def _look_at(self, identity: bytes, drained: _Drained, now_ns: int) -> None:
        drained.patience, drained.visited = self._limits(identity)
        if not drained.told:
            left = self._in_flight(identity)
            if drained.empty(left, now_ns):
                drained.told = True
                log.info("backend %s is empty: nothing is in flight", drained.shown)
            elif drained.late(now_ns):
                drained.told = True
                log.warning(
                    "backend %s: %d requests are still in flight after connection_draining.timeout (%g s)",
                    drained.shown,
                    left,
                    drained.patience,
                )
        if drained.removed and not self._backends.peers(identity):
            del self._drained[identity]

    def _answered(self, wait: _Wait, now_ns: int) -> bool:
        """Tell one of those who wait how far it is; whether it was the last word."""
        if wait.order.gone:
            return True
        left = {identity: self._in_flight(identity) for identity in wait.identities}
        total = sum(left.values())
        wait.facts["in_flight"] = total
        # Who is known no longer has no process left that could have a request.
        known = [(identity, self._drained[identity]) for identity in left if identity in self._drained]
        if all(drained.empty(left[identity], now_ns) for identity, drained in known):
            wait.order.reply(**wait.facts)
            return True
        if all(drained.late(now_ns) for _, drained in known):
            patience = max(drained.patience for _, drained in known)
            wait.order.fail(
                f"{_requests(total)} still in flight after {patience:g} s (connection_draining.timeout); "
                "no new ones come",
                **wait.facts,
            )
            return True
        said = f"{_requests(total)} left"
        if not total:
            said += "; sticky clients may still come"
        if said != wait.said:
            wait.said = said
            wait.order.progress(said)
        return False

    def _in_flight(self, identity: bytes) -> int:
        """Requests that the backend has now, from all workers."""
        return sum(peer.snapshot()["active"] for peer in self._backends.peers(identity))

    def _limits(self, identity: bytes) -> tuple[float, bool]:
        """How long what a backend has may take, and whether sticky clients may come for that long."""
        groups = [
            group
            for plans in self._backends.plans()
            for group in plans.values()
            if any(member.identity == identity for member in group.members)
        ]
        patience = max((group.patience for group in groups), default=0.0)
        return patience, any(group.sticky.enabled and group.draining.enabled for group in groups)


# -- which backend is meant -------------------------------------------------------------------------------


def match(url: object, plans: Plans) -> list[PeerPlan]:
    """The backends that a person means by a URL, each once; several if they differ only in what isn't shown.

    It is compared with each backend's URL as it is, with its password masked, and without an account, however
    it is spelled otherwise.

    :raises UnknownBackend: there is none; the message has no password in it, and names the nearest
    """
    if not isinstance(url, str) or not url or len(url) > _MAX_URL:
        raise UnknownBackend("which backend? A URL is needed")
    members = {member.identity: member for group in plans.values() for member in group.members}
    try:
        wanted = normal(url)
    except ValueError:
        wanted = url
    for form in (lambda known: known, masked, without_account):
        found = [member for member in members.values() if normal(form(member.url)) == wanted]
        if found:
            return found
    raise UnknownBackend(_unknown(url, [member.shown for member in members.values()]))


def _unknown(url: str, known: list[str]) -> str:
    try:
        url = masked(url)
    except ValueError:
        url = url.rpartition("@")[2]
    message = f"no backend {url!r}"
    if not known:
        return f"{message}: no route has any"
    near = nearest(url, known)
    if near:
        return f"{message}; did you mean {near}?"
    more = ", ..." if len(known) > _MAX_NAMED else ""
    return f"{message}; there are {', '.join(known[:_MAX_NAMED])}{more}"


def _groups_of(members: Iterable[PeerPlan], plans: Plans) -> list[str]:
    """The names of the groups that have one of the members."""
    wanted = {member.identity for member in members}

    def has_one(group: GroupPlan) -> bool:
        return not wanted.isdisjoint(member.identity for member in group.members)

    return list(dict.fromkeys(group.name for group in plans.values() if has_one(group)))


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
