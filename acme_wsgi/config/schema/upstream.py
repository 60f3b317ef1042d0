"""The keys of ``load_balancing`` and ``backends``: which backend gets a request, and whether it is well.

Its law: declarations only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import REQUIRED, key, section

MAX_BACKENDS = 64
"""The most backends that one route may have."""

Algorithm = Literal["round_robin", "least_conn", "ip_hash"]
_ALGORITHM_TEXT = "round_robin (smooth, weighted), least_conn (weighted), ip_hash (weighted, consistent)"


@section
class HealthCheck:
    """Active checks; connect errors and 5xx of real traffic count besides."""

    SHORT: ClassVar[str] = "enabled"

    enabled: bool = key(True, "check backends actively")
    path: str = key(
        "/health",
        "path asked for; 2xx and 3xx are good, and 4xx too while no path is written",
        check=grammar.sent_path,
    )
    interval: float = key(10.0, "time between checks", unit="duration", minimum=0.1)
    timeout: float = key(5.0, "how long one check may take", unit="duration", minimum=0.01)
    healthy_threshold: int = key(2, "good checks in a row that bring a backend back", minimum=1, maximum=1000)
    unhealthy_threshold: int = key(3, "bad checks in a row that take a backend out", minimum=1, maximum=1000)


@section
class ConnectionDraining:
    """What happens to the requests of a backend taken out."""

    enabled: bool = key(True, "a backend taken out finishes what it has")
    timeout: float = key(30.0, "how long it may", unit="duration")


@section
class StickySessions:
    """One visitor, one backend."""

    enabled: bool = key(False, "keep a visitor on one backend with a cookie")
    cookie_name: str = key("ACME_BACKEND", "its name", check=grammar.cookie_name)
    ttl: float = key(3600.0, "its lifetime", unit="duration", minimum=1)


@section
class LoadBalancing:
    """How backends share the requests."""

    algorithm: Algorithm = key("round_robin", _ALGORITHM_TEXT)
    health_check: HealthCheck = key(HealthCheck(), "active checks")
    connection_draining: ConnectionDraining = key(ConnectionDraining(), "requests of a backend taken out")
    sticky_sessions: StickySessions = key(StickySessions(), "one visitor, one backend")


@section
class RouteLoadBalancing:
    """A route's own load balancing; what it leaves out holds as in ``load_balancing``."""

    SHORT: ClassVar[str] = "algorithm"

    algorithm: Algorithm = key("round_robin", _ALGORITHM_TEXT)
    connection_draining: ConnectionDraining = key(ConnectionDraining(), "requests of a backend taken out")
    sticky_sessions: StickySessions = key(StickySessions(), "one visitor, one backend")


@section
class Backend:
    """A server that requests are passed to."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("url",)

    url: str = key(
        REQUIRED, "http://, https:// or unix:; names are resolved again and again",
        check=grammar.backend_url, secret=True, example="http://app1.internal:8000",
    )  # fmt: skip
    weight: int = key(1, "its share of the requests, relative to the others'", minimum=1, maximum=65535)
