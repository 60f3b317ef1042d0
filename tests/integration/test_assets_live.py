"""Assets over real sockets: what clients get, while files change and workers come and go."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import brotli
import pytest

from tests.integration.test_privileges_live import openly
from tests.server import Launcher, Server, wait_until
from tests.wire import Reply

pytestmark = pytest.mark.slow

RULES = "".join(f".c{number} {{ color : red ; }}\n" for number in range(200))
SITE = {
    "site/index.html": (
        "<!doctype html>\n<html>\n  <head>\n    <link rel=\"stylesheet\" href='static/all.css?x=1'>\n"
        '    <script src="/static/js/app.js"></script>\n  </head>\n  <body>\n    <img src=static/img/x.png>\n'
        "    <a href=static/img/x.png>b</a>\n  </body>\n</html>\n"
    ),
    "site/static/css/a.css": '@charset "utf-8";\nbody { background : url( ../img/x.png ) }\n' + RULES,
    "site/static/css/b.css": "p > a { color : blue }\n",
    "site/static/js/app.js": "function f ( a ) {\n  return a + 1 // more\n}\n" * 60,
    "site/static/js/broken.js": "f(  'a\n",
    "site/static/img/x.png": "not really\n",
    "pages.py": "import acme_wsgi\n\ndef url(request):\n    return acme_wsgi.asset_url(request.args['of'])\n",
}
CONFIG: dict[str, Any] = {
    "routes": [
        {"path": "/static/*", "type": "static", "root": "site/static"},
        {"path": "/url", "type": "handler", "handler": "pages:url"},
        {"path": "/*", "type": "static", "root": "site"},
    ],
    "static": {
        "concatenation": {"enabled": True, "patterns": ["/static/css/*.css → /static/all.css"]},
        "minification": {"enabled": True},
        "versioning": {"enabled": True},
    },
}


@pytest.fixture
def server(acme: Launcher) -> Server:
    return acme(CONFIG, files=SITE)


def url_of(server: Server, plain: str) -> str:
    return server.get(f"/url?of={plain}").text


def write(server: Server, name: str, text: str) -> None:
    """As editors do it: another file takes the name."""
    new = server.cwd / "site" / ".new"
    new.write_text(text)
    new.replace(server.cwd / "site" / name)


def test_a_page_leads_to_versions_that_stay(server: Server) -> None:
    page = server.get("/")
    assert page.status == 200 and "immutable" not in (page.header("Cache-Control") or "")
    links = re.findall(r"(?:href|src)=[\"']?([^\"' >]+)", page.text)
    plains = ("/static/all.css", "/static/js/app.js", "/static/img/x.png")
    expected = [url_of(server, plain) for plain in plains]
    assert links == [f"{expected[0][1:]}?x=1", expected[1], expected[2][1:], "static/img/x.png"]
    for url in expected:
        reply = server.get(url)
        assert reply.status == 200
        assert reply.header("Cache-Control") == "public, max-age=31536000, immutable"
        again = server.get(url, headers=[f"If-None-Match: {reply.header('ETag')}"])
        assert (again.status, again.body) == (304, b"")
    sheet = server.get(expected[0])
    assert sheet.header("Content-Type") == "text/css; charset=utf-8"
    image = expected[2].removeprefix("/static/")
    assert sheet.text.startswith(f"body{{background:url({image})}}.c0{{color:red}}")
    assert sheet.text.endswith("}\np>a{color:blue}\n")
    assert server.get("/static/js/app.js").text.startswith("function f(a){return a+1}")
    plain = server.get("/static/all.css")
    assert (plain.text, plain.header("Cache-Control")) == (sheet.text, page.header("Cache-Control"))


def test_a_stale_version_is_gone_and_the_manifest_says_so(server: Server) -> None:
    old = url_of(server, "/static/css/b.css")
    write(server, "static/css/b.css", "p { color : green }\n")
    new = wait_until(lambda: (url := url_of(server, "/static/css/b.css")) != old and url, "another version")
    assert server.get(new).text == "p{color:green}"
    # What routes keep of the plain URL goes a moment later.
    wait_until(lambda: server.get("/static/css/b.css").text == "p{color:green}", "the smaller file")
    assert "p{color:green}" in server.get(url_of(server, "/static/all.css")).text
    assert server.get(old).status == 404
    manifest = json.loads((server.cwd / "run/assets/manifest.json").read_text())
    assert manifest["/static/css/b.css"] == new


def test_a_date_says_that_references_lead_elsewhere(acme: Launcher) -> None:
    static = {**CONFIG["static"], "etag": {"enabled": False}}
    server = acme({**CONFIG, "static": static}, files=SITE, workers=2)
    urls = ("/", "/static/css/a.css", "/static/all.css")
    seen = {url: [f"If-Modified-Since: {server.get(url).header('Last-Modified')}"] for url in urls}
    assert {server.get(url, headers=seen[url]).status for url in urls} == {304}
    old = url_of(server, "/static/img/x.png")
    write(server, "static/img/x.png", "another\n")
    past = (server.cwd / "site/static/css/a.css").stat().st_mtime - 3600
    os.utime(server.cwd / "site/static/img/x.png", (past, past))
    wait_until(lambda: server.get(old).status == 404, "another version")
    for url in urls:
        new = wait_until(
            lambda url=url: (found := server.get(url, headers=seen[url])).status == 200 and found,
            "another date",
        )
        assert old.rpartition("/")[2] not in new.text
        again = [f"If-Modified-Since: {new.header('Last-Modified')}"]
        for _ in range(10):
            assert server.get(url, headers=again).status == 304, "all workers say the same"


def test_a_broken_file_is_served_as_it_is_with_a_warning(server: Server) -> None:
    assert server.get("/static/js/broken.js").text == SITE["site/static/js/broken.js"]
    server.wait_for_log(r"warning .*broken\.js: it is served as it is: line 1: a string doesn't end")
    assert server.stderr.count("broken.js") == 1


def coded(server: Server, url: str, coding: str) -> Reply:
    return server.get(url, headers=[f"Accept-Encoding: {coding}"])


def test_everything_is_compressed_in_the_background(server: Server) -> None:
    server.wait_for_log("compressed assets: all")
    for url in ("/static/all.css", url_of(server, "/static/js/app.js")):
        plain = server.get(url)
        smaller = {"br": brotli.decompress, "gzip": gzip.decompress}
        tags = {plain.header("ETag")}
        for coding, decompress in smaller.items():
            best = gzip.compress(plain.body, 9)
            if coding == "br":
                best = brotli.compress(plain.body, quality=11)
            reply = wait_until(
                lambda url=url, coding=coding, best=best: (
                    len((found := coded(server, url, coding)).body) <= len(best) + 16 and found
                ),
                f"{url} in its smallest {coding}",
            )
            assert decompress(reply.body) == plain.body
            assert (reply.header("Content-Encoding"), reply.header("Vary")) == (coding, "Accept-Encoding")
            tags.add(reply.header("ETag"))
        assert len(tags) == 3


def test_workers_build_once_and_agree(acme: Launcher) -> None:
    server = acme(CONFIG, files=SITE, workers=3)
    assert server.stderr.count("built in") == 1
    write(server, "static/css/b.css", "p { color : green }\n")
    fresh = wait_until(
        lambda: "green" in (found := server.get("/static/css/b.css").text) and "{ " not in found,
        "the new file, minified",
    )
    assert fresh
    manifest = json.loads((server.cwd / "run/assets/manifest.json").read_text())
    # Whichever worker is asked knows what one of them has published.
    for _ in range(30):
        assert server.get(manifest["/static/css/b.css"]).text == "p{color:green}"


def is_replaced(server: Server, pid: int) -> bool:
    return pid not in (pids := server.worker_pids()) and len(pids) == 2


def test_another_keeper_takes_over(acme: Launcher) -> None:
    server = acme(CONFIG, files=SITE, workers=2)
    server.errors_expected = True
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: is_replaced(server, pid), "a new worker")
    write(server, "static/css/b.css", "p { color : green }\n")
    wait_until(lambda: server.get("/static/css/b.css").text == "p{color:green}", "the new file, minified")


def elsewhere(directory: Path) -> dict[str, Any]:
    """The configuration with its files in a directory that outlives a server."""
    for name, text in SITE.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        (directory / name).write_text(text)
    files = [route for route in CONFIG["routes"] if "root" in route]
    routes = [{**route, "root": str(directory / route["root"])} for route in files]
    return {**CONFIG, "routes": routes}


def test_a_restart_makes_nothing_again(acme: Launcher, tmp_path: Path) -> None:
    config = {**elsewhere(tmp_path), "server": {"runtime_dir": str(tmp_path / "run")}}
    first = acme(config)
    first.wait_for_log("compressed assets: all")
    objects = tmp_path / "run/assets/objects"
    made = {path.name: path.stat().st_ino for path in objects.iterdir()}
    first.stop()
    second = acme(config)
    assert second.get("/static/css/b.css").text == "p>a{color:blue}"
    assert "built in" not in second.stderr
    assert {path.name: path.stat().st_ino for path in objects.iterdir()} == made


def test_a_reload_switches_it_off_and_on(server: Server) -> None:
    minified = server.get("/static/css/b.css").text
    server.configure({**CONFIG, "static": {}})
    assert server.order("reload")["ok"]
    # Until it has gone, the worker before takes in who comes.
    plain = SITE["site/static/css/b.css"]
    wait_until(lambda: server.get("/static/css/b.css").text == plain, "the file itself")
    assert server.get("/static/all.css").status == 404
    assert url_of(server, "/static/css/b.css") == "/static/css/b.css"
    server.configure(CONFIG)
    assert server.order("reload")["ok"]
    wait_until(lambda: server.get("/static/css/b.css").text == minified, "the smaller one again")


def test_a_pattern_that_ends_in_another_extension(acme: Launcher) -> None:
    static = {
        **CONFIG["static"],
        "versioning": {"enabled": True, "pattern": "/static/{file}-{hash}.{ext}.txt"},
    }
    server = acme({**CONFIG, "static": static}, files=SITE)
    for plain in ("/static/all.css", "/static/js/app.js", "/static/img/x.png"):
        url = url_of(server, plain)
        assert url.endswith(".txt")
        assert server.get(url).header("Content-Type") == server.get(plain).header("Content-Type")


def test_an_extension_that_is_allowed_in_any_case(acme: Launcher) -> None:
    routes = [{**route, "extensions": [".Css"]} if "root" in route else route for route in CONFIG["routes"]]
    config = {
        "routes": routes,
        "static": {"minification": {"enabled": True}, "versioning": {"enabled": True}},
    }
    server = acme(config, files={**SITE, "site/static/UP.CSS": "p > a { color : blue }\n"})
    assert server.get("/static/UP.CSS").text == "p>a{color:blue}"
    assert server.get(url_of(server, "/static/UP.CSS")).header("Content-Type") == "text/css; charset=utf-8"


def test_an_impossible_pattern_keeps_the_server_from_starting(acme: Launcher) -> None:
    static = {"versioning": {"enabled": True, "pattern": "/static/{hash}/{file}.{ext}"}}
    ended = acme.fails({**CONFIG, "static": static}, files=SITE)
    assert ended.status == 78 and "static.versioning.pattern" in ended.stderr


def test_ranges_and_heads_of_what_was_made(server: Server) -> None:
    whole = server.get("/static/all.css")
    part = server.get("/static/all.css", headers=["Range: bytes=5-9"])
    assert (part.status, part.body) == (206, whole.body[5:10])
    head = server.get("/static/all.css", method="HEAD")
    assert (head.status, head.header("Content-Length"), head.body) == (200, str(len(whole.body)), b"")
    assert head.header("ETag") == whole.header("ETag")


# No file above a limit can be written: for who writes, that is a full disk, and it needs no disk of its own.
# The log has to stay below the limit, the state has to be above.
LIMIT = 16_384
MANY = {f"site/static/many/{number}.txt": f"{number}" for number in range(100)}


def limit_files(server: Server, size: int) -> None:
    for pid in (server.pid, *server.worker_pids()):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_workers_are_replaced_on_a_full_disk(acme: Launcher) -> None:
    server = acme(CONFIG, files={**SITE, **MANY}, workers=2)
    server.errors_expected = True
    bundle = server.get("/static/all.css").body
    limit_files(server, LIMIT)
    write(server, "static/css/b.css", "p { color : green }\n")
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: is_replaced(server, pid), "a new worker")
    assert server.get("/static/css/b.css").text == "p { color : green }\n"
    assert server.get("/static/all.css").body == bundle
    server.wait_for_log(rf"warning .*asset {server.cwd}/run/assets: what was built can't be kept: ")
    assert "Traceback" not in server.stderr
    limit_files(server, resource.RLIM_INFINITY)
    wait_until(lambda: server.get("/static/css/b.css").text == "p{color:green}", "the new file, minified")


def test_a_server_starts_on_a_full_disk(acme: Launcher) -> None:
    full = ("prlimit", f"--fsize={LIMIT}:")
    server = acme(CONFIG, files={**SITE, **MANY}, workers=2, wrap=full)
    assert server.get(url_of(server, "/static/css/b.css")).text == "p>a{color:blue}"
    server.wait_for_log("what was built can't be kept: ")
    limit_files(server, resource.RLIM_INFINITY)
    manifest = server.cwd / "run/assets/manifest.json"
    wait_until(manifest.exists, "the list of versions")


def test_a_bundle_that_had_no_room_is_built_when_it_has(acme: Launcher) -> None:
    full = ("prlimit", f"--fsize={LIMIT}:")
    large = {"site/static/css/large.css": RULES * 20}
    server = acme(CONFIG, files={**SITE, **large}, wrap=full)
    assert server.get("/static/all.css").status == 404
    server.wait_for_log(r"warning .*asset /static/all\.css: it can't be built: ")
    assert server.get("/static/css/b.css").text == "p>a{color:blue}"
    limit_files(server, resource.RLIM_INFINITY)
    wait_until(lambda: server.get("/static/all.css").status == 200, "the bundle")
    assert "p>a{color:blue}" in server.get("/static/all.css").text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_workers_of_another_user_have_their_assets(acme: Launcher) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        config = {**elsewhere(Path(name)), "server": {"user": "nobody"}}
        server = acme(config, workers=2, wrap=openly())
        assert server.get("/static/css/b.css").text == "p>a{color:blue}"
        server.wait_for_log("compressed assets: all")
        found = (server.cwd / "run/assets").stat()
        assert found.st_uid != 0 and found.st_mode & 0o022 == 0
