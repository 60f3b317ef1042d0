"""A small site and its assets, for tests of this room: built in this process, without a server."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi.assets import home, plan
from acme_wsgi.assets.home import Home
from acme_wsgi.assets.keeper import Keeper
from acme_wsgi.assets.service import Assets, Mounted
from acme_wsgi.assets.sites import Mount, Place, Sites
from acme_wsgi.config.kinds import Arrow
from acme_wsgi.config.schema.content import Compression, Concatenation, Minification, Static, Versioning

OLD = 1_600_000_000_000_000_000


class Site:
    """Files below /static/, and what becomes of them."""

    def __init__(self, tmp: Path, **options: Any) -> None:
        self.root, self.cache = tmp / "static", tmp / "assets"
        for path in (self.root, self.cache):
            path.mkdir(exist_ok=True)
        self.options = options
        self._written = OLD

    def write(self, name: str, content: str | bytes) -> Path:
        """A file, long written: each write is a second after the last one."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self._written += 1_000_000_000
        os.utime(path, ns=(self._written, self._written))
        return path

    def assets(self) -> Assets:
        """As a worker that starts now has them."""
        options = self.options
        pairs = [pair.split(" -> ") for pair in options.get("bundles", ())]
        static = Static(
            concatenation=Concatenation(
                enabled=bool(pairs), patterns=tuple(Arrow(source, target) for source, target in pairs)
            ),
            minification=Minification(enabled=options.get("minify", False)),
            versioning=Versioning(
                enabled=options.get("version", True),
                pattern=options.get("pattern", "/static/{file}-{hash}.{ext}"),
            ),
        )
        mount = Mount(
            0, (), "/static", str(self.root), "", options.get("extensions", ()), Compression(min_size=100)
        )
        places = [Place(prefix="/static", mount=mount), *options.get("places", ())]
        assets = Assets(plan.make(static, Sites(places)), Home(str(self.cache), str(self.cache)))
        assets.boot()
        return assets


def mounted(assets: Assets) -> Mounted:
    """The assets of /static/*."""
    found = assets.mounted(0)
    assert found is not None
    return found


def content(assets: Assets, url: str) -> str:
    """What is served at a URL."""
    found = mounted(assets).find(url)
    assert found is not None and found.path is not None
    return Path(found.path).read_text()


def look(keeper: Keeper) -> None:
    """Let a keeper that isn't on a loop do everything at once."""
    keeper.assets.hurry = None
    keeper._hurry()
    keeper.step()


class Disk:
    """What the assets' directory lies on. It has room for all until a test says otherwise.

    :ivar largest: bytes of the largest file that can be written
    :ivar error: the errno of whoever makes a new file, 0 for none
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = str(directory)
        self.largest, self.error = 1 << 30, 0
        self._open = os.open
        monkeypatch.setattr(os, "open", self._make)
        monkeypatch.setattr(home, "open", self._write, raising=False)
        monkeypatch.setattr(Home, "has_room", lambda _, size: size <= self.largest and not self.error)

    def _make(self, path: Any, flags: int, *args: Any, **named: Any) -> int:
        made = flags & os.O_CREAT and str(path).startswith(self.directory) and not os.path.lexists(path)
        if self.error and made:
            raise OSError(self.error, os.strerror(self.error), path)
        return self._open(path, flags, *args, **named)

    def _write(self, descriptor: int, mode: str) -> io.FileIO:
        return _Limited(descriptor, mode, self)


class _Limited(io.FileIO):
    def __init__(self, descriptor: int, mode: str, disk: Disk) -> None:
        super().__init__(descriptor, mode)
        self._disk = disk

    def write(self, content: Any) -> int:
        if len(content) > self._disk.largest:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)
