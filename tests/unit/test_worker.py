"""What a worker computes and sets for itself; its life in the tree: integration/test_processes.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from acme_wsgi import limits, worker
from acme_wsgi.errors import BootError, ConfigError, Problem

MB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: str, shell_limit: str = "") -> str:
    """Run code in an interpreter of its own, since it changes the process; returns its output."""
    command = [sys.executable, "-c", code, *arguments]
    if shell_limit:
        command = ["/bin/sh", "-c", f'{shell_limit} && exec "$0" "$@"', *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("total", "workers", "shares"),
    [(4, 4, [1, 1, 1, 1]), (4, 3, [2, 1, 1]), (16, 5, [4, 3, 3, 3, 3]), (1, 3, [1, 1, 1]), (7, 2, [4, 3])],
)
def test_io_threads_are_shared_out(total: int, workers: int, shares: list[int]) -> None:
    assert [worker.io_share(total, workers, index) for index in range(workers)] == shares


def test_the_arbiters_modules_load_no_gevent() -> None:
    loaded = python("import sys, acme_wsgi.arbiter, acme_wsgi.cli.serve; print(*sys.modules)").split()
    assert "acme_wsgi.arbiter" in loaded
    assert {"gevent", "greenlet", "werkzeug"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BootError("route /*", "KeyError: 'x'", "Trace"), 3, {"where": "route /*", "cause": "KeyError: 'x'"}),
        (ConfigError([Problem("a", 1, 2, "k", "bad")]), 78, {"problems": [["a", 1, 2, "k", "bad", None]]}),
        (limits.ResourceError("too small"), 1, {"limit": "too small"}),
        (ZeroDivisionError("x"), 3, {"where": "starting a worker", "cause": "ZeroDivisionError: x"}),
    ],
)
def test_a_failed_start_is_reported(error: Exception, status: int, said: dict[str, object]) -> None:
    reading, writing = os.pipe()
    assert worker._report_failure(writing, error) == status
    with open(reading) as pipe:
        report = json.loads(pipe.read())
    assert report.items() >= said.items()


def test_a_report_to_an_arbiter_that_is_gone_is_survived() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    worker._report(writing, ready=True)


# -- the C stack

# Recursion through sorted(): each level takes more C stack than through any other part of CPython.
_RECURSE = """
import sys
from acme_wsgi import limits
limits.set_stack(int(sys.argv[1]))
deepest = 0
def deeper(level):
    global deepest
    deepest = level
    sorted([level + 1], key=deeper)
try:
    deeper(1)
except RecursionError:
    print(deepest, sys.getrecursionlimit())
"""


@pytest.mark.parametrize("size", [1 * MB, 2 * MB, 8 * MB, 64 * MB])
def test_endless_recursion_ends_in_an_error_and_not_in_a_crash(size: int) -> None:
    deepest, limit = map(int, python(_RECURSE, str(size)).split())
    assert limit == pytest.approx(size / limits.STACK_PER_LEVEL, rel=0.3)
    assert deepest > limit / 3


def test_a_bigger_stack_makes_deeper_recursion_possible() -> None:
    small, large = (int(python(_RECURSE, str(size)).split()[0]) for size in (2 * MB, 32 * MB))
    assert large > 12 * small


@pytest.mark.parametrize(
    "recursion",
    [
        "import json\nx = []\nfor _ in range(10**6): x = [x]\njson.dumps(x)",
        "import json\njson.loads('[' * 10**6)",
        "import pickle\nx = []\nfor _ in range(10**6): x = [x]\npickle.dumps(x)",
        "x = {}\nfor _ in range(10**6): x = {1: x}\nrepr(x)",
        "class A:\n  def __getattr__(self, name): return getattr(self, name)\nA().x",
        "class A:\n  def __add__(self, other): return self + other\nA() + 1",
        "class A:\n  def __init__(self): A()\nA()",
        "def f(n): return list(map(f, [n]))\nf(1)",
        "def f(m):\n  import re\n  return re.sub('a', f, 'a')\nf(None)",
        "def f(): yield from f()\nlist(f())",
        "def f(): f()\nf()",
    ],
)
def test_no_kind_of_recursion_passes_the_end_of_the_smallest_stack(recursion: str) -> None:
    code = (
        "import os, sys\nfrom acme_wsgi import limits\nlimits.set_stack(1 << 20)\n"
        f"try:\n  exec({recursion!r})\nexcept RecursionError:\n  print('ok')\n"
        # Taking a million nested lists apart at the end is not what is tested.
        "sys.stdout.flush()\nos._exit(0)"
    )
    assert python(code) == "ok"


def test_threads_get_the_same_stack() -> None:
    in_main, in_thread = _RECURSE.split("try:")
    wrapped = textwrap.indent("try:" + in_thread, "    ")
    code = f"{in_main}\ndef run():\n{wrapped}\nimport threading\nthread = threading.Thread(target=run)\n"
    deepest, limit = map(int, python(code + "thread.start()\nthread.join()", str(16 * MB)).split())
    assert deepest > limit / 3 and limit > 10 * MB / limits.STACK_PER_LEVEL


def test_a_stack_without_room_to_work_in_is_refused() -> None:
    with pytest.raises(limits.ResourceError, match=r"server\.worker_stack_size"):
        limits.set_stack(256 * 1024)


def test_a_hard_limit_below_the_wanted_stack_is_told() -> None:
    assert "hard limit of 8388608" in python(
        "from acme_wsgi import limits\n"
        "try: limits.make_room_for_stack(16 << 20)\nexcept limits.ResourceError as error: print(error)",
        shell_limit="ulimit -s 8192",
    )


@pytest.mark.parametrize("size", [2 * MB, 256 * MB])
def test_room_for_a_big_stack_is_made_by_executing_anew(size: int) -> None:
    """A deep recursion would run into the memory mappings otherwise, which end 128 MB below the stack."""
    code = (
        "import os, sys\nfrom acme_wsgi import limits\n"
        "os.environ['STARTS'] = str(int(os.environ.get('STARTS', '0')) + 1)\n"
        "limits.make_room_for_stack(int(sys.argv[1]))\nprint(os.environ['STARTS'])\n" + _RECURSE
    )
    starts, _, reached = python(code, str(size), shell_limit="ulimit -S -s 8192").partition("\n")
    assert int(starts) == (1 if size == 2 * MB else 2)
    assert int(reached.split()[0]) > size / limits.STACK_PER_LEVEL / 3
