"""What a set of workers serves: a configuration, its listening sockets, and how many workers.

Law: a record that never changes; a reload makes another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from acme_wsgi.config import Config
from acme_wsgi.sockets import Listener


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A configuration as it is served.

    :ivar number: 1 for the first, and one more with each reload that held
    :ivar listeners: what its workers accept from
    :ivar workers: how many places it wants
    """

    number: int
    config: Config
    listeners: tuple[Listener, ...]
    workers: int
