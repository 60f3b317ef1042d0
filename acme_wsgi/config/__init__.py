"""Configuration: the declared schema, and loading, checking and showing configurations.

Its law: imports no gevent, no werkzeug and nothing of the server's upper floors, because the arbiter and the
command line use it too, and because it must be quick to import.
"""

from __future__ import annotations

from acme_wsgi.config.load import load
from acme_wsgi.config.schema import Config
from acme_wsgi.config.schema.logs import Logging
from acme_wsgi.config.schema.routes import Route
from acme_wsgi.config.schema.server import Server

__all__ = ["Config", "Logging", "Route", "Server", "load"]
