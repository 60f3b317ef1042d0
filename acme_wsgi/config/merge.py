"""Several trees -> one: later wins, by the rules of conf.d.

Its law: mappings merge key by key, scalars replace, lists of sections are appended to with an item of the
same identity replaced in place, other lists replace; ``!replace`` and ``!append`` say otherwise for one
value. Reads the schema only for the shape of things, and no values but those that name an item.
"""

from __future__ import annotations

from acme_wsgi.config.keys import (
    Items,
    Kind,
    ListOf,
    Pairs,
    Section,
    Table,
    aliases,
    identity,
    short_key,
    spec_by_name,
)
from acme_wsgi.config.nodes import Leaf, Map, Node, Seq
from acme_wsgi.config.problems import Conflict
from acme_wsgi.errors import Problem


def normalise(node: Node, cls: type[Section], problems: list[Problem], prefix: str = "") -> Node:
    """`node` with older names and short forms of `cls` written out, so that trees merge key by key."""
    if not isinstance(node, Map):
        short = short_key(cls)
        if not short or (isinstance(node, Leaf) and node.null):
            return node
        return Map({short: (node.place, node)}, node.place, node.mode)
    items = {}
    for name, (place, child) in node.items.items():
        now = aliases(cls).get(name, name)
        if now != name and now in node.items:
            message = f"is the older name of {now}, which {node.items[now][0]} sets too"
            problems.append(place.problem(prefix + name, message, "write one of them"))
            continue
        spec = spec_by_name(cls).get(now)
        items[now] = (place, _normalise_kind(child, spec.kind, problems, f"{prefix}{now}") if spec else child)
    return Map(items, node.place, node.mode)


def merge(old: Node | None, new: Node, kind: Kind | None, problems: list[Problem], dotted: str = "") -> Node:
    """What holds of `old` and the later `new`, for a key of this kind (None: an unknown key)."""
    if new.mode == "append":
        return _append(old, new, kind, problems, dotted)
    if old is None or new.mode == "replace" or kind is None:
        return new
    if isinstance(old, Map) and isinstance(new, Map):
        return _merge_maps(old, new, kind, problems, dotted)
    if isinstance(kind, Table | Items | Pairs) and isinstance(new, Leaf) and new.null:
        return old  # a heading with everything below it commented out
    if isinstance(kind, Items):
        return _merge_items(old, new, kind.cls, problems, dotted)
    return new


def identity_of(item: Node, cls: type[Section]) -> tuple[object, ...] | None:
    """What an item of a list is known by, as written; None where it isn't a mapping."""
    if not isinstance(item, Map):
        return None
    return tuple(_texts(item.get(name), name) for name in identity(cls))


def _normalise_kind(node: Node, kind: Kind, problems: list[Problem], dotted: str) -> Node:
    if isinstance(kind, Table):
        return normalise(node, kind.cls, problems, dotted + ".")
    if isinstance(kind, Items):
        if isinstance(node, Map):
            node = Seq([node], node.place, node.mode)
        if isinstance(node, Seq):
            items = [
                normalise(item, kind.cls, problems, f"{dotted}[{index}].")
                for index, item in enumerate(node.items)
            ]
            return Seq(items, node.place, node.mode)
    return node


def _merge_maps(old: Map, new: Map, kind: Kind, problems: list[Problem], dotted: str) -> Map:
    known = spec_by_name(kind.cls) if isinstance(kind, Table) else {}
    merged = dict(old.items)
    for name, (place, child) in new.items.items():
        below = f"{dotted}.{name}" if dotted else name
        spec = known.get(name)
        before = merged.get(name)
        merged[name] = (
            place,
            merge(before[1] if before else None, child, spec.kind if spec else None, problems, below),
        )
    return Map(merged, new.place, old.mode)


def _append(old: Node | None, new: Node, kind: Kind | None, problems: list[Problem], dotted: str) -> Node:
    if not isinstance(kind, ListOf | Items):
        problems.append(new.place.problem(dotted, "!append is for lists"))
        return new
    if isinstance(kind, Items):
        return new if old is None else _merge_items(old, new, kind.cls, problems, dotted)
    return Seq([*_members(old), *_members(new)], new.place)


def _merge_items(old: Node, new: Node, cls: type[Section], problems: list[Problem], dotted: str) -> Node:
    merged = _members(old)
    places = {identity_of(item, cls): index for index, item in enumerate(merged)}
    for item in _members(new):
        known = identity_of(item, cls)
        if known is None or known not in places:
            merged.append(item)
            continue
        index = places[known]
        _check_same_type(merged[index], item, problems, f"{dotted}[{index}]")
        merged[index] = item
    return Seq(merged, new.place)


def _check_same_type(old: Node, new: Node, problems: list[Problem], dotted: str) -> None:
    """Two files that give one item different types contradict each other, unless the later says !replace."""
    if not isinstance(old, Map) or not isinstance(new, Map) or new.mode == "replace":
        return
    before, after = old.get("type"), new.get("type")
    if isinstance(before, Leaf) and isinstance(after, Leaf) and before.text != after.text:
        problems.append(
            Conflict.at(
                after.place,
                f"{dotted}.type",
                f"{after.word} here and {before.word} in {before.place} for the same {_name_of(new)}",
                "write !replace before the later item if it is meant to win",
            )
        )


def _name_of(item: Map) -> str:
    for name in ("path", "name", "url"):
        node = item.get(name)
        if isinstance(node, Leaf):
            return f"{name} {node.word}"
    return "item"


def _members(node: Node | None) -> list[Node]:
    if node is None or (isinstance(node, Leaf) and node.null):
        return []
    return list(node.items) if isinstance(node, Seq) else [node]


def _texts(node: Node | None, name: str) -> object:
    """An identifying value in a form that compares: methods and hosts whatever their order and case."""
    texts = [each.text for each in _members(node) if isinstance(each, Leaf)]
    if name == "method":
        return tuple(sorted(text.upper() for text in texts))
    if name == "host":
        return tuple(sorted(text.lower() for text in texts))
    return tuple(texts)
