"""Stands in for the route types that the configuration knows and this version can't serve yet: says so, and
501.

Law: never pretends. A configuration that names such a type starts (the rest of it works), with a warning.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from acme_wsgi.errors import HTTPError

if TYPE_CHECKING:
    from acme_wsgi.config import Route
    from acme_wsgi.handlers import Context, Handler, Request
    from acme_wsgi.http.writer import Response

log = logging.getLogger("acme.handlers.unbuilt")


def build(route: Route, context: Context) -> Handler:
    """A handler that raises HTTPError 501 (RFC 9110 section 15.6.2) for every request."""
    log.warning("%s: type %s is not available in this version; it answers 501", context.where, route.type)
    message = f"Routes of type {route.type} are not available in this version of the server."

    def refuse(request: Request) -> Response:
        raise HTTPError(501, message)

    return refuse
