"""Pages as tokens: the references in them, and whether two of them say the same.

Law: text in, text out (the HTML standard's tokenizer, as far as it takes to find tags and their attributes).
Bytes come as latin-1 text. What isn't clear is left out: a reference that isn't found stays as it is.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from acme_wsgi.assets import css

Change = Callable[[css.Reference], "str | None"]

_SPACE = " \t\n\r\f"
_TAG = re.compile(r"</?[A-Za-z][^\s/>]*")
_ATTRIBUTE = re.compile(
    r"""[\s/]*(?P<name>[^\s/>][^\s/>=]*)(?:\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s>"']"""
    r"""[^\s>]*)))?"""
)
# A tag of which nothing is in doubt: most are like that, and are found in one step.
_SIMPLE = re.compile(
    r"""<(/?)([A-Za-z][^\s/>]*+)(?:[\s/]++[^\s/>"'=<]++(?:=(?:"[^"]*+"|'[^']*+'|[^\s>"'`=<]++))?+)*+[\s/]*+>"""
)
_TAG_END = re.compile(r"[\s/]*>")
_OPAQUE = re.compile(
    r"<!--(?:>|->|.*?(?:-->|--!>|\Z))|<!\[CDATA\[.*?(?:\]\]>|\Z)|<[!?/][^>]*(?:>|\Z)", re.DOTALL
)
# Elements whose content is text, whatever it looks like.
_RAW = {"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes", "plaintext"}
_BARE = re.compile(r"[\s\"'=<>`&]")
_CANDIDATE = re.compile(
    r"[\s,]*(?P<url>[^\s,](?:\S*[^\s,])?)(?:,+(?=\s|\Z)|\s+[^,(]*(?:\([^)]*\)[^,(]*)*,?|\Z)"
)

_LINKS = {"stylesheet", "icon", "apple-touch-icon", "apple-touch-icon-precomposed", "mask-icon"}
_PRELOADS = {"font", "image", "style", "script", "track", "video", "audio"}
_URLS = {
    "img": ("src",), "source": ("src",), "video": ("src", "poster"), "audio": ("src",), "track": ("src",),
    "embed": ("src",), "object": ("data",), "input": ("src",), "body": ("background",),
    "table": ("background",), "td": ("background",), "th": ("background",),
    "image": ("href", "xlink:href"), "use": ("href", "xlink:href"), "feimage": ("href", "xlink:href"),
}  # fmt: skip
_SETS = {"img": "srcset", "source": "srcset", "link": "imagesrcset"}
# In a policy: styles are allowed by hashes of their content.
_STYLE_HASH = re.compile(
    r"(?:\A|[;,])\s*(?:style-src(?:-elem|-attr)?|default-src)\s[^;,]*'sha(?:256|384|512)-", re.IGNORECASE
)
# Where an element with `integrity` names what it pins.
_PINNED = ("src", "href", "xlink:href")


@dataclass(slots=True)
class Attribute:
    """An attribute as written.

    :ivar at: where its name stands
    :ivar start: where its value stands, without its quotes; -1 if it has none
    """

    name: str
    at: int
    value: str
    start: int
    quote: str


class Piece:
    """A part of a page: a ``start`` or ``end`` tag, ``text``, ``raw`` text, or what is ``opaque``.

    Attributes are read when they are asked for: most tags' never are.
    """

    __slots__ = ("_attributes", "_inside", "kind", "name", "start", "text")

    def __init__(self, kind: str, text: str, start: int, name: str = "", inside: int = 0) -> None:
        self.kind = kind
        self.text = text
        self.start = start
        self.name = name
        self._inside = inside  # where in `text` the attributes begin; 0: there are none
        self._attributes: tuple[Attribute, ...] | None = None

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """A tag's attributes, in order."""
        if self._attributes is None:
            self._attributes = tuple(self._read()) if self._inside else ()
        return self._attributes

    def _read(self) -> Iterator[Attribute]:
        position = self._inside
        while _TAG_END.match(self.text, position) is None:
            found = _ATTRIBUTE.match(self.text, position)
            if found is None:
                return
            yield _attribute(found, self.start)
            position = found.end()

    def get(self, name: str) -> str | None:
        """An attribute's meaning; the first of a name counts."""
        for attribute in self.attributes:
            if attribute.name == name:
                return html.unescape(attribute.value)
        return None

    def mentions(self, word: str) -> bool:
        """Whether a word, in lower case, stands anywhere in the tag: else no attribute is called so."""
        return word in self.text or word in self.text.lower()


