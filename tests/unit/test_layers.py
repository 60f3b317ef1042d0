"""The floors of the house: a module imports only what lies below it, or its own room.

And the arbiter's side never imports gevent, not even through something that it imports: a parent with gevent
loaded would fork its hub and its threads into every worker.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

PACKAGE = "acme_wsgi"
ROOT = Path(__file__).parents[2]

# A room (its floor and its name) may import itself freely.
FLOORS = {
    "cli": 8,
    "__main__": 8,
    "arbiter": 7,
    "reload": 7,
    "upgrade": 7,
    "status": 7,
    "crew": 7,
    "generation": 7,
    "child": 7,
    "watch": 7,
    "stacks": 7,
    "worker": 7,
    "control": 7,
    "history": 7,
    "backends": 7,
    "draining": 7,
    "handover": 7,
    "systemd": 7,
    "pidfile": 7,
    "sockets": 7,
    "probe": 6,
    "admission": 6,
    "engine": 6,
    "connection": 6,
    "answer": 6,
    "request": 6,
    "service": 6,
    "tunnel": 6,
    "body": 6,
    "sending": 6,
    "loading": 6,
    "routing": 5,
    "pipeline": 5,
    "handlers": 4,
    "assets": 3,
    "upstream": 3,
    "appload": 2,
    "privileges": 2,
    "rundir": 2,
    "procfs": 2,
    "limits": 2,
    "cpus": 2,
    "log": 2,
    "compression": 2,
    "stream": 2,
    "http": 1,
    "files": 1,
    "iothreads": 1,
    "scoreboard": 1,
    "reactor": 1,
    "config": 1,
    "clock": 0,
    "errors": 0,
    "units": 0,
    "": 0,
}

# On these floors the files are one room: pipeline uses routing, the arbiter its sockets.
ONE_ROOM = (5, 6, 7, 8)

# What may run in the parent. Imports inside functions count too, except in the worker: its module is loaded
# before the fork, and its functions run after it.
WITHOUT_GEVENT = (
    "arbiter", "reload", "upgrade", "status", "crew", "generation", "child", "watch", "stacks", "sockets",
    "handover", "systemd", "pidfile", "control", "history", "backends", "draining", "worker", "privileges",
    "rundir", "procfs", "limits", "cpus", "config", "cli", "log", "errors", "units", "__main__",
)  # fmt: skip
AFTER_THE_FORK = ("worker",)

_CYTHON_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<source>[\w.]+)[ \t]+c?import[ \t]*(?P<names>\([^)]*\)|[^#\n(]+)"
    r"|c?import[ \t]+(?P<plain>[\w., \t]+))",
    re.MULTILINE,
)
_STRINGS = re.compile(r'("""|\'\'\')(?:.|\n)*?\1')


def modules(root: Path) -> dict[str, Path]:
    """Module name -> source, of the whole package below `root`; handlers/ at the top is part of it."""
    found = {}
    for top, prefix in ((root / PACKAGE, PACKAGE), (root / "handlers", f"{PACKAGE}.handlers")):
        for path in sorted([*top.rglob("*.py"), *top.rglob("*.pyx"), *top.rglob("*.pxd")]):
            parts = path.relative_to(top).with_suffix("").parts
            name = ".".join((prefix, *parts)).removesuffix(".__init__")
            found[name if path.suffix != ".pxd" else f"{name}#pxd"] = path
    return found


@dataclass(frozen=True)
class Import:
    """One import statement's target. `late`: inside a function; `typing`: only for type checkers."""

    line: int
    name: str
    late: bool = False
    typing: bool = False


def imports(path: Path, name: str) -> Iterator[Import]:
    """Every import of a module; `from a import b` is both `a` and `a.b`."""
    if path.suffix != ".py":
        yield from _cython_imports(path.read_text())
        return
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    yield from _python_imports(ast.parse(path.read_text(), str(path)), package, Import(0, ""))


