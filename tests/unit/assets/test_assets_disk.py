"""A disk that is full, or may not be written to: what is served then, what is said, and what comes after."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import pytest
from assets_site import Disk, Site, content, look, mounted

from acme_wsgi.assets import keeper as keeper_module
from acme_wsgi.assets import service, tree
from acme_wsgi.assets.home import Home
from acme_wsgi.assets.keeper import Keeper
from acme_wsgi.assets.records import Stamp
from acme_wsgi.errors import ConfigError
from tests.unit.files.in_loop import in_loop, until

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, minify=True, bundles=["/static/js/*.js -> /static/all.js"])
    site.write("a.css", "a { b : url( x.png ) }")
    site.write("js/a.js", "a  =  1")
    site.write("x.png", "x")
    return site


@pytest.fixture
def disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(site.cache, monkeypatch)


def test_a_worker_starts_without_room_for_anything(site: Site, disk: Disk) -> None:
    disk.largest = 0
    assets = site.assets()
    for url in ("/static/a.css", assets.url("/static/a.css"), assets.url("/static/x.png")):
        found = mounted(assets).find(url)
        assert found is not None and found.path in found.source
    assert assets.url("/static/a.css") != "/static/a.css"
    assert not list(site.cache.glob("*.json")) and not list(site.cache.glob(".new-*"))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_worker_starts_where_not_even_a_lock_can_be_made(site: Site, disk: Disk, error: int) -> None:
    disk.error = error
    assert content(site.assets(), "/static/a.css") == "a { b : url( x.png ) }"


def test_a_start_says_where_it_may_not_write(site: Site, disk: Disk) -> None:
    disk.error = errno.EACCES
    with pytest.raises(ConfigError, match=rf"can't write to '{site.cache}': Permission denied"):
        site.assets()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_worker_that_comes_later_goes_on_with_what_all_share(site: Site, disk: Disk, error: int) -> None:
    first = site.assets()
    disk.error = error
    for lock in site.cache.glob("*.lock"):
        lock.unlink()
    site.write("x.png", "another")
    second = site.assets()
    for url in ("/static/a.css", first.url("/static/a.css"), "/static/all.js"):
        assert content(second, url) == content(first, url)
    assert second.url("/static/x.png") == first.url("/static/x.png")


def test_what_could_not_be_shared_is_shared_as_soon_as_there_is_room(site: Site, disk: Disk) -> None:
    disk.largest = 64  # for objects, but neither for the state nor for the manifest
    keeper, other = Keeper(site.assets()), site.assets()
    assert content(other, "/static/all.js") == "a=1\n;\n"
    look(keeper)
    disk.largest = 1 << 30
    look(keeper)
    assert len(list(site.cache.glob("*.json"))) == 2
    site.write("a.css", "a { b : d }")
    look(keeper)
    assert content(other, keeper.assets.url("/static/a.css")) == "a{b:d}"


def test_a_version_that_another_worker_could_not_tell_of_is_not_denied(site: Site, disk: Disk) -> None:
    disk.largest = 64
    first = site.assets()
    path = site.write("x.png", "another")
    second = site.assets()
    assert second.url("/static/x.png") != first.url("/static/x.png")
    found = mounted(first).find(second.url("/static/x.png"))
    assert found is not None and (found.path, found.immutable) == (str(path), False)
    found = mounted(second).find(first.url("/static/x.png"))
    assert found is not None and found.path == str(path)


def test_the_keeper_leaves_what_only_another_worker_knows_of(
    site: Site, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.largest = 64
    keeper, other = Keeper(site.assets()), Keeper(site.assets())
    monkeypatch.setattr(Home, "become_keeper", lambda home, _: home is keeper.assets.home)
    site.write("a.css", "a { b : d }")
    site.write("js/a.js", "a  =  2")
    look(keeper)
    for path in (site.cache / "objects").iterdir():
        os.utime(path, (0, 0))
    other.step()
    keeper._sweep()
    assert content(other.assets, other.assets.url("/static/a.css")).startswith("a{b:url(x")
    assert content(other.assets, "/static/all.js") == "a=1\n;\n"


def test_the_manifest_stays_that_of_the_state(site: Site, disk: Disk) -> None:
    """A manifest that had room before the state didn't would name what no worker knows."""
    keeper = Keeper(site.assets())
    manifest = (site.cache / "manifest.json").read_bytes()
    disk.largest = len(manifest) + 10
    site.write("a.css", "a { b : d }")
    look(keeper)
    assert (site.cache / "manifest.json").read_bytes() == manifest
    assert not list(site.cache.glob(".new-*"))


