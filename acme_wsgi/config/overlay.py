"""What is laid over the files: a named block of ``environments``, ACME_* variables, ``--set``.

Its law: each becomes a tree like a file's, so that one merge and one builder serve all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from acme_wsgi.config.keys import ListOf, Section, Spec, Table, aliases, spec_by_name, specs, walk
from acme_wsgi.config.kinds import Scalar, nearest
from acme_wsgi.config.nodes import MAX_DEPTH, Leaf, Map, Node, Place, Seq, parse, printable
from acme_wsgi.config.schema import ENVIRONMENTS, Config
from acme_wsgi.errors import Problem

#: The variable that names the block of ``environments`` to use.
ENVIRONMENT_VARIABLE = "ACME_ENV"
#: Documented short names of variables.
SHORT_VARIABLES = {
    "ACME_WORKERS": "server.workers",
    "ACME_LOG_LEVEL": "logging.level",
    "ACME_LOG_FORMAT": "logging.format",
}


def find(dotted: str) -> tuple[list[str], Spec] | None:
    """The key with this dotted name, as its parts in today's spelling, or None."""
    cls: type[Section] = Config
    parts: list[str] = []
    spec: Spec | None = None
    for name in dotted.split("."):
        if parts and not (spec and isinstance(spec.kind, Table)):
            return None
        if spec and isinstance(spec.kind, Table):
            cls = spec.kind.cls
        now = aliases(cls).get(name, name)
        spec = spec_by_name(cls).get(now)
        if spec is None:
            return None
        parts.append(now)
    return (parts, spec) if spec else None


def nest(parts: Sequence[str], node: Node, place: Place) -> Map:
    """The mapping in which `node` stands under the key with these parts."""
    for name in reversed(parts):
        node = Map({name: (place, node)}, place)
    assert isinstance(node, Map)
    return node


@functools.cache
def variables() -> dict[str, str]:
    """The name of every environment variable that sets a key, and that key's dotted name."""
    names = {variable_of(dotted): dotted for dotted, _ in walk(Config) if "[]" not in dotted}
    for section in specs(Config):
        if isinstance(section.kind, Table):
            for old, now in aliases(section.kind.cls).items():
                for dotted in list(names.values()):
                    if dotted.startswith(f"{section.name}.{now}."):
                        names[variable_of(dotted.replace(f".{now}.", f".{old}.", 1))] = dotted
    return names | SHORT_VARIABLES


def variable_of(dotted: str) -> str:
    """The environment variable that sets the key: ``server.port`` -> ``ACME_SERVER_PORT``."""
    return "ACME_" + dotted.upper().replace(".", "_")


def from_environ(environ: Mapping[str, str], problems: list[Problem], warnings: list[Problem]) -> list[Map]:
    """A tree for each ACME_* variable that sets a key; an empty one is as if it weren't set."""
    trees = []
    # The short names last: who writes ACME_WORKERS for one run means it over what the service's file says.
    names = sorted(environ, key=lambda name: (name in SHORT_VARIABLES, name))
    for name in names:
        if not name.startswith("ACME_") or name == ENVIRONMENT_VARIABLE or not environ[name]:
            continue
        place = Place(f"environment {printable(name)}")
        dotted = variables().get(name)
        if dotted is None:
            _unknown_variable(name, place, problems, warnings)
        else:
            trees.extend(_setting(dotted, environ[name], place, problems, commas=True))
    return trees


def from_sets(sets: Sequence[str], problems: list[Problem]) -> list[Map]:
    """A tree for each ``a.b.c=value`` of the command line."""
    trees = []
    for each in sets:
        dotted, equals, text = each.partition("=")
        dotted = dotted.strip()
        place = Place("--set")
        if not equals or not dotted:
            problems.append(
                place.problem(None, f"found {printable(each)!r}, allowed: key=value (server.port=9000)")
            )
        elif find(dotted) is None:
            problems.append(place.problem(printable(dotted), "unknown key", _near_key(dotted)))
        else:
            trees.extend(_setting(dotted, text, place, problems, commas=False))
    return trees


