"""Several style sheets or scripts in one.

Law: texts in, text out, with a complaint for whatever can't mean the same in a bundle as alone. References of
a style sheet are rewritten to mean from the bundle's directory what they meant from their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acme_wsgi.assets import css, names, scripts
from acme_wsgi.assets.css import Broken

KINDS = (".css", ".js")

_MAPPED = "its source map says nothing about the bundle; the bundle does without it"

Complain = Callable[[str, str], None]
"""(URL of a member, what is wrong)"""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a bundle: its URL, and its content as latin-1 text."""

    url: str
    text: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is configured: URLs of files -> URL of the bundle. Several patterns of a target are one bundle."""

    target: str
    patterns: tuple[str, ...]

    @property
    def kind(self) -> str:
        """.css or .js"""
        return "." + self.target.rpartition(".")[2].lower()

    def members(self, urls: Sequence[str]) -> list[str]:
        """Those of `urls` that belong to it, in order: that of the patterns, then of the names."""
        found: dict[str, None] = {}
        for pattern in self.patterns:
            expression = _expression(pattern)
            for url in sorted(urls):
                if url != self.target and expression.fullmatch(url):
                    found[url] = None
        return list(found)


def of(pairs: Sequence[tuple[str, str]]) -> list[Bundle]:
    """The bundles of (files, target) pairs.

    :raises ValueError: a target or a pattern that can't be
    """
    patterns: dict[str, list[str]] = {}
    for source, target in pairs:
        if not target.endswith(KINDS) or "*" in target or "?" in target:
            raise ValueError(f"{target}: a bundle is one .css or .js file")
        if "**" in source:
            raise ValueError(f"{source}: ** has no meaning here; * stands for a part of one name")
        source, target = _wire(source), _wire(target)
        patterns.setdefault(target, []).append(source)
    return [Bundle(target, tuple(sources)) for target, sources in patterns.items()]


def _wire(text: str) -> str:
    return text if text.isascii() else text.encode().decode("latin-1")


def _expression(pattern: str) -> re.Pattern[str]:
    parts = {"*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(char, re.escape(char)) for char in pattern), re.DOTALL)


def join_css(members: Sequence[Member], target: str, complain: Complain) -> str:
    """One style sheet of several."""
    head, body = [], []
    for index, member in enumerate(members):
        text = _ready_css(member, target, complain)
        imports, rest = css.split_imports(text)
        if imports and index:
            complain(member.url, "its @import rules move to the head of the bundle, before the earlier files")
        head.append(imports)
        body.append(rest.strip("\n"))
    lines = [part.strip() for part in head if part.strip()]
    return "\n".join([*lines, *body, ""])


def _ready_css(member: Member, target: str, complain: Complain) -> str:
    charset, text = css.split_charset(member.text)
    if charset not in ("", "utf-8", "us-ascii"):
        complain(member.url, f"its encoding is {charset}; in a bundle it is read as UTF-8")
    if css.has_source_map(text):
        complain(member.url, _MAPPED)
        text = css.without_source_map(text)
    try:
        text = css.rewrite(text, lambda each: _rebased(each, member.url, target))
    except Broken as error:
        complain(member.url, f"{error}; it is closed where it ends, and its references stay as they are")
    return text + css.ending(text)


def _rebased(reference: css.Reference, url: str, target: str) -> str | None:
    if not names.is_relative(reference.text):
        return None
    meant = names.resolve(reference.text, url)
    return None if meant is None else names.moved(reference.text, meant, target)


def join_js(members: Sequence[Member], complain: Complain) -> str:
    """One script of several, each a statement list of its own."""
    parts, strict = [], []
    for member in members:
        text = member.text.removeprefix("\xef\xbb\xbf")
        try:
            strict.append(scripts.is_strict(text))
            plain = scripts.without_source_map(text)
            if plain != text:
                complain(member.url, _MAPPED)
                text = plain
            if scripts.is_module(text):
                complain(member.url, "it is a module, and a bundle is a classic script")
        except Broken as error:
            complain(member.url, f"{error}; a browser may refuse the whole bundle")
        # A comment may end the last line.
        parts.append(text.rstrip() + "\n;\n")
    # A directive at the front would hold for all.
    lead = ";\n" if any(strict) and not all(strict) else ""
    return lead + "".join(parts)
