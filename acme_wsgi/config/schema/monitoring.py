"""The keys of ``monitoring``: metrics, dashboard and health.

Its law: declarations only.
"""

from __future__ import annotations

import typing
from typing import ClassVar, Literal

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import REQUIRED, key, section

Metric = Literal[
    "request_rate",
    "request_duration",
    "request_size",
    "response_size",
    "cache_hit_rate",
    "cache_size",
    "cache_evictions",
    "active_connections",
    "connection_errors",
    "connection_timeouts",
    "cpu_usage",
    "memory_usage",
    "disk_io",
    "network_io",
]
ALL_METRICS: tuple[Metric, ...] = typing.get_args(Metric)


@section
class Metrics:
    """What is counted and exposed. A list in place of the mapping means ``include``."""

    SHORT: ClassVar[str] = "include"

    enabled: bool = key(True, "collect and expose metrics")
    path: str = key("/metrics", "where they are", check=grammar.url_path)
    format: Literal["prometheus", "json"] = key("prometheus", "in which form")
    include: tuple[Metric, ...] = key(ALL_METRICS, "which ones", default_text="all")


@section
class Dashboard:
    """The page with the five panels."""

    enabled: bool = key(True, "serve it")
    path: str = key("/dashboard", "where it is", check=grammar.url_path)
    allow: tuple[str, ...] = key(("127.0.0.0/8", "::1"), "networks that may see it", check=grammar.network)


@section
class HealthProbe:
    """One thing that health depends on."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("name",)

    name: str = key(REQUIRED, "its name in the answer", example="disk")
    type: Literal["liveness", "readiness", "disk", "memory", "http", "database", "redis"] = key(
        REQUIRED, "what is looked at", example="disk"
    )
    threshold: float = key(0.9, "use above which it is bad", unit="percent", only=("disk", "memory"))
    timeout: float = key(5.0, "how long looking may take", unit="duration", minimum=0.01)
    url: str | None = key(
        None, "what an http check asks for", check=grammar.http_url, secret=True, only=("http",),
        example="http://app1.internal:8000/health",
    )  # fmt: skip


@section
class Health:
    """Answers to whoever watches the server; also under /ready."""

    path: str = key("/health", "where the answer is", check=grammar.url_path)
    checks: tuple[HealthProbe, ...] = key((), "what it depends on")


@section
class Monitoring:
    """What the server tells about itself."""

    metrics: Metrics = key(Metrics(), "what is counted and exposed; a list means include")
    dashboard: Dashboard = key(Dashboard(), "the page with the five panels")
    health: Health = key(Health(), "answers to whoever watches the server")
