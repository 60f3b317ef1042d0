"""What the asset pipeline has made, as static routes serve it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import brotli
import pytest
from static_site import TEXT, get, refused, site

from acme_wsgi import iothreads
from acme_wsgi.assets import Asset
from acme_wsgi.config.schema.content import Compression
from acme_wsgi.handlers._forms import IMMUTABLE


class Pipeline:
    """Stands in for the mounted assets: URL -> Asset."""

    def __init__(self, **assets: Asset) -> None:
        self.assets = {f"/s/{name.replace('_', '.')}": asset for name, asset in assets.items()}
        self.generation = 0
        self.callbacks: list[Any] = []

    def find(self, path: str) -> Asset | None:
        return self.assets.get(path)

    def on_change(self, callback: Any) -> None:
        self.callbacks.append(callback)


def with_assets(root: Path, pipeline: Any, cache_control: str = "no-cache") -> Any:
    where = {"cache_control": cache_control}
    return site(root, prefix="/s", assets=pipeline, compression=Compression(), where=where)


def test_a_made_file_goes_before_the_original(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    (cache / "object").write_text("x=1;" * 500)
    (cache / "packed").write_bytes(b"packed by the pipeline")
    source = str(root.resolve() / "app.js")
    packed = {"br": str(cache / "packed")}
    date = 1_234_567_890_000_000_000
    made = Asset(str(cache / "object"), tag="cafe", coded=packed, source=(source,), modified=date)
    immutable = dataclasses.replace(made, immutable=True)
    handler = with_assets(root, Pipeline(app_js=made, v_js=immutable, other_js=Asset(None, gone=True)))
    got = get(handler, "/s/app.js")
    assert got.body == b"x=1;" * 500
    assert got.fields["etag"] == '"cafe"'
    assert got.fields["last-modified"] == "Fri, 13 Feb 2009 23:31:30 GMT"
    assert got.fields["cache-control"] == "no-cache"
    got = get(handler, "/s/v.js", accept_encoding="br")
    assert (got.body, got.fields["etag"]) == (b"packed by the pipeline", '"cafe-br"')
    assert got.fields["cache-control"] == "public, max-age=31536000, immutable"
    # The tag names what was packed, not the packing: a part of one can't complete another.
    part = {"range": "bytes=0-1", "if_range": '"cafe-br"'}
    assert get(handler, "/s/v.js", accept_encoding="br", **part).status == 200
    assert refused(handler, "/s/other.js").status == 404
    assert get(handler, "/s/page.html").body == TEXT.encode()


def test_the_pipeline_says_the_type(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tmp_path_factory.mktemp("cache") / "object"
    made.write_text("a{b:c}")
    asset = Asset(str(made), tag="cafe", source=(str(root / "none.css"),), media_type="text/css")
    got = get(with_assets(root, Pipeline(a_cafe=asset)), "/s/a.cafe")
    assert got.fields["content-type"] == "text/css; charset=utf-8"


def test_an_original_that_the_pipeline_knows(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It comes with the pipeline's tag and packed forms, but as it is once it is newer."""
    path = root.resolve() / "app.js"
    found = path.stat()
    stamp = found.st_size, found.st_mtime_ns
    known = Asset(str(path), immutable=True, tag="cafe", source=(str(path),), stamp=stamp)
    got = get(with_assets(root, Pipeline(app_js=known)), "/s/app.js")
    assert (got.fields["etag"], "immutable" in got.fields["cache-control"]) == ('"cafe"', True)
    packed = tmp_path_factory.mktemp("cache") / "packed"
    packed.write_bytes(b"packed by the pipeline")
    ready = dataclasses.replace(known, coded={"br": str(packed)})
    handler = with_assets(root, Pipeline(app_js=ready))
    got = get(handler, "/s/app.js", accept_encoding="br")
    assert (got.body, got.fields["etag"]) == (b"packed by the pipeline", '"cafe-br"')
    moved = dataclasses.replace(known, modified=1_234_567_890_000_000_000)
    got = get(with_assets(root, Pipeline(app_js=moved)), "/s/app.js")
    assert got.fields["last-modified"] == "Fri, 13 Feb 2009 23:31:30 GMT"
    older = dataclasses.replace(moved, stamp=(1, 1))
    got = get(with_assets(root, Pipeline(app_js=older)), "/s/app.js")
    assert got.fields["etag"] == f'"{hashlib.md5(path.read_bytes()).hexdigest()}"'
    assert got.fields["last-modified"] == "Sun, 09 Sep 2001 01:46:40 GMT"
    assert got.fields["cache-control"] == "no-cache"


def test_a_routes_no_transform_is_not_that_of_immutable_urls(root: Path) -> None:
    path = root.resolve() / "app.js"
    stamp = path.stat().st_size, path.stat().st_mtime_ns
    known = Asset(str(path), immutable=True, tag="cafe", source=(str(path),), stamp=stamp)
    handler = with_assets(root, Pipeline(app_js=known), "no-transform")
    fields = get(handler, "/s/app.js", accept_encoding="br").fields
    assert (fields["cache-control"], fields["content-encoding"]) == (IMMUTABLE, "br")
    handler = with_assets(root, Pipeline(app_js=dataclasses.replace(known, immutable=False)), "no-transform")
    fields = get(handler, "/s/app.js", accept_encoding="br").fields
    assert fields["cache-control"] == "no-transform" and "content-encoding" not in fields


def test_a_change_of_the_assets_empties_the_table(root: Path) -> None:
    pipeline = Pipeline()
    handler = with_assets(root, pipeline)
    get(handler, "/s/page.html")
    pipeline.assets["/s/page.html"] = Asset(None, gone=True)
    assert get(handler, "/s/page.html").status == 200
    for callback in pipeline.callbacks:
        callback()
    assert refused(handler, "/s/page.html").status == 404


def test_a_form_that_was_deleted_is_made_for_who_asks(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    made = cache / "object"
    made.write_text("x=1;" * 500)
    source, packed = str(root.resolve() / "app.js"), {"br": str(cache / "none")}
    asset = Asset(str(made), tag="cafe", coded=packed, source=(source,))
    got = get(with_assets(root, Pipeline(app_js=asset)), "/s/app.js", accept_encoding="br")
    assert brotli.decompress(got.body) == made.read_bytes()


def test_a_page_that_is_compressed_while_assets_change_is_not_kept(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, source = tmp_path_factory.mktemp("cache"), str(root.resolve() / "page.html")
    for tag in ("old", "new"):
        (cache / tag).write_text(f"<p>{tag}" * 1000)
    old, new = (Asset(str(cache / tag), tag=tag, source=(source,)) for tag in ("old", "new"))
    pipeline = Pipeline(page_html=old)
    handler = with_assets(root, pipeline)
    get(handler, "/s/page.html")
    run = iothreads.run

    def late(function: Any, *args: Any) -> Any:
        """The state is taken over while what compressed the page waits for a thread."""
        if function.__name__ == "_keep" and not pipeline.generation:
            pipeline.assets["/s/page.html"] = new
            pipeline.generation += 1
            for callback in pipeline.callbacks:
                callback()
        return run(function, *args)

    monkeypatch.setattr(iothreads, "run", late)
    assert get(handler, "/s/page.html", accept_encoding="gzip").fields["etag"] == '"old-gz"'
    assert pipeline.generation == 1
    for accept, etag in (("gzip", '"new-gz"'), ("", '"new"')):
        assert get(handler, "/s/page.html", accept_encoding=accept).fields["etag"] == etag
