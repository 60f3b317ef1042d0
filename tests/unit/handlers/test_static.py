"""Static files without a socket: what each request gets, from real directories."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import brotli
import pytest
from static_site import LARGE, OLD, TEXT, get, refused, site

from acme_wsgi.compression import compress
from acme_wsgi.config import Route
from acme_wsgi.config.schema.content import Compression, Etag, Mmap, Precompressed, Static
from acme_wsgi.config.schema.server import Server
from acme_wsgi.files.beneath import Beneath
from acme_wsgi.files.cache import FileTable
from acme_wsgi.handlers import Context, _contents, _digesting, _encoding, _lookup, static
from acme_wsgi.handlers._lookup import Lookup
from acme_wsgi.http.writer import DIRECT, MAPPING, READ, SENDFILE


def test_a_file(root: Path) -> None:
    got = get(site(root), "/page.html")
    assert (got.status, got.body) == (200, TEXT.encode())
    assert got.fields == {
        "content-type": "text/html; charset=utf-8",
        "etag": f'"{hashlib.md5(TEXT.encode()).hexdigest()}"',
        "last-modified": "Sun, 09 Sep 2001 01:46:40 GMT",
        "accept-ranges": "bytes",
    }


def test_below_a_prefix(root: Path) -> None:
    handler = site(root, prefix="/static")
    assert get(handler, "/static/docs/").body == b"<p>docs"
    assert get(handler, "/static").fields["location"] == "/static/"
    assert refused(handler, "/static/static/page.html").status == 404


def test_an_exact_route_serves_the_whole_path(root: Path) -> None:
    assert get(site(root, prefix=None), "/docs/index.html").body == b"<p>docs"


def test_a_known_file_is_handed_out_without_a_look(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = site(root)
    first = get(handler, "/page.html")
    monkeypatch.setattr(static.Files, "answer", None)
    assert get(handler, "/page.html").body == first.body
    assert get(handler, "/page.html", method="HEAD").fields == first.fields


def test_a_second_change_within_a_tick_of_the_clock_has_its_own_tag(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_contents, "key_of", lambda file: (file.dev, file.ino, file.size, 0, 0))
    tags = []
    for content in ("first", "again"):
        (root / "new.txt").write_text(content)
        tags.append(get(site(root), "/new.txt").fields["etag"])
    assert tags == [f'"{hashlib.md5(content).hexdigest()}"' for content in (b"first", b"again")]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
def test_other_methods(root: Path, method: str) -> None:
    handler = site(root)
    for _ in range(2):
        error = refused(handler, "/page.html", method=method)
        assert (error.status, error.headers) == (405, (("Allow", "GET, HEAD"),))
        get(handler, "/page.html")  # known from now on


@pytest.mark.parametrize("path", ["/nothing", "/.secret", "/page.html/", "/docs/no", "/page.html/x", "/\xff"])
def test_what_is_not_there(root: Path, path: str) -> None:
    assert refused(site(root), path).status == 404


def test_a_directory_without_index_is_refused(root: Path) -> None:
    assert refused(site(root), "/plain/").status == 403


@pytest.mark.parametrize(
    ("path", "query", "location"),
    [
        ("/docs", "", "/docs/"),
        ("/docs", "a=b&c=%20", "/docs/?a=b&c=%20"),
        ("/od d\\\xc3\xa4", "", "/od%20d%5C%C3%A4/"),
    ],
)
def test_a_directory_has_a_slash(root: Path, path: str, query: str, location: str) -> None:
    (root / "od d\\ä").mkdir()
    got = get(site(root), path, query=query)
    assert (got.status, got.fields["location"]) == (301, location)


def test_no_redirect_names_another_host(root: Path) -> None:
    (root / "\\evil.test").mkdir()
    assert get(site(root), "/\\evil.test").fields["location"] == "/%5Cevil.test/"


def test_index_files_in_their_order(root: Path) -> None:
    (root / "docs/home.htm").write_text("second")
    assert get(site(root, where={"index": ("home.htm", "index.html")}), "/docs/").body == b"second"
    assert get(site(root, where={"index": ("none.htm", "index.html")}), "/docs/").body == b"<p>docs"


def test_a_listing(root: Path) -> None:
    handler = site(root, where={"directory_listing": True})
    got = get(handler, "/plain/")
    page = got.body.decode()
    assert got.fields["content-type"] == "text/html; charset=utf-8"
    assert page.index("./sub/") < page.index("./%3Cb%3E%26.txt") < page.index("./note.txt")
    assert "&lt;b&gt;&amp;.txt" in page and "<b>" not in page
    assert "../" in page and "6 B" in page
    (root / "index.html").unlink()
    page = get(handler, "/").body.decode()
    assert ".secret" not in page and "../" not in page


@pytest.mark.parametrize("error", [FileNotFoundError, NotADirectoryError])
def test_a_directory_that_goes_while_it_is_listed_is_not_there(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def gone(self: Beneath, relative: bytes, limit: int) -> None:
        raise error

    monkeypatch.setattr(Beneath, "listing", gone)
    assert refused(site(root, where={"directory_listing": True}), "/plain/").status == 404


def test_a_long_listing_is_compressed(root: Path) -> None:
    for number in range(100):
        (root / f"plain/{number}").touch()
    handler = site(root, where={"directory_listing": True}, compression=Compression())
    plain = get(handler, "/plain/")
    got = get(handler, "/plain/", accept_encoding="gzip")
    assert (plain.fields["vary"], got.fields["content-encoding"]) == ("Accept-Encoding", "gzip")
    assert gzip.decompress(got.body) == plain.body


def test_a_listing_has_an_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lookup, "MOST_LISTED", 2)
    page = get(site(root, where={"directory_listing": True}), "/plain/").body.decode()
    assert page.count("<a href") == 3 and "more files" in page


def test_only_these_extensions(root: Path) -> None:
    handler = site(root, where={"extensions": (".html", ".TXT"), "directory_listing": True})
    assert get(handler, "/page.html").status == get(handler, "/plain/note.txt").status == 200
    assert refused(handler, "/app.js").status == 404
    assert get(handler, "/docs").status == 301
    (root / "plain/code.js").touch()
    assert "code.js" not in get(handler, "/plain/").body.decode()


@pytest.mark.parametrize(
    ("tries", "path", "expected"),
    [
        (("$uri", "/index.html"), "/page.html", TEXT),
        (("$uri", "/index.html"), "/no/such/thing", "<p>home"),
        (("$uri", "/index.html"), "/", "<p>home"),
        (("$uri", "/index.html"), "/docs", "<p>home"),
        (("$uri", "/index.html"), "/docs/", "<p>home"),
        (("$uri", "$uri.html", "=404"), "/page", TEXT),
        (("$uri", "$uri.html", "=404"), "/none", 404),
        (("$uri", "$uri/", "=404"), "/docs/", "<p>docs"),
        (("$uri", "$uri/", "=404"), "/docs", 301),
        (("$uri", "$uri/", "=404"), "/plain/", 404),
        (("$uri", "$uri/", "=410"), "/none", 410),
        (("$uri", "$uri/"), "/none", 404),
        (("/docs$uri",), "/index.html", "<p>docs"),
        (("$uri", "/docs/"), "/none", 301),
    ],
)
def test_try_files(root: Path, tries: tuple[str, ...], path: str, expected: str | int) -> None:
    handler = site(root, where={"try_files": tries})
    if isinstance(expected, str):
        assert get(handler, path).body == expected.encode()
    elif expected < 400:
        assert get(handler, path).status == expected
    else:
        assert refused(handler, path).status == expected


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"route /x: root .*nowhere"):
        site(tmp_path / "nowhere")


def test_text_that_is_not_utf8_has_no_charset(root: Path) -> None:
    (root / "latin.html").write_bytes(b"<meta charset=iso-8859-1>gr\xfc\xdfe")
    assert get(site(root), "/latin.html").fields["content-type"] == "text/html"
    (root / "big.txt").write_bytes("ü".encode() * 600_000)  # a megabyte ends within a character
    assert get(site(root), "/big.txt").fields["content-type"] == "text/plain; charset=utf-8"


# -- conditions and ranges


def test_conditions(root: Path) -> None:
    handler = site(root)
    tag = get(handler, "/page.html").fields["etag"]
    got = get(handler, "/page.html", if_none_match=tag)
    assert (got.status, got.body) == (304, b"")
    assert got.fields == {"etag": tag}
    assert get(handler, "/page.html", if_modified_since="Sun, 09 Sep 2001 01:46:40 GMT").status == 304
    assert get(handler, "/page.html", if_none_match='"x"').status == 200
    assert refused(handler, "/page.html", if_match='"x"').status == 412
    off = site(root, static=Static(conditional_requests=False))
    assert get(off, "/page.html", if_none_match=tag).status == 200
    assert get(off, "/page.html", if_match='"x"').status == 200
    assert get(off, "/page.html", range="bytes=0-0", if_range=tag).status == 200


@pytest.mark.parametrize("path", ["/page.html", "/large.bin"])
def test_ranges(root: Path, path: str) -> None:
    handler = site(root)
    whole = get(handler, path)
    for _ in range(2):
        got = get(handler, path, range="bytes=100-299")
        assert (got.status, got.body) == (206, whole.body[100:300])
        assert got.fields == {**whole.fields, "content-range": f"bytes 100-299/{len(whole.body)}"}
        assert get(handler, path, range="bytes=-7").body == whole.body[-7:]
    error = refused(handler, path, range=f"bytes={len(whole.body)}-")
    assert (error.status, error.headers) == (416, (("Content-Range", f"bytes */{len(whole.body)}"),))
    got = get(handler, path, range="bytes=0-9,1000-1009")
    assert got.fields["content-type"].startswith("multipart/byteranges; boundary=")
    assert whole.body[:10] in got.body and whole.body[1000:1010] in got.body
    assert got.response.body.count == len(got.body)
    assert get(handler, path, range="nonsense").status == 200
    assert get(handler, path, method="HEAD", range="bytes=0-1").status == 200


def test_if_range(root: Path) -> None:
    handler = site(root)
    whole = get(handler, "/page.html")
    assert get(handler, "/page.html", range="bytes=1-2", if_range=whole.fields["etag"]).status == 206
    assert get(handler, "/page.html", range="bytes=1-2", if_range='"other"').body == whole.body
    date = whole.fields["last-modified"]
    assert get(handler, "/page.html", range="bytes=1-2", if_range=date).status == 206


def test_a_date_vouches_for_no_bytes_of_who_takes_a_coding(root: Path) -> None:
    """All forms of a file have the same date, and a client may hold a part of any of them."""
    (root / "app.js.gz").write_bytes(b"packed beforehand")
    os.utime(root / "app.js.gz", (OLD, OLD))
    handler = site(root, compression=Compression(), static=Static(etag=Etag(enabled=False)))
    for path in ("/page.html", "/app.js"):
        plain = get(handler, path)
        part = {"range": "bytes=5-", "if_range": plain.fields["last-modified"]}
        for _ in range(2):
            whole = get(handler, path, accept_encoding="gzip")
            got = get(handler, path, accept_encoding="gzip", **part)
            assert (got.status, got.body) == (200, whole.body) != (200, plain.body)
            assert got.fields["content-encoding"] == "gzip"
        for takes_none in ({}, {"accept_encoding": "identity"}):
            got = get(handler, path, **takes_none, **part)
            assert (got.status, got.body) == (206, plain.body[5:])
    got = get(handler, "/large.bin", accept_encoding="gzip", **part)
    assert (got.status, got.body) == (206, LARGE[5:]), "which has one form only"


# -- settings


def test_settings_of_the_fields(root: Path) -> None:
    handler = site(
        root,
        static=Static(etag=Etag(enabled=False), last_modified=False),
        where={"cache_control": "public, max-age=60"},
    )
    fields = get(handler, "/page.html").fields
    assert "etag" not in fields and "last-modified" not in fields
    assert fields["cache-control"] == "public, max-age=60"
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    sha256 = site(root, static=Static(etag=Etag(algorithm="sha256")))
    assert get(sha256, "/page.html").fields["etag"] == f'"{digest}"'


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        (Static(), SENDFILE),
        (Static(zero_copy=False), READ),
        (Static(direct_io=True, direct_io_threshold=100_000), DIRECT),
        (Static(direct_io=True), SENDFILE),
        (Static(mmap=Mmap(enabled=True, threshold=1000)), MAPPING),
        (Static(mmap=Mmap(enabled=True, threshold=1000, max_size=2000)), SENDFILE),
        (Static(mmap=Mmap(enabled=True, threshold=1), direct_io=True, direct_io_threshold=1), DIRECT),
    ],
)
def test_the_way_of_a_large_file(root: Path, settings: Static, way: int) -> None:
    handler = site(root, static=settings)
    body = get(handler, "/large.bin").response.body
    assert (body.way, body.offset, body.count) == (way, 0, len(LARGE))
    assert get(handler, "/large.bin", range="bytes=5-9").response.body.way == way
    assert isinstance(get(handler, "/page.html").response.body, bytes)


@pytest.mark.parametrize("named", [True, False])
def test_the_digest_of_a_large_file_comes_later(
    root: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.setattr(_contents, "AT_ONCE", 1000)
    monkeypatch.setattr("acme_wsgi.handlers._forms.AT_ONCE", 1000)
    go, take, starts = threading.Event(), _digesting._take, []

    def wait_and_take(update: Any, file: Any, at: int, cached: bool) -> int:
        assert go.wait(10)
        if at == 0:
            starts.append(file)
        return take(update, file, at, cached)

    monkeypatch.setattr(_digesting, "_take", wait_and_take)
    handler = site(root)
    assert "etag" not in get(handler, "/large.bin").fields
    assert "etag" not in get(handler, "/large.bin").fields
    [(work, _)] = static._DIGESTING._later._queue.values()
    go.set()
    tag = f'"{hashlib.md5(LARGE).hexdigest()}"'
    if named:  # who names a tag waits for it
        assert get(handler, "/large.bin", if_none_match=tag).status == 304
    assert work.done.wait(10)
    assert get(handler, "/large.bin").fields["etag"] == tag
    assert len(starts) == 1, "computed once"


# -- content codings


def test_compressed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = site(root, compression=Compression())
    plain = get(handler, "/page.html")
    made = []

    def noted(token: str, level: int, data: bytes) -> bytes:
        made.append(token)
        return compress(token, level, data)

    monkeypatch.setattr(static, "compress", noted)
    for _ in range(2):
        got = get(handler, "/page.html", accept_encoding="gzip, br")
        assert got.fields["content-encoding"] == "br"
        assert brotli.decompress(got.body) == plain.body
        assert got.fields["etag"] == plain.fields["etag"][:-1] + '-br"'
        got = get(handler, "/page.html", accept_encoding="gzip")
        assert gzip.decompress(got.body) == plain.body
        assert got.fields["etag"] == plain.fields["etag"][:-1] + '-gz"'
    assert made == ["br", "gzip"]
    assert get(handler, "/page.html", accept_encoding="identity").fields == plain.fields
    assert get(handler, "/page.html", accept_encoding="gzip", if_none_match=got.fields["etag"]).status == 304
    ranged = get(handler, "/page.html", accept_encoding="gzip", range="bytes=0-9")
    assert ranged.body == plain.body[:10] and "content-encoding" not in ranged.fields


def test_a_form_that_takes_longer_than_anybody_waits_is_made_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "big.css").write_bytes(TEXT.encode() * 100)
    go, made = threading.Event(), []

    def slow(token: str, level: int, data: bytes) -> bytes:
        made.append(token)
        assert go.wait(10)
        return compress(token, level, data)

    monkeypatch.setattr(_encoding, "compress", slow)
    monkeypatch.setattr(_encoding, "has_settled", lambda file: True)
    handler = site(root, compression=Compression(), server=Server(timeout=0.1))
    plain = get(handler, "/big.css")
    for _ in range(2):
        assert get(handler, "/big.css", accept_encoding="br").fields == plain.fields
    [(work, _)] = static._ENCODINGS._later._queue.values()
    go.set()
    assert work.done.wait(10)
    for _ in range(2):
        got = get(handler, "/big.css", accept_encoding="br")
        assert got.fields["content-encoding"] == "br"
        assert brotli.decompress(got.body) == plain.body
    assert made == ["br"]


def test_a_form_that_takes_long_is_waited_for(root: Path) -> None:
    (root / "big.css").write_bytes(TEXT.encode() * 100)
    got = get(site(root, compression=Compression()), "/big.css", accept_encoding="gzip")
    assert gzip.decompress(got.body) == TEXT.encode() * 100


def test_what_is_not_compressed(root: Path) -> None:
    handler = site(root, compression=Compression(min_size=1000, max_size=50_000))
    (root / "large.html").write_bytes(LARGE)
    (root / "noise.css").write_bytes(os.urandom(5000))
    for path in ("/index.html", "/large.bin", "/large.html", "/noise.css"):
        for _ in range(2):
            assert "content-encoding" not in get(handler, path, accept_encoding="gzip, br").fields
    off = site(root, compression=None)
    assert "content-encoding" not in get(off, "/page.html", accept_encoding="gzip").fields


def test_who_rules_out_the_file_as_it_is_gets_small_ones_encoded(root: Path) -> None:
    (root / "tiny.css").write_text("a{}")
    (root / "noise.css").write_bytes(os.urandom(5000))
    (root / "large.css").write_bytes(os.urandom(20_000))
    (root / "empty.css").touch()
    handler = site(root, compression=Compression(), where={"directory_listing": True})
    for accept in ("identity;q=0, gzip", "gzip, *;q=0"):
        for path in ("/tiny.css", "/noise.css", "/plain/"):
            plain = get(handler, path, accept_encoding="gzip")
            assert plain.fields["vary"] == "Accept-Encoding" and "content-encoding" not in plain.fields
            for _ in range(2):
                got = get(handler, path, accept_encoding=accept)
                assert (got.fields["content-encoding"], got.fields["vary"]) == ("gzip", "Accept-Encoding")
                assert gzip.decompress(got.body) == plain.body == get(handler, path).body
                assert get(handler, path, accept_encoding="gzip").fields == plain.fields
        for path in ("/large.css", "/empty.css", "/plain/note.txt"):
            assert "content-encoding" not in get(handler, path, accept_encoding=accept).fields
    only_brotli = site(root, compression=Compression(algorithms=("brotli",)))
    assert get(only_brotli, "/tiny.css", accept_encoding="identity;q=0, gzip").body == b"a{}"


def test_no_transform_is_obeyed(root: Path) -> None:
    (root / "app.js.gz").write_bytes(b"packed beforehand")
    cache_control = "public, No-Transform"
    where = {"cache_control": cache_control, "directory_listing": True}
    handler = site(root, compression=Compression(min_size=1), where=where)
    plain = get(handler, "/page.html", accept_encoding="gzip")
    assert (plain.body, plain.fields["cache-control"]) == (TEXT.encode(), cache_control)
    assert "content-encoding" not in plain.fields and "vary" not in plain.fields
    # What somebody has put there is no transformation, and a listing has a Cache-Control of its own.
    assert get(handler, "/app.js", accept_encoding="gzip").body == b"packed beforehand"
    assert "content-encoding" not in get(handler, "/app.js", accept_encoding="br").fields
    assert get(handler, "/plain/", accept_encoding="gzip").fields["content-encoding"] == "gzip"


def test_files_compressed_beforehand(root: Path) -> None:
    packed = gzip.compress(b"not even the same", mtime=0)
    (root / "page.html.gz").write_bytes(packed)
    (root / "page.html.br").write_bytes(b"too old")
    os.utime(root / "page.html.br", (OLD - 1, OLD - 1))
    handler = site(root, compression=Compression())
    got = get(handler, "/page.html", accept_encoding="gzip")
    assert (got.body, got.fields["content-encoding"]) == (packed, "gzip")
    assert got.fields["etag"] == f'"{hashlib.md5(packed).hexdigest()}-gz"'
    assert brotli.decompress(get(handler, "/page.html", accept_encoding="br").body) == TEXT.encode()
    assert get(handler, "/page.html").fields["vary"] == "Accept-Encoding"
    # A client that has a part of the compressed form gets the rest of that.
    rest = get(handler, "/page.html", accept_encoding="gzip", range="bytes=5-", if_range=got.fields["etag"])
    assert (rest.status, rest.body, rest.fields["content-encoding"]) == (206, packed[5:], "gzip")
    assert get(handler, "/page.html.gz").fields["content-type"] == "application/gzip"
    off = site(root, compression=Compression(precompressed=Precompressed(enabled=False)))
    assert gzip.decompress(get(off, "/page.html", accept_encoding="gzip").body) == TEXT.encode()


# -- changes


def test_a_changed_file_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = site(root)
    get(handler, "/large.bin")
    with open(root / "large.bin", "r+b") as file:
        file.truncate(50_000)  # in place, and nobody tells
    got = get(handler, "/large.bin")
    assert got.body == LARGE[:50_000]
    assert got.fields["etag"] == f'"{hashlib.md5(LARGE[:50_000]).hexdigest()}"'


def test_an_old_digest_is_not_taken_for_a_new_version(root: Path) -> None:
    handler = site(root)
    before = get(handler, "/app.js").fields["etag"]
    (root / "new.js").write_text("x = 2;\n" * 300)
    os.utime(root / "new.js", (OLD, OLD))
    (root / "new.js").rename(root / "app.js")
    after = get(site(root), "/app.js")
    assert after.body.startswith(b"x = 2") and after.fields["etag"] != before


def test_a_file_from_the_future_has_no_date(root: Path) -> None:
    later = time.time() + 1e6
    os.utime(root / "page.html", (later, later))
    assert "last-modified" not in get(site(root), "/page.html").fields


def test_no_descriptors_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = site(root)

    def fail(*args: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Lookup, "find", fail)
    error = refused(handler, "/page.html")
    assert (error.status, error.headers) == (503, (("Retry-After", "1"),))


def test_static_routes_share_what_a_worker_may_hold(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[FileTable] = []

    def make(*args: Any, **named: Any) -> FileTable:
        tables.append(FileTable(*args, **named))
        return tables[-1]

    monkeypatch.setattr(static, "FileTable", make)
    route = Route(path="/*", type="static", root=str(root))
    for routes in (1, 4):
        static.build(route, Context(where="route /*", load=str, prefix="", static_routes=routes))
    one, four = tables
    for bound in ("max_entries", "max_memory", "max_descriptors"):
        assert 0 < getattr(four, bound) <= getattr(one, bound) // 4
