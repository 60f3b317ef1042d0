"""A worker's side of its backends: one pool for all, a shelf for each, and what is done in the background.

    Service: balancer(group) at start-up -> start() once the worker serves -> stop() when it drains: what is
             under way at backends that are taken out is still looked after, until the process ends

Law: puts the parts together and keeps them tidy; no request passes through this file. Made once in each
worker.
"""

from __future__ import annotations

import logging
import os
import ssl
import time

import gevent

from acme_wsgi.errors import AcmeError
from acme_wsgi.reactor import current
from acme_wsgi.upstream.balancer import Balancer, Departing
from acme_wsgi.upstream.board import Peer
from acme_wsgi.upstream.exchange import Lane, Patience
from acme_wsgi.upstream.health import Checker
from acme_wsgi.upstream.plan import GroupPlan, Leaving, PeerPlan, Upstreams
from acme_wsgi.upstream.pool import Pool, Shelf
from acme_wsgi.upstream.probing import probe
from acme_wsgi.upstream.resolve import Resolver
from acme_wsgi.upstream.target import Target
from acme_wsgi.upstream.tls import client_context

ROUND = 0.25
"""Seconds between two looks at what there is to tidy."""

WARMING = 8
"""Connections to one backend that are made in one round to keep some warm."""

_CONNECT = 5.0  # seconds that making a warm connection may take

log = logging.getLogger("acme.upstream")


