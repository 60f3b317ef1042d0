"""A real browser: a site looks and works the same with its assets as they are and prepared; videos seek.

Knows the documented configuration and, through tests/browser.py, what a browser sees.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests import documentation, video
from tests.browser import Browser, Page, Visit
from tests.server import Launcher, Server, wait_until

pytestmark = pytest.mark.slow

PREPARATION = 60.0
"""Seconds that preparing the pages may take: a server may be ready before it has prepared them all."""

# The start, long pages, each kind of page, pictures, code, tables, a name with spaces.
PAGES = (
    "index.html",
    "search.html",
    "manual/cmake-commands.7.html",
    "manual/cmake-presets.7.html",
    "command/add_custom_command.html",
    "module/FindPython3.html",
    "generator/Visual Studio 17 2022.html",
    "guide/tutorial/index.html",
    "guide/user-interaction/index.html",
)

SEEN = """({
    title: document.title,
    text: document.body.innerText,
    rules: [...document.styleSheets].map(function count(sheet) {
        return [...sheet.cssRules].map(rule => rule.styleSheet ? count(rule.styleSheet) : 1);
    }),
    pictures: [...document.images].map(image => [image.naturalWidth, image.naturalHeight]),
    scripts: [$.fn.jquery, $("a[href]").length, _("text"), DOCUMENTATION_OPTIONS.VERSION],
})"""
"""JavaScript: what a page holds, seen through its own scripts."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def serve(acme: Launcher, root: Path, **static: Any) -> Server:
    routes = [{"path": "/static/*", "type": "static", "root": str(root)}]
    return acme({"routes": routes, "static": static})


def serve_prepared(acme: Launcher, root: Path) -> Server:
    """Serve the site's PAGES with their assets prepared; all of the pages are."""
    server = serve(acme, root, minification={"enabled": True}, versioning={"enabled": True})

    def all_prepared() -> bool:
        pages = (server.get(f"/static/{quote(name)}").text for name in PAGES)
        return all(re.search(r"_static/cmake-[0-9a-f]{6,}\.css", page) for page in pages)

    wait_until(all_prepared, "every page to refer to versions", PREPARATION)
    return server


def look(browser: Browser, server: Server, name: str) -> tuple[Visit, Any, bytes]:
    """Open a page of the site with an empty cache: what was loaded, what is seen, and a picture of it."""
    with browser.page() as page:
        visit = page.goto(f"{server.url}/static/{quote(name)}")
        return visit, page.evaluate(SEEN), page.screenshot()


# ------------------------------------------------------------------- a site


def test_a_site_looks_and_works_the_same_with_prepared_assets(
    acme: Launcher, browser: Browser, tmp_path: Path
) -> None:
    site = documentation.lay_out(tmp_path / "site", PAGES)
    as_it_is, prepared = serve(acme, site), serve_prepared(acme, site)
    pictures = set()
    for name in PAGES:
        plain_visit, plain_seen, plain_picture = look(browser, as_it_is, name)
        visit, seen, picture = look(browser, prepared, name)
        assert (plain_visit.problems, visit.problems) == ([], []), name
        assert plain_visit.responses[0].headers["content-encoding"] == "br", name
        assert len(prepared.get(f"/static/{quote(name)}").body) < (site / name).stat().st_size, name
        assert seen == plain_seen, name
        assert picture == plain_picture, f"{name}: see {keep(tmp_path, plain_picture, picture)}"
        versions = assets(visit)
        assert len(versions) >= 9
        assert {unversioned(one) for one in versions} == set(assets(plain_visit)), name
        assert [one for one in versions if unversioned(one) == one] == [], name
        pictures.add(picture)
    assert len(pictures) == len(PAGES)


def assets(visit: Visit) -> list[str]:
    """The paths of the style sheets, scripts and pictures that a page has loaded; its icon may come later."""
    found = (re.sub(r"https?://[^/]*", "", response.url) for response in visit.responses)
    return sorted(path for path in found if re.search(r"\.(css|js|png)$", path))


def unversioned(path: str) -> str:
    """`/a/b-1a2b3c4d.css` as `/a/b.css`; what has no version as it is."""
    return re.sub(r"-[0-9a-f]{6,}(\.\w+)$", r"\1", path)


