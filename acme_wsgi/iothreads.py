"""The worker's threads: where calls run that would keep the loop waiting for a disk, or busy for long.

Law: knows functions and gevent's pool, not what they do. Called from a greenlet, which waits; others run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import gevent
from gevent.threadpool import ThreadPool

P = ParamSpec("P")
T = TypeVar("T")


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises, called in one of the worker's `io_threads`.

    It must not touch anything of gevent's: its thread has no loop. While all threads are busy the call waits
    for one; a greenlet that is killed meanwhile leaves it running.
    """
    return apply(gevent.get_hub().threadpool, function, *args, **kwargs)


_patient: ThreadPool | None = None


def run_long(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `run`, for what may compute for seconds: in one thread beside the I/O threads, one call after the
    other, so that nobody who wants to read a file waits behind it.
    """
    global _patient
    if _patient is None:
        _patient = ThreadPool(1)
    return apply(_patient, function, *args, **kwargs)


def apply(pool: ThreadPool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same in another pool than the worker's own."""
    result, error = pool.apply(_outcome, (function, args, kwargs))
    if error is not None:
        try:
            raise error
        finally:
            del error  # or the traceback would hold it, and it the traceback
    return cast("T", result)


def _outcome(function: Callable[..., T], args: Any, kwargs: Any) -> tuple[T | None, BaseException | None]:
    """What a call came to: what a pool's thread raises, gevent prints, whoever may catch it later."""
    try:
        return function(*args, **kwargs), None
    except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
        return None, error
