"""A tree of nodes -> the typed, frozen sections, with every problem in it.

Its law: what a key accepts is read from its declaration, nowhere else. Goes on after each problem, so that
all are found in one pass; a key that can't be read holds its default for the rest of the pass, and is
remembered as `failed`, so that nothing is concluded from it. What several keys say together is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar, cast

from acme_wsgi.config import urls
from acme_wsgi.config.keys import (
    Items,
    ListOf,
    Pairs,
    Section,
    Spec,
    Table,
    aliases,
    identity,
    spec_by_name,
    specs,
    walk,
)
from acme_wsgi.config.kinds import Choice, Scalar, nearest
from acme_wsgi.config.merge import identity_of
from acme_wsgi.config.nodes import Leaf, Map, Node, Place, Seq
from acme_wsgi.config.problems import Conflict, Unreadable
from acme_wsgi.config.references import Missing, interpolate
from acme_wsgi.config.schema import ENVIRONMENTS, LATER, Config
from acme_wsgi.errors import Problem

T = TypeVar("T")

#: Raises ValueError for a text that isn't allowed.
Check = Callable[[str], object] | None

#: The most that a file with a secret may hold, in bytes.
MAX_SECRET = 4096
#: After so many problems no more suggestions are made.
MAX_SUGGESTIONS = 100
#: The most items of one list.
MAX_ITEMS = 10_000


class _Bad:
    """Stands for a value that couldn't be read."""


_BAD = _Bad()


