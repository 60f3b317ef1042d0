"""The keys of ``cache``: the tiers L1, L2 and CDN, warming, and rules by path.

Its law: declarations only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import REQUIRED, key, section

KB, MB = 1 << 10, 1 << 20


@section
class Preload:
    """What is in the cache before the listener reports ready."""

    enabled: bool = key(False, "fetch `paths` through the server itself before the listener reports ready")
    paths: tuple[str, ...] = key((), "what to fetch", check=grammar.url_path, example="[/api/popular]")


@section
class L1:
    """The tier in memory, shared by all workers."""

    size: int = key(
        256 * MB, "its size, over all workers together", unit="size", minimum=64 * KB, same_as="cache.size"
    )
    ttl: float = key(
        300.0,
        "the longest an entry stays in this tier, never longer than the response's own freshness",
        unit="duration",
    )


@section
class L2:
    """The tier shared by several machines: Redis or memcached."""

    enabled: bool = key(False, "use this tier")
    type: Literal["redis", "memcached"] = key("redis", "what serves it")
    host: str = key("localhost", "Redis host", check=grammar.peer_host, only=("redis",))
    port: int = key(6379, "Redis port", minimum=1, maximum=65535, only=("redis",))
    url: str | None = key(
        None, "redis://, rediss:// or unix:// URL, in place of host and port",
        check=grammar.redis_url, secret=True, only=("redis",), example="rediss://cache.internal:6380/0",
    )  # fmt: skip
    password: str | None = key(
        None, "Redis password", secret=True, only=("redis",), example="${REDIS_PASSWORD}"
    )
    password_file: str | None = key(
        None, "file whose content is the password", only=("redis",), example="/etc/acme/redis.password"
    )
    db: int = key(0, "Redis database number", maximum=65535, only=("redis",))
    cluster: bool = key(False, "the address is a Redis Cluster's", only=("redis",))
    tls: bool = key(False, "talk TLS to Redis", only=("redis",))
    pool_size: int = key(10, "connections of one worker", minimum=1, maximum=10_000)
    servers: tuple[str, ...] = key(
        (),
        "memcached servers",
        check=grammar.host_and_port,
        only=("memcached",),
        example="[mc1:11211, mc2:11211]",
    )
    size: int | None = key(
        None,
        "budget; Redis's own maxmemory is checked against it",
        unit="size",
        minimum=64 * KB,
        example="8GB",
    )
    ttl: float = key(3600.0, "the longest an entry stays in this tier", unit="duration")


@section
class Cdn:
    """The edge tier."""

    enabled: bool = key(False, "use this tier")
    provider: Literal["cloudflare", "fastly", "generic"] = key(
        "cloudflare", "whose header fields and purge API"
    )
    ttl: float = key(86400.0, "lifetime at the edge", unit="duration")
    zone: str | None = key(None, "the provider's zone or service id", example="0123abcd")
    token: str | None = key(None, "token of the provider's purge API", secret=True, example="${CDN_TOKEN}")
    token_file: str | None = key(None, "file whose content is the token", example="/etc/acme/cdn.token")
    api_url: str | None = key(
        None, "purge API; unset = the provider's own", check=grammar.http_url, secret=True,
        example="https://api.example.org",
    )  # fmt: skip
    ranges: tuple[str, ...] = key(
        (),
        "networks of the edge, whose visitor-address header is believed; empty = the provider's",
        check=grammar.network, example="[192.0.2.0/24]",
    )  # fmt: skip
    edge_url: str | None = key(
        None, "the edge, asked with only-if-cached on a miss of L2", check=grammar.http_url, secret=True,
        example="https://www.example.org",
    )  # fmt: skip


@section
class WarmPath:
    """One path to warm after start."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("path",)

    path: str = key(REQUIRED, "path to fetch", check=grammar.url_path, example="/api/config")


@section
class Predictive:
    """Refreshing what is asked for often."""

    enabled: bool = key(False, "refresh an often-used entry before it expires")
    threshold: int = key(10, "requests in the last hour that make an entry often-used", minimum=1)


@section
class ScheduledWarming:
    """Paths fetched at set times."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("cron",)

    cron: str = key(REQUIRED, "five cron fields, in local time", check=grammar.cron, example="'0 6 * * *'")
    paths: tuple[str, ...] = key(
        REQUIRED, "what to fetch", check=grammar.url_path, example="[/api/daily-report]"
    )


@section
class Warming:
    """Filling the cache before anybody asks."""

    enabled: bool = key(False, "warm the cache in the background, progress in the log")
    on_startup: tuple[WarmPath, ...] = key((), "paths fetched after start")
    predictive: Predictive = key(Predictive(), "refresh what is asked for often")
    scheduled: tuple[ScheduledWarming, ...] = key((), "paths fetched at set times, once for the whole server")


@section
class CacheRule:
    """What a response without its own Cache-Control may do."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("path",)

    path: str = key(REQUIRED, "path, in the forms of a route's", check=grammar.route_path, example="/api/*")
    ttl: float | None = key(None, "lifetime; unset = cache.ttl", unit="duration", example="60s")
    vary: tuple[str, ...] = key((), "request headers added to the cache key", check=grammar.header_name)
    enabled: bool = key(True, "cache it")


@section
class Cache:
    """The response cache: tiers in order L1, L2, CDN, backend."""

    ALIASES: ClassVar[dict[str, str]] = {"redis": "l2"}

    enabled: bool = key(True, "cache responses that HTTP lets us")
    size: int = key(
        256 * MB, "size of the tier in memory, over all workers together", unit="size", minimum=64 * KB,
        same_as="cache.l1.size",
    )  # fmt: skip
    ttl: float = key(
        3600.0, "lifetime for a response that a rule makes cacheable without naming one", unit="duration"
    )
    eviction_policy: Literal["lru", "lfu", "fifo"] = key("lru", "which entry makes room")
    vary: tuple[str, ...] = key(
        ("Accept-Encoding",), "request headers in the key besides what the response's own Vary names",
        check=grammar.header_name,
    )  # fmt: skip
    preload: Preload = key(Preload(), "what is cached before the listener reports ready")
    l1: L1 = key(L1(), "the tier in memory")
    l2: L2 = key(L2(), "the shared tier; cache.redis is its older name")
    cdn: Cdn = key(Cdn(), "the edge tier")
    warming: Warming = key(Warming(), "filling the cache before anybody asks")
    rules: tuple[CacheRule, ...] = key((), "what a response without its own Cache-Control may do, by path")


@section
class RouteCache:
    """A route's own word on caching; what it leaves out holds as in ``cache``."""

    SHORT: ClassVar[str] = "enabled"

    enabled: bool = key(True, "cache this route's responses")
    ttl: float = key(3600.0, "lifetime for a response that doesn't name one", unit="duration")
    vary: tuple[str, ...] = key(
        ("Accept-Encoding",), "request headers in the cache key", check=grammar.header_name
    )
