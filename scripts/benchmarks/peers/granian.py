"""granian: a server in Rust (hyper, tokio) with a WSGI interface."""

from __future__ import annotations

import json

from .base import BIN, Launch, Peer

# granian hands its access log to Python's logging, on a logger of this name; it knows no Referer and no
# User-Agent.
_ACCESS_LOGGER = "granian.access"
_FORMAT = '%(addr)s - - [%(time)s] "%(method)s %(path)s %(protocol)s" %(status)d -'


class Granian(Peer):
    """One runtime thread and one blocking thread a worker: the most that one core can use."""

    name = "granian"
    package = "granian"
    can_log = True
    can_fork = True
    note = "WSGI, Rust; its log has no Referer and User-Agent"

    def command(self, launch: Launch) -> list[str]:
        """The log goes to a plain FileHandler."""
        command = [
            str(BIN / "granian"), "--interface", "wsgi", "--http", "1", "--no-ws",
            "--host", launch.host, "--port", str(launch.port),
            "--workers", str(launch.workers), "--runtime-threads", "1", "--blocking-threads", "1",
            "--backlog", "65535", "--log-level", "warning",
        ]  # fmt: skip
        if launch.access_log is not None:
            settings = launch.directory / "logging.json"
            handler = {
                "class": "logging.FileHandler",
                "filename": str(launch.access_log),
                "formatter": "plain",
            }
            settings.write_text(
                json.dumps(
                    {
                        "version": 1,
                        "disable_existing_loggers": False,
                        "formatters": {"plain": {"format": "%(message)s"}},
                        "handlers": {"access": handler},
                        "loggers": {
                            _ACCESS_LOGGER: {"handlers": ["access"], "level": "INFO", "propagate": False}
                        },
                    }
                )
            )
            command += ["--access-log", "--access-log-fmt", _FORMAT, "--log-config", str(settings)]
        return [*command, f"benchmarks.apps:{launch.site}"]
