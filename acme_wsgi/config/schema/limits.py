"""The keys of ``middleware``: what stands between a request and its handler.

Its law: declarations only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import REQUIRED, key, section


@section
class RateLimitRoute:
    """Another limit for some paths."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("path",)

    path: str = key(REQUIRED, "path, in the forms of a route's", check=grammar.route_path, example="/login")
    limit: int = key(REQUIRED, "requests allowed in a window", minimum=1, example="5")
    window: float = key(REQUIRED, "length of the window", unit="duration", minimum=0.1, example="60s")


@section
class RateLimitHeaders:
    """The headers that tell a client where it stands."""

    SHORT: ClassVar[str] = "enabled"

    enabled: bool = key(True, "send them")
    limit: str = key("X-RateLimit-Limit", "name of the header with the limit", check=grammar.header_name)
    remaining: str = key(
        "X-RateLimit-Remaining", "name of the one with what is left", check=grammar.header_name
    )
    reset: str = key("X-RateLimit-Reset", "name of the one with the window's end", check=grammar.header_name)


@section
class Middleware:
    """One middleware. ``rateLimit``: a sliding window; beyond it 429 with Retry-After."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("type",)

    type: Literal["rateLimit"] = key(REQUIRED, "which one", example="rateLimit")
    enabled: bool = key(True, "use it")
    limit: int = key(REQUIRED, "requests allowed in a window", minimum=1, example="100")
    window: float = key(REQUIRED, "length of the window", unit="duration", minimum=0.1, example="60s")
    routes: tuple[RateLimitRoute, ...] = key((), "other limits for some paths")
    key_by: Literal["ip", "header", "cookie"] = key("ip", "what tells one client from another")
    key_header: str | None = key(
        None, "the header, for key_by: header", check=grammar.header_name, example="X-Api-Key"
    )
    key_cookie: str | None = key(
        None, "the cookie, for key_by: cookie", check=grammar.cookie_name, example="session"
    )
    storage: Literal["memory", "redis"] = key(
        "memory", "exact over all workers (memory) or all instances (redis)"
    )
    headers: RateLimitHeaders = key(RateLimitHeaders(), "headers that tell a client where it stands")
