"""Pages: which references are found and changed, and what a minifier may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.assets import minify, pages


def refs(text: str) -> list[str]:
    return [each.text for each in pages.references(text).references]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<link rel="stylesheet" href="a.css">', ["a.css"]),
        ("<LINK REL=StyleSheet HREF=a.css>", ["a.css"]),
        ('<link rel="shortcut icon" href=a.ico>', ["a.ico"]),
        ("<link rel=preload as=font href=a.woff2>", ["a.woff2"]),
        ("<link rel=preload as=fetch href=a.json><link rel=canonical href=a.html>", []),
        ("<link rel=modulepreload href=a.js><script type=module src=a.js></script>", []),
        ("<script src='a.js'></script>", ["a.js"]),
        ("<script>'<img src=a.png>'</script><textarea><img src=b.png></textarea>", []),
        ("<!-- <img src=a.png> --><img src=b.png>", ["b.png"]),
        ("<img src=a.png src=b.png>", ["a.png"]),
        ('<img srcset="a.png 1x, b.png 2x">', ["a.png", "b.png"]),
        ('<img srcset="a.png,b.png 2x, c.png">', ["a.png,b.png", "c.png"]),
        ("<video src=a.mp4 poster=b.jpg><track src=c.vtt></video>", ["a.mp4", "b.jpg", "c.vtt"]),
        ("<a href=a.png>b</a><iframe src=c.html></iframe>", []),
        ("<object data=a.svg></object><use href=b.svg#c></use>", ["a.svg", "b.svg#c"]),
        ("<style>a{b:url(x.png)}</style><p style=\"c:url('y.png')\">", ["x.png", "y.png"]),
        ("<img src='a&amp;b.png'>", []),
        ("<img src=a.png", []),
        ("<img src = 'a.png' / >", ["a.png"]),
        ("<script><!-- <script></script> <img src=a.png> --></script><img src=b.png>", ["b.png"]),
        ("<noscript><img src=a.png></noscript>", ["a.png"]),
        ("a < b <img src=c.png>", ["c.png"]),
    ],
)
def test_references_are_found(text: str, found: list[str]) -> None:
    assert refs(text) == found


STYLED = "<style>a{b:url(x.png)}</style><p style='c:url(y.png)'><img src=z.png>"


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ("style-src 'self' 'sha256-x'", ["z.png"]),
        ("script-src 'self'; STYLE-SRC-ELEM 'sha384-x'", ["z.png"]),
        ("default-src 'sha512-x'", ["z.png"]),
        ("style-src-attr 'unsafe-hashes' 'sha256-x'", ["z.png"]),
        ("style-src 'unsafe-inline'; script-src 'sha256-x'", ["x.png", "y.png", "z.png"]),
        ("style-src 'self' 'nonce-sha256-x'", ["x.png", "y.png", "z.png"]),
    ],
)
def test_styles_that_a_policy_allows_by_their_hash_are_left(policy: str, found: list[str]) -> None:
    assert refs(f'<META http-equiv="Content-Security-Policy" content="{policy}">{STYLED}') == found


def test_what_only_speaks_of_a_policy_is_none() -> None:
    text = "<meta name=content-security-policy content=\"style-src 'sha256-x'\">"
    assert refs(text + STYLED) == ["x.png", "y.png", "z.png"]


def test_what_stands_before_the_base_is_left() -> None:
    found = pages.references("<link rel=icon href=a.ico><base href=/b/><base href=/c/><img src=d.png>")
    assert (found.base, [each.text for each in found.references]) == ("/b/", ["d.png"])


@pytest.mark.parametrize(
    ("text", "pinned"),
    [
        ("<script src=a.js integrity=sha384-x></script>", ["a.js"]),
        ("<script type=module src=' a.js' integrity=sha384-x></script>", ["a.js"]),
        ("<link rel=modulepreload href=a.js integrity=sha384-x>", ["a.js"]),
        ("<link rel=preload as=fetch href=a.js integrity=sha384-x>", ["a.js"]),
        ("<link rel=stylesheet href='a&amp;b.css?c&amp;d' integrity=sha384-x>", ["a&b.css?c&d"]),
        ("<script src=a.js integrity></script><script integrity=sha384-x></script>", []),
        (
            '<script type=importmap>{"imports": {"a": "./b.js"}, "integrity": {"./a.js": "sha-x"}}</script>',
            ["./a.js"],
        ),
        ('<script type=importmap>{"integrity": ["./a.js"]}</script>', []),
        ('<script type=importmap>{"integrity": </script><script>{"integrity": {"a": "b"}}</script>', []),
    ],
)
def test_pinned_files_are_told(text: str, pinned: list[str]) -> None:
    assert pages.references(text).integrity == pinned


def test_only_the_reference_changes() -> None:
    text = "<!doctype html><p  style='a:url( \"x.png\" )' >&amp;<img alt=x.png\n src= x.png >\xc3\xa4<x>"
    new = text.replace('"x.png"', '"y.png"').replace("= x.png", "= y.png")
    assert pages.rewrite(text, lambda each: "y.png") == new


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<ul>\n  <li>a</li>\n  <li>b</li>\n</ul>", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
        ("<p>a   <b>b</b>  c</p>", "<p>a <b>b</b> c</p>"),
        ("<pre>  a\n   b </pre><code>a  b</code>", "<pre>  a\n   b </pre><code>a  b</code>"),
        ('<p class="a  b" id="c">', '<p class="a b" id=c>'),
        ("<!-- a --><form method=get></form>", "<!-- a --><form method=get></form>"),
        ("<style>p{white-space:pre}</style><p>a  b</p>", "<style>p{white-space:pre}</style><p>a  b</p>"),
        ("<script>\n a  =  b\n</script><p>  a", "<script>\n a  =  b\n</script><p> a"),
        ("<style> a { b : c } </style><p>  a", "<style> a { b : c } </style><p> a"),
        ("<script src=a.js> </script><p>  a", "<script src=a.js> </script><p> a"),
        ("<script type=a/b>\n <b>  c</b> </script><p>  a", "<script type=a/b>\n <b>  c</b> </script><p> a"),
        ("<textarea>\n\n a  b </textarea><p>  a", "<textarea>\n\n a  b </textarea><p> a"),
        ("<p>  <iframe> a  b </iframe></p>", "<p> <iframe> a  b </iframe></p>"),
        ("<p style=' a: b ; c:d; '>a</p>", '<p style=" a: b ; c:d; ">a</p>'),
        ("<p style='' class=' a '>a</p>", '<p class=a style="">a</p>'),
        ("<a href=''>a</a><img alt=\"\" src=x>", '<a href="">a</a><img alt="" src=x>'),
        ("<input disabled='' value=''><p a b>", '<input disabled value=""><p a b>'),
    ],
)  # fmt: skip
def test_minified(before: str, after: str) -> None:
    assert minify.minify_html(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "<table><tr><td>a</table><p>b",  # the table's end would be lost
        "<p>{% if a %}<br {{ x }}>",
        "<meta charset=iso-8859-1><p>a",
        "<p>\xe4",
    ],
)
def test_a_changed_meaning_is_noticed(text: str) -> None:
    with pytest.raises(minify.Suspicious):
        minify.minify_html(text)


@given(st.text(alphabet="<>/!-abscript='\" &\n[]?", max_size=60))
def test_pieces_make_up_the_whole(text: str) -> None:
    assert "".join(piece.text for piece in pages.pieces(text)) == text
    assert pages.rewrite(text, lambda each: None) == text
