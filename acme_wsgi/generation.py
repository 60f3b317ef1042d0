"""What a set of workers serves: a configuration, its listening sockets, its backends, and how many workers.

Law: a record that never changes; a reload makes another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from acme_wsgi.config import Config
from acme_wsgi.sockets import Listener
from acme_wsgi.upstream.plan import Plans


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A configuration as it is served.

    :ivar number: 1 for the first, and one more with each reload that held
    :ivar listeners: what its workers accept from
    :ivar workers: how many places it wants
    :ivar plans: the backends of its proxy routes, enrolled on the board
    :ivar sticky_key: what cookies that name a backend are sealed with; b"" if none is
    """

    number: int
    config: Config
    listeners: tuple[Listener, ...]
    workers: int
    plans: Plans = field(default_factory=dict)
    sticky_key: bytes = field(default=b"", repr=False)
