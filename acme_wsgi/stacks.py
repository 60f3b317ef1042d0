"""Stacks on demand: the file in which a worker says where it stands, and how it is asked.

Law: imported by the arbiter, so it never loads gevent. Nothing here waits.
"""

from __future__ import annotations

import os
import signal
from typing import IO

STACK_SIGNAL = signal.SIGUSR2
"""Makes a worker write the Python stacks of its threads to the file the arbiter reads, even when it hangs."""

_MAX_READ = 32 * 1024


class Stacks:
    """The arbiter's side of the file that one process writes its stacks to.

    :ivar file: anonymous memory, inherited by the process
    """

    def __init__(self, name: str) -> None:
        self.file: IO[bytes] = os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0)

    def ask(self, pid: int) -> None:
        """Have the process write; what it wrote before is forgotten."""
        self.forget()
        os.kill(pid, STACK_SIGNAL)

    def forget(self) -> None:
        """Empty the file for the next stacks."""
        # Both processes share one file position: the worker's next word starts where this leaves it.
        self.file.seek(0)
        self.file.truncate()

    def read(self) -> str:
        """What the process wrote when it was asked, or when it crashed."""
        return os.pread(self.file.fileno(), _MAX_READ, 0).decode(errors="replace").rstrip()

    def close(self) -> None:
        """The process is gone, or was never started."""
        self.file.close()
