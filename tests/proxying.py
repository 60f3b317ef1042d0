"""What tests of the proxy share: servers before backends, and what was told by `tell` (tests/rogue.py).

Law: knows the configuration of proxy routes; the proxy itself it knows by its answers only.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.server import Launcher, Server
from tests.wire import DEADLINE, Reply, Wire

UNCHECKED: Mapping[str, Any] = {"health_check": {"enabled": False}}
"""`load_balancing` without active checks: nobody but the test speaks to the backends."""


def config(*urls: str | Mapping[str, Any], **route: Any) -> dict[str, Any]:
    """One proxy route for everything, over these backends (URLs, or mappings with their weights).

    :param route: keys of the route; `server` and `load_balancing` are those sections
    """
    backends = [{"url": one} if isinstance(one, str) else dict(one) for one in urls]
    return {
        "server": route.pop("server", {}),
        "load_balancing": {**UNCHECKED, **route.pop("load_balancing", {})},
        "routes": [{"path": "/*", "type": "proxy", "backends": backends, **route}],
    }


@contextmanager
def running(directory: Path, configuration: Mapping[str, Any], **options: Any) -> Iterator[Server]:
    """A server for a module's tests."""
    launcher = Launcher(directory)
    try:
        yield launcher(configuration, **options)
        launcher.finish()
    finally:
        launcher.kill()


class Told:
    """A request as `tell` received it."""

    def __init__(self, reply: Reply) -> None:
        assert reply.status == 200, reply
        told = json.loads(reply.body)
        self.method: str = told["method"]
        self.target: str = told["target"]
        self.version: str = told["version"]
        self.headers = [(str(name), str(value)) for name, value in told["headers"]]
        self.body = told["body"].encode("latin-1")
        self.connection: int = told["connection"]

    def all(self, name: str) -> list[str]:
        """The values of a field, a line each."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str:
        """The value of a field that must be there on one line."""
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values}"
        return values[0]

    def has(self, name: str) -> bool:
        return bool(self.all(name))


def ask(server: Server, target: str = "/", *fields: str, method: str = "GET") -> Told:
    """What the backend hears when a client asks this on a connection of its own."""
    return Told(server.get(target, method=method, headers=fields))


def elements(forwarded: str) -> list[dict[str, str]]:
    """The elements of a Forwarded field (RFC 7239), parameter names in lower case, quotes taken off."""
    return [
        {name.lower(): value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|[^;,\s]+)', element)}
        for element in forwarded.split(",")
    ]


def clients(server: Server) -> int:
    """How many are connected, by what the server says."""
    return sum(worker["connections"] for worker in server.status()["workers"])


def slow_client(server: Server, request: bytes) -> Wire:
    """Sends a request and reads nothing yet, with a receive buffer as small as can be."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(DEADLINE)
    sock.connect((server.host, server.port))
    return Wire(sock).send(request)
