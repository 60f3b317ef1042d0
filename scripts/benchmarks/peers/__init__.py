"""The peers by name, in the order in which a round visits them. A new peer: its own file, and a line here."""

from __future__ import annotations

from .acme import Acme
from .base import Coding, Launch, Peer, PeerUnavailable, Site
from .bjoern import Bjoern
from .granian import Granian
from .gunicorn import Gunicorn
from .nginx import Nginx
from .waitress import Waitress

PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (Nginx(), Acme(), Bjoern(), Granian(), Gunicorn(), Waitress())
}

__all__ = ["PEERS", "Coding", "Launch", "Peer", "PeerUnavailable", "Site"]
