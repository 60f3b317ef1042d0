"""Scripts as tokens: whether one can be followed to its end, and whether two of them say the same.

Law: text in, answers out (ECMAScript's lexical grammar, as far as it takes to tell strings, templates,
regular expressions and comments from code). Whether a slash divides or opens a regular expression depends on
the grammar in a few places; a script in which the guess was wrong looks broken or changed, and is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from acme_wsgi.assets.css import Broken, line_of

_TOKEN = re.compile(
    r"""(?P<space>[ \t\v\f\xa0]+)
    |(?P<break>(?:\r\n|[\r\n]|\xe2\x80[\xa8\xa9])+)
    |(?P<comment>//[^\r\n\xe2]*(?:\xe2(?!\x80[\xa8\xa9])[^\r\n\xe2]*)*|/\*.*?\*/|\A\#![^\r\n]*)
    |(?P<string>"(?:[^"\\\r\n]|\\(?:\r\n|.))*"|'(?:[^'\\\r\n]|\\(?:\r\n|.))*')
    |(?P<name>(?:[A-Za-z_$\#\x80-\xff]|\\u(?:[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]+\}))
        (?:[A-Za-z0-9_$\x80-\xff]|\\u(?:[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]+\}))*)
    |(?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-][0-9]|[A-Za-z0-9_.])*)
    |(?P<bad>/\*|["'\\])
    |(?P<operator>=>|\+\+|--|\?\.|.)""",
    re.VERBOSE | re.DOTALL,
)
_REGEX = re.compile(r"/(?![*/])(?:[^\\/\[\r\n]|\\[^\r\n]|\[(?:[^\]\\\r\n]|\\[^\r\n])*\])+/[A-Za-z0-9_$]*")
_TEMPLATE = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*(?P<end>`|\$\{)", re.DOTALL)
_BREAK = re.compile(r"[\r\n]|\xe2\x80[\xa8\xa9]")
# A comment. With a quote in it, it may be the rest of a string that was taken for something else; with a line
# break in it, it may end a statement.
_SOURCE_MAP = re.compile(r"/[/*][#@]\s*sourceMappingURL=[^\"'`\r\n]*")
# After these words a slash opens a regular expression; after other names it divides.
_BEFORE_VALUE = {
    "await", "case", "delete", "do", "else", "in", "instanceof", "new", "of", "return", "throw", "typeof",
    "void", "yield",
}  # fmt: skip
# A line break in front of these, or behind those, never ends a statement by itself.
_NEVER_FIRST = set(")],;.?:=%&|^<>}") | {"=>", "?."}
_NEVER_LAST = set("({[,;:?=*/%&|^<>!~.") | {"=>", "?.", "+", "-"}
_CLOSES = {"(": ")", "[": "]", "{": "}"}

Token = tuple[str, str]


def tokens(text: str) -> Iterator[Token]:
    """Cut a script up into (kind, text); raises Broken.

    Templates come in parts, so that code in them counts as code.
    """
    position = 0
    previous: Token = ("operator", ";")
    open_: list[str] = []
    while position < len(text):
        kind, piece = _next(text, position, previous, open_)
        start, position = position, position + len(piece)
        if kind == "operator":
            _balance(piece, open_, text, start)
        yield kind, piece
        if kind not in ("space", "break", "comment"):
            previous = kind, piece
    if open_:
        raise Broken(f"{open_[-1].removeprefix('$')} is missing at the end")


def _next(text: str, position: int, previous: Token, open_: list[str]) -> Token:
    if text[position] == "/" and _expects_value(previous):
        match = _REGEX.match(text, position)
        if match is not None:
            return "regex", match[0]
    if text[position] == "`":
        return "template", _template(text, position, 1, open_)
    if text[position] == "}" and open_ and open_[-1] == "$}":
        open_.pop()
        return "template", _template(text, position, 1, open_)
    found = _TOKEN.match(text, position)
    assert found is not None
    kind = found.lastgroup or ""
    if kind == "bad":
        what = {"/*": "a comment", "\\": "an escape"}.get(found[0], "a string")
        raise Broken(f"line {line_of(text, position)}: {what} doesn't end")
    return kind, found[0]


def _template(text: str, start: int, lead: int, open_: list[str]) -> str:
    match = _TEMPLATE.match(text, start + lead)
    if match is None:
        raise Broken(f"line {line_of(text, start)}: a template doesn't end")
    if match["end"] == "${":
        open_.append("$}")
    return text[start : match.end()]


def _expects_value(previous: Token) -> bool:
    """Whether a slash after this token opens a regular expression."""
    kind, piece = previous
    if kind == "name":
        return piece in _BEFORE_VALUE
    if kind == "template":
        return piece.endswith("${")
    return kind == "operator" and piece not in (")", "]", "}", "++", "--")


def _balance(piece: str, open_: list[str], text: str, start: int) -> None:
    if piece in _CLOSES:
        open_.append(_CLOSES[piece])
    elif piece in ")]}" and (not open_ or open_.pop() != piece):
        raise Broken(f"line {line_of(text, start)}: {piece} without its beginning")


def check(text: str) -> None:
    """Raises Broken for a script that can't be followed to its end."""
    for _ in tokens(text):
        pass


def has_source_map(text: str) -> bool:
    """Whether it names one; of a script that can't be followed, whether it may."""
    try:
        return without_source_map(text) != text
    except Broken:
        return True


def without_source_map(text: str) -> str:
    """The script without the comments that name its source map.

    :raises Broken: it can't be followed, so what is a comment isn't known; not if nothing looks like one
    """
    if _SOURCE_MAP.search(text) is None:
        return text
    return "".join(_emptied(piece) if kind == "comment" else piece for kind, piece in tokens(text))


def _emptied(comment: str) -> str:
    """A comment, with nothing in it if it names a source map; what it keeps apart stays apart."""
    if _SOURCE_MAP.fullmatch(comment) is None:
        return comment
    return "" if comment.startswith("//") else "/**/"


def is_module(text: str) -> bool:
    """Whether it is an ES module: it imports or exports outside of any block. Raises Broken."""
    depth = 0
    waiting = False
    start = True
    for kind, piece in tokens(text):
        if kind in ("space", "comment"):
            continue
        if waiting and kind != "break":
            if piece not in ("(", "."):
                return True
            waiting = False
        if kind == "name" and not depth and start and piece in ("import", "export"):
            if piece == "export":
                return True
            waiting = True
        if kind == "operator" and piece in "([{}])":
            depth += 1 if piece in "([{" else -1
        start = kind == "break" or piece in (";", "}")
    return False


def is_strict(text: str) -> bool:
    """Whether it opens with the directive "use strict". Raises Broken."""
    for kind, piece in tokens(text):
        if kind not in ("space", "break", "comment"):
            return kind == "string" and piece[1:-1] == "use strict"
    return False


def same(before: str, after: str) -> bool:
    """Whether two scripts have the same tokens, and no line break that may end a statement is missing.

    Raises Broken.
    """
    return _essence(before) == _essence(after)


def _essence(text: str) -> list[Token]:
    result: list[Token] = []
    broken = False
    classes = False
    for kind, piece in tokens(text):
        if kind == "break" or (kind == "comment" and piece.startswith("/*") and _BREAK.search(piece)):
            broken = True
        if kind in ("space", "break", "comment"):
            continue
        classes = classes or piece == "class"
        if broken and result and _may_end(result[-1], (kind, piece), classes):
            result.append(("break", ""))
        broken = False
        result.append((kind, piece))
    return result


def _may_end(previous: Token, token: Token, classes: bool) -> bool:
    """Whether a line break between two tokens may end a statement (ECMAScript, 12.10)."""
    kind, piece = token
    if kind == "operator" and (piece in _NEVER_FIRST or (piece in ("*", "/", "+", "-") and not classes)):
        # A sign after a line break goes on with the expression before it.
        return False
    return (kind != "template" or classes) and not (previous[0] == "operator" and previous[1] in _NEVER_LAST)
