"""The file that says which process is the server.

Law: knows one path and one number. Written whole or not at all; removed only by the process that it names.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from acme_wsgi.limits import ResourceError

ARBITER = "acme: arbiter"
"""What the arbiter's process calls itself."""

_MOST = 32  # bytes of a pid file that are looked at


def claim(path: str | None) -> None:
    """Say at the start in `path` that this process is the server; None does nothing.

    :raises ResourceError: it names another server that lives, or can't be written
    """
    if path is not None:
        other = _named(path)
        if other not in (0, os.getpid()) and _is_server(other):
            raise ResourceError(f"server.pid_file: {path} is the file of a running server (pid {other})")
    write(path)


def write(path: str | None) -> None:
    """Say in `path` that this process is the server now, whoever was before; None does nothing.

    :raises ResourceError: it can't be written
    """
    if path is None:
        return
    temporary = f"{path}.{os.getpid()}"
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
        )
        try:
            os.write(descriptor, f"{os.getpid()}\n".encode())
        finally:
            os.close(descriptor)
        os.rename(temporary, path)  # noqa: PTH104 - the path as it is configured
    except OSError as error:
        raise ResourceError(f"server.pid_file: can't write {path}: {error.strerror}") from error


def remove(path: str | None) -> None:
    """Remove the file if it still names this process."""
    if path is not None and _named(path) == os.getpid():
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108


def _named(path: str) -> int:
    """The process that the file names, 0 for none."""
    try:
        with open(path, "rb") as file:
            return int(file.read(_MOST))
    except (OSError, ValueError):
        return 0


def _is_server(pid: int) -> bool:
    """Does the process call itself as our arbiters do?"""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(ARBITER)
    except (OSError, ValueError):
        return False
