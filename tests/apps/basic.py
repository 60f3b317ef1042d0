"""Small WSGI applications: what the tests of the engine and of the processes ask their servers for.

    app: /            hello
         /pid         the worker's process id
         /sleep/N     answers after N seconds of (cooperative) sleep
         /spin/N      computes for N seconds without ever yielding
         /recurse/N   recurses N levels deep through C code, answers the depth reached
         /threads/N   N blocking calls at once in the I/O threads, answers the most that ran at the same time
         /echo        the request's body
         /stream/N    N chunks, one by one
         /raise       an exception
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

StartResponse = Callable[..., Any]
Environ = dict[str, Any]


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Dispatch on the path's first part."""
    name, _, argument = environ["PATH_INFO"].strip("/").partition("/")
    body = _PAGES[name or "hello"](environ, argument)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()] if isinstance(body, str) else body


def _hello(_environ: Environ, _argument: str) -> str:
    return "hello\n"


def _pid(_environ: Environ, _argument: str) -> str:
    return str(os.getpid())


def _sleep(_environ: Environ, argument: str) -> str:
    time.sleep(float(argument))
    return "slept\n"


def _spin(_environ: Environ, argument: str) -> str:
    end = time.monotonic() + float(argument)
    while time.monotonic() < end:
        pass
    return "spun\n"


def _recurse(_environ: Environ, argument: str) -> str:
    wanted = int(argument)

    def deeper(level: int) -> int:
        # sorted() calls back from C: each level takes C stack, more than any other part of CPython.
        sorted([level + 1], key=deeper) if level < wanted else None
        return level

    try:
        deeper(1)
    except RecursionError:
        return "RecursionError"
    return str(wanted)


def _threads(_environ: Environ, argument: str) -> str:
    import gevent
    from gevent import monkey

    pool = gevent.get_hub().threadpool
    lock = monkey.get_original("threading", "Lock")()
    sleep = monkey.get_original("time", "sleep")
    running = most = 0

    def block() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        sleep(0.05)
        with lock:
            running -= 1

    gevent.joinall([pool.spawn(block) for _ in range(int(argument))])
    return str(most)


def _echo(environ: Environ, _argument: str) -> list[bytes]:
    return [environ["wsgi.input"].read()]


def _stream(_environ: Environ, argument: str) -> Iterator[bytes]:
    for number in range(int(argument)):
        yield b"%d\n" % number


def _raise(_environ: Environ, _argument: str) -> str:
    raise RuntimeError("asked for")


_PAGES: dict[str, Callable[[Environ, str], str | Iterable[bytes]]] = {
    "hello": _hello,
    "pid": _pid,
    "sleep": _sleep,
    "spin": _spin,
    "recurse": _recurse,
    "threads": _threads,
    "echo": _echo,
    "stream": _stream,
    "raise": _raise,
}