def environment_blocks(tree: Map, problems: list[Problem]) -> dict[str, list[Map]]:
    """The trees of each block of ``environments``, which is taken out of `tree`.

    Keys of a block are dotted (``server.port: 80``) or nested, as the author likes.
    """
    entry = tree.items.pop(ENVIRONMENTS, None)
    if entry is None or (isinstance(entry[1], Leaf) and entry[1].null):
        return {}
    if not isinstance(entry[1], Map):
        problems.append(
            entry[1].place.problem(ENVIRONMENTS, f"found {entry[1].word}, allowed: a mapping of names")
        )
        return {}
    return {
        name: _block(name, node, problems)
        for name, (_, node) in entry[1].items.items()
        if not (isinstance(node, Leaf) and node.null)
    }


def selected(blocks: Mapping[str, object], environ: Mapping[str, str], problems: list[Problem]) -> str:
    """The name of the block that ACME_ENV selects, or an empty text."""
    name = environ.get(ENVIRONMENT_VARIABLE, "")
    if not name or name in blocks:
        return name
    if blocks:
        place = Place(f"environment {ENVIRONMENT_VARIABLE}")
        near = nearest(name, list(blocks))
        problems.append(
            place.problem(
                ENVIRONMENTS,
                f"found {printable(name)!r}, allowed: {', '.join(map(printable, blocks))}",
                f"did you mean {near}?" if near else None,
            )
        )
    return ""


def _block(name: str, node: Node, problems: list[Problem]) -> list[Map]:
    dotted_name = f"{ENVIRONMENTS}.{name}"
    if not isinstance(node, Map):
        problems.append(
            node.place.problem(dotted_name, f"found {node.word}, allowed: a mapping of dotted keys")
        )
        return []
    trees = []
    for dotted, (place, child) in node.items.items():
        found = find(dotted) if dotted.count(".") < MAX_DEPTH else None
        if found is None:
            problems.append(
                place.problem(f"{dotted_name}.{printable(dotted)}", "unknown key", _near_key(dotted))
            )
        else:
            trees.append(nest(found[0], child, place))
    return trees


def _setting(dotted: str, text: str, place: Place, problems: list[Problem], *, commas: bool) -> list[Map]:
    """The tree that sets one key from a text: a scalar's as it stands, other kinds' as YAML."""
    found = find(dotted)
    assert found is not None
    parts, spec = found
    node: Node | None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        problems.append(place.problem(dotted, "not UTF-8"))
        return []
    if isinstance(spec.kind, Scalar):
        # Verbatim: a password may hold anything, and only YAML's null stands for "not set".
        node = Leaf(text, True, place, raw=text not in ("null", "~"))
    elif isinstance(spec.kind, ListOf) and commas and not text.lstrip().startswith(("[", "!", "-")):
        node = Seq([Leaf(each.strip(), True, place, raw=True) for each in text.split(",")], place)
    else:
        node = parse(text, place.file, problems, at=place)
    return [nest(parts, node, place)] if node is not None else []


def _unknown_variable(name: str, place: Place, problems: list[Problem], warnings: list[Problem]) -> None:
    """An ACME_<SECTION>_ variable is ours, so it must be right; another ACME_ one may be somebody else's."""
    near = nearest(name, list(variables()))
    hint = f"did you mean {near}?" if near else None
    sections = tuple(f"ACME_{spec.name.upper()}_" for spec in specs(Config))
    if name.startswith(sections):
        problems.append(place.problem(None, "no such key", hint))
    elif near and nearest(name, [near], 0.9):
        warnings.append(place.problem(None, "is not read", hint))


def _near_key(dotted: str) -> str | None:
    names = [name for name, _ in walk(Config) if "[]" not in name]
    near = nearest(dotted, names)
    if not near:
        elsewhere = [name for name in names if name.rpartition(".")[2] == dotted]
        near = elsewhere[0] if len(elsewhere) == 1 else ""
    return f"did you mean {near}?" if near else None
