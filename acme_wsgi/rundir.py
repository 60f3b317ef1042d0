"""The runtime directory: where it is, and that nobody else can put anything into it.

Law: knows directories and who owns them, not what is kept there. Imports no gevent.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from acme_wsgi.errors import AcmeError

RUN = "/run/acme"
"""The directory of a server that root, or systemd for somebody else, starts."""

_MODE = 0o750


class ControlError(AcmeError):
    """The control socket can't be had, or the server behind it can't be asked.

    :ivar exit_status: what a command exits with
    """

    exit_status = 1


def default_directory(environ: Mapping[str, str]) -> str:
    """The directory of the control socket when server.runtime_dir is unset.

    :raises ControlError: the directory in /tmp that is left is somebody else's
    """
    if os.geteuid() == 0 or os.access(RUN, os.W_OK | os.X_OK, effective_ids=True):
        return RUN
    own = environ.get("XDG_RUNTIME_DIR", "")
    if own.startswith("/") and Path(own).is_dir():
        return str(Path(own) / "acme")
    fallback = f"/tmp/acme-{os.geteuid()}"  # noqa: S108 - checked here and again when it is opened
    with contextlib.suppress(FileNotFoundError):
        _insist_on_ours(os.lstat(fallback), fallback)
    return fallback


def open_directory(directory: str) -> int:
    """A descriptor (O_PATH) of the directory, which is made if its parent allows that.

    Through the descriptor the directory stays the same one whatever happens to its name, and a path in it
    is short enough for a socket address. The caller closes it.

    :raises ControlError: it can't be made or used, or others could put a socket of theirs into it
    """
    shared = _in_shared_place(directory)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700 if shared else _MODE)  # noqa: PTH102 - a mode, no parents
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if shared else 0)
        descriptor = os.open(directory, flags)
    except (OSError, ValueError) as error:
        raise ControlError(unusable(directory, getattr(error, "strerror", None) or str(error))) from error
    try:
        status = os.fstat(descriptor)
        if shared:
            _insist_on_ours(status, directory)
        if status.st_mode & stat.S_IWOTH:
            raise ControlError(unusable(directory, "everybody may write there"))
        if not os.access(f"/proc/self/fd/{descriptor}", os.W_OK | os.X_OK, effective_ids=True):
            raise ControlError(unusable(directory, "it can't be written to"))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _in_shared_place(directory: str) -> bool:
    """Whether everybody may make entries beside it, as in /tmp: then its name alone says nothing."""
    try:
        return bool(Path(directory).absolute().parent.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False  # what is wrong shows when it is made


def _insist_on_ours(status: os.stat_result, directory: str) -> None:
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        reason = f"where everybody may write it must be a directory of user {os.geteuid()}, mode 0700"
        raise ControlError(unusable(directory, reason))


def unusable(directory: str, reason: str) -> str:
    """Why a directory is of no use, and what to do about it."""
    return (
        f"{directory!r} can't hold the control socket: {reason}; server.runtime_dir names another directory"
    )
