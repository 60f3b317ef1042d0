"""The keys of ``routes``: which requests go where.

Its law: declarations only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import REQUIRED, key, section
from acme_wsgi.config.schema.cache import RouteCache
from acme_wsgi.config.schema.content import Compression
from acme_wsgi.config.schema.limits import Middleware
from acme_wsgi.config.schema.upstream import Backend, HealthCheck, RouteLoadBalancing


@section
class RouteHeaders:
    """Changes to the headers passed to a backend."""

    add: tuple[tuple[str, str], ...] = key(
        (),
        "headers set, by name; $remote_addr, $scheme, $host and $request_id stand for the request's, $$ for "
        "a dollar sign",
        check=grammar.added_header,
        check_value=grammar.header_template,
        example="{X-Real-IP: $remote_addr}",
    )
    remove: tuple[str, ...] = key(
        (), "headers taken out, before others are set", check=grammar.removed_header, example="[X-Debug]"
    )


@section
class Rewrite:
    """Change of the path passed to a backend."""

    from_: str = key(
        REQUIRED, "regular expression that the path must match", check=grammar.regexp, example="^/api/(.*)$"
    )
    to: str = key(
        REQUIRED,
        "path in its place, with \\1 for what the first group matched, \\g<name> for a named one",
        check=grammar.rewritten_path,
        example="/\\1",
    )


@section
class Route:
    """One route. Exact paths go before prefixes, then parameters, then regular expressions, then ``/*``."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("path", "method", "host")

    path: str = key(
        REQUIRED, "/a exactly, /a/* and below, /users/:id, ~ and a regular expression, or /* for the rest",
        check=grammar.route_path, example="/api/*",
    )  # fmt: skip
    method: tuple[str, ...] = key(
        (), "methods it answers; empty = any", check=grammar.method, example="[GET, POST]"
    )
    host: tuple[str, ...] = key(
        (), "hosts it answers; empty = any", check=grammar.route_host, example="www.example.org"
    )
    type: Literal["static", "proxy", "redirect", "wsgi", "handler"] = key(
        REQUIRED, "what answers", example="wsgi"
    )
    app: str | None = key(
        None, "WSGI application, module:callable or module:factory()", check=grammar.callable_name,
        only=("wsgi",), example="shop.wsgi:application",
    )  # fmt: skip
    handler: str | None = key(
        None, "function module:function that gets the request and returns the response",
        check=grammar.function_name, only=("handler",), example="shop.pages:home",
    )  # fmt: skip
    root: str | None = key(None, "directory of the files", only=("static",), example="/srv/www")
    index: tuple[str, ...] = key(
        ("index.html",), "files that stand for a directory", check=grammar.file_name, only=("static",)
    )
    try_files: tuple[str, ...] = key(
        (),
        "what to try in order, with $uri for the path asked for; the last may be a status (=404)",
        check=grammar.tried,
        only=("static",),
        example="[$uri, /index.html]",
    )
    directory_listing: bool = key(False, "list a directory without an index", only=("static",))
    extensions: tuple[str, ...] = key(
        (),
        "file extensions served; empty = all",
        check=grammar.file_extension,
        only=("static",),
        example="[.css, .js]",
    )
    cache_control: str | None = key(
        None, "Cache-Control of its files", check=grammar.header_value, only=("static",),
        example="public, max-age=3600",
    )  # fmt: skip
    backend: str | None = key(
        None, "the one server that answers", check=grammar.backend_url, secret=True, only=("proxy",),
        example="http://app1.internal:8000",
    )  # fmt: skip
    backends: tuple[Backend, ...] = key(
        (), "the servers that answer; empty = the global ones", only=("proxy",)
    )
    load_balancing: RouteLoadBalancing | None = key(
        None, "this route's own load balancing", inherit="load_balancing", only=("proxy",)
    )
    health_check: HealthCheck | None = key(
        None, "this route's own health check", inherit="load_balancing.health_check", only=("proxy",)
    )
    proxy_timeout: float | None = key(
        None, "time for the whole exchange with a backend; unset = the request's",
        unit="duration", minimum=0.01,
        only=("proxy",), example="30s",
    )  # fmt: skip
    proxy_connect_timeout: float | None = key(
        None,
        "time to connect; unset = proxy_timeout",
        unit="duration",
        minimum=0.01,
        only=("proxy",),
        example="5s",
    )
    proxy_read_timeout: float | None = key(
        None,
        "time between two reads; unset = proxy_timeout",
        unit="duration",
        minimum=0.01,
        only=("proxy",),
        example="30s",
    )
    proxy_write_timeout: float | None = key(
        None, "time between two writes; unset = proxy_timeout",
        unit="duration", minimum=0.01, only=("proxy",),
        example="30s",
    )  # fmt: skip
    headers: RouteHeaders = key(RouteHeaders(), "changes to the headers passed on", only=("proxy",))
    rewrite: Rewrite | None = key(None, "change of the path passed on", only=("proxy",))
    fallback: str | None = key(
        None,
        "file sent with status 503 when no backend can answer, its type by its name; read at the start and "
        "by each reload, at most 1MB",
        only=("proxy",),
        example="/srv/shop/busy.html",
    )
    redirect_to: str | None = key(
        None, "where to: a path or a URL", check=grammar.redirect_target, only=("redirect",), example="/new/"
    )
    status_code: Literal[301, 302, 303, 307, 308] = key(302, "status of the redirect", only=("redirect",))
    compression: Compression | None = key(
        None,
        "this route's own compression; what it leaves out holds as in compression",
        inherit="compression",
    )
    cache: RouteCache | None = key(
        None, "this route's own caching; what it leaves out holds as in cache", inherit="cache", built=False
    )
    middleware: tuple[Middleware, ...] | None = key(
        None, "in place of the global middleware; [] = none", built=False
    )
    timeout: float | None = key(
        None, "in place of server.timeout", unit="duration", minimum=0.01, maximum=86400, example="2m"
    )
    max_body_size: int | None = key(
        None, "in place of server.max_body_size", unit="size", minimum=1, maximum=1 << 50, example="100MB"
    )
