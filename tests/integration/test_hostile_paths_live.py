"""The hostile paths against a running server, under a prefix, under try_files and at the root of the site.

Knows the corpus (tests/corpus/paths), the tree that it aims at, and the wire.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Launcher, Server
from tests.unit.files.hostile import LEAKS, PUBLIC, build, targets
from tests.wire import Reply, Wire

pytestmark = pytest.mark.slow

PREFIXES = (b"/static/", b"/tries/", b"/")
FAMILIES = sorted({family for family, _ in targets()})
ALLOWED = (301, 400, 403, 404)

_HERE = re.compile(r"/(?![/\\])[\x21-\x7e]*")
"""A Location on this host that no client could take for another one, nor for a second line."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Iterator[Server]:
    launcher = Launcher(tmp_path_factory.mktemp("server"))
    static = {"type": "static", "root": str(tree)}
    tries = ["$uri", "$uri.html", "$uri/", "=404"]
    routes = [
        {"path": "/static/*", **static},
        {"path": "/tries/*", "try_files": tries, **static},
        {"path": "/listed/*", "directory_listing": True, **static},
        {"path": "/*", **static},
    ]
    try:
        yield launcher({"routes": routes})
        launcher.finish()
    finally:
        launcher.kill()


def ask(wire: Wire, target: bytes, method: bytes = b"GET") -> Reply:
    head = b"%b %b HTTP/1.1\r\nHost: a\r\nAccept-Encoding: br, gzip\r\n\r\n" % (method, target)
    return wire.send(head).reply(head=method == b"HEAD")


def check_harmless(target: bytes, reply: Reply) -> None:
    """Nothing of what is hidden, and nobody sent elsewhere."""
    for name, value in reply.headers:
        assert name.lower() not in ("x-injected", "set-cookie"), (target, reply)
        assert not any(leak in value.encode("latin-1") for leak in LEAKS), (target, reply)
    assert not any(leak in reply.body for leak in LEAKS), (target, reply)
    if reply.status == 301:
        assert _HERE.fullmatch(reply.header("Location") or ""), (target, reply)


def aimed(family: str, prefix: bytes) -> list[bytes]:
    """The targets of a family, under a prefix."""
    found = [target for name, target in targets() if name == family]
    return [prefix + target[1:] if target.startswith(b"@") else target for target in found]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"], ids=bytes.decode)
@pytest.mark.parametrize("prefix", PREFIXES, ids=bytes.decode)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_way_out(server: Server, family: str, prefix: bytes, method: bytes) -> None:
    """Each target is refused, and the next request is answered as if nothing had been."""
    wire = server.connect()
    try:
        for target in aimed(family, prefix):
            reply = ask(wire, target, method)
            assert reply.status in ALLOWED, (target, reply)
            check_harmless(target, reply)
            if reply.header("Connection") == "close":
                assert wire.closed(), target
                wire.close()
                wire = server.connect()
            assert ask(wire, b"/static/page.html").body.startswith(PUBLIC), target
    finally:
        wire.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_where_directories_are_listed(server: Server, family: str) -> None:
    """There a directory is answered too: by a page of what may be seen in it."""
    for target in aimed(family, b"/listed/"):
        with server.connect() as wire:
            reply = ask(wire, target)
        assert reply.status in ALLOWED or (reply.status == 200 and b"<title>Index of" in reply.body), (
            target,
            reply,
        )
        check_harmless(target, reply)


def test_what_is_public_is_served(server: Server) -> None:
    names = ("index.html", "a/", "a/b/page.html", ".well-known/security.txt", "in-directory/page.html")
    for prefix in ("/static/", "/tries/", "/listed/", "/"):
        for name in names:
            reply = server.get(prefix + name)
            assert reply.status == 200
            assert reply.body.startswith(PUBLIC)


def test_a_compressed_sibling_is_no_way_out(server: Server) -> None:
    for accept in ("br", "gzip", "br, gzip"):
        reply = server.get("/static/sibling.html", headers=[f"Accept-Encoding: {accept}"])
        assert reply.status == 200
        body = gzip.decompress(reply.body) if reply.header("Content-Encoding") == "gzip" else reply.body
        assert body.startswith(PUBLIC)


def test_a_listing_names_nothing_hidden(server: Server) -> None:
    page = "".join(server.get(f"/listed/{name}/").text for name in ("lure", "a/b", "fifo-directory"))
    assert "page.html" in page
    for hidden in (".hidden", ".env", "secret", "fifo<", "out-file", "passwd", "socket", "to-null"):
        assert hidden not in page
