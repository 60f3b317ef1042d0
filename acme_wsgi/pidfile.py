"""The file that says which process is the server.

Law: knows one path and one number. Written whole or not at all; removed only by the process that it names.
"""

from __future__ import annotations

import contextlib
import os

from acme_wsgi.limits import ResourceError

_MOST = 32  # bytes of a pid file that are looked at


def write(path: str | None) -> None:
    """Say in `path` that this process is the server; None does nothing.

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
    if path is None:
        return
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        if int(file.read(_MOST)) == os.getpid():
            os.unlink(path)  # noqa: PTH108
