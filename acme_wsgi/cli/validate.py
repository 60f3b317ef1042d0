"""`acme-server validate`: is this configuration fit to be served?

Law: looks and changes nothing: imports no application, opens no log, keeps no socket. Five checks, each
answered with one line; then every problem with its place, then the warnings.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.machinery
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISSOCK

from acme_wsgi import appload, sockets
from acme_wsgi.assets import plan as assets
from acme_wsgi.cli import add_config_arguments, load_config
from acme_wsgi.config import Config
from acme_wsgi.config.problems import Conflict, Unreadable
from acme_wsgi.config.schema.routes import Route
from acme_wsgi.errors import EX_CONFIG, ConfigError, Problem
from acme_wsgi.upstream import fallback

NAME = "validate"
HELP = "check a configuration without serving it"

# An application's file larger than this is not looked into.
_MAX_SOURCE = 1 << 20
# How the processes of a server call themselves; see worker.name_process.
_SERVER = "'acme: "


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer. `passed` None: it could not be looked at, because of what failed before."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer."""

    checks: tuple[Check, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON: ok, checks, problems and warnings")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the report; returns 0, or 78 when the configuration can't be used."""
    report = examine(options, environ)
    sys.stdout.write(_as_json(report) if options.json else _as_text(report))
    return 0 if report.passed else EX_CONFIG


def examine(options: argparse.Namespace, environ: Mapping[str, str]) -> Report:
    """Load the configuration and look at everything around it."""
    try:
        config = load_config(options, environ)
    except ConfigError as error:
        return _refused(error.problems)
    faults = [config.problem(*fault) for fault in assets.faults(config.static)]
    if faults:
        return _refused(tuple(faults))
    missing = list(_missing(config))
    checks = (
        Check("syntax", True, "every key is known and every value allowed"),
        Check("referenced files", not missing, _count(missing) or "all there"),
        Check("certificates", True, "none configured"),
        _port(config, environ),
        Check("no conflicts", True, "nothing contradicts anything"),
    )
    return Report(checks, tuple(missing), (*config.warnings, *_too_late(config)))


def _refused(problems: tuple[Problem, ...]) -> Report:
    """The report on a configuration that doesn't load; its address and files are not known."""
    conflicts = [each for each in problems if isinstance(each, Conflict)]
    unreadable = [each for each in problems if isinstance(each, Unreadable)]
    others = [each for each in problems if not isinstance(each, Conflict | Unreadable)]
    unknown = "not looked at until the configuration loads"
    checks = (
        Check("syntax", not others, _count(others) or "every key is known and every value allowed"),
        Check("referenced files", False if unreadable else None, _count(unreadable) or unknown),
        Check("certificates", None, unknown),
        Check("port free", None, unknown),
        Check(
            "no conflicts", not conflicts if conflicts or not others else None, _count(conflicts) or unknown
        ),
    )
    return Report(checks, problems, ())


# -- referenced files -------------------------------------------------------------------------------------


def _missing(config: Config) -> Iterator[Problem]:
    """Files and modules that the configuration names and that can't be used."""
    runtime = config.server.runtime_dir
    for key, directory in (
        # The server makes the last part of it itself.
        ("server.runtime_dir", runtime if runtime is None or Path(runtime).is_dir() else _parent(runtime)),
        ("server.pid_file", _parent(config.server.pid_file)),
        ("logging.output", _parent(config.logging.output)),
        ("logging.access.output", _parent(config.logging.access.output)),
        ("logging.error.output", _parent(config.logging.error.output)),
    ):
        if directory is not None and not Path(directory).is_dir():
            yield config.problem(key, f"directory {directory!r} doesn't exist")
        elif directory is not None and not os.access(directory, os.W_OK | os.X_OK):
            yield config.problem(key, f"directory {directory!r} can't be written to")
    for index, route in enumerate(config.routes):
        yield from _missing_of_route(config, route, f"routes[{index}]")


def _missing_of_route(config: Config, route: Route, dotted: str) -> Iterator[Problem]:
    if route.root is not None and not Path(route.root).is_dir():
        wrong = "is no directory" if Path(route.root).exists() else "doesn't exist"
        yield config.problem(f"{dotted}.root", f"{route.root!r} {wrong}")
    if route.fallback is not None:
        try:
            fallback.read(route.fallback)
        except ValueError as error:
            yield config.problem(f"{dotted}.fallback", str(error))
    for name, target in (("app", route.app), ("handler", route.handler)):
        if target is None:
            continue
        try:
            module = appload.parse(target).module
        except ValueError as error:
            yield config.problem(f"{dotted}.{name}", str(error))
            continue
        if _find(module) is None:
            message = f"no module {module!r} in {Path.cwd()} or the Python path"
            yield config.problem(f"{dotted}.{name}", message)


def _parent(output: str | None) -> str | None:
    """The directory of a file that will be written; None for a stream."""
    return str(Path(output).parent) if output and output.startswith("/") else None


def _find(module: str) -> importlib.machinery.ModuleSpec | None:
    """The module's spec, found without running any of its packages."""
    path: list[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    names = module.split(".")
    for depth in range(len(names)):
        if path is None:
            return None
        name = ".".join(names[: depth + 1])
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None and depth == 0:
            spec = importlib.machinery.BuiltinImporter.find_spec(name)
        if spec is None:
            return None
        found = spec.submodule_search_locations
        path = list(found) if found is not None else None
    return spec


# -- port free --------------------------------------------------------------------------------------------


def _port(config: Config, environ: Mapping[str, str]) -> Check:
    """Whether the address can be bound now, or is held by a server of ours that a reload would keep."""
    if environ.get("LISTEN_FDS") and environ.get("LISTEN_PID") == str(os.getpid()):
        return Check("port free", True, "sockets are handed over by systemd")
    host, port = config.server.host, config.server.port
    if host.startswith(sockets.UNIX):
        return _socket_path(Path(host.removeprefix(sockets.UNIX)))
    try:
        bound = sockets.bind_tcp(host, port, backlog=1, fastopen=False)
    except sockets.ListenError as error:
        if _SERVER in str(error):
            return Check("port free", True, f"held by the running server ({error})")
        return Check("port free", False, str(error))
    names = ", ".join(listener.name for listener in bound) if port else "the kernel chooses"
    for listener in bound:
        listener.close()
    return Check("port free", True, names)


def _socket_path(path: Path) -> Check:
    """A UNIX socket's directory must be there; a socket in it is replaced, anything else isn't."""
    if not path.parent.is_dir():
        return Check("port free", False, f"directory {str(path.parent)!r} doesn't exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return Check("port free", False, f"directory {str(path.parent)!r} can't be written to")
    with contextlib.suppress(FileNotFoundError):
        if not S_ISSOCK(path.lstat().st_mode):
            return Check("port free", False, f"{str(path)!r} is there and is no socket")
    return Check("port free", True, f"unix:{path}")


# -- warnings ---------------------------------------------------------------------------------------------


def _too_late(config: Config) -> Iterator[Problem]:
    """Applications that would import the standard library's blocking parts before they are patched."""
    seen: set[str] = set()
    for index, route in enumerate(config.routes):
        key = "app" if route.app else "handler"
        target = route.app or route.handler
        if target is None or target in seen:
            continue
        seen.add(target)
        dotted = f"routes[{index}].{key}"
        if config.server.preload_app:
            message = (
                f"{target} would be imported in the arbiter, which is never patched (server.preload_app): "
                "its blocking calls would block a whole worker"
            )
            yield config.problem(dotted, message)
        line = _own_patching(target)
        if line:
            message = (
                f"{line} patches by itself; workers are patched before they import anything, so it must go"
            )
            yield config.problem(dotted, message)


def _own_patching(target: str) -> str:
    """``file:line`` where the application's module patches (``patch_all``, ``monkey_patch``), or ""."""
    try:
        spec = _find(appload.parse(target).module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return ""
        path = Path(spec.origin)
        if path.stat().st_size > _MAX_SOURCE:
            return ""
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return ""  # what is wrong with the module is told when it is loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("patch_all", "monkey_patch"):
                return f"{spec.origin}:{node.lineno}"
    return ""


# -- output -----------------------------------------------------------------------------------------------


def _as_text(report: Report) -> str:
    lines = [f"{_MARKS[check.passed]} {check.name}: {check.detail}" for check in report.checks]
    lines += [str(problem) for problem in report.problems]
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join(lines) + "\n"


def _as_json(report: Report) -> str:
    answer = {
        "ok": report.passed,
        "checks": [{"name": each.name, "ok": each.passed, "detail": each.detail} for each in report.checks],
        "problems": [_problem_json(each) for each in report.problems],
        "warnings": [_problem_json(each) for each in report.warnings],
    }
    return json.dumps(answer, indent=2) + "\n"


def _problem_json(problem: Problem) -> dict[str, object]:
    names = ("file", "line", "column", "key", "message", "hint")
    return {name: getattr(problem, name) for name in names}


def _count(problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


# A check that could not be made hasn't passed.
_MARKS = {True: "✓", False: "✗", None: "✗"}
