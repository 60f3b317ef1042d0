"""YAML text -> a tree of nodes that remember where they stood.

Its law: knows YAML's syntax, nothing of the schema. The tree is built from the parser's events, not by
PyYAML's composer and constructor: so nesting, anchors and size are bounded before anything recurses, nothing
can be constructed but texts, lists and mappings, and a text isn't turned into what YAML 1.1 takes it for.
Everything wrong is a Problem; no input raises anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import yaml

from acme_wsgi.errors import Problem

#: Bounds of one file.
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000

Mode = Literal["", "replace", "append"]

_STANDARD = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_STANDARD + name for name in ("str", "int", "float", "bool", "null", "timestamp"))
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node was written: a position in a file, or a name like ``environment ACME_WORKERS``."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def problem(self, key: str | None, message: str, hint: str | None = None) -> Problem:
        """A problem at this place. Keys come from files, so they may hold anything."""
        return Problem(self.file, self.line, self.column, key and printable(key), message, hint or None)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar as written. `plain` without quotes; `raw`: ``${NAME}`` in it is no reference."""

    text: str
    plain: bool
    place: Place
    mode: Mode = ""
    raw: bool = False

    @property
    def null(self) -> bool:
        return self.plain and not self.raw and self.text in _NULLS

    @property
    def word(self) -> str:
        return "nothing" if self.null else repr(self.text if len(self.text) <= 60 else self.text[:57] + "...")


@dataclass(slots=True)
class Seq:
    """A list."""

    items: list[Node]
    place: Place
    mode: Mode = ""

    @property
    def word(self) -> str:
        return "a list"


@dataclass(slots=True)
class Map:
    """A mapping: each key with its own place and its node."""

    items: dict[str, tuple[Place, Node]]
    place: Place
    mode: Mode = ""

    @property
    def word(self) -> str:
        return "a mapping"

    def get(self, name: str) -> Node | None:
        entry = self.items.get(name)
        return entry[1] if entry else None


Node = Leaf | Seq | Map


@dataclass(slots=True)
class _Open:
    """A collection whose end hasn't come yet."""

    node: Seq | Map
    anchor: str | None
    size_before: int
    key: tuple[str, Place] | None = None
    merges: list[Map] = field(default_factory=list)


class _Stop(Exception):
    """Reading can't go on; the problem says why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def printable(text: str) -> str:
    """`text` as it may stand in a message or a comment: one line, no control characters, not endless."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:300])
    return shown if len(text) <= 300 else shown + "..."


def read_text(data: bytes, file: str) -> tuple[str, Problem | None]:
    """`data` as text, or the problem with it: too large, not UTF-8."""
    if len(data) > MAX_BYTES:
        return "", Problem(
            file, None, None, None, f"larger than {MAX_BYTES >> 20}MB, which no configuration is"
        )
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        return "", Problem(
            file, line, column, None, f"not UTF-8: byte 0x{data[error.start]:02x} ({error.reason})"
        )


def parse(text: str, file: str, problems: list[Problem], *, at: Place | None = None) -> Node | None:
    """The tree in `text`, or None when it is empty or can't be read; what is wrong is added to `problems`.

    :param file: the name that messages show
    :param at: one place for all nodes, for text that stands in no file
    """
    reader = _Reader(file, problems, at)
    try:
        return reader.read(text)
    except _Stop as stop:
        problems.append(stop.problem)
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax_problem(error, reader))
    except yaml.reader.ReaderError as error:
        place = at or _place_at(file, text, error.position)
        problems.append(
            place.problem(None, f"a character that YAML doesn't allow: {_code_point(error.character)}")
        )
    except (ValueError, OverflowError) as error:
        # PyYAML converts the digits of escapes and directives without looking at them first.
        place = at or Place(file, reader.line)
        problems.append(place.problem(None, f"YAML syntax: {error}"))
    return None


