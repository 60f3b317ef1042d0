"""Hypothesis strategies for whole configurations, drawn from the declarations.

Law: a new key needs nothing here unless it brings a new form of text or contradicts another key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from acme_wsgi.config import Config, grammar
from acme_wsgi.config.keys import Items, ListOf, Pairs, Spec, Table, identity, specs
from acme_wsgi.config.kinds import ARROW, BOOL, DURATION, INT, PERCENT, SIZE, Arrow, Choice, Scalar
from acme_wsgi.config.schema.limits import Middleware
from acme_wsgi.config.schema.routes import Route

_NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
_HEADERS = st.from_regex(r"X-[A-Z][a-z]{0,6}", fullmatch=True)
_PATHS = st.lists(st.from_regex(r"[a-z0-9._-]{1,6}", fullmatch=True), max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
_ABSOLUTE = _PATHS.filter(lambda path: path != "/")
_HOSTS = st.sampled_from(["a.example", "10.0.0.1", "[::1]", "localhost", "x-1.internal"])
_NETWORKS = st.sampled_from(["10.0.0.0/8", "::1", "fd00::/8", "192.0.2.7"])
_URLS = st.builds(
    "{}://{}:{}{}".format, st.sampled_from(["http", "https"]), _HOSTS, st.integers(1, 65535), _PATHS
)
_ROUTES = st.one_of(
    _PATHS,
    _PATHS.map(lambda path: path.rstrip("/") + "/*"),
    _NAMES.map(lambda name: f"/users/:{name}"),
    st.sampled_from(["~ ^/u/(\\d+)$", "~ /a|b${1}".replace("{1}", ""), "~ ^/\\$\\{x\\}"]),
)
_TARGETS = st.sampled_from(["shop.wsgi:app", "shop:create()", "shop", 'shop:create("prod", debug=False)'])

#: Anything that one line of text may hold, with what YAML and references find special made likely.
TEXTS = st.one_of(
    st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=30),
    st.lists(
        st.sampled_from(
            [
                "${",
                "$",
                "{",
                "}",
                ":",
                ": ",
                " #",
                "'",
                '"',
                "\\",
                "-",
                "[",
                "*",
                "&",
                "!",
                "null",
                "~",
                "1",
                "é",
                "\U0001f600",
            ]
        ),
        min_size=1,
        max_size=8,
    ).map("".join),
    st.sampled_from(
        [
            "null",
            "~",
            "true",
            "off",
            "010",
            "10:30",
            "1_000",
            "0x1f",
            "2001-01-01",
            "=",
            "<<",
            "%",
            "@",
            "`",
            " ",
        ]
    ),
)

_BY_CHECK: dict[Callable[[str], object], st.SearchStrategy[str]] = {
    grammar.bind_host: st.sampled_from(["127.0.0.1", "::1", "[::]", "localhost", "unix:/run/acme/http.sock"]),
    grammar.probe: st.sampled_from(["*", "/health", "/a%20b?c=d"]),
    grammar.peer: _NETWORKS | st.just("unix:"),
    grammar.network: _NETWORKS,
    grammar.account: _NAMES,
    grammar.absolute: _ABSOLUTE,
    grammar.output: st.sampled_from(["stdout", "stderr"]) | _ABSOLUTE,
    grammar.log_field: st.sampled_from(["service", "host.name", "_a-1"]),
    grammar.url_path: _PATHS,
    grammar.sent_path: st.sampled_from(["/", "/health", "/h%C3%A9"]),
    grammar.route_path: _ROUTES,
    grammar.regexp: st.sampled_from(["^/api/(.*)$", "a{2}", "[$]{x}", "é+"]),
    grammar.statement_pattern: st.sampled_from(["SELECT .* FROM users WHERE id = ?", "a IN (?, ?)", "x"])
    | _NAMES,
    grammar.header_name: _HEADERS,
    grammar.added_header: _HEADERS,
    grammar.removed_header: _HEADERS,
    grammar.header_value: st.sampled_from(["no-store", "public, max-age=60", "é", ""]),
    grammar.header_template: st.sampled_from(["acme", "$remote_addr", "$scheme://$host; $$1", "$request_id"]),
    grammar.rewritten_path: st.sampled_from(["/", "/\\g<0>", "/a/\\\\b", "\\g<0>.html"]),
    grammar.cookie_name: _NAMES,
    grammar.method: st.sampled_from(["GET", "POST", "M-SEARCH"]),
    grammar.route_host: st.sampled_from(["www.example.org", "*.example.org", "10.0.0.1", "[::1]"]),
    grammar.peer_host: _HOSTS,
    grammar.host_and_port: st.sampled_from(["mc:11211", "[::1]:11211", "mc"]),
    grammar.http_url: _URLS,
    grammar.backend_url: _URLS | st.just("unix:/run/app.sock"),
    grammar.redis_url: st.sampled_from(["redis://:p@h:1/0", "rediss://h", "unix:///run/redis.sock?db=1"]),
    grammar.database_url: st.sampled_from(["postgresql://u:p@h/db?sslmode=require", "sqlite:////var/x.db"]),
    grammar.callable_name: _TARGETS,
    grammar.function_name: st.sampled_from(["shop.pages:home", "a:b.c"]),
    grammar.mime_type: st.sampled_from(["text/html", "text/*", "image/svg+xml"]),
    grammar.file_extension: st.sampled_from([".css", ".tar.gz"]),
    grammar.file_name: _NAMES,
    grammar.tried: st.sampled_from(["$uri", "$uri/", "$uri.html", "/index.html"]),
    grammar.redirect_target: _PATHS | _URLS,
    grammar.versioned_pattern: st.sampled_from(["/static/{file}-{hash}.{ext}", "/{hash}.{file}.{ext}"]),
    grammar.cron: st.sampled_from(["0 6 * * *", "*/5 0-6,8 1 jan-mar mon", "59 23 31 12 7"]),
}


def configs() -> st.SearchStrategy[Config]:
    """Configurations that could have been loaded, one section of each written out, without contradictions."""
    return st.sampled_from(specs(Config)).flatmap(_with_section).map(_consistent)


def _with_section(spec: Spec) -> st.SearchStrategy[Config]:
    # One at a time: three hundred independent draws would take seconds and never shrink.
    return _values(spec).map(lambda value: dataclasses.replace(Config(), **{spec.attribute: value}))


def _sections(cls: type[Any]) -> st.SearchStrategy[Any]:
    types = [spec for spec in specs(cls) if spec.name == "type"]
    if not types:
        return _of_type(cls, None)
    kind = types[0].kind
    assert isinstance(kind, Choice)
    return st.sampled_from(kind.values).flatmap(lambda chosen: _of_type(cls, chosen))


def _of_type(cls: type[Any], chosen: object) -> st.SearchStrategy[Any]:
    values: dict[str, st.SearchStrategy[Any]] = {}
    for spec in specs(cls):
        if spec.name == "type":
            values[spec.attribute] = st.just(chosen)
        elif spec.name.endswith("_file") or (spec.key.only and chosen not in spec.key.only):
            values[spec.attribute] = st.just(spec.default)
        else:
            drawn = _values(spec)
            # Mostly defaults, as in real files; else the trees grow too big to shrink.
            values[spec.attribute] = drawn if spec.required else st.one_of(st.just(spec.default), drawn)
    return st.builds(cls, **values)


def _values(spec: Spec) -> st.SearchStrategy[Any]:
    kind = spec.kind
    if isinstance(kind, Table):
        return _sections(kind.cls)
    if isinstance(kind, Items):
        cls = kind.cls
        return st.lists(_sections(cls), max_size=3, unique_by=lambda item: _identity(cls, item)).map(tuple)
    if isinstance(kind, Pairs):
        assert spec.key.check is not None
        values = _BY_CHECK[spec.key.check_value] if spec.key.check_value else TEXTS
        pairs = st.tuples(_BY_CHECK[spec.key.check], values)
        return st.lists(pairs, max_size=3, unique_by=lambda pair: pair[0].lower()).map(tuple)
    if isinstance(kind, ListOf):
        least = 1 if spec.required else 0
        return st.lists(_scalars(kind.item, spec), min_size=least, max_size=4).map(tuple)
    return _scalars(kind, spec)


def _scalars(kind: Scalar, spec: Spec) -> st.SearchStrategy[Any]:
    if isinstance(kind, Choice):
        return st.sampled_from(kind.values)
    if kind is BOOL:
        return st.booleans()
    low, high = kind.limits(spec.key.minimum, spec.key.maximum)
    if kind in (INT, SIZE):
        assert low is not None and high is not None
        return st.integers(int(low), int(high))
    if kind is DURATION:
        assert low is not None and high is not None
        return st.integers(int(low * 1000), int(high * 1000)).map(lambda ms: ms / 1000) | st.floats(
            max(low, 1e-9), high
        )
    if kind is PERCENT:
        # Not any float: 1e-200 has more digits than a file may write.
        return st.integers(0, 10**9).map(lambda billionths: billionths / 10**9)
    if kind is ARROW:
        return st.builds(Arrow, _ABSOLUTE, _ABSOLUTE)
    return _BY_CHECK[spec.key.check] if spec.key.check else TEXTS


def _identity(cls: type[Any], item: Any) -> object:
    """As merging compares items: methods and hosts as sets."""
    values = [getattr(item, name) for name in identity(cls)]
    return tuple(tuple(sorted(value)) if isinstance(value, tuple) else value for value in values)


def _consistent(config: Config) -> Config:
    """`config` without the contradictions that independent draws bring."""
    cache, pool, database = config.cache, config.server.connection_pool, config.database
    l2 = cache.l2
    if l2.url is not None:
        l2 = dataclasses.replace(l2, host="localhost", port=6379, db=0, password=None)
    if l2.type == "memcached" and not l2.servers:
        l2 = dataclasses.replace(l2, enabled=False)
    l1 = dataclasses.replace(cache.l1, size=min(cache.l1.size, cache.size))
    mmap, balancing, monitoring = config.static.mmap, config.load_balancing, config.monitoring
    pool = dataclasses.replace(
        pool, min_idle=min(pool.min_idle, pool.max_per_worker) if pool.reuse_connections else 0
    )
    metrics = dataclasses.replace(monitoring.metrics, path="/m-1")
    dashboard = dataclasses.replace(monitoring.dashboard, path="/d-1")
    checks = tuple(
        dataclasses.replace(each, url=each.url or "http://a.example/") if each.type == "http" else each
        for each in monitoring.health.checks
    )
    health = dataclasses.replace(monitoring.health, path="/h-1", checks=checks)
    return dataclasses.replace(
        config,
        server=dataclasses.replace(config.server, connection_pool=pool),
        cache=dataclasses.replace(cache, l1=l1, l2=l2),
        database=dataclasses.replace(database, min_idle=min(database.min_idle, database.pool_size)),
        compression=_ordered(config.compression, "min_size", "max_size"),
        static=dataclasses.replace(config.static, mmap=_ordered(mmap, "threshold", "max_size")),
        load_balancing=dataclasses.replace(
            balancing, health_check=_ordered(balancing.health_check, "timeout", "interval")
        ),
        monitoring=dataclasses.replace(monitoring, metrics=metrics, dashboard=dashboard, health=health),
        middleware=tuple(map(_consistent_limit, config.middleware)),
        routes=tuple(map(_consistent_route, config.routes)),
    )


def _ordered(section: Any, smaller: str, greater: str) -> Any:
    if section is None:
        return None
    return dataclasses.replace(
        section, **{smaller: min(getattr(section, smaller), getattr(section, greater))}
    )


def _consistent_limit(limit: Middleware) -> Middleware:
    header = (limit.key_header or "X-Key") if limit.key_by == "header" else None
    cookie = (limit.key_cookie or "key") if limit.key_by == "cookie" else None
    return dataclasses.replace(limit, key_header=header, key_cookie=cookie)


def _consistent_route(route: Route) -> Route:
    changes: dict[str, Any] = {
        "compression": _ordered(route.compression, "min_size", "max_size"),
        "health_check": _ordered(route.health_check, "timeout", "interval"),
    }
    if route.middleware is not None:
        changes["middleware"] = tuple(map(_consistent_limit, route.middleware))
    if route.type == "wsgi":
        changes["app"] = route.app or "shop:app"
    elif route.type == "handler":
        changes["handler"] = route.handler or "shop:page"
    elif route.type == "static":
        changes["root"] = route.root or "/srv"
    elif route.type == "redirect":
        changes["redirect_to"] = route.redirect_to or "/new"
    elif route.backends:
        changes["backend"] = None
    else:
        changes["backend"] = route.backend or "http://a.example"
    for part in ("proxy_connect_timeout", "proxy_read_timeout", "proxy_write_timeout"):
        value, whole = getattr(route, part), route.proxy_timeout
        changes[part] = min(value, whole) if value is not None and whole is not None else value
    return dataclasses.replace(route, **changes)