class Builder:
    """One pass over one tree.

    :param layer: the tree is one of several that are merged later: a variable that isn't set is no problem,
        because a later tree may replace the value
    :ivar places: where each written value stands, by dotted key
    :ivar failed: dotted keys whose value couldn't be read
    """

    def __init__(self, environ: Mapping[str, str], *, layer: bool = False) -> None:
        self.environ = environ
        self.layer = layer
        self.problems: list[Problem] = []
        self.places: dict[str, Place] = {}
        self.failed: set[str] = set()
        self.values: dict[str, object] = {}

    def config(self, tree: Map) -> Config:
        """The configuration that `tree` describes; only to be used when there are no problems."""
        return cast(Config, self.section(Config, tree, "", None))

    def section(self, cls: type[Section], node: Map, dotted: str, inherited: object) -> Any:
        """An instance of `cls` from a mapping; `inherited` gives what isn't written, not the defaults."""
        self._unknown_keys(cls, node, dotted)
        self._other_types(cls, node, dotted)
        values: dict[str, object] = {}
        for spec in specs(cls):
            below = f"{dotted}.{spec.name}" if dotted else spec.name
            child = node.get(spec.name)
            default = spec.default if inherited is None else getattr(inherited, spec.attribute)
            value = (
                self._missing(spec, node, below, default)
                if child is None
                else self._value(spec, child, below, default)
            )
            values[spec.attribute] = value
            if not dotted:
                self.values[spec.name] = value
        self._secret_files(cls, node, dotted, values)
        return cast(Any, cls)(**values)

    def _missing(self, spec: Spec, node: Map, dotted: str, default: object) -> object:
        if spec.required:
            self.failed.add(dotted)
            self.problems.append(node.place.problem(dotted, f"missing; {spec.key.text}"))
            return None
        if isinstance(spec.kind, Table) and not spec.optional:
            return self.section(spec.kind.cls, Map({}, node.place), dotted, default)
        return default

    def _value(self, spec: Spec, node: Node, dotted: str, default: object) -> object:
        if isinstance(node, Leaf) and node.null and not isinstance(spec.kind, Scalar):
            value = default if isinstance(spec.kind, Table) else ()
            return None if spec.optional and not isinstance(spec.kind, Items | ListOf) else value
        self.places[dotted] = node.place
        value = self._read(spec, node, dotted, default)
        if value is _BAD:
            self.failed.add(dotted)
            return None if spec.required else default
        return value

    def _read(self, spec: Spec, node: Node, dotted: str, default: object) -> object:
        kind = spec.kind
        if isinstance(kind, Table):
            if not isinstance(node, Map):
                return self._wrong(spec, node, dotted, _keys_of(kind.cls))
            return self.section(kind.cls, node, dotted, self._inherited(spec) or default)
        if isinstance(kind, Items):
            return self._items(spec, kind.cls, node, dotted)
        if isinstance(kind, Pairs):
            return self._pairs(spec, kind.item, node, dotted)
        if isinstance(kind, ListOf):
            return self._list(spec, kind.item, node, dotted)
        if isinstance(node, Leaf) and node.null:
            return None if spec.optional else self._wrong(spec, node, dotted, _allowed(spec, kind))
        return self._scalar(spec, kind, node, dotted, spec.key.check)

    def _inherited(self, spec: Spec) -> object:
        """The section whose values hold for what this one leaves out."""
        if not spec.key.inherit:
            return None
        first, *rest = spec.key.inherit.split(".")
        value = self.values.get(first)
        for name in rest:
            value = getattr(value, name, None)
        return value

    def _items(self, spec: Spec, cls: type[Section], node: Node, dotted: str) -> object:
        if not isinstance(node, Seq):
            return self._wrong(spec, node, dotted, "a list of mappings")
        if self._too_many(node, dotted):
            return _BAD
        built: list[object] = []
        seen: dict[object, Node] = {}
        for index, item in enumerate(node.items):
            below = f"{dotted}[{index}]"
            if not isinstance(item, Map):
                self.failed.add(below)
                self.problems.append(
                    item.place.problem(below, f"found {item.word}, allowed: a mapping with {_keys_of(cls)}")
                )
                continue
            self.places[below] = item.place
            built.append(self.section(cls, item, below, None))
            self._repeated(cls, item, below, seen)
        return tuple(built)

    def _repeated(self, cls: type[Section], item: Map, dotted: str, seen: dict[object, Node]) -> None:
        known = identity_of(item, cls)
        if known in seen:
            names = "+".join(identity(cls))
            message = f"has the same {names} as the item in {seen[known].place}"
            self.problems.append(Conflict.at(item.place, dotted, message))
        seen.setdefault(known, item)

    def _pairs(self, spec: Spec, kind: Scalar, node: Node, dotted: str) -> object:
        if not isinstance(node, Map):
            return self._wrong(spec, node, dotted, "a mapping of names to texts")
        pairs = []
        for name, (place, child) in node.items.items():
            below = f"{dotted}.{name}"
            self.places[below] = place
            try:
                if spec.key.check:
                    spec.key.check(kind.read(name, True))
            except ValueError as error:
                self.failed.add(dotted)
                message = f"found {name!r}, allowed: {error}"
                self.problems.append(place.problem(below, message, getattr(error, "hint", None)))
            value = self._scalar(spec, kind, child, below, spec.key.check_value)
            if value is not _BAD:
                pairs.append((name, value))
        return tuple(pairs)

    def _list(self, spec: Spec, kind: Scalar, node: Node, dotted: str) -> object:
        if isinstance(node, Map):
            return self._wrong(spec, node, dotted, f"a list, each {_allowed(spec, kind)}")
        if isinstance(node, Seq) and self._too_many(node, dotted):
            return _BAD
        members: list[Node] = node.items if isinstance(node, Seq) else [node]
        values = []
        for index, member in enumerate(members):
            below = f"{dotted}[{index}]" if isinstance(node, Seq) else dotted
            self.places[below] = member.place
            value = self._scalar(spec, kind, member, below, spec.key.check)
            if value is _BAD:
                return (
                    _BAD
                    if len(members) == 1
                    else self._rest(spec, kind, members[index + 1 :], dotted, index + 1)
                )
            values.append(value)
        return tuple(values)

    def _rest(self, spec: Spec, kind: Scalar, members: list[Node], dotted: str, start: int) -> object:
        """The problems in the members after the first bad one."""
        for index, member in enumerate(members, start):
            self._scalar(spec, kind, member, f"{dotted}[{index}]", spec.key.check)
        return _BAD

    def _too_many(self, node: Seq, dotted: str) -> bool:
        if len(node.items) <= MAX_ITEMS:
            return False
        self.problems.append(node.place.problem(dotted, f"{len(node.items)} items; allowed: {MAX_ITEMS}"))
        return True

    def _scalar(self, spec: Spec, kind: Scalar, node: Node, dotted: str, check: Check) -> object:
        if not isinstance(node, Leaf) or node.null:
            return self._wrong(spec, node, dotted, _allowed(spec, kind))
        text = node.text
        try:
            if not node.raw:
                text = interpolate(text, self.environ)
        except Missing as error:
            if not self.layer:
                self.problems.append(node.place.problem(dotted, str(error)))
            return _BAD
        except ValueError as error:
            self.problems.append(node.place.problem(dotted, str(error)))
            return _BAD
        # Quotes around a reference keep YAML happy; they don't make a text of what the variable holds.
        plain = node.plain or text != node.text
        return self._checked(spec, kind, Leaf(text, plain, node.place, raw=True), dotted, check)

    def _checked(self, spec: Spec, kind: Scalar, leaf: Leaf, dotted: str, check: Check) -> object:
        try:
            value = kind.read(leaf.text, leaf.plain)
        except ValueError as error:
            known = str(error) in (kind.word, kind.refusal)
            allowed = _allowed(spec, kind) if known else str(error)
            return self._wrong(spec, leaf, dotted, allowed, getattr(error, "hint", None))
        low, high = kind.limits(spec.key.minimum, spec.key.maximum)
        if (low is not None and value < low) or (high is not None and value > high):
            return self._wrong(spec, leaf, dotted, _allowed(spec, kind))
        if check is not None:
            try:
                check(str(value))
            except ValueError as error:
                return self._wrong(spec, leaf, dotted, str(error), getattr(error, "hint", None))
        return value if spec.key.normal is None else spec.key.normal(str(value))

    def _wrong(self, spec: Spec, node: Node, dotted: str, allowed: str, hint: str | None = None) -> _Bad:
        found = node.word
        if spec.key.secret and isinstance(node, Leaf) and not node.null:
            # What has a check is a URL, and all of it but its password helps to find the mistake.
            found = Leaf(urls.refused(node.text), False, node.place).word if spec.key.check else urls.MASK
        self.problems.append(node.place.problem(dotted, f"found {found}, allowed: {allowed}", hint))
        return _BAD

    def _unknown_keys(self, cls: type[Section], node: Map, dotted: str) -> None:
        known = spec_by_name(cls)
        for name, (place, _) in node.items.items():
            if name not in known:
                below = f"{dotted}.{name}" if dotted else name
                # Looking for what was meant takes its time; a file that is all wrong isn't worth it.
                few = len(self.problems) < MAX_SUGGESTIONS
                hint = _suggestion(cls, name, dotted) if few else None
                self.problems.append(place.problem(below, "unknown key", hint))

    def _other_types(self, cls: type[Section], node: Map, dotted: str) -> None:
        """Keys that belong to another `type` than this section has."""
        if "type" not in spec_by_name(cls):
            return
        written = node.get("type")
        default = spec_by_name(cls)["type"].default
        chosen = written.text if isinstance(written, Leaf) else default
        kind = spec_by_name(cls)["type"].kind
        known = kind.values if isinstance(kind, Choice) else ()
        for spec in specs(cls):
            entry = node.items.get(spec.name)
            if entry and spec.key.only and chosen in known and chosen not in spec.key.only:
                if written is None and self.layer:
                    continue  # another file may set the type
                belongs = f"is for type {' or '.join(spec.key.only)}"
                where = f" ({written.place})" if written else ", the default"
                self.problems.append(
                    Conflict.at(
                        entry[0], f"{dotted}.{spec.name}", f"{belongs}; the type here is {chosen}{where}"
                    )
                )

    def _secret_files(self, cls: type[Section], node: Map, dotted: str, values: dict[str, object]) -> None:
        """Fill each key from the file that its ``_file`` twin names."""
        for spec in specs(cls):
            twin = f"{spec.name}_file"
            file = values.get(twin)
            if twin not in spec_by_name(cls) or not isinstance(file, str) or self.layer:
                continue
            place = self.places.get(f"{dotted}.{twin}", node.place)
            direct = self.places.get(f"{dotted}.{spec.name}")
            if direct is not None:
                message = f"{twin} here and {spec.name} in {direct}; only one of them can hold"
                self.problems.append(Conflict.at(place, f"{dotted}.{twin}", message))
                continue
            try:
                values[spec.attribute] = read_secret(file)
                self.places[f"{dotted}.{spec.name}"] = Place(f"file {file}")
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self.problems.append(Unreadable.at(place, f"{dotted}.{twin}", f"{file!r}: {reason}"))


