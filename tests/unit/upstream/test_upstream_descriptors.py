"""A worker without a descriptor for a connection to a backend: requests are put off, nobody is blamed."""

from __future__ import annotations

import resource
import socket
import tempfile
import time

import pytest

from acme_wsgi.config.schema.server import ConnectionPool
from acme_wsgi.upstream.board import Board
from acme_wsgi.upstream.target import Target
from tests.unit.engine_harness import Rig, in_engine

SECOND = 10**9


@in_engine()
def test_without_descriptors_the_pool_is_full(rig: Rig) -> None:
    from acme_wsgi.upstream.pool import Pool, PoolFull, Shelf

    peer = Board(1).enrol(bytes(16), unhealthy_threshold=3, healthy_threshold=2)
    pool = Pool(ConnectionPool(), 0)
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/backend")
        listener.listen()
        shelf = Shelf(pool, peer, Target.parse(f"unix:{directory}/backend"), None, None)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
        with pytest.raises(PoolFull):
            shelf.acquire(time.monotonic_ns() + SECOND, SECOND, False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        assert pool.open == 0
        link = shelf.acquire(time.monotonic_ns() + SECOND, SECOND, False)
        assert pool.open == peer.snapshot()["connections"] == 1
        link.close()
    assert pool.open == peer.snapshot()["connections"] == 0
