"""waitress: a pure Python WSGI server with an asyncore loop and threads."""

from __future__ import annotations

from .base import BIN, Launch, Peer


class Waitress(Peer):
    """Four threads, its default; one process, no access log."""

    name = "waitress"
    package = "waitress"
    note = "WSGI, Python with threads; no access log"

    def command(self, launch: Launch) -> list[str]:
        """poll instead of select, or it could not hold more than 1,024 connections."""
        return [
            str(BIN / "waitress-serve"), f"--host={launch.host}", f"--port={launch.port}", "--backlog=65535",
            f"--connection-limit={launch.connections + 16}", "--channel-timeout=3600", "--asyncore-use-poll",
            f"benchmarks.apps:{launch.site}",
        ]  # fmt: skip