class _Reader:
    """Builds the tree of one text."""

    def __init__(self, file: str, problems: list[Problem], at: Place | None) -> None:
        self.file = file
        self.problems = problems
        self.at = at
        self.line = 1
        self.nodes = 0
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int] | None] = {}
        self.root: Node | None = None
        self.documents = 0

    def read(self, text: str) -> Node | None:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if event.start_mark:
                self.line = event.start_mark.line + 1
            self.event(event)
        return self.root

    def event(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise _Stop(self.place(event).problem(None, "a second document; a file holds one"))
        elif isinstance(event, yaml.ScalarEvent):
            self.scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self.start(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.end()

    def place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        return self.at or (Place(self.file, mark.line + 1, mark.column + 1) if mark else Place(self.file))

    def count(self, place: Place, nodes: int) -> None:
        """Nodes reached through aliases count each time: what is walked is what is bounded."""
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise _Stop(
                place.problem(None, f"more than {MAX_NODES} values, aliases counted each time they are used")
            )

    def mode(self, tag: str | None, place: Place, standard: frozenset[str]) -> Mode:
        if tag == "!replace":
            return "replace"
        if tag == "!append":
            return "append"
        if tag is not None and tag != "!" and tag not in standard:
            shown = tag.replace(_STANDARD, "!!", 1)
            self.problems.append(place.problem(None, f"unknown tag {shown!r}; allowed: !replace, !append"))
        return ""

    def scalar(self, event: yaml.ScalarEvent) -> None:
        place = self.place(event)
        self.count(place, 1)
        if self.wants_key():
            self.take_key(_joined(event.value), place)
            return
        mode = self.mode(event.tag, place, _SCALAR_TAGS)
        plain = event.style is None and event.tag != _STANDARD + "str"
        leaf = Leaf(_joined(event.value), plain, place, mode)
        if event.anchor:
            self.anchors[event.anchor] = (leaf, 1)
        self.add(leaf)

    def alias(self, event: yaml.AliasEvent) -> None:
        place = self.place(event)
        if event.anchor not in self.anchors:
            raise _Stop(place.problem(None, f"unknown alias *{event.anchor}"))
        known = self.anchors[event.anchor]
        if known is None:
            raise _Stop(place.problem(None, f"alias *{event.anchor} stands inside what it names"))
        node, size = known
        self.count(place, size)
        if self.wants_key():
            if not isinstance(node, Leaf):
                raise _Stop(place.problem(None, "a key must be a text"))
            self.take_key(node.text, place)
            return
        self.add(node)

    def start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        place = self.place(event)
        self.count(place, 1)
        if len(self.stack) >= MAX_DEPTH:
            raise _Stop(place.problem(None, f"nested deeper than {MAX_DEPTH} levels"))
        if self.wants_key():
            raise _Stop(place.problem(None, f"a key must be a text; found {_collection(event)}"))
        mapping = isinstance(event, yaml.MappingStartEvent)
        mode = self.mode(event.tag, place, frozenset({_STANDARD + ("map" if mapping else "seq")}))
        node: Seq | Map = Map({}, place, mode) if mapping else Seq([], place, mode)
        if event.anchor:
            self.anchors[event.anchor] = None
        self.stack.append(_Open(node, event.anchor, self.nodes - 1))

    def end(self) -> None:
        done = self.stack.pop()
        if isinstance(done.node, Map):
            for merged in done.merges:
                for name, entry in merged.items.items():
                    done.node.items.setdefault(name, entry)
        if done.anchor:
            self.anchors[done.anchor] = (done.node, self.nodes - done.size_before)
        self.add(done.node)

    def wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].node, Map) and self.stack[-1].key is None

    def take_key(self, name: str, place: Place) -> None:
        self.stack[-1].key = (name, place)

    def add(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        if isinstance(top.node, Seq):
            top.node.items.append(node)
            return
        assert top.key is not None
        (name, place), top.key = top.key, None
        if name == "<<":
            top.merges.extend(self.merged(node, place))
        elif name in top.node.items:
            first = top.node.items[name][0]
            here = f"line {place.line}" if place.line else "again"
            message = f"written twice, in line {first.line} and in {here}" if first.line else "written twice"
            self.problems.append(place.problem(name, message))
        else:
            top.node.items[name] = (place, node)

    def merged(self, node: Node, place: Place) -> Iterator[Map]:
        """The mappings that ``<<: node`` takes in."""
        for each in node.items if isinstance(node, Seq) else [node]:
            if isinstance(each, Map):
                yield each
            else:
                self.problems.append(place.problem(None, f"<< takes a mapping; found {each.word}"))


def _joined(text: str) -> str:
    r"""`text` with the halves of surrogate pairs joined: JSON writes an emoji as ``\ud83d\ude00``."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _collection(event: yaml.Event) -> str:
    return "a mapping" if isinstance(event, yaml.MappingStartEvent) else "a list"


def _syntax_problem(error: yaml.MarkedYAMLError, reader: _Reader) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = reader.at or (Place(reader.file, mark.line + 1, mark.column + 1) if mark else Place(reader.file))
    message = f"YAML syntax: {printable(error.problem or 'not YAML')}"
    if error.context:
        message += f" {printable(error.context)}"
        if error.context_mark and error.context_mark is not mark and not reader.at:
            message += f" begun in line {error.context_mark.line + 1}"
    hint = "tabs can't indent" if "'\\t'" in message else None
    return place.problem(None, message, hint)


def _place_at(file: str, text: str, position: int) -> Place:
    before = text[:position]
    return Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _code_point(char: str | int) -> str:
    return f"U+{char if isinstance(char, int) else ord(char[0]):04X}"
