"""Media types by name."""

from __future__ import annotations

import pytest

from acme_wsgi.files.media import _TABLE, is_text, media_type


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("index.html", "text/html"),
        ("INDEX.HTM", "text/html"),
        ("app.min.js", "text/javascript"),
        ("module.mjs", "text/javascript"),
        ("style.css", "text/css"),
        ("data.json", "application/json"),
        ("app.js.map", "application/json"),
        ("feed.xml", "application/xml"),
        ("logo.svg", "image/svg+xml"),
        ("photo.avif", "image/avif"),
        ("photo.webp", "image/webp"),
        ("favicon.ico", "image/vnd.microsoft.icon"),
        ("font.woff2", "font/woff2"),
        ("code.wasm", "application/wasm"),
        ("film.mp4", "video/mp4"),
        ("site.webmanifest", "application/manifest+json"),
        ("page.html.gz", "application/gzip"),
        ("page.html.br", "application/octet-stream"),
        ("README", "application/octet-stream"),
        ("html", "application/octet-stream"),
        (".html", "application/octet-stream"),
        ("a.", "application/octet-stream"),
        ("x.nobody-knows", "application/octet-stream"),
        ("gr\xc3\xbc\xc3\x9fe.txt", "text/plain"),
    ],
)
def test_types(name: str, expected: str) -> None:
    assert media_type(name) == expected


def test_every_type_can_stand_in_a_field() -> None:
    for extension, media in _TABLE.items():
        assert extension == extension.lower() and extension.startswith(".")
        assert media.isascii() and media.count("/") == 1 and " " not in media and ";" not in media


def test_only_text_has_a_charset() -> None:
    assert is_text("text/css")
    assert not is_text("application/json")
    assert not is_text("image/svg+xml")
