"""One health check: is a backend well? It is asked for a path on a connection of its own.

Law: asks and judges. How often, and what follows from it, is health.py's.
"""

from __future__ import annotations

import time

from acme_wsgi import __version__
from acme_wsgi.errors import BackendError
from acme_wsgi.upstream.pool import Shelf

_HEADS = 8  # interim responses and the final one


def probe(shelf: Shelf, path: str, timeout: float, strict: bool = True) -> tuple[bool, str]:
    """GET `path`; a status of 2xx or 3xx is good, and 4xx if the check isn't strict.

    The connection is not one of the pool's: a backend is checked also where all of them are in use.

    :param timeout: seconds, for everything
    :returns: whether it is well, and what it answered or why it didn't, for people
    """
    target = shelf.target
    deadline = time.monotonic_ns() + int(timeout * 1e9)
    request = (
        f"GET {target.prefix}{path} HTTP/1.1\r\nHost: {target.authority}\r\n"
        f"User-Agent: acme/{__version__} (health check)\r\n"
        + (f"Authorization: {target.authorization}\r\n" if target.authorization is not None else "")
        + "Connection: close\r\n\r\n"
    )
    link = None
    try:
        link = shelf.connect_alone(deadline)
        link.begin()
        link.send(request.encode("ascii"), deadline)
        for _ in range(_HEADS):
            link.read_head(False, deadline)
            if link.status >= 200:
                break
    except BackendError as error:
        return False, str(error)
    finally:
        if link is not None:
            link.close()
    return 200 <= link.status < (400 if strict else 500), f"status {link.status}"
