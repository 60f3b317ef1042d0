"""Versioned URLs, what references mean, and who answers them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from acme_wsgi.assets import names
from acme_wsgi.assets.names import Versioning
from acme_wsgi.assets.order import components
from acme_wsgi.assets.sites import Mount, Place, Sites

DIGEST = "0123456789abcdef"


@pytest.mark.parametrize(
    ("pattern", "url", "versioned"),
    [
        ("/static/{file}-{hash}.{ext}", "/static/app.css", "/static/app-01234567.css"),
        ("/static/{file}-{hash}.{ext}", "/static/css/app.min.css", "/static/css/app.min-01234567.css"),
        ("/{hash}.{file}.{ext}", "/a/b.js", "/a/01234567.b.js"),
        ("/static/v-{file}.{hash}.{ext}", "/static/a.js", "/static/v-a.01234567.js"),
        ("/static/{file}-{hash}.{ext}", "/other/app.css", ""),
        ("/static/{file}-{hash}.{ext}", "/static/LICENSE", ""),
        ("/static/{file}-{hash}.{ext}", "/static/.hidden", ""),
    ],
)
def test_versioned_urls(pattern: str, url: str, versioned: str) -> None:
    form = Versioning.of(pattern)
    assert form.versioned(url, DIGEST) == versioned
    if versioned:
        assert form.plain(versioned) == url


def test_the_hash_must_not_move_files() -> None:
    with pytest.raises(ValueError, match="no slash may follow"):
        Versioning.of("/static/{hash}/{file}.{ext}")


@pytest.mark.parametrize(
    "url", ["/static/app-0123456.css", "/static/app-0123456G.css", "/x/app-01234567.css"]
)
def test_other_urls_are_not_versioned(url: str) -> None:
    assert Versioning.of("/static/{file}-{hash}.{ext}").plain(url) == ""


@pytest.mark.parametrize(
    ("reference", "meaning"),
    [
        ("x.png", "/a/b/x.png"),
        ("../x.png?v=1#f", "/a/x.png"),
        ("/x%20y.png", "/x y.png"),
        ("./x.png", "/a/b/x.png"),
        ("x&y.png", "/a/b/x&y.png"),
        ("../../../x.png", None),
        ("//host/x.png", None),
        ("https://host/x.png", None),
        ("data:image/png;base64,x", None),
        ("#f", None),
        ("", None),
        ("x/", None),
        ("x%2525.png", None),
        ("x\\y.png", None),
        ("x%00.png", None),
        ("a//b.png", None),
    ],
)
def test_what_references_mean(reference: str, meaning: str | None) -> None:
    assert names.resolve(reference, "/a/b/page.html") == meaning


def test_only_the_last_segment_is_redirected() -> None:
    assert names.redirected("../%69mg/x.png?v=1#f", "/img/x y-1.png") == "../%69mg/x%20y-1.png?v=1#f"
    assert names.redirected("x.png", "/img/x-1.png") == "x-1.png"


def test_moved_references_mean_the_same() -> None:
    assert names.moved("../img/x.png?v", "/static/img/x.png", "/static/bundle.css") == "img/x.png?v"


def place(path: str, *, static: bool = True, hosts: tuple[str, ...] = (), **more: Any) -> Place:
    prefix = path.removesuffix("/*") if path.endswith("/*") else None
    mount = Mount(0, hosts, prefix or "", "/r" + path, "" if prefix is not None else path) if static else None
    return Place(hosts, exact=None if prefix is not None else path, prefix=prefix, mount=mount, **more)


def test_the_most_specific_route_owns() -> None:
    deep, fallback, exact = place("/s/deep/*"), place("/*"), place("/s/one.css")
    sites = Sites([fallback, place("/s/*", static=False), deep, exact])
    assert sites.owner((), "/s/deep/a.css") is deep.mount
    assert sites.owner((), "/s/a.css") is None
    assert sites.owner((), "/s/one.css") is exact.mount
    assert sites.owner((), "/other.css") is fallback.mount


def test_methods_count() -> None:
    post = place("/s/*", static=False, methods=frozenset({"POST"}))
    files = place("/s/*")
    assert Sites([post, files]).owner((), "/s/a") is files.mount


def test_in_doubt_nobody_owns() -> None:
    shop, everybody = place("/s/*", hosts=("shop.example",)), place("/s/*")
    sites = Sites([shop, everybody])
    assert sites.owner((), "/s/a") is None
    assert sites.owner(("shop.example",), "/s/a") is shop.mount
    assert sites.owner(("other.example",), "/s/a") is everybody.mount
    pattern = Place(regex=True, expression=re.compile("^/x"))
    assert Sites([pattern, everybody, place("/*")]).owner((), "/x.css") is None
    assert Sites([pattern, everybody, place("/*")]).owner((), "/y.css") is not None


def test_components_come_after_what_they_need() -> None:
    found = components({"a": ["b", "c"], "b": ["c"], "c": ["d"], "d": ["c"], "e": []})
    assert [sorted(each) for each in found] == [["c", "d"], ["b"], ["a"], ["e"]]