class Service:
    """Everything that the routes of a worker share to reach their backends."""

    def __init__(self, upstreams: Upstreams) -> None:
        self.upstreams = upstreams
        self.board = upstreams.board
        self.pool = Pool(upstreams.pool, upstreams.slot)
        self._shelves: dict[bytes, Shelf] = {}
        self._balancers: dict[tuple[object, ...], Balancer] = {}
        self._patience: dict[bytes, int] = {}  # members -> how long they may go on once taken out, ns
        self._leaving: dict[bytes, int] = {}  # those for sticky visitors only -> until when, ns
        self._warming: set[bytes] = set()  # peers to which connections are being made
        self._cut: dict[bytes, int] = {}  # peers whose requests were cut -> when their time was over
        self._stopped = 0  # when the worker was told to go, ns; 0 = it serves
        self._forked = False
        self._finest = float("inf")
        self._context: ssl.SSLContext | None = None
        self._checks: gevent.Greenlet | None = None
        self._checker: Checker[PeerPlan] | None = None

    # -- at start-up ----------

    def group(self, route: int) -> GroupPlan | None:
        """The backends of the proxy route of this number."""
        return self.upstreams.plans.get(route)

    def balancer(self, plan: GroupPlan) -> Balancer:
        """The balancer of a group; routes with equal ones share it, and so its budget of retries."""
        key = (plan.key, plan.sticky, plan.draining, plan.leaving)
        if key not in self._balancers:
            group = self.board.find(plan.key)
            lanes = [
                Lane(group, number, self._shelf(member), member.shown)
                for number, member in enumerate(plan.members)
            ]
            for member in plan.members:
                patience = int(plan.patience * 1e9)
                self._patience[member.key] = max(patience, self._patience.get(member.key, 0))
            for gone in plan.leaving:
                self._leaving[gone.key] = max(gone.until_ns, self._leaving.get(gone.key, 0))
            departing = [self._departing(gone) for gone in plan.leaving]
            self._balancers[key] = Balancer(plan, lanes, departing, self.upstreams.sticky_key)
        return self._balancers[key]

    def need(self, patience: Patience) -> None:
        """A route has limits this short: the clock has to be fine enough for them."""
        shortest = min(patience.connect_ns, patience.read_ns, patience.write_ns)
        self._finest = min(self._finest, shortest * 1e-9)

    def _departing(self, gone: Leaving) -> Departing:
        lane = Lane(self.board.find(gone.group), 0, self._shelf(gone), gone.shown)
        return Departing(lane, gone.until_ns)

    def _shelf(self, member: PeerPlan | Leaving) -> Shelf:
        if member.key not in self._shelves:
            target = Target.parse(member.url)
            resolver = Resolver(target.host, target.port) if target.scheme != "unix" else None
            if target.tls and self._context is None:
                self._context = client_context()
            context = self._context if target.tls else None
            peer = self.board.peer(member.key)
            self._shelves[member.key] = Shelf(self.pool, peer, target, resolver, context)
        return self._shelves[member.key]

    # -- while the worker serves ----------

    def start(self) -> None:
        """Begin with the health checks and with keeping connections tidy."""
        if self._finest < float("inf"):
            current().need_tick(self._finest)
        groups = self.upstreams.plans.values()
        checked = [member for group in groups for member in group.members if member.check.enabled]
        if checked:
            shortest = min(member.check.timeout for member in checked)
            current().need_tick(shortest)
            self._checker = Checker(
                self.board, checked, self._probe, self.upstreams.pid, self.upstreams.generation
            )
            self._checks = gevent.spawn(self._checker.run)
        gevent.spawn(self._tend)
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def stop(self) -> None:
        """The worker drains: no more checks, no idle connections.

        What is under way goes on, at a backend that is taken out for no longer than it may there: that is
        looked after until the process ends.
        """
        self._stopped = self._stopped or time.monotonic_ns()
        if self._checker is not None:
            self._checker.stop()
        if self._checks is not None:
            self._checks.kill(block=False)
            self._checks = None
        for shelf in self._shelves.values():
            shelf.drop_idle()

    def _leave_to_parent(self) -> None:
        """In a process that the application forked: should its loop run, it must do nothing of ours."""
        self._forked = True
        if self._checker is not None:
            self._checker.forget()

    def _probe(self, member: PeerPlan, timeout: float) -> tuple[bool, str]:
        shelf = self._shelves[member.key]
        return probe(shelf, member.check.path, timeout, member.strict)

    # -- now and then ----------

    def _tend(self) -> None:
        while not self._forked:
            try:
                self._tend_once()
            except Exception:
                log.exception("tending the connections to backends failed")
            gevent.sleep(ROUND)

    def _tend_once(self) -> None:
        now = time.monotonic_ns()
        for key, shelf in list(self._shelves.items()):
            shelf.tidy(now)
            over = self._over(key, shelf.peer)
            if over or self._stopped:
                shelf.drop_idle()
                if over and now > over and shelf.busy:
                    self._cut_off(key, shelf, over)
            elif len(shelf.idle) < self.pool.min_idle and self._may_warm(key, shelf):
                self._warming.add(key)
                gevent.spawn(self._warm, key, shelf)

    def _over(self, key: bytes, peer: Peer) -> int:
        """When the time of a backend that is taken out is over (CLOCK_MONOTONIC, ns); 0 for one in use.

        One that a reload has taken out may still be in use here, until the worker is replaced too.
        """
        patience = self._patience.get(key)
        if patience is None:
            return self._leaving[key]
        drained, removed = peer.draining_since, peer.removed_since
        ends = [drained + patience] if drained else []
        if removed and self._stopped:
            ends.append(max(removed, self._stopped) + patience)
        return min(ends, default=0)

    def _cut_off(self, key: bytes, shelf: Shelf, over: int) -> None:
        if self._cut.get(key) != over:
            self._cut[key] = over
            log.warning(
                "backend %s: its time is over, %d requests are cut", shelf.target.shown, len(shelf.busy)
            )
        shelf.cut()

    def _may_warm(self, key: bytes, shelf: Shelf) -> bool:
        """Only those that are well and that new requests are to go to."""
        peer = shelf.peer
        return key not in self._warming and not peer.removed_since and peer.state() in ("up", "slow-start")

    def _warm(self, key: bytes, shelf: Shelf) -> None:
        """In a greenlet of its own: connecting may take long, and others are not to wait for it."""
        try:
            for _ in range(WARMING):
                if self._stopped or not shelf.warm(int(_CONNECT * 1e9)):
                    return
        except (AcmeError, OSError) as error:
            log.debug("backend %s: no connection to be kept warm: %s", shelf.target.shown, error)
        finally:
            self._warming.discard(key)
