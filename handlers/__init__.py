"""The handlers: one file per route type, each a plain blocking callable from request to response.

Law: a handler module exposes ``build(route, context)``, called once at start-up, and knows nothing of
sockets, routing or other handlers' routes. It imports only from the floors below. This file is the one list
of what exists.
"""

from __future__ import annotations

if not __name__.startswith("acme_wsgi."):
    # The directory stands at the top of a checkout, so Python finds it from there under its bare name too; a
    # second copy of every handler with its own classes would be a trap that only shows at run time.
    raise ImportError(f"import this package as acme_wsgi.handlers, not as {__name__}", name=__name__)

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from acme_wsgi.config.schema.content import Compression, Static
from acme_wsgi.config.schema.server import Server

if TYPE_CHECKING:
    from acme_wsgi.assets import Mounted
    from acme_wsgi.config import Route
    from acme_wsgi.http.writer import Prepared, Response
    from acme_wsgi.upstream.plan import GroupPlan
    from acme_wsgi.upstream.service import Service

HANDLERS = {
    "wsgi": "acme_wsgi.handlers.wsgi",
    "handler": "acme_wsgi.handlers.function",
    "redirect": "acme_wsgi.handlers.redirect",
    "static": "acme_wsgi.handlers.static",
    "proxy": "acme_wsgi.handlers.proxy",
}
"""Route type -> the module that serves it; imported only when a route of that type exists."""


Fields = list[tuple[str, str]]

OnStart = Callable[[str, Fields], tuple[Fields, Callable[[bytes], bytes] | None]]
"""(status, headers) -> the headers to send, and what becomes of each piece of the body (None: nothing)."""


class Request(Protocol):
    """What a handler may use of a request.

    :ivar environ: the complete WSGI environ; PATH_INFO is the normalised path, REQUEST_URI the target as sent
    :ivar path: PATH_INFO: bytes as latin-1 text (PEP 3333)
    :ivar host: lower case, without the port; "" if there was none
    :ivar params: what the route's pattern captured, as real text
    :ivar started: the head of the response went out
    """

    params: dict[str, str]

    @property
    def environ(self) -> dict[str, Any]: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def started(self) -> bool: ...

    on_leave: Callable[[], object] | None
    """Set by a handler that waits for somebody else: called when the client closes its end meanwhile."""

    reads_on: bool
    """Set by a handler that reads the rest of the body while it answers, so that the connection can go on."""

    on_start: OnStart | None
    """Set by what wraps a handler: sees the head that `start` is given, may change it and what is written."""

    def start(self, status: str, headers: Fields | Prepared, /) -> Callable[[bytes], None]:
        """Send the head now; returns what sends the body piece by piece."""

    def early_hints(self, headers: Sequence[tuple[str, str]], /) -> None:
        """Send a 103 (Early Hints, RFC 8297)."""

    def interim(self, status: int, headers: Sequence[tuple[str, str]], /) -> None:
        """Send an interim response (RFC 9110 15.2): 100 to 199 but not 101."""

    def limit_body(self, size: int, /) -> None:
        """Allow bodies up to `size` bytes; raises HTTPError 413 if a larger one is announced."""

    def set_timeout(self, seconds: float, /) -> None:
        """Count the request's deadline as this many seconds."""

    def close_connection(self) -> None:
        """Close the connection after this response."""


Handler = Callable[[Request], "Response"]
"""Request in, response out; blocks as long as it likes. May raise errors.HTTPError."""

Build = Callable[["Route", "Context"], Handler]
"""What each handler module's `build` is: a route's configuration, once, into its callable."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler is given at start-up besides its own route.

    :ivar where: the route's name for messages, "route /users/:id"
    :ivar load: "module:callable" -> the object; raises errors.BootError
    :ivar parameters: the names that the route's pattern captures: {"id"}, {"1", "name"}, or nothing
    :ivar prefix: of a prefix route `/a/*` the "/a" (latin-1 bytes as text, as paths are), else None
    :ivar assets: of a static route: what its files are made into, if anything is
    :ivar compression: what holds for the route; None: nothing is compressed
    :ivar static_routes: how many static routes there are; they share what a worker may remember of files
    :ivar server: limits that hold where a route has none of its own
    :ivar group: of a proxy route: the backends that may answer it
    :ivar service: of a proxy route: the worker's connections to all backends
    """

    where: str
    load: Callable[[str], object]
    parameters: frozenset[str] = field(default_factory=frozenset)
    prefix: str | None = None
    static: Static = field(default_factory=Static)
    compression: Compression | None = None
    assets: Mounted | None = None
    static_routes: int = 1
    server: Server = field(default_factory=Server)
    group: GroupPlan | None = None
    service: Service | None = None
