"""The whole schema: the sections of a configuration, in the order in which it is read, shown and documented.

Its law: each key is declared once, in the file of its section; this file only puts the sections together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from acme_wsgi.config.keys import key, section
from acme_wsgi.config.schema.cache import Cache
from acme_wsgi.config.schema.content import Compression, Static
from acme_wsgi.config.schema.database import Database
from acme_wsgi.config.schema.limits import Middleware
from acme_wsgi.config.schema.logs import Logging
from acme_wsgi.config.schema.monitoring import Monitoring
from acme_wsgi.config.schema.routes import Route
from acme_wsgi.config.schema.server import Server
from acme_wsgi.config.schema.upstream import Backend, LoadBalancing
from acme_wsgi.errors import Problem

#: The top-level mapping of named blocks of dotted keys; applied while loading, so no section of a Config.
ENVIRONMENTS = "environments"

#: Top-level keys of the documented product that no version reads yet.
LATER = ("ssl", "cors", "auth", "headers", "tracing", "api", "websocket")


@section
class Config:
    """A checked configuration. It never changes; a reload makes another one.

    :ivar warnings: what the configuration asks for that does nothing yet, or may not be meant
    :ivar origins: where each written value came from, by its dotted key
    """

    server: Server = key(Server(), "listener, processes and limits")
    logging: Logging = key(Logging(), "logs")
    cache: Cache = key(Cache(), "the response cache", built=False)
    compression: Compression = key(Compression(), "compression of responses")
    static: Static = key(Static(), "how files are served")
    load_balancing: LoadBalancing = key(LoadBalancing(), "how backends share the requests")
    backends: tuple[Backend, ...] = key((), "servers that proxy routes pass requests to")
    database: Database = key(Database(), "SQL for handlers", built=False)
    monitoring: Monitoring = key(Monitoring(), "metrics, dashboard and health", built=False)
    middleware: tuple[Middleware, ...] = key((), "what stands between a request and its handler", built=False)
    # Last: a route's own compression, cache, ... start from the sections above.
    routes: tuple[Route, ...] = key((), "which requests go where")

    warnings: tuple[Problem, ...] = field(default=(), compare=False, repr=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def origin(self, dotted: str) -> str:
        """Where the value of a key came from.

        ``conf.d/10-server.yaml:3``, ``environment ACME_SERVER_PORT``, ``--set`` or ``default``.
        """
        return self.origins.get(dotted, "default")

    def problem(self, dotted: str, message: str, written: str | None = None) -> Problem:
        """A problem with the value of a key, at the place where it was written.

        :param written: the key whose place it is, if `dotted` names more than one value
        """
        origin = self.origin(written or dotted)
        file, _, line = origin.rpartition(":")
        if file and line.isdigit():
            return Problem(file, int(line), None, dotted, message)
        return Problem(origin, None, None, dotted, message)