def keep(directory: Path, *pictures: bytes) -> list[str]:
    """Write pictures that should be equal where a person can look at them."""
    paths = [directory / f"{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(picture)
    return [str(path) for path in paths]


def test_prepared_assets_are_kept_by_the_browser_and_compressed(
    acme: Launcher, browser: Browser, tmp_path: Path
) -> None:
    server = serve_prepared(acme, documentation.lay_out(tmp_path / "site", PAGES))
    with browser.page() as page:
        first = page.goto(f"{server.url}/static/")
        for part in ("/jquery-", "/cmake-", "/basic-"):
            response = first.response(part)
            assert "immutable" in response.headers["cache-control"]
        assert first.response("/jquery-").headers["content-encoding"] in ("br", "gzip")
        assert [response for response in first.responses if response.cached] == []
        second = page.goto(f"{server.url}/static/manual/cmake-commands.7.html")
        assert second.problems == []
        assert set(assets(second)) == set(assets(first))
        asked = {response.url for response in second.responses if not response.cached}
        assert {url for url in asked if not url.endswith(".ico")} == {second.url}


def test_a_picture_of_a_page_shows_a_missing_style_sheet(
    acme: Launcher, browser: Browser, tmp_path: Path
) -> None:
    """What the comparison of pictures is worth: a page that lacks one style sheet is noticed in all ways."""
    site = documentation.lay_out(tmp_path / "site", PAGES)
    server = serve(acme, site)
    _, _, whole = look(browser, server, "command/add_custom_command.html")
    (site / "_static" / "classic.css").unlink()
    visit, _, picture = look(browser, server, "command/add_custom_command.html")
    assert any("classic.css: 404" in problem for problem in visit.problems)
    assert picture != whole


# ------------------------------------------------------------------- small pages


def lay_out(root: Path, files: dict[str, str]) -> Path:
    """Write files below a directory."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def pin(text: str, algorithm: str = "sha384") -> str:
    """The hash of a text, as pages and policies give it."""
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, text.encode()).digest()).decode()}"


def test_pinned_scripts_run(acme: Launcher, browser: Browser, tmp_path: Path) -> None:
    def script(name: str) -> str:
        return f"window.ran  =  [...(window.ran  ||  []),  '{name}']  // spaces that could go\n"

    names = ("classic", "module", "early", "mapped", "a&b")
    files = {f"{name}.js": script(name) for name in names}
    pins = {name: pin(script(name)) for name in names}
    files["index.html"] = f"""<!DOCTYPE html>
<title>pinned</title>
<link rel="icon" href="data:,">
<script type="importmap">{{"integrity": {{"./mapped.js": "{pins["mapped"]}"}}}}</script>
<link rel="modulepreload" href="early.js" integrity="{pins["early"]}">
<script src="classic.js" integrity="{pins["classic"]}"></script>
<script src="a&amp;b.js" integrity="{pins["a&b"]}"></script>
<script type="module" src="module.js" integrity="{pins["module"]}"></script>
<script type="module">import "./early.js"; import "./mapped.js"; window.done = true</script>
"""
    site = lay_out(tmp_path / "site", files)
    server = serve(acme, site, minification={"enabled": True}, versioning={"enabled": True})
    with browser.page() as page:
        visit = page.goto(f"{server.url}/static/")
        assert visit.problems == []
        assert page.evaluate("window.done && window.ran.sort()") == sorted(names)


def test_a_policy_with_hashes_allows_what_is_in_the_page(
    acme: Launcher, browser: Browser, tmp_path: Path
) -> None:
    script = '\n  window.ran  =  "yes";\n'
    style = "\n  #a  { color : rgb(1, 0, 0) ; background : url(x.png) }\n"
    attribute = " color : rgb(2, 0, 0) ; background : url(x.png); "
    hashes = {
        name: f"'{pin(text, 'sha256')}'" for name, text in (("s", script), ("e", style), ("a", attribute))
    }
    files = {
        "x.png": "not really",
        "index.html": f"""<!DOCTYPE html>
<meta http-equiv="content-security-policy"
    content="script-src {hashes["s"]}; style-src 'unsafe-hashes' {hashes["e"]} {hashes["a"]}">
<title>policy</title>  <link rel="icon" href="data:,">
<style>{style}</style>
<script>{script}</script>
<p id="a">a   <b id="b" style="{attribute}">b</b>
""",
    }
    site = lay_out(tmp_path / "site", files)
    server = serve(acme, site, minification={"enabled": True}, versioning={"enabled": True})
    assert "   <b" not in server.get("/static/").text
    with browser.page() as page:
        assert page.goto(f"{server.url}/static/").problems == []
        assert page.evaluate("window.ran") == "yes"
        for name, color in (("a", "rgb(1, 0, 0)"), ("b", "rgb(2, 0, 0)")):
            assert page.evaluate(f"getComputedStyle(document.getElementById('{name}')).color") == color


def test_a_bundle_means_what_its_files_mean(acme: Launcher, browser: Browser, tmp_path: Path) -> None:
    """Also where one of them is broken, or speaks of source maps."""
    files = {
        "c/a.css": "#a { color: rgb(1, 0, 0) }\n}\n",
        "c/b.css": "#b { color: rgb(2, 0, 0) };",
        "c/c.css": "#c { color: rgb(3, 0, 0) } } #no { }\n#no { color: 'red\n",
        "c/d.css": "#d { color: rgb(4, 0, 0); background: url(it's) } @media all { #no { color: url(x y",
        "c/e.css": "#e { color: rgb(5, 0, 0) }\n@supports (color: red",
        "c/f.css": "#f { color: rgb(6, 0, 0) }",
        "j/a.js": 'function mapped(code, url) {\n  return code + "\\n//# sourceMappingURL=" + url;\n}',
        "j/b.js": "window.said = mapped('a', 'b')\n//# sourceMappingURL=b.js.map",
        "index.html": '<!DOCTYPE html><title>bundles</title><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="all.css"><script src="all.js"></script>'
        + "".join(f'<p id="{name}">{name}</p>' for name in "abcdef"),
    }
    patterns = ["/static/c/*.css -> /static/all.css", "/static/j/*.js -> /static/all.js"]
    site = lay_out(tmp_path / "site", files)
    server = serve(acme, site, concatenation={"enabled": True, "patterns": patterns})
    with browser.page() as page:
        assert page.goto(f"{server.url}/static/").problems == []
        assert page.evaluate("said") == "a\n//# sourceMappingURL=b"
        shown = page.evaluate("[...document.querySelectorAll('p')].map(each => getComputedStyle(each).color)")
        assert shown == [f"rgb({number}, 0, 0)" for number in range(1, 7)]


# ------------------------------------------------------------------- a video

PLAYER = """<!DOCTYPE html>
<title>video</title>
<link rel="icon" href="data:,">
<video preload="metadata" src="video.webm"></video>
<script>
const video = document.querySelector("video");
function happens(name) {
    return new Promise((resolve, reject) => {
        video.addEventListener(name, () => resolve(name), {once: true});
        video.addEventListener("error", () => reject(new Error(video.error.message)), {once: true});
    });
}
const known = happens("loadedmetadata");
function seek(seconds) {
    const sought = happens("seeked");
    video.currentTime = seconds;
    return sought;
}
</script>
"""


@pytest.fixture(scope="module")
def cinema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a page that has a video, and the video."""
    root = tmp_path_factory.mktemp("cinema")
    (root / "index.html").write_text(PLAYER)
    video.make_video(root / "video.webm")
    return root


@pytest.mark.parametrize("mapped", [False, True], ids=["sendfile", "mapping"])
def test_a_video_seeks(acme: Launcher, browser: Browser, cinema: Path, mapped: bool) -> None:
    server = serve(acme, cinema, mmap={"enabled": mapped})
    size = (cinema / "video.webm").stat().st_size
    with browser.page() as page:
        visit = page.goto(f"{server.url}/static/")
        assert page.evaluate("known") == "loadedmetadata"
        assert page.evaluate("video.duration") == pytest.approx(video.SECONDS, abs=0.2)
        assert page.evaluate("video.seekable.end(0)") == page.evaluate("video.duration")
        assert page.evaluate("video.buffered.end(0)") < 0.75 * video.SECONDS, "all of it is there already"
        for frame in (200, 30, 123, 237, 1):
            assert seek(page, frame) == frame
        assert visit.problems == []
        answers = [response for response in visit.responses if response.name == "video.webm"]
        assert {answer.status for answer in answers} == {206}
        starts = [begin(answer.headers["content-range"], size) for answer in answers]
        assert any(0.5 * size < start < 0.95 * size for start in starts), starts


def seek(page: Page, frame: int) -> int:
    """Go to the middle of a frame; the number of the frame that is shown then."""
    assert page.evaluate(f"seek({(frame + 0.5) / video.RATE})") == "seeked"
    shown: int = page.evaluate(f"{video.READ_NUMBER}(video)")
    return shown


def begin(content_range: str, size: int) -> int:
    """The first byte of a range, which must be one of a file of `size` bytes."""
    matched = re.fullmatch(rf"bytes (\d+)-\d+/{size}", content_range)
    assert matched is not None, content_range
    return int(matched[1])


def test_a_video_plays_to_its_end(acme: Launcher, browser: Browser, cinema: Path) -> None:
    server = serve(acme, cinema)
    with browser.page() as page:
        visit = page.goto(f"{server.url}/static/")
        page.evaluate("known")
        page.evaluate("window.ended = happens('ended'); video.playbackRate = 16; video.play()")
        assert page.evaluate("window.ended") == "ended"
        shown = page.evaluate(f"{video.READ_NUMBER}(video)")  # that fast not every frame is
        assert video.RATE * (video.SECONDS - 1) <= shown < video.RATE * video.SECONDS
        assert visit.problems == []
