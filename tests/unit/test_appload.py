"""Loading applications by name: the spelling, and what is said when it goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from acme_wsgi.appload import Loader, Target, parse
from acme_wsgi.errors import BootError


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("shop", Target("shop")),
        ("shop.wsgi:app", Target("shop.wsgi", ("app",))),
        (" shop:sites.main ", Target("shop", ("sites", "main"))),
        ("shop:create()", Target("shop", ("create",), True)),
        ("shop:sites.create('a', 1)", Target("shop", ("sites", "create"), True, ("a", 1))),
        (
            "shop:create(debug=True, x=[1, None])",
            Target("shop", ("create",), True, (), {"debug": True, "x": [1, None]}),
        ),
    ],
)
def test_spelling(spec: str, target: Target) -> None:
    assert parse(spec) == target


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "does not name a module"),
        (":app", "does not name a module"),
        ("shop/wsgi.py:app", "without .py and with dots: shop.wsgi"),
        ("my-shop:app", "does not name a module"),
        ("shop.py:app", "names a file; the module is 'shop'"),
        ("shop:", "after the colon"),
        ("shop:app()()", "after the colon"),
        ("shop:apps[0]", "after the colon"),
        ("shop:a b", "after the colon"),
        ("shop:" + "(" * 500, "after the colon"),
        ("shop:create(name)", "literals"),
        ("shop:create(open('x'))", "literals"),
        ("shop:create(**{'a': 1})", r"\*\* is not possible"),
    ],
)
def test_misspellings(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(spec)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory for modules, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_what_loads(here: Path) -> None:
    (here / "loadable.py").write_text(
        "calls = []\n"
        "def application(): pass\n"
        "def create(name='x', *, debug=False):\n    calls.append(name)\n    return [name, debug]\n"
        "class sites:\n    main = application\n"
    )
    (here / "only_app.py").write_text("app = 7\n")
    loader = Loader()
    application = loader.load("loadable:application")
    assert callable(application)
    assert loader.load("loadable") is application
    assert loader.load("loadable:sites.main") is application
    assert loader.load("only_app") == 7
    assert loader.load("loadable:create('y', debug=True)") == ["y", True]
    assert loader.load("loadable:create()") == ["x", False]


def test_routes_that_share_a_spec_share_the_object(here: Path) -> None:
    (here / "shared.py").write_text("def create(): return object()\n")
    loader = Loader()
    assert loader.load("shared:create()", "route /a") is loader.load("shared:create()", "route /b")


@pytest.mark.parametrize(
    ("source", "spec", "cause"),
    [
        (None, "broken:app", "there is no module 'broken'"),
        (None, "broken.sub:app", "there is no module 'broken'"),
        ("", "broken.sub:app", "there is no module 'broken.sub'"),
        ("", "broken", "no application or app; name the callable: broken:NAME"),
        ("", "broken:app", "module broken has no attribute 'app'"),
        ("class a: pass", "broken:a.b", "type has no attribute 'b'"),
        ("app = 7", "broken:app()", "app is no factory: int can't be called"),
        (
            "import nowhere_to_be_found",
            "broken:app",
            "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("def f(:", "broken:app", "SyntaxError: "),
        ("1/0", "broken:app", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(4)", "broken:app", "SystemExit: 4"),
        ("def app(): raise KeyError('late')", "broken:app()", "KeyError: 'late'"),
        ("def app(x): pass", "broken:app()", "TypeError: app() missing 1 required"),
    ],
)
def test_what_does_not(here: Path, source: str | None, spec: str, cause: str) -> None:
    if source is not None:
        (here / "broken.py").write_text(source)
    with pytest.raises(BootError) as caught:
        Loader().load(spec, "route /x")
    assert caught.value.where == f"route /x: {spec}"
    assert cause in caught.value.cause
    assert "\n" not in caught.value.cause


def test_the_traceback_is_theirs_and_not_ours(here: Path) -> None:
    (here / "outer_module.py").write_text("import inner_module\n")
    (here / "inner_module.py").write_text("def fail():\n    raise RuntimeError('deep')\nfail()\n")
    with pytest.raises(BootError) as caught:
        Loader().load("outer_module:app")
    trace = caught.value.traceback
    assert trace.index("outer_module.py") < trace.index("inner_module.py") < trace.index("RuntimeError: deep")
    assert "appload.py" not in trace
    assert trace == trace.rstrip(), "an empty line at its end would be one of the log"
    assert "importlib" not in trace


def test_the_current_directory_is_importable_once(here: Path) -> None:
    Loader()
    Loader()
    assert sys.path[0] == str(here)
    assert sys.path.count(str(here)) == 1


def test_the_handlers_have_one_name() -> None:
    root = Path(__file__).parents[2]
    code = (
        "import acme_wsgi.handlers\ntry:\n    import handlers\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "import this package as acme_wsgi.handlers, not as handlers"
