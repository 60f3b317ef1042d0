"""What a worker answers while files change, and what the keeper does about it."""

from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
from pathlib import Path

import brotli
import pytest
from assets_site import Site, content, look, mounted

import acme_wsgi
from acme_wsgi.assets import current, home, service
from acme_wsgi.assets import keeper as keeper_module
from acme_wsgi.assets.home import KEPT, Home
from acme_wsgi.assets.keeper import Keeper
from acme_wsgi.errors import ConfigError


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, minify=True, bundles=["/static/js/*.js -> /static/all.js"])


def test_a_changed_file_is_served_as_it_is_until_it_is_built(site: Site) -> None:
    site.write("a.css", "a { b : c }")
    site.write("js/a.js", "a  =  1")
    assets = site.assets()
    hurried: list[bool] = []
    assets.hurry = lambda: hurried.append(True)
    site.write("a.css", "a { b : d }")
    site.write("js/a.js", "a  =  2")
    assert mounted(assets).find("/static/a.css") is None
    assert content(assets, "/static/all.js") == "a=1\n;\n"
    assert hurried


def test_a_root_that_is_switched_is_served_as_it_is_until_it_is_built(site: Site, tmp_path: Path) -> None:
    releases = [tmp_path / "one", tmp_path / "two"]
    for release in releases:
        release.mkdir()
        (release / "page.html").write_text(f"<p>{release.name}")
        (release / "a.css").write_text(f"{release.name} {{ b: c }}")
    site.root.rmdir()
    site.root.symlink_to("one")
    assets = site.assets()
    assert content(assets, "/static/a.css") == "one{b:c}"
    site.root.unlink()
    site.root.symlink_to("two")
    assert mounted(assets).find("/static/a.css") is None
    assert mounted(assets).find("/static/page.html") is None
    look(Keeper(assets))
    assert content(assets, "/static/a.css") == "two{b:c}"


def test_a_version_is_immutable_only_while_it_is_true(site: Site) -> None:
    path = site.write("x.png", "one")
    assets = site.assets()
    url = assets.url("/static/x.png")
    found = mounted(assets).find(url)
    assert found is not None and (found.path, found.immutable) == (str(path), True)
    assert found.stamp == (3, path.stat().st_mtime_ns)
    site.write("x.png", "two")
    found = mounted(assets).find(url)
    assert found is not None and (found.path, found.immutable, found.tag) == (str(path), False, "")


def test_the_keeper_builds_what_changed_and_others_take_it_over(site: Site) -> None:
    site.write("a.css", "a { b : c }")
    keeper, other = Keeper(site.assets()), site.assets()
    look(keeper)
    called: list[int] = []
    mounted(keeper.assets).on_change(lambda: called.append(mounted(keeper.assets).generation))
    generation = keeper.assets.generation
    site.write("a.css", "a { b : d }")
    look(keeper)
    assert content(keeper.assets, "/static/a.css") == "a{b:d}"
    assert called == [keeper.assets.generation] and called[0] > generation
    fresh = keeper.assets.url("/static/a.css")
    # A URL that it doesn't know has the other one look before it says no.
    assert content(other, fresh) == "a{b:d}"
    stale = mounted(other).find("/static/a-00000000.css")
    assert stale is not None and stale.gone


@pytest.mark.parametrize("name", ["{file}.{ext}.{hash}", "{hash}{file}{ext}", "{file}-{hash}.{ext}.txt"])
def test_a_version_has_the_type_of_its_file_whatever_its_name_ends_in(tmp_path: Path, name: str) -> None:
    site = Site(tmp_path, minify=True, pattern=f"/static/{name}")
    site.write("a.css", "a { b : c }")
    site.write("x.png", "x")
    assets = site.assets()
    for url, expected in (("/static/a.css", "text/css"), ("/static/x.png", "image/png")):
        assert assets.url(url) != url
        found = mounted(assets).find(assets.url(url))
        assert found is not None and found.media_type == expected


def test_a_version_of_a_file_just_written_is_not_denied(site: Site) -> None:
    site.write("a.css", "a{b:c}")
    assets = site.assets()
    site.write("a-00000000.css", "z{y:x}")
    assert mounted(assets).find("/static/a-00000000.css") is None


def test_pages_that_take_too_long_come_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("x.css", "a { b: c }")
    pages = {f"{name}.html": f"<link rel=stylesheet href=x.css> {name}" for name in "abc"}
    for name, text in pages.items():
        site.write(name, text)
    site.write("pinned.html", "<link rel=stylesheet href=y.css integrity=sha256-x>")
    site.write("y.css", "d { e: f }")
    monkeypatch.setattr(service, "BOOT", 0.0)
    monkeypatch.setattr(keeper_module, "PAGES", 0.0)
    assets = site.assets()
    assert assets.state.pending == 4
    assert assets.url("/static/x.css") != "/static/x.css", "style sheets don't wait"
    assert {name: content(assets, f"/static/{name}") for name in pages} == pages
    assert content(assets, "/static/y.css") == "d { e: f }", "what a page pins is known before"
    keeper = Keeper(assets)
    look(keeper)
    assert assets.state.pending == 4
    monkeypatch.setattr(keeper_module, "PAGES", 60.0)
    look(keeper)
    assert assets.state.pending == 0
    name = assets.url("/static/x.css").rpartition("/")[2]
    assert all(name in content(assets, f"/static/{page}") for page in pages)
    generation = assets.generation
    look(keeper)
    assert assets.generation == generation, "nothing is left to do"


