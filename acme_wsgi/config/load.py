"""Files, environment and command line -> one checked, frozen Config, or all the problems with them.

Its law: the order of things and nothing else: files, merged; the chosen block of ``environments``; ACME_*
variables; ``--set``; then types, then what several keys say together. Every layer is also checked by itself,
so that a mistake which a later layer hides is still reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from acme_wsgi.config import files, overlay
from acme_wsgi.config.build import Builder
from acme_wsgi.config.checks import check, derive, warn
from acme_wsgi.config.keys import Table
from acme_wsgi.config.merge import merge, normalise
from acme_wsgi.config.nodes import Leaf, Map, Place, Seq, parse, printable, read_text
from acme_wsgi.config.schema import Config
from acme_wsgi.errors import ConfigError, Problem

_ROOT = Table(Config)

#: More problems than these are counted, not shown.
MAX_PROBLEMS = 1000


def load(
    paths: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    *,
    app: str | None = None,
) -> Config:
    """The configuration that these sources make together.

    :param paths: files, or directories whose ``*.yaml`` and ``*.yml`` are read; later wins
    :param environ: for ACME_* variables and ``${NAME}``; nothing is taken from the process's own
    :param sets: ``server.port=9000``, as on the command line
    :param app: ``module:callable`` that answers ``/*``, as on the command line
    :raises ConfigError: with every problem found in all of them
    """
    return _Loading(environ or {}).run(paths, sets, app)


class _Loading:
    """The state of one load."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.tree = Map({}, Place("configuration"))

    def run(self, paths: Sequence[str], sets: Sequence[str], app: str | None) -> Config:
        for path in paths:
            for file in files.discover(path, self.problems):
                self._file(file)
        self._environment_block()
        for layer in overlay.from_environ(self.environ, self.problems, self.warnings):
            self._lay(layer)
        for layer in overlay.from_sets(sets, self.problems):
            self._lay(layer)
        if app is not None:
            self._lay(_app_route(app))
        return self._finish()

    def _file(self, path: str) -> None:
        data = files.read(path, self.problems)
        if data is None:
            return
        name = printable(path)
        text, problem = read_text(data, name)
        if problem:
            self.problems.append(problem)
            return
        node = parse(text, name, self.problems)
        if node is None or (isinstance(node, Leaf) and node.null):
            return
        if not isinstance(node, Map):
            message = f"found {node.word}, allowed: a mapping of sections"
            self.problems.append(node.place.problem(None, message))
            return
        self._lay(node)

    def _lay(self, layer: Map) -> None:
        """Check one layer by itself and put it over what there is."""
        node = normalise(layer, Config, self.problems)
        assert isinstance(node, Map)
        self._check_layer(node)
        merged = merge(self.tree, node, _ROOT, self.problems)
        assert isinstance(merged, Map)
        self.tree = merged

    def _check_layer(self, node: Map) -> None:
        alone = Map(dict(node.items), node.place)
        ignored: list[Problem] = []
        overlay.environment_blocks(alone, ignored)
        builder = Builder(self.environ, layer=True)
        builder.config(alone)
        self.problems.extend(builder.problems)

    def _environment_block(self) -> None:
        blocks = overlay.environment_blocks(self.tree, self.problems)
        chosen = overlay.selected(blocks, self.environ, self.problems)
        for name, layers in blocks.items():
            for layer in layers:
                if name == chosen:
                    self._lay(layer)
                else:
                    node = normalise(layer, Config, self.problems)
                    assert isinstance(node, Map)
                    self._check_layer(node)
        if not blocks and self.environ.get(overlay.ENVIRONMENT_VARIABLE):
            place = Place(f"environment {overlay.ENVIRONMENT_VARIABLE}")
            self.warnings.append(place.problem(None, "has no effect: there is no environments block"))

    def _finish(self) -> Config:
        builder = Builder(self.environ)
        config = builder.config(self.tree)
        self.problems.extend(builder.problems)
        config = derive(config, builder.places)
        self.problems.extend(check(config, builder.places, builder.failed))
        if self.problems:
            raise ConfigError(_bounded(_sorted(self.problems)))
        self.warnings.extend(warn(config, builder.places))
        origins = {dotted: str(place) for dotted, place in builder.places.items()}
        return dataclasses.replace(config, warnings=tuple(_sorted(self.warnings)), origins=origins)


def _app_route(app: str) -> Map:
    """The route that the command line's ``module:callable`` stands for; it wins over the files' ``/*``."""
    place = Place("command line")
    texts = {"path": "/*", "type": "wsgi", "app": app}
    items = {name: (place, Leaf(text, True, place, raw=True)) for name, text in texts.items()}
    return Map({"routes": (place, Seq([Map(dict(items), place, "replace")], place))}, place)


def _bounded(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= MAX_PROBLEMS:
        return problems
    rest = Problem(None, None, None, None, f"and {len(problems) - MAX_PROBLEMS} problems more")
    return [*problems[:MAX_PROBLEMS], rest]


def _sorted(problems: list[Problem]) -> list[Problem]:
    """Each problem once, file by file in the order found, by line."""
    order: dict[str | None, int] = {}
    for problem in problems:
        order.setdefault(problem.file, len(order))
    unique = {str(problem): problem for problem in problems}
    return sorted(unique.values(), key=lambda each: (order[each.file], each.line or 0, each.column or 0))
