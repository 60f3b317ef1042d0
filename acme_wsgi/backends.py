"""The arbiter's knowledge of backends: who is enrolled on the board, for which generations, who is drained.

    planned and enrolled -> its generation holds -> that generation's last worker ends -> freed

A generation's groups are enrolled before its first worker is forked; entries of the board are freed when no
process lives that could use them. A backend that an operator has taken out (draining.py) stays out through
reloads, for as long as the configuration names it.

Law: the one writer of the board's entries. Reads configurations and plans, forks nothing, opens nothing but
the file of the sticky key. Imports no gevent.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from acme_wsgi.config import Config
from acme_wsgi.draining import Draining
from acme_wsgi.generation import Generation
from acme_wsgi.upstream import plan
from acme_wsgi.upstream.board import Board, Peer
from acme_wsgi.upstream.plan import ALGORITHMS, GroupPlan, Leaving, PeerPlan, Plans
from acme_wsgi.upstream.sticky import KEY_SIZE, load_key

_ALGORITHM_NAMES = {number: name for name, number in ALGORITHMS.items()}

log = logging.getLogger("acme.arbiter")


class Backends:
    """All backends of the server.

    :ivar board: shared with all workers
    :ivar draining: those that an operator has taken out
    """

    def __init__(self, board: Board, directory: str) -> None:
        """Begin with nobody.

        :param directory: the runtime directory, which keeps the sticky key; "" if there is none
        """
        self.board = board
        self.draining = Draining(self)
        self._directory = directory
        self._sticky_key = b""
        self._living: frozenset[Generation] = frozenset()
        self._kept: frozenset[Generation] | None = None

    # -- the life of a generation ----------

    def prepare(self, config: Config, previous: Plans | None = None) -> tuple[Plans, bytes]:
        """The groups of a configuration, enrolled, and the key of their cookies, b"" if none has any.

        :param previous: the groups that hold now; whoever is in both keeps its state
        :raises ConfigError: a route can't have a group
        :raises BoardFull: there are too many
        :raises StickyKeyError: the key can't be read or made
        """
        plans = plan.follow(plan.plan(config), (previous or {}).values(), time.monotonic_ns())
        self._kept = None  # whatever comes of it, there may be entries to be freed again
        plan.enrol(self.board, plans)
        self.draining.keep(self.peers_of(plans))
        return plans, self._key_for(plans)

    def _key_for(self, plans: Plans) -> bytes:
        """Read, or made, when the first sticky group comes up."""
        if not plan.is_sticky(plans):
            return b""
        if not self._sticky_key:
            if self._directory:
                self._sticky_key = load_key(self._directory, log.warning)
            else:
                log.warning("without a runtime directory, sticky sessions end with this server")
                self._sticky_key = os.urandom(KEY_SIZE)
        return self._sticky_key

    def holds(self, before: Generation, now: Generation) -> None:
        """A reload has put `now` in the place of `before`: mark and say who came and who went."""
        old, new = self._members(before.plans), self._members(now.plans)
        longest = before.config.server.shutdown_timeout
        for identity, (member, patience) in old.items():
            if identity not in new:
                self._remove(identity, member.shown, min(patience, longest))
        for identity, (member, _) in new.items():
            if identity not in old:
                for peer in self.peers(identity):
                    peer.removed_since = 0
                log.info("backend %s is taken in by the reload", member.shown)
        self.draining.reloaded(new)

    def _remove(self, identity: bytes, shown: str, patience: float) -> None:
        """The configuration has it no longer: those who do are to end what they have there in its time."""
        peers = self.peers(identity)
        now = time.monotonic_ns()
        for peer in peers:
            peer.removed_since = now
        log.info(
            "backend %s is taken out by the reload;"
            " %d requests in flight may take %g s once their workers are replaced",
            shown,
            sum(peer.snapshot()["active"] for peer in peers),
            patience,
        )

    @staticmethod
    def _members(plans: Plans) -> dict[bytes, tuple[PeerPlan, float]]:
        """Every backend once, and for how many seconds it may go on with what it has when it is taken out."""
        found: dict[bytes, tuple[PeerPlan, float]] = {}
        for group in plans.values():
            for member in group.members:
                most = max(group.patience, found[member.identity][1] if member.identity in found else 0.0)
                found[member.identity] = (member, most)
        return found

    def look(self, living: Iterable[Generation]) -> None:
        """Once a round: free what no process can use any more, and see how far those are that drain.

        :param living: the generation that holds, the one that is tried, and those of all processes
        """
        self._living = frozenset(living)
        if self._living != self._kept:
            self._kept = self._living
            peers: set[bytes] = set()
            groups: set[bytes] = set()
            for generation in self._living:
                more_peers, more_groups = plan.keys(generation.plans)
                peers |= more_peers
                groups |= more_groups
            self.board.retain(peers, groups)
        self.draining.look(time.monotonic_ns())

    # -- who there is ----------

    def plans(self) -> Iterator[Plans]:
        """Those of every generation that a process could still use."""
        return (generation.plans for generation in self._living)

    def peers(self, identity: bytes) -> list[Peer]:
        """The board's entries of one URL, over all generations and checks."""
        return [peer for known, peer in self.peers_of(*self.plans()) if known == identity]

    def peers_of(self, *plans: Plans) -> Iterator[tuple[bytes, Peer]]:
        """Each backend's identity with its entry; an entry that is in several groups comes once."""
        seen: set[bytes] = set()
        for group in (group for one in plans for group in one.values()):
            for each in group.everybody:
                if each.key not in seen:
                    seen.add(each.key)
                    yield each.identity, self.board.peer(each.key)

    # -- for `status` ----------

    def describe(self, generation: Generation) -> list[dict[str, Any]]:
        """The groups of a generation, each with all that is known of its members."""
        found: dict[tuple[object, ...], dict[str, Any]] = {}
        now = time.monotonic_ns()
        for number, group in generation.plans.items():
            alike = (group.name, group.key, group.sticky, group.leaving)
            known = found.get(alike)
            if known is None:
                known = found[alike] = self._group(group, now)
            known["routes"].append(generation.config.routes[number].path)
        return list(found.values())

    def _group(self, group: GroupPlan, now: int) -> dict[str, Any]:
        return {
            "group": group.name,
            "algorithm": _ALGORITHM_NAMES[group.algorithm],
            "sticky": group.sticky.enabled,
            "routes": [],
            "members": [
                {**self._peer(member, now), "weight": member.weight, "checked_actively": member.check.enabled}
                for member in group.members
            ],
            "leaving": [
                {
                    **self._peer(gone, now),
                    "state": "leaving",
                    "since": None,
                    "seconds_left": (gone.until_ns - now) / 1e9,
                }
                for gone in group.leaving
                if gone.until_ns > now
            ],
        }

    def _peer(self, each: PeerPlan | Leaving, now: int) -> dict[str, Any]:
        """A backend's own figures, which are those of all its groups together."""
        known = self.board.peer(each.key).snapshot()
        draining = known["state"] == "draining"
        return {
            "url": each.shown,
            "state": known["state"],
            "since": _ago(known["draining_since_ns" if draining else "since_ns"], now),
            "active": known["active"],
            "connections": known["connections"],
            "requests": known["requests"],
            "failures": known["failures"],
            "connect_errors": known["connect_errors"],
            "retries": known["retries"],
            "latency": known["latency_seconds"] or None,
            "last_check": known["last_check"] or None,
            "checked": _ago(known["checked_ns"], now),
        }


def _ago(then_ns: int, now_ns: int) -> float | None:
    """Seconds since then; None for never."""
    return max(now_ns - then_ns, 0) / 1e9 if then_ns else None
