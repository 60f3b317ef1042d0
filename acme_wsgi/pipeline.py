"""From the configuration to the one callable that answers requests, made at start-up.

Law: everything is resolved here, once; a request then runs through closures that know their route's settings
as constants, and what isn't configured isn't there. Loading an application that fails raises
errors.BootError; a route that can't work raises errors.ConfigError, with all such routes in it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from acme_wsgi.appload import Loader
from acme_wsgi.assets import Assets, plan
from acme_wsgi.assets.current import use
from acme_wsgi.assets.sites import Mount, Place, Sites
from acme_wsgi.compression import may_transform
from acme_wsgi.compression.wrapper import with_compression
from acme_wsgi.errors import ConfigError
from acme_wsgi.handlers import HANDLERS, Build, Context, Handler, Request
from acme_wsgi.http.writer import Response
from acme_wsgi.routing import Kind, Pattern, Router, Rule, compile_host, compile_pattern
from acme_wsgi.upstream.plan import alone

if TYPE_CHECKING:
    from acme_wsgi.assets.home import Claim
    from acme_wsgi.config import Config, Route
    from acme_wsgi.config.schema.content import Compression
    from acme_wsgi.upstream.plan import Upstreams
    from acme_wsgi.upstream.service import Service


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a configuration becomes.

    :ivar dispatch: answers a request
    :ivar route_of: the path of a request's route as it stands in the configuration, None if no route fits;
        for people who ask later: requests are not slowed down by keeping it
    :ivar assets: what static files are made into, if anything
    :ivar service: the connections to backends, if any route has them
    """

    dispatch: Callable[[Request], Response]
    route_of: Callable[[Request], str | None]
    assets: Assets | None = None
    service: Service | None = None


def compile(
    config: Config,
    loader: Loader | None = None,
    built: Claim | None = None,
    upstreams: Upstreams | None = None,
) -> Pipeline:
    """Load every route's application and compile the routes.

    :param built: where assets are built; None: there are none
    :param upstreams: what all workers know of backends; None: this process keeps its own knowledge
    :raises errors.ConfigError: patterns, hosts or redirect targets that can't be compiled; all of them
    :raises errors.BootError: an application or handler that can't be loaded; the first one
    """
    loader = loader if loader is not None else Loader()
    patterns = _compile_patterns(config)
    assets = _assets(config, patterns, built)
    service = _service(config, upstreams)
    rules, problems = [], []
    body_limit = _body_limit(config)
    for number, pattern in enumerate(patterns):
        try:
            rules.append(_compile_route(config, number, pattern, loader, body_limit, assets, service))
        except ValueError as error:
            problems.append(config.problem(f"routes[{number}]", str(error), f"routes[{number}].path"))
    if problems:
        raise ConfigError(problems)
    router = Router(rules)
    return Pipeline(router.dispatcher(), router.route_of, assets, service)


def _compile_patterns(config: Config) -> list[Pattern]:
    """Before any application is imported: a mistake in a path shouldn't wait for Django to come up."""
    patterns, problems = [], []
    for number, route in enumerate(config.routes):
        try:
            patterns.append(compile_pattern(route.path))
        except ValueError as error:
            problems.append(config.problem(f"routes[{number}].path", str(error)))
    if problems:
        raise ConfigError(problems)
    return patterns


def _body_limit(config: Config) -> int | None:
    """The limit, in bytes, that routes without one of their own must set; None where the engine's suffices.

    Before a request has found its route, the engine can only refuse what no route would take.
    """
    general = config.server.max_body_size
    own = [route.max_body_size for route in config.routes if route.max_body_size is not None]
    return general if any(limit > general for limit in own) else None