def _python_imports(node: ast.AST, package: list[str], place: Import) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield replace(place, line=node.lineno, name=alias.name)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        for name in (source, *(f"{source}.{alias.name}" for alias in node.names)):
            yield replace(place, line=node.lineno, name=name)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        place = replace(place, late=True)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _python_imports(child, package, replace(place, typing=True))
        for child in node.orelse:
            yield from _python_imports(child, package, place)
        return
    for child in ast.iter_child_nodes(node):
        yield from _python_imports(child, package, place)


def _cython_imports(source: str) -> Iterator[Import]:
    source = _STRINGS.sub(lambda match: "\n" * match[0].count("\n"), source)
    for match in _CYTHON_IMPORT.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        if match["plain"]:
            for one in match["plain"].split(","):
                yield Import(line, one.split()[0])
            continue
        yield Import(line, match["source"])
        for one in match["names"].strip("() \n").split(","):
            if one.strip():
                yield Import(line, f"{match['source']}.{one.split()[0]}")


def room(name: str) -> str | None:
    """The room of a module of ours ("http" for acme_wsgi.http.h1), None for anything else."""
    name = name.removesuffix("#pxd")
    if name == PACKAGE:
        return ""
    if not name.startswith(PACKAGE + "."):
        return None
    return name.split(".")[1]


def known(name: str, tree: dict[str, Path]) -> str | None:
    """The module that a dotted name is or lies in; None if it isn't ours."""
    while name:
        if name in tree:
            return name
        name = name.rpartition(".")[0]
    return None


def upward(root: Path) -> list[str]:
    """Every import that goes up a floor, or between two rooms of one floor, as "file:line: why"."""
    tree = modules(root)
    faults = []
    for name, path in tree.items():
        own = room(name)
        if own not in FLOORS:
            faults.append(f"{path.relative_to(root)}:1: {name} has no floor")
            continue
        for found in imports(path, name.removesuffix("#pxd")):
            target = known(found.name, tree)
            other = room(target) if target is not None else None
            if other is None or other == own or other not in FLOORS:
                continue
            neighbours = FLOORS[other] == FLOORS[own] and FLOORS[own] in ONE_ROOM
            if FLOORS[other] >= FLOORS[own] and other != "" and not neighbours:
                place = f"{path.relative_to(root)}:{found.line}"
                faults.append(f"{place}: {name} imports {target}, which is not below it")
    return sorted(set(faults))


def reaches_gevent(root: Path) -> list[str]:
    """The chains of imports by which the arbiter's side would load gevent, as "a -> b -> gevent"."""
    tree = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in tree.items():
        if name.endswith("#pxd"):
            continue
        graph[name] = set()
        for found in imports(path, name):
            if found.typing or (found.late and room(name) in AFTER_THE_FORK):
                continue
            if found.name.split(".")[0] == "gevent":
                graph[name].add("gevent")
            elif (target := known(found.name, tree)) is not None:
                graph[name].add(target)
    chains = []
    for start in sorted(graph):
        if room(start) in WITHOUT_GEVENT:
            chain = _path_to_gevent(graph, start)
            if chain:
                chains.append(" -> ".join(chain))
    return chains


def _path_to_gevent(graph: dict[str, set[str]], start: str) -> list[str]:
    waiting, seen = [[start]], {start}
    while waiting:
        chain = waiting.pop(0)
        for target in sorted(graph.get(chain[-1], ())):
            if target == "gevent":
                return [*chain, target]
            if target not in seen:
                seen.add(target)
                waiting.append([*chain, target])
    return []


def test_no_import_goes_up_a_floor() -> None:
    assert upward(ROOT) == []


def test_the_arbiters_side_never_loads_gevent() -> None:
    assert reaches_gevent(ROOT) == []


# -- the checks themselves, on a house with known faults