def pieces(text: str) -> Iterator[Piece]:
    """Cut a page up, from its first byte to its last."""
    position, size = 0, len(text)
    while position < size:
        bracket = text.find("<", position)
        if bracket < 0:
            bracket = size
        if bracket > position:
            yield Piece("text", text[position:bracket], position)
        if bracket == size:
            return
        simple = _SIMPLE.match(text, bracket)
        if simple is not None:
            closing, name = simple.groups()
            kind = "end" if closing else "start"
            piece = Piece(kind, simple[0], bracket, name.lower(), simple.end(2) - bracket)
        else:
            piece = _markup(text, bracket)
        yield piece
        position = bracket + len(piece.text)
        if piece.kind == "start" and piece.name in _RAW:
            end = _raw_end(text, position, piece.name)
            if end > position:
                yield Piece("raw", text[position:end], position, piece.name)
            position = end


def _markup(text: str, start: int) -> Piece:
    """What begins with the bracket at `start`."""
    match = _TAG.match(text, start)
    if match is None:
        opaque = _OPAQUE.match(text, start)
        return Piece("opaque", opaque[0], start) if opaque else Piece("text", "<", start)
    position = match.end()
    while (end := _TAG_END.match(text, position)) is None:
        found = _ATTRIBUTE.match(text, position)
        if found is None or found.end() == position:
            return Piece("opaque", text[start:], start)  # a tag that never ends
        position = found.end()
    name = match[0].lstrip("</").lower()
    kind = "end" if match[0].startswith("</") else "start"
    return Piece(kind, text[start : end.end()], start, name, match.end() - start)


def _attribute(found: re.Match[str], offset: int) -> Attribute:
    at = offset + found.start("name")
    for group, quote in (("double", '"'), ("single", "'"), ("bare", "")):
        if found[group] is not None:
            start = offset + found.start(group)
            return Attribute(found["name"].lower(), at, found[group], start, quote)
    return Attribute(found["name"].lower(), at, "", -1, "")


def _raw_end(text: str, start: int, name: str) -> int:
    if name == "plaintext":
        return len(text)
    match = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(text, start)
    if match is None:
        return len(text)
    if name == "script" and text.find("<!--", start, match.start()) >= 0:
        return _escaped_script_end(text, start)
    return match.start()


def _escaped_script_end(text: str, start: int) -> int:
    """A script with ``<!--`` in it may hold scripts; what ends it is a matter of several states."""
    inside = False
    for match in re.compile(r"<!--|-->|</?script(?=[\s/>])", re.IGNORECASE).finditer(text, start):
        found = match[0].lower()
        if found == "<!--":
            inside = inside or False
        elif found == "</script":
            if not inside:
                return match.start()
            inside = False
        elif found == "<script" and text.rfind("<!--", start, match.start()) > text.rfind(
            "-->", start, match.start()
        ):
            inside = True
        elif found == "-->":
            inside = False
    return len(text)


