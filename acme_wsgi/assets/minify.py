"""Smaller style sheets, scripts and pages that say the same.

Law: text in, text out; bytes as latin-1 text. The minifiers are other people's, and each has inputs that it
changes the meaning of. So every result is read again and compared with what went in, token by token; one that
differs raises Suspicious, and the file is served as it is.
"""

from __future__ import annotations

import re

from acme_wsgi.assets import css, pages, scripts
from acme_wsgi.assets.css import Broken

LARGEST = 5 << 20
"""Bytes of the largest file that is minified or rewritten."""

_PACKAGES = ("rcssmin", "rjsmin", "minify-html")
# Text in a page that isn't to be touched by the minifier, as characters of a private use area: white space.
_HIDDEN = {" ": "\ue010", "\n": "\ue011", "\t": "\ue012", "\r": "\ue013", "\f": "\ue014"}
_HIDING = str.maketrans(_HIDDEN)
_KEPT = "\ue015"  # in front of an attribute's name
_EMPTY = "\ue016"  # behind it, in place of a value that is empty
_SHOWING = str.maketrans({_KEPT: "", _EMPTY: '=""'} | {hidden: shown for shown, hidden in _HIDDEN.items()})
_BLANK = re.compile(r"[ \t\r\n\f]+")
_KEEPS_SPACE = {"pre", "textarea", "listing", "xmp", "plaintext", "code", "samp", "kbd", "tt", "svg", "math"}
_VISIBLE_SPACE = re.compile(r"white-space(?:-collapse)?\s*:\s*(?:pre|break-spaces|preserve)", re.IGNORECASE)
_TEMPLATE = re.compile(r"[{}%<]")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)


class Suspicious(ValueError):
    """What a minifier made of a file doesn't say the same."""


def tools() -> str:
    """The versions of the minifiers: other ones may make other files."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} unknown")
    return ", ".join(found)


def minify_css(text: str) -> str:
    """A smaller style sheet; raises Broken, Suspicious."""
    import rcssmin

    small: str = rcssmin.cssmin(text, keep_bang_comments=True)
    if not css.same(text, small):
        raise Suspicious("rcssmin changes what it says")
    return small


def minify_js(text: str) -> str:
    """A smaller script; raises Broken, Suspicious."""
    import rjsmin

    scripts.check(text)
    small: str = rjsmin.jsmin(text, keep_bang_comments=True)
    try:
        same = scripts.same(text, small)
    except Broken:
        same = False
    if not same:
        raise Suspicious("rjsmin changes what it says")
    return small


def minify_html(text: str) -> str:
    """A smaller page; raises Suspicious.

    White space between words and tags becomes one character, never none: whether it shows is up to the style
    sheet. Comments stay, since scripts look for them. Nothing inside of scripts and styles changes, not even
    white space: a policy may allow them by a hash of their content.
    """
    page = _decoded(text)
    prepared = _hide_space(page)
    small = _revealed(_minified(prepared))
    if pages.essence(_revealed(prepared)) != pages.essence(small):
        raise Suspicious("minify-html changes what it says")
    return small.encode().decode("latin-1")


def _decoded(text: str) -> str:
    """The page as the characters it is made of."""
    charset = _CHARSET.search(text[:4096])
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise Suspicious(f"its encoding is {charset[1]}")
    try:
        page = text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise Suspicious("it isn't UTF-8") from None
    ours = (_KEPT, _EMPTY, *_HIDDEN.values())
    if page.startswith("\ufeff") or "\0" in page or any(char in page for char in ours):
        raise Suspicious("it holds characters that pages don't")
    return page


def _minified(page: str) -> str:
    import minify_html as minifier

    return minifier.minify(
        page,
        keep_closing_tags=True,
        keep_comments=True,
        keep_html_and_head_opening_tags=True,
        keep_input_type_text_attr=True,
        keep_ssi_comments=True,
    )


def _hide_space(page: str) -> str:
    """The page with its white space out of the minifier's sight, its runs shortened where that can't show."""
    result: list[str] = []
    keeping: list[str] = []  # the open elements in which white space shows
    everywhere = _VISIBLE_SPACE.search(page) is not None
    for piece in pages.pieces(page):
        if piece.kind == "text":
            result.append(_hidden(piece.text, shorten=not everywhere and not keeping))
            continue
        if piece.kind == "start" and piece.name in _KEEPS_SPACE and not piece.text.endswith("/>"):
            keeping.append(piece.name)
        elif piece.kind == "end" and piece.name in keeping:
            del keeping[keeping.index(piece.name) :]
        elif piece.kind == "raw":
            result.append(_hidden(piece.text, shorten=False))
            continue
        result.append(_kept(piece) if piece.kind == "start" else piece.text)
    return "".join(result)


def _kept(piece: pages.Piece) -> str:
    """A tag whose attributes the minifier doesn't know: it drops those that say what holds anyway, and style
    sheets may ask for them."""
    parts, done = [], 0
    for attribute in piece.attributes:
        if _TEMPLATE.search(attribute.name):
            raise Suspicious("it looks like a template")
        if attribute.name not in pages.BOOLEAN and attribute.name != "class":
            at = attribute.at - piece.start
            parts += [piece.text[done:at], _KEPT]
            done = at
            if attribute.quote and not attribute.value:
                # Without it `href=""` would become `href`: the same to browsers, not to every crawler.
                done = attribute.start - piece.start + 1
                parts += [piece.text[at : at + len(attribute.name)], _EMPTY]
    return "".join([*parts, piece.text[done:]])


def _hidden(text: str, *, shorten: bool) -> str:
    if shorten:
        text = _BLANK.sub(lambda match: "\n" if "\n" in match[0] else " ", text)
    return text.translate(_HIDING) if _BLANK.search(text) else text


def _revealed(text: str) -> str:
    return text.translate(_SHOWING)
