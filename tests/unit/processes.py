"""Processes for tests: of what is measured of one, and of what several share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def python(source: str, then: str = "input()") -> Iterator[int]:
    """A Python process that has run `source` and now runs `then` (it waits); its id."""
    command = [sys.executable, "-c", f"{source}\nprint(flush=True)\n{then}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def fresh_loop() -> None:
    """In a forked child: a gevent hub of its own, where tests before may have left one in the parent.

    Its threads were not forked, its descriptors are the parent's, and its clock stands where the parent
    let it run last: a timer of ten seconds would be over at once.
    """
    import gevent

    gevent.reinit()
    gevent.get_hub().loop.update_now()


def in_child(work: Callable[[], None]) -> int:
    """Run a function in a forked process that ends after it; its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def joined(pid: int) -> int:
    """Wait for the end of a child; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
