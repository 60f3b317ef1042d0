"""What a worker has of backends, for tests: of a configuration, on a board of its own; nothing is opened."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from acme_wsgi.config import Config, load
from acme_wsgi.handlers import Context
from acme_wsgi.upstream import plan
from acme_wsgi.upstream.balancer import Balancer
from acme_wsgi.upstream.board import Board, Peer
from acme_wsgi.upstream.plan import GroupPlan, Upstreams
from acme_wsgi.upstream.service import Service

KEY = bytes(range(32))
STICKY = "load_balancing.sticky_sessions={enabled: true, ttl: 1h}"


def urls(*names: str) -> str:
    """A setting: these backends, a weight behind a blank."""
    parts = [name.partition(" ") for name in names]
    items = ", ".join(f"{{url: '{name}', weight: {weight or 1}}}" for name, _, weight in parts)
    return f"backends=[{items}]"


HOSTS = ("http://192.0.2.1", "http://192.0.2.2", "http://192.0.2.3")
THREE = urls(*HOSTS)
ROUTE = "routes=[{path: '/*', type: proxy}]"


@dataclass
class Made:
    """A worker's backends.

    :ivar board: shared with nobody
    """

    config: Config
    board: Board
    service: Service

    def group(self, route: int = 0) -> GroupPlan:
        found = self.service.group(route)
        assert found is not None
        return found

    def balancer(self, route: int = 0) -> Balancer:
        return self.service.balancer(self.group(route))

    def peer(self, member: int, route: int = 0) -> Peer:
        return self.board.peer(self.group(route).members[member].key)

    def down(self, *members: int) -> None:
        """Let checks take them out."""
        for member in members:
            while self.peer(member).state() != "down":
                self.peer(member).note_check(False, "test")

    def context(self, route: int = 0) -> Context:
        """What the handler of a route is built with."""
        return Context(
            where="route",
            load=lambda name: None,
            server=self.config.server,
            group=self.service.group(route),
            service=self.service,
        )


def made(*sets: str, before: Sequence[str] = (), key: bytes = KEY) -> Made:
    """Settings as on a command line; one route for everything unless they say otherwise.

    :param before: settings of the generation that this one follows
    """
    board = Board(2)
    plans: dict[int, GroupPlan] = {}
    for settings in (before, sets):
        if settings:
            routed = any(setting.startswith("routes=") for setting in settings)
            config = load([], {}, settings if routed else [ROUTE, *settings])
            plans = plan.follow(plan.plan(config), plans.values(), time.monotonic_ns())
            plan.enrol(board, plans)
    upstreams = Upstreams(board, plans, config.server.connection_pool, 0, key, 1)
    return Made(config, board, Service(upstreams))