def test_that_nothing_is_kept_is_said_once(site: Site, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(site.assets())
    disk.largest = 0
    site.write("a.css", "a{b:d}")
    with caplog.at_level(logging.INFO):
        look(keeper)
        look(keeper)
    said = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert said == [f"asset {site.cache}: what was built can't be kept: {FULL}"]
    assert "built in" not in caplog.text
    assert mounted(keeper.assets).find("/static/a.css") is None


def test_a_lock_that_cannot_be_had_is_named_as_people_know_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"'/run/shop/keeper-x\.lock'"):
        Home(str(tmp_path / "none"), "/run/shop").become_keeper("x")


def test_an_object_that_is_there_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, home = Disk(tmp_path, monkeypatch), Home(str(tmp_path), str(tmp_path))
    name = home.put(b"content", ".css")
    disk.largest = 0
    assert home.put(b"content", ".css") == name


def test_room_is_what_the_disk_says(tmp_path: Path) -> None:
    home = Home(str(tmp_path), str(tmp_path))
    assert home.has_room(1) and not home.has_room(1 << 62)


def test_a_bundle_that_had_no_room_is_built_when_it_has(site: Site, disk: Disk) -> None:
    site.write("js/b.js", f"b = '{NOISE}'")
    disk.largest = 10_000
    first = site.assets()
    assert mounted(first).find("/static/all.js") is None
    assert content(first, "/static/a.css") != "a { b : url( x.png ) }"
    assert first.state.failures == {
        "/static/all.js": f"it can't be built: {FULL}",
        str(site.root / "js/b.js"): f"it is served as it is: {FULL}",
    }
    assert first.state.complaints == {}
    disk.largest = 1 << 30
    assert "a=1" in content(site.assets(), "/static/all.js"), "a start tries again"
    look(Keeper(first))
    assert "a=1" in content(first, "/static/all.js")
    assert first.state.failures == {} and first.state.room == 0


def test_a_running_server_builds_what_had_no_room(site: Site, disk: Disk) -> None:
    site.write("b.js", f"b  =  '{NOISE}'")
    disk.largest = 10_000
    keeper = Keeper(site.assets())
    (state,) = site.cache.glob("state-*.json")
    written = state.stat().st_ino
    look(keeper)
    assert state.stat().st_ino == written, "nothing has come of it, and nobody has to read it again"
    disk.largest = 1 << 30
    look(keeper)
    assert content(keeper.assets, "/static/b.js") == f"b='{NOISE}'"


def test_a_bundle_that_has_no_room_stays_as_it_was(site: Site, disk: Disk) -> None:
    keeper = Keeper(site.assets())
    before, url = content(keeper.assets, "/static/all.js"), keeper.assets.url("/static/all.js")
    site.write("js/b.js", f"b = '{NOISE}'")
    disk.largest = 10_000
    look(keeper)
    assert content(keeper.assets, "/static/all.js") == before == content(keeper.assets, url)
    look(keeper)
    assert content(keeper.assets, "/static/all.js") == before
    disk.largest = 1 << 30
    look(keeper)
    assert NOISE in content(keeper.assets, "/static/all.js")


def test_a_bundle_that_stays_as_it_was_refers_to_the_versions_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, bundles=["/static/css/*.css -> /static/all.css"])
    site.write("css/a.css", "a{b:url(../x.png)}")
    site.write("x.png", "one")
    disk = Disk(site.cache, monkeypatch)
    keeper = Keeper(site.assets())
    site.write("css/b.css", f"a{{c:'{NOISE}'}}")
    disk.largest = 10_000
    look(keeper)
    for path in (site.cache / "objects").iterdir():
        os.utime(path, (0, 0))
    keeper._sweep()
    site.write("x.png", "two")
    look(keeper)
    picture = keeper.assets.url("/static/x.png").removeprefix("/static/")
    assert content(keeper.assets, "/static/all.css") == f"a{{b:url({picture})}}\n"


def test_a_bundle_without_room_for_its_references_is_served_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, bundles=["/static/css/*.css -> /static/all.css"])
    site.write("css/a.css", f"a{{b:url(../x.png);c:'{NOISE}'}}")
    site.write("x.png", "x")
    disk = Disk(site.cache, monkeypatch)
    disk.largest = len(NOISE) + 25
    assets = site.assets()
    assert content(assets, "/static/all.css") == f"a{{b:url(x.png);c:'{NOISE}'}}\n"
    assert assets.state.failures["/static/all.css"] == f"it refers to URLs without versions: {FULL}"


