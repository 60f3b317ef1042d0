"""From files to what is served: what hashes cover, what is left alone, what is not made twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from assets_site import OLD, Site, content, look, mounted

from acme_wsgi.assets import minify, plan, records
from acme_wsgi.assets.home import Home, length
from acme_wsgi.assets.keeper import Keeper
from acme_wsgi.assets.service import Assets
from acme_wsgi.assets.sites import Place
from acme_wsgi.config.kinds import Arrow
from acme_wsgi.config.schema.content import Concatenation, Static


@pytest.fixture
def make(tmp_path: Path) -> Any:
    return lambda **options: Site(tmp_path, **options)


def versioned(assets: Assets, url: str) -> str:
    found = assets.url(url)
    assert found != url
    return found


def test_a_hash_covers_what_is_referred_to(make: Any) -> None:
    site = make()
    site.write("img/x.png", "one")
    site.write("a.css", "@import 'b.css';")
    site.write("b.css", "a{b:url(img/x.png)}")
    before = site.assets()
    image = versioned(before, "/static/img/x.png").removeprefix("/static/")
    assert content(before, "/static/b.css") == f"a{{b:url({image})}}"
    site.write("img/x.png", "two")
    after = site.assets()
    for url in ("/static/img/x.png", "/static/b.css", "/static/a.css"):
        assert versioned(before, url) != versioned(after, url)
    found = mounted(after)
    assert (gone := found.find(versioned(before, "/static/a.css"))) and gone.gone
    served = found.find(versioned(after, "/static/a.css"))
    assert served is not None and served.immutable and not served.gone


def test_style_sheets_that_import_each_other_have_names_too(make: Any) -> None:
    site = make()
    site.write("a.css", "@import 'b.css';x{y:z}")
    site.write("b.css", "@import 'a.css';")
    before = site.assets()
    name = versioned(before, "/static/b.css")
    assert content(before, "/static/a.css") == f"@import '{name[8:]}';x{{y:z}}"
    site.write("a.css", "@import 'b.css';x{y:w}")
    assert versioned(site.assets(), "/static/b.css") != name


def test_pages_are_rewritten_and_keep_their_urls(make: Any) -> None:
    site = make()
    site.write("a.js", "a")
    site.write("sub/index.html", "<script src='../a.js?x=1#y'></script><a href=../a.js>b</a><img src=no.png>")
    assets = site.assets()
    name = versioned(assets, "/static/a.js")[8:]
    assert content(assets, "/static/sub/index.html") == (
        f"<script src='../{name}?x=1#y'></script><a href=../a.js>b</a><img src=no.png>"
    )
    assert assets.url("/static/sub/index.html") == "/static/sub/index.html"


@pytest.mark.parametrize(
    ("base", "rewritten"),
    [
        ("<base href=/static/sub/>", True),
        ("<base href=//elsewhere/static/sub/>", False),
        ("<base href=x>", False),
    ],
)
def test_a_base_is_respected(make: Any, base: str, rewritten: bool) -> None:
    site = make()
    site.write("sub/a.js", "a")
    site.write("i.html", f"{base}<script src=a.js></script>")
    assets = site.assets()
    found = mounted(assets).find("/static/i.html")
    assert found is not None and found.path is not None
    assert ("a.js" not in Path(found.path).read_text()) is rewritten


def test_a_file_pinned_by_its_hash_stays_as_it_is(make: Any) -> None:
    site = make(minify=True)
    pinned = ("a.js", "m.js", "m.mjs", "p.js", "q&a.js", "mapped.js")
    for name in (*pinned, "b.js"):
        site.write(name, "a  =  b")
    site.write(
        "i.html",
        "<script src=a.js integrity=sha384-x></script><script src=b.js></script>"
        '<script type=importmap>{"integrity": {"./mapped.js": "sha384-x"}}</script>'
        "<script type=module src=m.js integrity=sha384-x></script>"
        "<script type=module src=m.mjs integrity=sha384-x></script>"
        "<link rel=modulepreload href=p.js integrity=sha384-x>"
        "<script src=q&amp;a.js integrity=sha384-x></script>",
    )
    assets = site.assets()
    for name in pinned:
        assert content(assets, f"/static/{name}") == "a  =  b", name
    assert content(assets, versioned(assets, "/static/a.js")) == "a  =  b"
    assert content(assets, versioned(assets, "/static/b.js")) == "a=b"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.css", "a{b:c", "} is missing at the end"),
        ("a.css", "a{b:'c\n}", "line 1: a string or url() doesn't end"),
        ("a.js", "f(  ", ") is missing at the end"),
        ("a.css", "a{b:url( x y.png )}", "rcssmin changes what it says"),
        ("i.html", "<table><tr><td>a</table> <p>b", "minify-html changes what it says"),
    ],
)
def test_what_cannot_be_worked_on_is_served_as_it_is(make: Any, name: str, text: str, complaint: str) -> None:
    site = make(minify=True)
    path = site.write(name, text)
    for _ in range(2):  # once made, once remembered
        assets = site.assets()
        assert content(assets, f"/static/{name}") == text
        assert assets.state.complaints == {str(path): f"it is served as it is: {complaint}"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.min.js", "a  =  b"),
        ("a.js", "a  =  b\n//# sourceMappingURL=a.js.map"),
        ("a.css", "a{ b : url(x.png) }\n/*# sourceMappingURL=a.css.map */"),
    ],
)
def test_what_is_small_or_mapped_is_left(make: Any, name: str, text: str) -> None:
    site = make(minify=True)
    site.write(name, text)
    site.write("x.png", "x")
    assets = site.assets()
    assert content(assets, f"/static/{name}") == text
    assert assets.state.complaints == {}


def test_a_bundle_is_small_rewritten_and_versioned(make: Any) -> None:
    site = make(minify=True, bundles=["/static/css/*.css -> /static/all.css"])
    site.write("css/b.css", "b { c : url( ../x.png ) }")
    site.write("css/a.css", "a { b : c ; }")
    site.write("x.png", "x")
    site.write("i.html", "<link rel=stylesheet href=all.css>")
    assets = site.assets()
    image = versioned(assets, "/static/x.png")[8:]
    assert content(assets, "/static/all.css") == f"a{{b:c}}\nb{{c:url({image})}}\n"
    assert versioned(assets, "/static/all.css")[8:] in content(assets, "/static/i.html")
    found = mounted(assets).find("/static/all.css")
    assert found is not None and [Path(path).name for path in found.source] == ["a.css", "b.css"]


def test_a_bundle_wins_over_a_file_and_says_so(make: Any) -> None:
    site = make(bundles=["/static/css/*.css -> /static/all.css", "/static/none/* -> /static/none.js"])
    site.write("css/a.css", "a{b:c}")
    site.write("all.css", "z{y:x}")
    assets = site.assets()
    assert content(assets, "/static/all.css") == "a{b:c}\n"
    assert assets.state.complaints == {
        "/static/all.css": "the bundle is served instead of the file of this name",
        "/static/none.js": "no file belongs to this bundle",
    }


def test_bundles_work_alone(make: Any) -> None:
    site = make(version=False, bundles=["/static/*.js -> /static/all.js"])
    site.write("a.js", "a")
    site.write("b.js", "b")
    site.write("x.png", "x")
    assets = site.assets()
    assert content(assets, "/static/all.js") == "a\n;\nb\n;\n"
    assert mounted(assets).find("/static/x.png") is None
    assert assets.url("/static/a.js") == "/static/a.js"


def test_what_another_route_answers_is_left(make: Any) -> None:
    site = make(places=[Place(prefix="/static/app")])
    site.write("app/x.png", "x")
    site.write("a.css", "a{b:url(app/x.png)}")
    assets = site.assets()
    assert content(assets, "/static/a.css") == "a{b:url(app/x.png)}"
    assert mounted(assets).find("/static/app/x.png") is None


def test_what_is_not_served_is_no_asset(make: Any, tmp_path: Path) -> None:
    site = make(extensions=(".css",))
    site.write("a.css", "a{b:url(x.png)}")
    site.write(".hidden.css", "a{b:c}")
    site.write("x.png", "x")
    (tmp_path / "secret.css").write_text("secret{a:b}")
    (site.root / "out.css").symlink_to(tmp_path / "secret.css")
    os.mkfifo(site.root / "pipe.css")
    assert [entry.url for entry in site.assets().state.entries] == ["/static/a.css"]


def test_the_case_of_an_extension_does_not_count(make: Any) -> None:
    site = make(minify=True, extensions=(".css", ".js"))
    site.write("UP.CSS", "a { b : c }")
    site.write("Up.Js", "a  =  1")
    assets = site.assets()
    for url, made in (("/static/UP.CSS", "a{b:c}"), ("/static/Up.Js", "a=1")):
        assert content(assets, url) == content(assets, versioned(assets, url)) == made


def test_a_text_may_have_a_name_in_capitals(make: Any) -> None:
    site = make(version=False)
    site.write("A.SVG", "<svg/>")
    assert [entry.url for entry in site.assets().state.entries] == ["/static/A.SVG"]


def test_a_file_with_the_name_of_a_version_wins(make: Any) -> None:
    site = make()
    site.write("a.js", "a")
    taken = versioned(site.assets(), "/static/a.js")
    site.write(taken.removeprefix("/static/"), "another")
    assert content(site.assets(), taken) == "another"


def test_nothing_is_made_twice(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make(minify=True)
    for number in range(3):
        site.write(f"{number}.css", f"a {{ b : c{number} }}")
    site.assets()
    made: list[str] = []
    minify_css = minify.minify_css

    def noted(text: str) -> str:
        made.append(text)
        return minify_css(text)

    monkeypatch.setattr(minify, "minify_css", noted)
    site.assets()
    assert made == []
    site.write("1.css", "a { b : new }")
    assert content(site.assets(), "/static/1.css") == "a{b:new}"
    assert made == ["a { b : new }"]


def test_a_page_is_made_small_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make(minify=True)
    site.write("a.css", "a { b : c }")
    site.write("i.html", "<link  rel=stylesheet  href='a.css'>\n\n<p>b</p>")
    first = content(site.assets(), "/static/i.html")
    monkeypatch.setattr(minify, "minify_html", None)  # isn't called
    site.write("a.css", "a { b : d }")
    assets = site.assets()
    second = content(assets, "/static/i.html")
    assert second != first and versioned(assets, "/static/a.css")[8:] in second
    assert "\n\n" not in second


def test_a_lost_object_is_made_again(make: Any) -> None:
    site = make(minify=True)
    site.write("a.css", "a { b : c }")
    found = mounted(site.assets()).find("/static/a.css")
    assert found is not None and found.path is not None
    Path(found.path).write_text("")  # as after a power cut
    assert content(site.assets(), "/static/a.css") == "a{b:c}"


def test_a_young_file_is_read_again(make: Any) -> None:
    site = make()
    path = site.write("a.css", "a{b:c}")
    path.write_text("a{b:d}")  # the clock's tick may be the same
    found = path.stat()
    first = versioned(site.assets(), "/static/a.css")
    path.write_text("a{b:e}")
    os.utime(path, ns=(found.st_mtime_ns, found.st_mtime_ns))
    assert versioned(site.assets(), "/static/a.css") != first


def test_another_directory_behind_a_link_is_another_site(make: Any, tmp_path: Path) -> None:
    site = make()
    path = site.write("a.css", "a{b:c}")
    first = versioned(site.assets(), "/static/a.css")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.css").write_text("a{b:d}")
    stamp = path.stat().st_mtime_ns
    os.utime(other / "a.css", ns=(stamp, stamp))
    site.root.rename(tmp_path / "one")
    other.rename(site.root)
    assert versioned(site.assets(), "/static/a.css") != first


def test_the_manifest_names_every_version(make: Any) -> None:
    site = make()
    site.write("a b.js", "a")
    assets = site.assets()
    manifest = json.loads((site.cache / "manifest.json").read_text())
    assert manifest == {"/static/a%20b.js": assets.url("/static/a%20b.js")}
    assert manifest["/static/a%20b.js"].startswith("/static/a%20b-")


def test_states_survive_writing_and_damage(make: Any, tmp_path: Path) -> None:
    site = make(minify=True)
    site.write("a.css", "a { b : c }")
    assets = site.assets()
    assert records.load(records.dump(assets.state)) == assets.state
    (state,) = site.cache.glob("state-*.json")
    state.write_text('{"format": 1, "entries": [{}]}')
    assert content(site.assets(), "/static/a.css") == "a{b:c}"
    assert not list(site.cache.glob(".new-*"))


def test_impossible_patterns_are_named(make: Any) -> None:
    for pattern in (Arrow("/static/**.css", "/static/a.css"), Arrow("/static/*.html", "/static/x.html")):
        static = Static(concatenation=Concatenation(enabled=True, patterns=(pattern,)))
        assert [key for key, _ in plan.faults(static)] == ["static.concatenation.patterns"]
    assert list(plan.faults(Static())) == []


def test_versions_that_no_route_serves_are_complained_of(make: Any) -> None:
    for pattern, complained in (("/static/{file}-{hash}.{ext}", False), ("/x/{file}-{hash}.{ext}", True)):
        site = make(pattern=pattern)
        site.write("a.css", "a{b:c}")
        assert ("" in site.assets().state.complaints) is complained


def test_references_are_found_with_spaces_and_beyond_ascii(make: Any) -> None:
    site = make()
    site.write("ä b.png", "x")
    site.write("a.css", "a{b:url(%C3%A4%20b.png)}")
    assert "%C3%A4%20b-" in content(site.assets(), "/static/a.css")


def test_the_length_of_an_object_is_in_its_name(tmp_path: Path) -> None:
    home = Home(str(tmp_path), str(tmp_path))
    name = home.put(b"content", ".css")
    assert length(name) == 7 and home.has(name) and home.read(name) == b"content"


# -- dates


def date(assets: Assets, url: str) -> int:
    """In whole seconds, as clients have it."""
    found = mounted(assets).find(url)
    assert found is not None and found.modified is not None
    return found.modified // 1_000_000_000


def test_a_date_is_that_of_the_newest_file_that_counts(make: Any) -> None:
    site = make()
    site.write("a.css", "@import 'c/b.css';")
    site.write("c/b.css", "@import '../c/c.css';a{b:url(../x.png)}")
    site.write("c/c.css", "@import 'b.css';")
    site.write("i.html", "<link rel=stylesheet href=a.css>")
    other = site.write("y.png", "y")
    newest = site.write("x.png", "x")
    assets = site.assets()
    urls = [f"/static/{name}" for name in ("x.png", "a.css", "c/b.css", "c/c.css", "i.html")]
    assert {date(assets, url) for url in urls} == {int(newest.stat().st_mtime)}
    assert date(assets, assets.url(urls[1])) == date(assets, urls[1])
    assert date(assets, "/static/y.png") == int(other.stat().st_mtime)


def test_a_date_moves_with_the_content_and_only_with_that(make: Any) -> None:
    site = make(bundles=["/static/js/*.js -> /static/all.js"])
    site.write("a.css", "a{b:url(x.png)}")
    site.write("i.html", "<img src=x.png>")
    site.write("js/a.js", "a")
    site.write("js/b.js", "b")
    picture = site.write("x.png", "one")
    site.write("same.css", "a{b:c}")
    urls = ["/static/a.css", "/static/i.html", "/static/x.png", "/static/all.js"]
    first = site.assets()
    began = int(time.time())
    picture.write_bytes(b"two")
    os.utime(picture, ns=(OLD, OLD))  # an older copy
    (site.root / "js/b.js").unlink()
    second = site.assets()
    assert all(date(second, url) >= began for url in urls)
    assert date(second, "/static/same.css") == date(first, "/static/same.css")
    before = {url: date(second, url) for url in (*urls, "/static/same.css")}
    site.write("same.css", "a{b:c}")
    third = site.assets()
    assert {url: date(third, url) for url in before} == before
    picture.unlink()
    last = site.assets()
    for url in ("/static/a.css", "/static/i.html"):
        assert content(last, url) == (site.root / url.removeprefix("/static/")).read_text()
        assert date(last, url) > before[url], "each content of one second has its own"


@pytest.mark.parametrize("rested", [False, True])
def test_no_date_goes_back_with_the_settings(make: Any, rested: bool) -> None:
    """`rested`: no server ran for hours before each start."""
    site = make(version=False)
    site.write("a.css", "a { b : c }")
    site.write("same.css", "a{b:c}")
    site.write("js/a.js", "a=1")
    site.write("js/b.js", "b=1")
    urls = ["/static/a.css", "/static/same.css", "/static/all.js"]
    last = dict.fromkeys(urls, ("", 0))
    for number in (0, 1, 0, 0, 2, 2, 1, 0):
        site.options["bundles"] = [f"/static/js/{('b.js', '*.js', 'a.js')[number]} -> /static/all.js"]
        site.options["minify"] = number == 1
        assets = site.assets()
        for url in urls:
            text, (before, since) = content(assets, url), last[url]
            last[url] = text, date(assets, url)
            assert last[url] == (before, since) if text == before else last[url][1] > since
        look(Keeper(assets))
        states = list(site.cache.glob("state-*"))
        if rested:
            assert len(states) == 1, "those that are long out of use are removed, once they were read"
            for path in (*states, *site.cache.glob("keeper-*")):
                os.utime(path, (0, 0))


def test_a_file_that_is_served_as_it_is_has_its_own_date(make: Any) -> None:
    site = make()
    site.write("x.png", "one")
    site.assets()
    path = site.write("x.png", "two")
    assert date(site.assets(), "/static/x.png") == int(path.stat().st_mtime)


def test_no_date_lies_in_the_future(make: Any) -> None:
    site = make()
    path = site.write("x.png", "one")
    os.utime(path, (4e9, 4e9))
    assert date(site.assets(), "/static/x.png") <= time.time()