# -- references --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """The references of a page, and what they are relative to.

    :ivar base: href of the first <base>, as meant; None if there is none
    :ivar integrity: URLs whose content is pinned by a hash in the page, as meant; also of what is never
        rewritten, such as modules
    """

    references: list[css.Reference] = field(default_factory=list)
    integrity: list[str] = field(default_factory=list)
    base: str | None = None


def references(text: str) -> Found:
    """Every reference to something that a page needs: style sheets, scripts, images, media.

    Not those of anchors: addresses that people keep must stay good. Not those of modules: a module that is
    imported under two URLs would run twice. Not those of styles that a policy in the page allows by a hash.
    """
    found = Found()
    styles = not _hashes_styles(text)
    opened = Piece("start", "", 0)  # the tag before a raw text is its own
    for piece in pieces(text):
        if piece.kind == "raw" and piece.name == "style":
            if styles:
                found.references += _of_css(piece.text, piece.start)
        elif piece.kind == "raw" and piece.name == "script":
            if "integrity" in piece.text and _script_type(opened) == "importmap":
                found.integrity += _of_import_map(piece.text)
        elif piece.kind == "start":
            opened = piece
            if piece.name == "base" and found.base is None:
                found.base = piece.get("href")
                if found.base is not None:
                    found.references.clear()  # what stands before it: browsers differ
            found.references += _of_tag(piece, styles=styles)
            if piece.mentions("integrity") and piece.get("integrity"):
                urls = [(piece.get(name) or "").strip(_SPACE) for name in _PINNED]
                found.integrity += [url for url in urls if url]
    return found


def _of_import_map(text: str) -> list[str]:
    """The URLs that an import map pins; one that is none pins nothing."""
    try:
        pinned = json.loads(text)["integrity"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return list(pinned) if isinstance(pinned, dict) else []


def _script_type(piece: Piece) -> str:
    return (piece.get("type") or "").strip(_SPACE).lower()


def _hashes_styles(text: str) -> bool:
    """Whether a page has a Content-Security-Policy with hashes of its styles."""
    return "content-security-policy" in text.lower() and any(
        piece.kind == "start"
        and piece.name == "meta"
        and (piece.get("http-equiv") or "").lower() == "content-security-policy"
        and _STYLE_HASH.search(piece.get("content") or "") is not None
        for piece in pieces(text)
    )


def _of_tag(piece: Piece, *, styles: bool) -> list[css.Reference]:
    names = _named(piece)
    styles = styles and piece.mentions("style")
    if not names and piece.name not in _SETS and not styles:
        return []
    result: list[css.Reference] = []
    seen: set[str] = set()
    for attribute in piece.attributes:
        name = attribute.name
        if name in seen or attribute.start < 0 or "&" in attribute.value.split("?", 1)[0]:
            seen.add(name)
            continue
        seen.add(name)
        if name in names:
            result += _plain(attribute)
        elif name == _SETS.get(piece.name):
            result += _candidates(attribute)
        elif styles and name == "style" and "&" not in attribute.value:
            result += _of_css(attribute.value, attribute.start)
    return result


def _named(piece: Piece) -> tuple[str, ...]:
    """The attributes of an element that hold one URL of something it needs."""
    if piece.name == "script":
        kind = _script_type(piece)
        return () if kind in ("module", "importmap", "speculationrules") else ("src", "href", "xlink:href")
    if piece.name != "link":
        return _URLS.get(piece.name, ())
    relations = set((piece.get("rel") or "").lower().split())
    if relations & _LINKS:
        return ("href",)
    if relations & {"preload", "prefetch"} and (piece.get("as") or "").lower() in _PRELOADS:
        return ("href",)
    return ()


def _plain(attribute: Attribute) -> list[css.Reference]:
    body = attribute.value.strip(_SPACE)
    if not body:
        return []
    start = attribute.start + attribute.value.index(body)
    return [css.Reference(body, start, start + len(body), attribute.quote)]


def _candidates(attribute: Attribute) -> list[css.Reference]:
    """The URLs of a srcset: split at white space, a comma at a URL's end isn't its own."""
    result = []
    position = 0
    while match := _CANDIDATE.match(attribute.value, position):
        start = attribute.start + match.start("url")
        result.append(css.Reference(match["url"], start, start + len(match["url"]), attribute.quote))
        position = match.end()
    return result


def _of_css(text: str, offset: int) -> list[css.Reference]:
    """References of a style element or attribute."""
    try:
        found = css.references(text)
    except css.Broken:
        return []
    # A style attribute's quotes stand around the whole; within them only what is already quoted may change.
    return [
        css.Reference(
            each.text,
            offset + each.start + len(each.quote),
            offset + each.end - len(each.quote),
            "",
            each.clear and text[each.start : each.end].strip("\"'") == each.text,
            each.imports,
        )
        for each in found
    ]


def rewrite(text: str, change: Change) -> str:
    """The page with references changed; the rest stays byte for byte."""
    parts, done = [], 0
    for reference in references(text).references:
        new = change(reference)
        if new is None or _BARE.search(new.split("?", 1)[0]):
            continue
        parts += [text[done : reference.start], new]
        done = reference.end
    return "".join([*parts, text[done:]])


# -- whether a minifier changed the meaning ----------------------------------------------------------------


class _Start:
    """A start tag as far as it means something."""

    __slots__ = ("piece",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, piece: Piece) -> None:
        self.piece = piece

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Start):
            return NotImplemented
        one, two = self.piece, other.piece
        return one.text == two.text or (one.name == two.name and _meanings(one) == _meanings(two))


def essence(text: str) -> list[tuple[object, ...]]:
    """What a page says: tags with what their attributes mean, texts, everything else as it is."""
    result: list[tuple[object, ...]] = []
    for piece in pieces(text):
        if piece.kind == "start":
            result.append((piece.kind, _Start(piece)))
        elif piece.kind == "end":
            result.append((piece.kind, piece.name))
        elif piece.kind == "text" or (piece.kind == "raw" and piece.name in ("title", "textarea")):
            words = html.unescape(piece.text)
            if result and result[-1][0] == "text":
                words = str(result.pop()[1]) + words
            result.append(("text", words))
        elif piece.kind == "raw":
            result.append((piece.kind, piece.text))
        else:
            result.append((piece.kind, piece.text.lower()))
    return result


def _meanings(piece: Piece) -> list[tuple[str, str]]:
    """An element's attributes, each name once; the order of names says nothing."""
    found: dict[str, str] = {}
    for each in piece.attributes:
        found.setdefault(each.name, _meaning(each.name, html.unescape(each.value)))
    return sorted(found.items())


def _meaning(name: str, value: str) -> str:
    if name == "class":
        return " ".join(value.split())
    return "" if name in BOOLEAN else value


BOOLEAN = {
    "allowfullscreen", "async", "autofocus", "autoplay", "checked", "controls", "default", "defer",
    "disabled", "formnovalidate", "inert", "ismap", "itemscope", "loop", "multiple", "muted", "nomodule",
    "novalidate", "open", "playsinline", "readonly", "required", "reversed", "selected",
}  # fmt: skip