def test_pages_without_room_are_left_and_come_later(site: Site, disk: Disk) -> None:
    texts = {f"{number}.html": f"<p>\n\n{NOISE[:size]}" for number, size in enumerate((9, 9000, 9500, 9900))}
    for name, text in texts.items():
        site.write(name, text)
    disk.largest = 8000
    keeper = Keeper(site.assets())
    served = {name: content(keeper.assets, f"/static/{name}") for name in texts}
    assert {name for name in texts if served[name] == texts[name]} == {"1.html", "2.html", "3.html"}
    assert keeper.assets.state.pending == 0
    assert keeper.assets.state.failures == {
        str(site.root / "1.html"): f"it is served as it is: {FULL}",
        "": "pages that can't be kept are served as they are: 2",
    }
    disk.largest = 1 << 30
    look(keeper)
    assert all(content(keeper.assets, f"/static/{name}") != texts[name] for name in texts)


@pytest.mark.parametrize("name", ["a.css", "i.html", "js/a.js"])
def test_a_file_that_can_be_read_again_is_worked_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    site.write("i.html", "<p>\n\n<img src=x.png>")
    read = tree.read

    def fail(source: tree.Source, most: int) -> tuple[bytes, Stamp]:
        if source.relative == name.encode():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(source, most)

    monkeypatch.setattr(tree, "read", fail)
    keeper = Keeper(site.assets())
    path = site.root / name
    assert content(keeper.assets, f"/static/{name}") == path.read_text()
    assert keeper.assets.state.failures[str(path)] == "it is served as it is: Input/output error"
    monkeypatch.setattr(tree, "read", read)
    look(keeper)
    assert content(keeper.assets, f"/static/{name}") != path.read_text()
    assert not keeper.assets.state.failures


def test_what_is_refused_is_said_once(site: Site, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    path = site.write("b.js", f"b  =  '{NOISE}'")
    disk.largest = 10_000
    keeper = Keeper(site.assets())
    with caplog.at_level(logging.WARNING):
        look(keeper)
        look(keeper)
    said = [record.getMessage() for record in caplog.records]
    assert [what for what in said if str(path) in what] == [f"asset {path}: it is served as it is: {FULL}"]


NOISE = os.urandom(20_000).hex()
"""Half of it is left of it, compressed: more than a state takes."""


def test_pages_that_cannot_be_kept_are_no_reason_to_hurry(
    site: Site, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        site.write(f"{number}.html", f"<p>\n\n{number}")
    monkeypatch.setattr(service, "BOOT", 0.0)
    monkeypatch.setattr(keeper_module, "PAGES", 0.0)
    keeper = Keeper(site.assets())
    assert keeper.assets.state.pending == 3
    disk.largest = 0
    site.write("a.css", "a{b:d}")
    monkeypatch.setattr(keeper_module, "SHARE", 1e9)
    look(keeper)
    assert keeper._due > time.monotonic() + 1000


def test_what_does_not_fit_compressed_comes_when_it_does(
    site: Site, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    site.write("small.json", "tiny " * 30)
    site.write("large.json", NOISE)
    keeper = Keeper(site.assets())
    disk.largest = 10_000
    with caplog.at_level(logging.INFO):
        look(keeper)
        look(keeper)
    said = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert said == [
        "assets are compressed anew for clients:"
        f" /static/large.json in its smallest form can't be kept: {FULL}"
    ]
    assert "compressed assets: all" not in caplog.text
    coded = {entry.url: set(entry.coded) for entry in keeper.assets.state.entries if entry.coded}
    assert coded == {"/static/small.json": {"br", "gzip"}}
    disk.largest = 1 << 30
    look(keeper)
    found = mounted(keeper.assets).find("/static/large.json")
    assert found is not None and set(found.coded) == {"br", "gzip"}


def test_a_full_disk_costs_no_traceback(site: Site, disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    site.write("large.json", NOISE)

    @in_loop
    def keep() -> None:
        keeper = Keeper(site.assets())
        disk.largest = 10_000
        keeper.start()
        until(lambda: keeper._refused)
        disk.largest = 0
        site.write("a.css", "a{b:d}")
        until(lambda: any(path == str(site.cache) for path, _ in keeper._told))

    keep()
    assert "Traceback" not in capfd.readouterr().err