def test_complaints_are_told_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    path = site.write("a.css", "a{b:c")
    site.write("js/a.js", "a")
    keeper = Keeper(site.assets())
    with caplog.at_level(logging.WARNING):
        look(keeper)
        site.write("other.css", "a{b:c}")
        look(keeper)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"asset {path}: it is served as it is: }} is missing at the end"]


def test_everything_is_compressed_at_the_highest_level(site: Site) -> None:
    text = "".join(f".c{number}{{color:red}}" for number in range(100))
    site.write("a.css", text)
    site.write("x.png", text)
    site.write("small.css", "a{b:c}")
    site.write("noise.css", "/*! " + os.urandom(150).hex() + " */")
    keeper = Keeper(site.assets())
    look(keeper)
    found = mounted(keeper.assets).find("/static/a.css")
    assert found is not None
    assert brotli.decompress(Path(found.coded["br"]).read_bytes()).decode() == text
    assert gzip.decompress(Path(found.coded["gzip"]).read_bytes()).decode() == text
    for url in ("/static/x.png", "/static/small.css"):
        one = mounted(keeper.assets).find(keeper.assets.url(url))
        assert one is not None and one.coded == {}
    assert not keeper._tasks()
    site.write("b.css", "a{b:c}")
    assert set(mounted(site.assets()).find("/static/a.css").coded) == {"br", "gzip"}  # type: ignore[union-attr]


def test_a_start_builds_what_was_deleted_while_no_server_ran(site: Site) -> None:
    site.write("a.css", "".join(f".c{number} {{ color : red }}\n" for number in range(100)))
    look(Keeper(site.assets()))
    (site.cache / "objects").rename(site.cache / "elsewhere")
    keeper = Keeper(site.assets())
    look(keeper)
    whole = mounted(keeper.assets).find("/static/a.css")
    assert whole is not None and set(whole.coded) == {"br", "gzip"}
    for path in whole.coded.values():
        Path(path).unlink()
    found = mounted(site.assets()).find("/static/a.css")
    assert found is not None and found.path == whole.path and found.coded == {}


def test_what_nobody_needs_is_removed_after_a_while(site: Site) -> None:
    site.write("a.css", "a { b : c }")
    keeper = Keeper(site.assets())
    old = Path(mounted(keeper.assets).find("/static/a.css").path)  # type: ignore[union-attr, arg-type]
    site.write("a.css", "a { b : d }")
    look(keeper)
    keeper._sweep()
    assert old.exists()
    past = old.stat().st_mtime - KEPT - 1
    os.utime(old, (past, past))
    keeper._sweep()
    assert not old.exists()
    assert content(keeper.assets, "/static/a.css") == "a{b:d}"


def test_objects_of_another_configuration_stay(site: Site, tmp_path: Path) -> None:
    site.write("a.css", "a { b : c }")
    one = site.assets()
    other = Keeper(Site(tmp_path, minify=True, version=False).assets())
    name = Path(mounted(one).find("/static/a.css").path)  # type: ignore[union-attr, arg-type]
    os.utime(name, (0, 0))
    other._sweep()
    assert name.exists()


def test_one_process_is_the_keeper(tmp_path: Path) -> None:
    one = Home(str(tmp_path), str(tmp_path))
    assert one.become_keeper("x") and one.become_keeper("x")
    program = (
        "import sys; from acme_wsgi.assets.home import Home;"
        f"print(Home({str(tmp_path)!r}, '').become_keeper(sys.argv[1]))"
    )

    def asked(configuration: str) -> str:
        command = [sys.executable, "-c", program, configuration]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert (asked("x"), asked("y")) == ("False", "True")


def test_asset_url(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.write("a.css", "a{b:c}")
    assets = site.assets()
    assert acme_wsgi.asset_url("/static/a.css") == "/static/a.css"
    current.use(assets)
    try:
        assert acme_wsgi.asset_url("https://cdn.example/a.css") == "https://cdn.example/a.css"
        assert not caplog.records
        url = acme_wsgi.asset_url("/static/a.css?x=1#y")
        assert url.startswith("/static/a-") and url.endswith(".css?x=1#y")
        with caplog.at_level(logging.WARNING):
            assert [acme_wsgi.asset_url("/static/none.css") for _ in range(3)] == ["/static/none.css"] * 3
        assert len(caplog.records) == 1
    finally:
        current.use(None)


def test_the_directory_is_nobody_elses(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claimed = home.claim(str(run), None)
    assert claimed.open().path == str(run / "assets")
    assert (run / "assets").stat().st_mode & 0o777 == 0o750
    (run / "assets").chmod(0o770)
    with pytest.raises(ConfigError, match="others may write there"):
        home.claim(str(run), None)


def test_the_directory_is_reached_by_who_may_not_walk_there(tmp_path: Path) -> None:
    claimed = home.claim(str(tmp_path / "run"), None)
    (tmp_path / "run").rename(tmp_path / "moved")
    reached = claimed.open()
    name = reached.put(b"x", ".css")
    assert (tmp_path / "moved" / "assets" / "objects" / name).read_bytes() == b"x"
