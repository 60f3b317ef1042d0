"""The limits that the kernel sets on our processes: C stack and open files.

Law: asks and sets limits of the process it runs in. The arbiter calls the one half before it forks, a worker
the other half first of all; neither knows what the other does.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
from pathlib import Path

from acme_wsgi.errors import AcmeError

STACK_PER_LEVEL = 2560
"""Bytes of C stack that one level of Python recursion may take: the worst case of CPython's own types.

Measured with Python 3.11 (docs/decisions/recursion-limit-from-the-stack.md): `sorted` with a recursing key
takes 2,490 a level, `__getattr__` 730, the encoders and callbacks of the standard library 80 to 620, plain
Python calls none.
"""

STACK_RESERVE = 128 * 1024
"""Bytes kept free below the deepest level, for the C library and extension modules called there."""

FEWEST_LEVELS = 150
"""With fewer levels of recursion the imports of a usual application fail."""

# The kernel leaves 128 MB for a stack whose limit was smaller than that at exec.
_LAYOUT_STACK = 100 * 1024 * 1024


class ResourceError(AcmeError):
    """The kernel does not grant a limit that the configuration asks for.

    :ivar exit_status: what the process exits with (1)
    """

    exit_status = 1


def make_room_for_stack(size: int) -> None:
    """See to it that a worker's main thread can have a C stack of `size` bytes.

    The kernel puts the memory mappings below the stack at exec, with as much room as RLIMIT_STACK said then,
    but at least 128 MB. A bigger stack needs the limit raised first and the program executed again: this does
    not return then, but starts over with the same arguments and the same process id.

    :raises ResourceError: the hard limit is lower
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard != resource.RLIM_INFINITY and size > hard:
        raise ResourceError(
            f"server.worker_stack_size: {size} bytes are above this process's hard limit of {hard};"
            " raise it (ulimit -Hs, LimitSTACK=)"
        )
    if size <= _LAYOUT_STACK or soft == resource.RLIM_INFINITY or soft >= size:
        return
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    # By its full path, from which an interpreter tells what environment it belongs to.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves, as we were called


def set_stack(size: int) -> None:
    """Make `size` bytes the C stack of the main thread and of every thread started from here on.

    The kernel checks the limit whenever the main thread's stack grows, so it holds for a process already
    running; a handler profits because the recursion limit is derived from it.

    :raises ResourceError: it leaves no room to work in
    """
    levels = recursion_limit(size, stack_used())
    if levels < FEWEST_LEVELS:
        raise ResourceError(
            f"server.worker_stack_size: what is left of {size} bytes is enough for {max(levels, 0)} levels of"
            " recursion only; make it larger (or the environment smaller, it lies on the stack too)"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    page = resource.getpagesize()
    threading.stack_size(-(-size // page) * page)
    sys.setrecursionlimit(levels)


def recursion_limit(size: int, used: int) -> int:
    """The recursion limit that turns endless recursion into RecursionError before the C stack ends.

    :param size: size of the C stack in bytes
    :param used: bytes of it that are in use already
    """
    return (size - used - STACK_RESERVE) // STACK_PER_LEVEL


def stack_used() -> int:
    """Bytes of the main thread's stack in use by now, environment and arguments included; proc(5), VmStk."""
    found = re.search(r"^VmStk:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise ResourceError("/proc/self/status does not tell the size of the stack: is /proc mounted?")
    return int(found[1]) * 1024


def raise_descriptor_limit() -> int:
    """Let our processes open as many files as the hard limit allows; returns how many each may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize
