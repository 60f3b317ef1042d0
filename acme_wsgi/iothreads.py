"""The worker's I/O threads: where calls run that would keep the loop waiting for a disk, or busy for long.

Law: knows functions and gevent's pool, not what they do. Called from a greenlet, which waits; others run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import gevent

P = ParamSpec("P")
T = TypeVar("T")


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises, called in one of the worker's `io_threads`.

    It must not touch anything of gevent's: its thread has no loop. While all threads are busy the call waits
    for one; a greenlet that is killed meanwhile leaves it running.
    """
    result: T = gevent.get_hub().threadpool.apply(function, args, kwargs)
    return result
