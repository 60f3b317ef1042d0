"""The peers by name, in the order in which a round visits them. A new peer: its own file, and a line here."""

from __future__ import annotations

from .acme import Acme
from .base import Coding, Launch, Peer, PeerUnavailable, Site, Upstream
from .bjoern import Bjoern
from .granian import Granian
from .gunicorn import Gunicorn
from .haproxy import HAProxy
from .nginx import Nginx
from .waitress import Waitress

PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (Nginx(), HAProxy(), Acme(), Bjoern(), Granian(), Gunicorn(), Waitress())
}

__all__ = ["PEERS", "Coding", "Launch", "Peer", "PeerUnavailable", "Site", "Upstream"]
