"""ACME itself, through its command and a conf.d directory, as its users run it."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

from .base import BIN, CHECKOUT, Coding, Launch, Peer, PeerUnavailable

# Everything not named here is as shipped: timeouts, limits and counting are on.
_SERVER = """\
server:
  host: {host}
  port: {port}
  workers: {workers}
  max_connections: {connections}
  keep_alive_timeout: 1h
  runtime_dir: {runtime_dir}
"""
_ROUTES = """\
routes:
  - path: /*
    type: wsgi
    app: benchmarks.apps:{site}
"""
_FILES = """\
routes:
  - path: /*
    type: static
    root: {root}
"""
_PROXY = """\
routes:
  - path: /*
    type: proxy
    backend: "http://127.0.0.1:{port}"
"""
_ALGORITHMS = {"gzip": "gzip", "br": "brotli"}
_LOGGING = """\
logging:
  level: warning
  access:
    enabled: {enabled}
    format: combined
    output: {output}
"""


class Acme(Peer):
    """`acme-wsgi -c conf.d`."""

    name = "acme"
    can_log = True
    can_fork = True
    can_serve_files = True
    can_proxy = True
    can_queue = True
    note = "WSGI, Cython on gevent"

    def prepare(self) -> None:
        """`scripts/bench` installs it from the checkout."""
        if not (BIN / "acme-wsgi").exists():
            raise PeerUnavailable("the command acme-wsgi isn't installed beside this Python")

    def version(self) -> str:
        """The installed distribution's."""
        return importlib.metadata.version("acme-wsgi")

    def command(self, launch: Launch) -> list[str]:
        """One file per section, like the sample."""
        directory = launch.directory / "conf.d"
        directory.mkdir()
        connections = launch.connections + 64 * launch.workers
        keys = dict(launch.keys)
        if os.geteuid() == 0:
            keys["user"] = "root"  # its directory is root's
        if launch.upstream is not None and launch.upstream.limit:
            keys["connection_pool"] = f"{{max_per_worker: {launch.upstream.limit}}}"
        server = _SERVER.format(
            host=launch.host,
            port=launch.port,
            workers=launch.workers,
            connections=connections,
            runtime_dir=self.runtime_dir(launch),
        )
        (directory / "10-server.yaml").write_text(
            server + "".join(f"  {key}: {value}\n" for key, value in keys.items())
        )
        (directory / "20-routes.yaml").write_text(_routes(launch))
        logged = launch.access_log is not None
        (directory / "30-logging.yaml").write_text(
            _LOGGING.format(enabled=str(logged).lower(), output=launch.access_log or "stdout")
        )
        sections = dict(launch.sections)
        if launch.coding is not None:
            sections["compression"] = _compression(launch.coding)
        for name, values in sections.items():  # JSON is YAML too
            (directory / f"40-{name}.yaml").write_text(f"{name}: {json.dumps(values)}\n")
        return [str(BIN / "acme-wsgi"), "-c", str(directory)]

    def environment(self) -> dict[str, str]:
        """What is measured is this checkout, whatever is installed."""
        environment = super().environment()
        environment["PYTHONPATH"] += f"{os.pathsep}{CHECKOUT}"
        return environment

    @staticmethod
    def runtime_dir(launch: Launch) -> Path:
        """Where the control socket is."""
        return launch.directory / "run"


def _routes(launch: Launch) -> str:
    """The section with the only route."""
    if launch.upstream is not None:
        return _PROXY.format(port=launch.upstream.port)
    routes = _FILES if launch.site == "files" else _ROUTES
    return routes.format(site=launch.site, root=launch.root)


def _compression(coding: Coding) -> dict[str, object]:
    """The section that offers this coding alone; its other keys as shipped."""
    if coding.token == "identity":
        return {"enabled": False}
    level = {"level": coding.level} if coding.level else {}
    return {"algorithms": [_ALGORITHMS[coding.token]], **level}