@pytest.fixture
def house(tmp_path: Path) -> Path:
    files = {
        "acme_wsgi/__init__.py": "",
        "acme_wsgi/errors.py": "import json\n",
        "acme_wsgi/routing.py": "from acme_wsgi.errors import HTTPError\n",
        "acme_wsgi/arbiter.py": "import os\n",
        "acme_wsgi/worker.py": "def main():\n    import gevent\n",
        "acme_wsgi/http/__init__.py": "",
        "acme_wsgi/http/h1.pyx": '"""import acme_wsgi.worker"""\ncimport cython\nfrom libc cimport math\n',
        "handlers/__init__.py": "",
        "handlers/wsgi.py": "from acme_wsgi.http import h1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_sound_house_has_no_fault(house: Path) -> None:
    assert upward(house) == []
    assert reaches_gevent(house) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("acme_wsgi/errors.py", "\nimport acme_wsgi.routing\n", "acme_wsgi/errors.py:2: "),
        ("acme_wsgi/errors.py", "from acme_wsgi import routing\n", "acme_wsgi/errors.py:1: "),
        ("acme_wsgi/errors.py", "from . import routing\n", "acme_wsgi/errors.py:1: "),
        ("acme_wsgi/errors.py", "def f():\n    from .routing import x\n", "acme_wsgi/errors.py:2: "),
        ("acme_wsgi/http/__init__.py", "from ..routing import x\n", "acme_wsgi/http/__init__.py:1: "),
        ("acme_wsgi/http/h1.pyx", "\n\nfrom acme_wsgi.routing cimport x\n", "acme_wsgi/http/h1.pyx:3: "),
        ("acme_wsgi/http/h1.pyx", "import os, acme_wsgi.routing\n", "acme_wsgi/http/h1.pyx:1: "),
        ("acme_wsgi/http/h1.pxd", "from acme_wsgi cimport routing\n", "acme_wsgi/http/h1.pxd:1: "),
        (
            "acme_wsgi/http/h1.pyx",
            "from acme_wsgi.errors import (\n    x)\nimport acme_wsgi.worker\n",
            ":3: ",
        ),
        ("handlers/wsgi.py", "import acme_wsgi.routing\n", "handlers/wsgi.py:1: "),
        ("acme_wsgi/http/h1.pyx", "from acme_wsgi cimport (\n    errors,\n    routing)\n", "h1.pyx:1: "),
        ("acme_wsgi/errors.py", "if TYPE_CHECKING:\n    import acme_wsgi.http\n", "acme_wsgi/errors.py:2: "),
        ("acme_wsgi/scoreboard.py", "import acme_wsgi.http\n", "acme_wsgi/scoreboard.py:1: "),
        ("acme_wsgi/surprise.py", "", "acme_wsgi/surprise.py:1: acme_wsgi.surprise has no floor"),
    ],
)
def test_each_fault_is_found(house: Path, file: str, text: str, fault: str) -> None:
    (house / file).write_text(text)
    faults = upward(house)
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("file", "text", "chains"),
    [
        ("acme_wsgi/arbiter.py", "import gevent.monkey\n", ["acme_wsgi.arbiter -> gevent"]),
        ("acme_wsgi/arbiter.py", "def f():\n    from gevent import sleep\n", ["acme_wsgi.arbiter -> gevent"]),
        (
            "acme_wsgi/worker.py",
            "import gevent\n",
            ["acme_wsgi.arbiter -> acme_wsgi.worker -> gevent", "acme_wsgi.worker -> gevent"],
        ),
        (
            "acme_wsgi/http/h1.pyx",
            "from gevent.libev cimport x\n",
            [
                "acme_wsgi.arbiter -> acme_wsgi.routing -> acme_wsgi.handlers.wsgi -> "
                "acme_wsgi.http.h1 -> gevent"
            ],
        ),
        ("acme_wsgi/arbiter.py", "if TYPE_CHECKING:\n    import gevent\nelse:\n    import os\n", []),
    ],
)
def test_each_way_to_gevent_is_found(house: Path, file: str, text: str, chains: list[str]) -> None:
    (house / "acme_wsgi/arbiter.py").write_text("import acme_wsgi.routing\nimport acme_wsgi.worker\n")
    (house / "acme_wsgi/routing.py").write_text("from .handlers import wsgi\n")
    (house / file).write_text(text)
    assert reaches_gevent(house) == chains