def read_secret(file: str) -> str:
    """The text in `file` without the line's end. Raises OSError, or ValueError saying what is wrong."""
    path = Path(file)
    if not S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")
    with path.open("rb") as stream:
        data = stream.read(MAX_SECRET + 1)
    if len(data) > MAX_SECRET:
        raise ValueError(f"larger than {MAX_SECRET} bytes")
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text or not text.isprintable():
        raise ValueError("empty" if not text else "more than one line, or control characters")
    return text


def _allowed(spec: Spec, kind: Scalar) -> str:
    return kind.allowed(spec.key.minimum, spec.key.maximum)


def _keys_of(cls: type[Section]) -> str:
    return "a mapping of " + ", ".join(spec.name for spec in specs(cls))


def _suggestion(cls: type[Section], name: str, dotted: str) -> str | None:
    """What an unknown key was probably meant to be."""
    names = [*spec_by_name(cls), *aliases(cls), *([] if dotted else [ENVIRONMENTS])]
    if not dotted and name in LATER:
        return "this version doesn't have it yet"
    near = nearest(name, names)
    if near:
        return f"did you mean {near}?"
    elsewhere = [other for other in _settings() if other.rpartition(".")[2] == name]
    return f"did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else None


def _settings() -> Iterator[str]:
    """Dotted names of all keys that stand in no list."""
    return (dotted for dotted, _ in walk(Config) if "[]" not in dotted)