def _assets(config: Config, patterns: list[Pattern], built: Claim | None) -> Assets | None:
    """What is to be built of static files, ready to be asked; applications may ask while they load."""
    assets = None
    if built is not None:
        faults = [config.problem(*fault) for fault in plan.faults(config.static)]
        if faults:
            raise ConfigError(faults)
        places = [_place(config, number, pattern) for number, pattern in enumerate(patterns)]
        assets = Assets(plan.make(config.static, Sites(places)), built.open())
        assets.boot()
    use(assets)
    return assets


def _service(config: Config, upstreams: Upstreams | None) -> Service | None:
    """What all proxy routes share; None where there are none, and then nothing of it is loaded."""
    if not any(route.type == "proxy" for route in config.routes):
        return None
    from acme_wsgi.upstream.service import Service

    shared = upstreams if upstreams is not None else alone(config)
    return Service(shared) if shared is not None else None


def _place(config: Config, number: int, pattern: Pattern) -> Place:
    """A route as the assets know it: which URLs it takes, and from where it serves them."""
    route = config.routes[number]
    hosts = tuple(compile_host(host) for host in route.host)
    prefix = {Kind.PREFIX: pattern.literal, Kind.FALLBACK: ""}.get(pattern.kind)
    only = pattern.literal if pattern.kind is Kind.EXACT else ""
    mount = None
    if route.type == "static" and route.root is not None and (only or prefix is not None):
        compression = _compression(config, route)
        if not may_transform(route.cache_control or ""):
            compression = None
        root = str(Path.cwd() / route.root)
        extensions = tuple(extension.lower() for extension in route.extensions)
        mount = Mount(number, hosts, prefix or "", root, only, extensions, compression)
    methods = frozenset(method.upper() for method in route.method)
    return Place(hosts, methods, only or None, prefix, pattern.kind is Kind.REGEX, pattern.regex, mount)


def _compile_route(
    config: Config,
    number: int,
    pattern: Pattern,
    loader: Loader,
    body_limit: int | None,
    assets: Assets | None,
    service: Service | None,
) -> Rule:
    route = config.routes[number]
    hosts = tuple(compile_host(host) for host in route.host)
    where = f"route {route.path}"
    context = Context(
        where=where,
        load=partial(loader.load, where=where),
        parameters=pattern.parameters,
        prefix={Kind.PREFIX: pattern.literal, Kind.FALLBACK: ""}.get(pattern.kind),
        static=config.static,
        compression=_compression(config, route),
        assets=assets.mounted(number) if assets is not None else None,
        static_routes=sum(each.type == "static" for each in config.routes),
        server=config.server,
        group=service.group(number) if service is not None else None,
        service=service,
    )
    build: Build = importlib.import_module(HANDLERS[route.type]).build
    handler = build(route, context)
    # What goes around a handler is composed here, innermost first; each gives the handler back as it is where
    # nothing is configured.
    handler = _with_compression(route, handler, context.compression)
    handler = _with_limits(route, handler, body_limit)
    return Rule(pattern, handler, frozenset(method.upper() for method in route.method), hosts)


def _compression(config: Config, route: Route) -> Compression | None:
    """What holds for a route; None where it is off."""
    compression = route.compression if route.compression is not None else config.compression
    return compression if compression.enabled and compression.algorithms else None


def _with_compression(route: Route, handler: Handler, compression: Compression | None) -> Handler:
    """Encode what the handler returns; files are encoded once for many requests, by their own handler."""
    if compression is None or route.type == "static":
        return handler
    return with_compression(handler, compression)


def _with_limits(route: Route, handler: Handler, body_limit: int | None) -> Handler:
    """The route's own `timeout` and `max_body_size`, where it has them; they overrule the server's."""
    timeout, max_body_size = route.timeout, route.max_body_size
    if max_body_size is None:
        max_body_size = body_limit
    if timeout is None and max_body_size is None:
        return handler

    def limited(request: Request) -> Response:
        if timeout is not None:
            request.set_timeout(timeout)
        if max_body_size is not None:
            request.limit_body(max_body_size)
        return handler(request)

    return limited
