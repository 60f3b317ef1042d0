"""Style sheets as tokens: the references in them, and whether two of them say the same.

Law: text in, text out (CSS Syntax Level 3, as far as it takes to find tokens). Bytes come as latin-1 text.
What can't be followed to its end raises Broken; nothing is guessed. Only `ending` reads on, as browsers do.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# A reference -> what stands in its place, or None to leave it.
Change = Callable[["Reference"], "str | None"]

# Strings without their end. A line goes on behind a backslash, also behind one with a code point in digits.
_ESCAPED = r"\\(?:[0-9A-Fa-f]{1,6}(?:\r\n|[ \t\r\n\f])?|\r\n|.)"
_DOUBLE = rf'"(?:[^"\\\n\r\f]|{_ESCAPED})*+'
_SINGLE = rf"'(?:[^'\\\n\r\f]|{_ESCAPED})*+"
# What once hid style sheets from old browsers ("html") is nothing between rules. A mess is an unquoted url()
# with something in it that can't be there. What is bad has no end of its own: a string ends with its line,
# all else with the text.
_TOKEN = re.compile(
    r"""(?P<comment>/\*.*?\*/)
    |(?P<space>[ \t\r\n\f]+)
    |(?P<string>"""
    + f"{_DOUBLE}\"|{_SINGLE}'"
    + r""")
    |(?P<url>[uU][rR][lL]\([ \t\r\n\f]*(?:[^"'()\\ \t\r\n\f\x00-\x1f]
        |\\[0-9A-Fa-f]{1,6}[ \t]?|\\[^\n\r\f0-9A-Fa-f])*[ \t\r\n\f]*\))
    |(?P<mess>[uU][rR][lL]\((?![ \t\r\n\f]*["'])(?:[^)\\]|\\.)*+\))
    |(?P<bad>/\*.*
        |(?:"""
    + f"{_DOUBLE}|{_SINGLE}"
    + r""")\\?
        |[uU][rR][lL]\((?![ \t\r\n\f]*["'])(?:[^)\\]|\\.)*+\\?
        |\\(?=[\n\r\f]|\Z))
    |(?P<html><!--|-->)
    |(?P<name>[@\#]?-?(?:[A-Za-z_\x80-\xff-]|\\[^\n\r\f])(?:[A-Za-z0-9_\x80-\xff-]|\\[^\n\r\f])*\(?)
    |(?P<number>[+-]?(?:[0-9]*\.)?[0-9]+(?:[eE][+-]?[0-9]+)?(?:%|[A-Za-z_-][A-Za-z0-9_-]*)?)
    |(?P<hash>\#[A-Za-z0-9_\x80-\xff-]+)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = " \t\r\n\f"
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_ESCAPE = re.compile(r"\\(?:([0-9A-Fa-f]{1,6})[ \t\n\r\f]?|(\r\n|[\n\r\f])|(.))", re.DOTALL)
_SOURCE_MAP = re.compile(r"/\*[#@]\s*sourceMappingURL=")
_REPLACEMENT = "\ufffd".encode().decode("latin-1")
_CHARSET = re.compile(r'\A@charset "([^"]*)";')


class Broken(ValueError):
    """A file that ends in the middle of something, or that closes what was never opened."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a style sheet; `kind` is the group's name above."""

    kind: str
    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference in a style sheet.

    :ivar text: the URL as it is meant, escapes resolved; None if they can't be kept as latin-1
    :ivar start, end: where the URL stands, with its quotes if it has any
    :ivar quote: them
    :ivar clear: it stands where it is resolved against this style sheet, and not at its place of use
    :ivar imports: of an @import
    """

    text: str
    start: int
    end: int
    quote: str = ""
    clear: bool = True
    imports: bool = False


def tokens(text: str) -> Iterator[Token]:
    """Cut a style sheet up; raises Broken."""
    open_: list[str] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        piece = match[0]
        if kind == "bad":
            what = {"/*": "a comment", "\\": "an escape"}.get(piece[:2], "a string or url()")
            raise Broken(f"line {line_of(text, match.start())}: {what} doesn't end")
        if closer := _closer(kind, piece):
            open_.append(closer)
        elif kind == "other" and piece in ")]}" and (not open_ or open_.pop() != piece):
            raise Broken(f"line {line_of(text, match.start())}: {piece} without its beginning")
        yield Token(kind, piece, match.start())
    if open_:
        raise Broken(f"{open_[-1]} is missing at the end")


def _closer(kind: str, piece: str) -> str:
    """What closes the block or the function that a token opens; "" if it opens none."""
    if kind == "name" and piece[-1] == "(":
        return "" if _backslashes(piece[:-1]) % 2 else ")"
    return _CLOSES.get(piece, "") if kind == "other" else ""


def _backslashes(text: str) -> int:
    """How many stand at its end; an odd one escapes what follows."""
    return len(text) - len(text.rstrip("\\"))


def ending(text: str) -> str:
    """What ends a style sheet as its end would have (CSS Syntax Level 3, section 5), whatever is wrong in it.

    Nothing behind that belongs to it any more: what is open is closed, and a rule that has begun is over. One
    begins with whatever stands outside of rules, be it a stray brace or semicolon.
    """
    open_: list[str] = []
    rule = ""  # what ends the rule that has begun
    last = ""  # what is bad, if it is the last token
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup or "", match[0]
        last = piece if kind == "bad" else ""
        if kind in ("comment", "space") or piece.startswith("/*"):
            continue
        if not open_ and (piece == rule == ";" or (kind == "html" and not rule)):
            rule = ""
            continue
        rule = rule or (";" if kind == "name" and piece[0] == "@" else "{}")
        if closer := _closer(kind, piece):
            open_.append(closer)
        elif kind == "other" and open_ and piece == open_[-1]:
            open_.pop()
            if not open_ and piece == "}":
                rule = ""
    if "}" in open_[:1]:
        rule = ""
    return _end_of(last) + "".join(reversed(open_)) + rule


def _end_of(bad: str) -> str:
    """What ends a token that nothing but the text's end has ended."""
    escaping = _backslashes(bad) % 2
    if bad.startswith("/*"):
        return "*/"
    if bad.startswith(('"', "'")):
        return "\n" * escaping + bad[0]
    return _REPLACEMENT * escaping + (")" if "(" in bad else "")


def line_of(text: str, position: int) -> int:
    """The line, from 1, of a position."""
    return text.count("\n", 0, position) + 1


def references(text: str) -> list[Reference]:
    """Every reference: url(), the strings of @import and of image-set(); raises Broken."""
    found: list[Reference] = []
    functions: list[str] = []  # the names of the open blocks and functions
    statement: list[str] = []  # the first solid tokens of the statement
    for token in tokens(text):
        if token.kind in ("comment", "space"):
            continue
        if token.kind == "url":
            found.append(_unquoted(token, clear=_is_clear(statement), imports=_imports(statement)))
        elif token.kind == "string" and _is_reference(functions, statement):
            found.append(_quoted(token, clear=_is_clear(statement), imports=_imports(statement)))
        if _closer(token.kind, token.text):
            functions.append(token.text.lower())
        elif token.kind == "other" and token.text in ")]}":
            functions.pop()
        if token.kind == "other" and token.text in ";{}":
            statement.clear()
        elif len(statement) < 2:
            statement.append(token.text)
    return found


def _is_reference(functions: list[str], statement: list[str]) -> bool:
    if functions and functions[-1] in ("url(", "image-set(", "-webkit-image-set("):
        return True
    return _imports(statement) and len(statement) == 1


def _imports(statement: list[str]) -> bool:
    return bool(statement) and statement[0].lower() == "@import"


def _is_clear(statement: list[str]) -> bool:
    return not statement or not (statement[0].startswith("--") or statement[0].lower() == "@namespace")


def _unquoted(token: Token, *, clear: bool, imports: bool) -> Reference:
    inner = token.text[4:-1]
    lead = len(inner) - len(inner.lstrip(_SPACE))
    body = inner.strip(_SPACE)
    start = token.start + 4 + lead
    return Reference(unescaped(body), start, start + len(body), "", clear, imports)


def _quoted(token: Token, *, clear: bool, imports: bool) -> Reference:
    body = token.text[1:-1]
    return Reference(
        unescaped(body), token.start, token.start + len(token.text), token.text[0], clear, imports
    )


def unescaped(text: str) -> str:
    """CSS escapes resolved, as UTF-8 bytes."""

    def one(match: re.Match[str]) -> str:
        if match[1]:
            point = int(match[1], 16)
            if not point or 0xD800 <= point < 0xE000 or point > 0x10FFFF:
                point = 0xFFFD
            return chr(point).encode().decode("latin-1")
        return match[3] or ""

    return _ESCAPE.sub(one, text) if "\\" in text else text


def rewrite(text: str, change: Change) -> str:
    """The style sheet with references changed; the rest stays byte for byte. Raises Broken."""
    parts, done = [], 0
    for reference in references(text):
        new = change(reference)
        if new is None:
            continue
        quote = reference.quote
        if not quote and re.search(r"[\s\"'()\\]", new):
            quote = '"'
        body = re.sub(r"[\"'\\]", lambda match: "\\" + match[0], new).replace("\n", "\\a ")
        parts += [text[done : reference.start], quote, body, quote]
        done = reference.end
    return "".join([*parts, text[done:]])


def has_source_map(text: str) -> bool:
    """Whether it names one."""
    return without_source_map(text) != text


def without_source_map(text: str) -> str:
    """The style sheet without the comment that names its source map: empty, it keeps its neighbours apart."""
    if _SOURCE_MAP.search(text) is None:
        return text
    return _TOKEN.sub(_emptied, text)


def _emptied(token: re.Match[str]) -> str:
    return "/**/" if token.lastgroup == "comment" and _SOURCE_MAP.match(token[0]) else token[0]


def split_charset(text: str) -> tuple[str, str]:
    """The encoding that a style sheet claims, lower case and "" for none, and the rest of it."""
    text = text.removeprefix("\xef\xbb\xbf")
    match = _CHARSET.match(text)
    return (match[1].lower(), text[match.end() :]) if match else ("", text)


def split_imports(text: str) -> tuple[str, str]:
    """The @import rules at a style sheet's head, and what follows them, be that broken or not."""
    end, imports, statement = 0, False, ""
    with contextlib.suppress(Broken):
        for token in tokens(text):
            if token.kind in ("comment", "space"):
                continue
            statement = statement or token.text.lower()
            if token.kind == "other" and token.text in ";{}":
                if token.text != ";" or statement not in ("@import", "@layer", "@charset"):
                    break
                imports = imports or statement == "@import"
                end, statement = token.start + 1, ""
    return (text[:end], text[end:]) if imports else ("", text)


# -- whether a minifier changed the meaning ----------------------------------------------------------------


def same(before: str, after: str) -> bool:
    """Whether two style sheets say the same, told apart by white space only where it says nothing.

    Comments don't count, nor does the semicolon before a closing brace. Raises Broken.
    """
    return _essence(before) == _essence(after)


def _essence(text: str) -> list[str]:
    solid = _solid(text)
    descents = _selector_colons(solid)
    result: list[str] = []
    for index, (piece, spaced) in enumerate(solid):
        previous = result[-1] if result else "{"
        if piece == "}" and previous == ";":
            result.pop()
            previous = result[-1] if result else "{"
        if spaced and _counts(previous, piece, index in descents):
            result.append(" ")
        result.append(piece)
    while result and result[-1] == ";":
        result.pop()
    return result


def _solid(text: str) -> list[tuple[str, bool]]:
    """The tokens that count, each with whether white space (not a mere comment) stands before it."""
    solid: list[tuple[str, bool]] = []
    spaced = False
    for token in tokens(text):
        if token.kind == "space":
            spaced = True
        elif token.kind != "comment":
            piece = token.text
            if token.kind == "url":
                piece = "url(" + piece[4:-1].strip(_SPACE) + ")"
            solid.append((piece, spaced))
            spaced = False
    return solid


def _selector_colons(solid: list[tuple[str, bool]]) -> set[int]:
    """The colons of selectors: white space before one means "a descendant that". They stand in what ends
    with an opening brace.
    """
    found: set[int] = set()
    waiting: list[int] = []
    for index, (piece, _) in enumerate(solid):
        if piece == ":":
            waiting.append(index)
        elif piece == "{":
            found.update(waiting)
            waiting.clear()
        elif piece in (";", "}"):
            waiting.clear()
    return found


def _counts(previous: str, piece: str, selector_colon: bool) -> bool:
    """Whether white space between two tokens means anything."""
    if previous in ("{", "}", ";", ",", ":", "!") or piece in ("{", "}", ";", ",", "!", ")"):
        return False
    if previous[-1] in "([" or piece == "]":
        return False
    comparing = (">", "<", "=", "~")
    if previous in comparing or piece in comparing:
        return False
    return piece != ":" or selector_colon
