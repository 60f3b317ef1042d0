"""bjoern: a WSGI server in C on libev. It has no command, so this file is also the program that runs it."""

from __future__ import annotations

import importlib
import sys

from .base import Launch, Peer


class Bjoern(Peer):
    """One process; no access log, no workers, no limits."""

    name = "bjoern"
    package = "bjoern"
    note = "WSGI, C; no access log"

    def command(self, launch: Launch) -> list[str]:
        """This very module, run as a program."""
        return [sys.executable, "-m", "benchmarks.peers.bjoern", launch.site, launch.host, str(launch.port)]


def main() -> None:
    """Serve `benchmarks.apps:SITE` on HOST PORT, the three arguments."""
    from .. import apps

    bjoern = importlib.import_module("bjoern")  # the server, not this file; it has no types
    site, host, port = sys.argv[1:]
    bjoern.run(getattr(apps, site), host, int(port), listen_backlog=65535)


if __name__ == "__main__":
    main()
