"""gunicorn with its gevent worker: what most people who want greenlets run today."""

from __future__ import annotations

from .base import BIN, Launch, Peer


class Gunicorn(Peer):
    """`gunicorn -k gevent`; its default access log format is the combined one."""

    name = "gunicorn"
    package = "gunicorn"
    can_log = True
    can_fork = True
    note = "WSGI, Python on gevent"

    def command(self, launch: Launch) -> list[str]:
        """Keep-alive as long as nginx's, and room for all connections."""
        command = [
            str(BIN / "gunicorn"), "-k", "gevent", "--workers", str(launch.workers),
            "--bind", f"{launch.host}:{launch.port}", "--backlog", "65535", "--keep-alive", "3600",
            "--worker-connections", str(launch.connections + 16), "--log-level", "warning",
        ]  # fmt: skip
        if launch.access_log is not None:
            command += ["--access-logfile", str(launch.access_log)]
        return [*command, f"benchmarks.apps:{launch.site}"]
