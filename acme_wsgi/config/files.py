"""Which files make up a configuration, and their bytes.

Its law: reads regular files of a bounded size and number, and nothing else: no socket, no pipe, no device.
"""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from acme_wsgi.config.nodes import MAX_BYTES, printable
from acme_wsgi.errors import Problem

#: The most files that one directory may hold.
MAX_FILES = 1000

_SUFFIXES = (".yaml", ".yml")
_LEFTOVERS = (".dpkg-", ".rpm")


def discover(path: str, problems: list[Problem]) -> list[str]:
    """The files that `path` stands for: itself, or those of the directory, in byte order of their names."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - the path is shown as given, and may hold any byte
    except (OSError, ValueError) as error:
        problems.append(_problem(path, error))
        return []
    if not S_ISDIR(mode):
        return [path]
    try:
        names = sorted(filter(is_config_name, os.listdir(path)), key=os.fsencode)  # noqa: PTH208
    except OSError as error:
        problems.append(_problem(path, error))
        return []
    if len(names) > MAX_FILES:
        problems.append(
            Problem(printable(path), None, None, None, f"{len(names)} files; allowed: {MAX_FILES}")
        )
        return []
    return [str(Path(path) / name) for name in names]


def is_config_name(name: str) -> bool:
    """Whether a file of this name in a conf.d directory is read: no hidden file, no leftover."""
    return (
        name.endswith(_SUFFIXES)
        and not name.startswith((".", "#"))
        and not any(leftover in name for leftover in _LEFTOVERS)
    )


def read(path: str, problems: list[Problem]) -> bytes | None:
    """The bytes of a file, or None and the problem with it. At most one byte too many is read."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not S_ISREG(os.fstat(descriptor).st_mode):
                problems.append(Problem(printable(path), None, None, None, "not a regular file"))
                return None
            return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        problems.append(_problem(path, error))
        return None


def _problem(path: str, error: OSError | ValueError) -> Problem:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Problem(printable(path), None, None, None, f"can't be read: {reason}")
