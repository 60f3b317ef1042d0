"""What `acme-server status` tells: the arbiter's knowledge as plain data.

Law: looks, and changes nothing. The names in here are documented (docs/operations.md) and stay.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from acme_wsgi import __version__
from acme_wsgi.child import Child
from acme_wsgi.scoreboard import DRAINING, READY
from acme_wsgi.systemd import invocation_id

if TYPE_CHECKING:
    from acme_wsgi.arbiter import Arbiter

_STATES = {READY: "ready", DRAINING: "draining"}


def describe(arbiter: Arbiter) -> dict[str, Any]:
    """The whole answer."""
    leaving = {child.pid for child in arbiter.crew.leaving}
    children = sorted(arbiter.crew, key=lambda child: (child.number, child.forked))
    logging = arbiter.config.logging
    return {
        "pid": os.getpid(),
        "version": __version__,
        "state": _state(arbiter),
        "started": arbiter.started,
        "uptime": time.time() - arbiter.started,
        "generation": arbiter.crew.generation.number,
        "addresses": [listener.name for listener in arbiter.listeners],
        "config": list(arbiter.sources),
        "runtime_dir": arbiter.directory,
        "workers": [_worker(arbiter, child) for child in children if child.pid not in leaving],
        "leaving": [_worker(arbiter, child) for child in children if child.pid in leaving],
        "backends": arbiter.backends.describe(arbiter.crew.generation),
        "stalls": arbiter.crew.board.totals().get("stalls", 0),
        "last_reload": arbiter.reload.last,
        "logs": {
            "error": logging.output,
            "errors": logging.error.output,
            "access": logging.access.output if logging.access.enabled else None,
        },
        "shutdown_timeout": arbiter.config.server.shutdown_timeout,
        "systemd": invocation_id(arbiter.environ),
    }


def _state(arbiter: Arbiter) -> str:
    if arbiter.stopping:
        return "stopping"
    if not arbiter.announced:
        return "starting"
    if arbiter.program is not None:
        return "upgrading"
    return "reloading" if arbiter.reload.busy else "serving"


def _worker(arbiter: Arbiter, child: Child) -> dict[str, Any]:
    numbers = child.slot.snapshot()
    slot = child.slot.index
    return {
        "number": child.number,
        "pid": child.pid,
        "slot": slot,
        "state": _STATES.get(numbers["state"], "starting"),
        "generation": child.generation.number,
        "uptime": time.monotonic() - child.forked,
        "requests": child.slot.requests,
        "connections": numbers["connections"],
        "in_flight": numbers["in_flight"],
        "idle": numbers["idle"],
        "queued": numbers["queued"],
        "errors": numbers["errors"] - child.before["errors"],
        "cpu_percent": arbiter.history.cpu_percent(slot),
        "pss": arbiter.history.pss(slot),
        "stalls": numbers["stalls"] - child.before["stalls"],
        "stalled": child.slot.stall(),
    }
