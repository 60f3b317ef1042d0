"""Processes for tests of what is measured of processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
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
