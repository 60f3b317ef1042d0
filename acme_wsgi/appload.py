"""From "module:callable" in the configuration to the Python object it names.

Law: knows the spelling, `sys.path` and imports; not what the object is for. Whatever goes wrong in somebody's
module comes out as one BootError that shows their traceback and not ours.

    shop.wsgi:application           an attribute
    shop.wsgi:sites.main            an attribute of an attribute
    shop.wsgi                       `application`, else `app`
    shop.wsgi:create()              what a factory returns
    shop.wsgi:create("prod", debug=False)     the arguments are literals
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, TracebackType

from acme_wsgi.errors import BootError

DEFAULT_NAMES = ("application", "app")
"""What a bare module is searched for, in this order."""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed "module:callable". `names` empty: the default names; `call`: the object is a factory to be
    called.
    """

    module: str
    names: tuple[str, ...] = ()
    call: bool = False
    arguments: tuple[object, ...] = ()
    keywords: dict[str, object] = field(default_factory=dict)


def parse(spec: str) -> Target:
    """Take "module:callable" apart; raises ValueError with what is wrong and how it should look."""
    module, colon, expression = spec.strip().partition(":")
    if not _MODULE.fullmatch(module):
        hint = ""
        if module.endswith(".py") or "/" in module:
            dotted = module.removesuffix(".py").replace("/", ".").strip(".")
            hint = f"; a module is named without .py and with dots: {dotted}"
        raise ValueError(f"{spec!r} does not name a module{hint}")
    if module.endswith(".py"):
        raise ValueError(f"{spec!r} names a file; the module is {module.removesuffix('.py')!r}")
    if not colon:
        return Target(module)
    try:
        node = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"{spec!r}: after the colon comes a name or a call, like app or create_app()"
        ) from None
    if not isinstance(node, ast.Call):
        return Target(module, _dotted(node, spec))
    try:
        arguments = tuple(ast.literal_eval(argument) for argument in node.args)
        keywords = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
    except (ValueError, TypeError):
        raise ValueError(
            f"{spec!r}: a factory's arguments are literals (strings, numbers, True, lists, ...)"
        ) from None
    if len(keywords) != len(node.keywords):
        raise ValueError(f"{spec!r}: ** is not possible here")
    return Target(module, _dotted(node.func, spec), True, arguments, keywords)


def _dotted(node: ast.expr, spec: str) -> tuple[str, ...]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError(f"{spec!r}: after the colon comes a name or a call, like app or create_app()")
    return (node.id, *reversed(names))


class Loader:
    """Loads objects by their spec, each spec once: routes that share an application share the object.

    The current directory stands first on `sys.path`, as it does for ``python -m``.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, object] = {}
        here = os.getcwd()  # noqa: PTH109
        if here not in sys.path and "" not in sys.path:
            sys.path.insert(0, here)

    def load(self, spec: str, where: str = "") -> object:
        """The object that `spec` names.

        :param where: what wants it, for the message ("route /api/*")
        :raises BootError: the spec is malformed, the import fails, the name isn't there, the factory raises
        """
        if spec not in self._loaded:
            self._loaded[spec] = _load(spec, f"{where}: {spec}" if where else spec)
        return self._loaded[spec]


def _load(spec: str, where: str) -> object:
    try:
        target = parse(spec)
    except ValueError as error:
        raise BootError(where, str(error)) from None
    module = _guarded(where, lambda: importlib.import_module(target.module), target.module)
    assert isinstance(module, ModuleType)
    found = _find(module, target, where)
    if not target.call:
        return found
    if not callable(found):
        raise BootError(
            where, f"{'.'.join(target.names)} is no factory: {type(found).__name__} can't be called"
        )
    return _guarded(where, lambda: found(*target.arguments, **target.keywords))


def _find(module: ModuleType, target: Target, where: str) -> object:
    if not target.names:
        for name in DEFAULT_NAMES:
            if hasattr(module, name):
                return getattr(module, name)
        names = " or ".join(DEFAULT_NAMES)
        raise BootError(
            where, f"module {target.module} has no {names}; name the callable: {target.module}:NAME"
        )
    found: object = module
    for name in target.names:
        if not hasattr(found, name):
            owner = f"module {target.module}" if found is module else type(found).__name__
            raise BootError(where, f"{owner} has no attribute {name!r}")
        found = getattr(found, name)
    return found


def _guarded(where: str, action: Callable[[], object], module: str = "") -> object:
    """Run somebody else's code; whatever it raises, a sys.exit() included, becomes a BootError."""
    try:
        return action()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module and (module == missing or module.startswith(missing + ".")):
            path = os.getcwd()  # noqa: PTH109
            raise BootError(where, f"there is no module {missing!r} in {path} or on sys.path") from None
        raise _boot_error(where, error) from error
    except (Exception, SystemExit) as error:
        raise _boot_error(where, error) from error


def _boot_error(where: str, error: BaseException) -> BootError:
    cause = "".join(traceback.format_exception_only(error)).strip()
    shown = "".join(traceback.format_exception(type(error), error, _theirs(error.__traceback__)))
    return BootError(where, cause.splitlines()[-1] if cause else type(error).__name__, shown.rstrip())


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor the import machinery's."""
    own = {__file__, importlib.__file__}
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name not in own and not name.startswith("<frozen importlib"):
            return trace
        trace = trace.tb_next
    return None
