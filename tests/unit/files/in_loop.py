"""Tests of what gevent's loop has a part in: `@in_loop` runs the test function in a forked child with a hub.

What it raises fails the test in the parent. gevent is imported in the child alone.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import ParamSpec

from tests.unit.processes import fresh_loop

P = ParamSpec("P")

DEADLINE = 10
CHILD_SECONDS = 120
"""A child that takes longer is ended by the kernel."""


def in_loop(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a child, whose main greenlet it is."""

    @functools.wraps(test)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            signal.alarm(CHILD_SECONDS)
            os._exit(_run(functools.partial(test, *args, **kwargs)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "see the child's traceback"

    return wrapped


def _run(test: Callable[[], None]) -> int:
    try:
        fresh_loop()
        test()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is so."""
    import gevent

    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        gevent.sleep(0.001)
