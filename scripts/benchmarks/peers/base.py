"""What a peer is: a server that can be installed, configured and started in the foreground.

A peer's own file knows its command line and its configuration and nothing of what is measured.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

SCRIPTS = Path(__file__).resolve().parents[2]
CHECKOUT = SCRIPTS.parent
BIN = Path(sys.executable).parent

# What is served. "files": the launch's directory, by peers with `can_serve_files`; "proxy": the launch's
# upstream, by peers with `can_proxy`. Each other is the name of an application in benchmarks.apps; of these
# nginx has "hello" and "pid" alone, HAProxy "hello".
Site = Literal["hello", "pid", "mark", "spin", "wait", "sleep", "page", "records", "files", "proxy"]


class PeerUnavailable(Exception):
    """This peer can't take part; the text says why."""


@dataclass(frozen=True)
class Coding:
    """How bodies are compressed: the content-coding's name in HTTP (RFC 9110 section 8.4.1) and its level.

    Level 0: only a file is sent compressed that lies ready beside the one asked for.
    """

    token: Literal["identity", "gzip", "br"]
    level: int = 0


@dataclass(frozen=True)
class Upstream:
    """The one server behind a proxy, on 127.0.0.1.

    `limit`: the most connections to it at once, 0 = as many as the proxy itself allows. `keep`: as many idle
    ones a proxy that has to be told a number keeps. `forwarded`: every proxy tells the origin who asked
    (X-Forwarded-For, -Proto, -Host), also one that doesn't by itself.
    """

    port: int
    limit: int = 0
    keep: int = 64
    forwarded: bool = False


@dataclass(frozen=True)
class Launch:
    """How a server is to be started.

    `directory` is private to this run; `connections` is the number it must be able to hold at once over all
    workers, each of which gets room for `descriptors`. `keys` are further ones of ACME's section `server`,
    `sections` are further sections of its configuration, for scenarios about what these do. `coding`: how the
    server compresses; None: as it does by itself.
    """

    directory: Path
    host: str
    port: int
    site: Site = "hello"
    workers: int = 1
    connections: int = 1024
    descriptors: int = 20_000
    access_log: Path | None = None
    log_buffer: str | None = None  # nginx's `buffer=`, "64k"
    keys: Mapping[str, str | int | float] = field(default_factory=dict)
    root: Path | None = None  # the directory of the site "files"
    coding: Coding | None = None
    sections: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    upstream: Upstream | None = None  # of the site "proxy"


class Peer(ABC):
    """One server. Subclasses are stateless: everything about a run is in the Launch."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # on PyPI
    can_log: ClassVar[bool] = False
    can_fork: ClassVar[bool] = False  # takes several worker processes
    can_serve_files: ClassVar[bool] = False
    can_proxy: ClassVar[bool] = False
    can_queue: ClassVar[bool] = False  # requests wait for a connection to the backend, none is refused
    note: ClassVar[str] = ""

    def prepare(self) -> None:
        """Install the peer where it is missing. Raises PeerUnavailable."""
        if self.package is None or _version(self.package) is not None:
            return
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", self.package]
        done = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip failed"]
            raise PeerUnavailable(f"pip can't install {self.package}: {lines[-1].strip()}")

    def version(self) -> str:
        """The installed version, for the report."""
        return (_version(self.package) if self.package else None) or "unknown"

    @abstractmethod
    def command(self, launch: Launch) -> list[str]:
        """Write what the server reads to `launch.directory`; return the command to run in the foreground.

        Raises PeerUnavailable when it has nothing like the launch's site.
        """

    def environment(self) -> dict[str, str]:
        """The environment of the command: that of the bench, with `benchmarks.apps` importable."""
        return {**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONUNBUFFERED": "1"}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
