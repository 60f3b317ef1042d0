"""The two logs, their files, and the writer behind them: what the rest of the server uses of this room.

Law: floor 2; never imports gevent. Nothing here blocks the caller (closing waits, for a bounded time), and no
failing output stops the server: what can't be written is counted and reported.

    setup(config.logging, process="worker 1")     # the error log: logging.getLogger("acme.<module>")
    access_log = AccessLog(config.logging)        # the access log: append to .entries, call .flush()
    reopen_all()                                  # SIGUSR1
    rotate(config.logging, owner=None)            # the arbiter, once a second; True: send the others SIGUSR1
    prepare(config.logging, owner=(uid, gid))     # the arbiter, before processes with fewer rights open files
    close()                                       # last thing before the process ends, also by os._exit()
"""

from __future__ import annotations

from acme_wsgi.log import errorlog as _errorlog
from acme_wsgi.log import rotation as _rotation
from acme_wsgi.log.access import AccessLog, Entry
from acme_wsgi.log.access import reopen as _reopen
from acme_wsgi.log.errorlog import setup
from acme_wsgi.log.escape import HeaderMask
from acme_wsgi.log.rotation import prepare, rotate
from acme_wsgi.log.sink import CLOSE_TIMEOUT
from acme_wsgi.log.sink import open_sinks as _open_sinks

__all__ = ["AccessLog", "Entry", "HeaderMask", "close", "prepare", "reopen_all", "rotate", "setup"]


def reopen_all() -> None:
    """Open every file output of this process anew; one that can't be opened stays, with a warning."""
    for sink in _open_sinks():
        _reopen(sink)


def close(timeout: float = CLOSE_TIMEOUT) -> None:
    """Write what is queued, waiting at most ``timeout`` seconds, and end what goes on for this process."""
    _rotation.abandon()
    _errorlog.close(timeout)
