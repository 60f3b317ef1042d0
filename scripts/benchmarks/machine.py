"""The machine under the measurement: which core does what, limits on descriptors, free ports, a description.

Knows nothing of peers and scenarios.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
from dataclasses import dataclass
from pathlib import Path


class MachineError(Exception):
    """This machine can't carry the measurement; the text says why."""


@dataclass(frozen=True)
class Cores:
    """The CPUs of the two sides. `None` leaves a side where the kernel puts it."""

    server: frozenset[int] | None
    client: frozenset[int] | None

    @classmethod
    def choose(cls, server: str | None, client: str | None) -> Cores:
        """Parse `--server-cores` and `--client-cores` ("0", "0,2-3", "any"; default: first and second core).

        Raises MachineError when there are too few cores, or one is named that this process may not use.
        """
        usable = sorted(os.sched_getaffinity(0))
        if (server is None or client is None) and len(usable) < 2:
            raise MachineError("one usable core only: name --server-cores and --client-cores (or `any`)")
        return cls(
            frozenset({usable[0]}) if server is None else _parse_cores(server, usable),
            frozenset({usable[1]}) if client is None else _parse_cores(client, usable),
        )


def _parse_cores(text: str, usable: list[int]) -> frozenset[int] | None:
    if text == "any":
        return None
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            chosen.update(range(int(first), int(last or first) + 1))
        except ValueError:
            raise MachineError(f"not a list of cores: {text!r}") from None
    if not chosen or not chosen <= set(usable):
        raise MachineError(f"cores {text}: this process may use {', '.join(map(str, usable))}")
    return frozenset(chosen)


def pin(cores: frozenset[int] | None) -> None:
    """Bind the calling process (and what it starts from now on) to `cores`."""
    if cores is not None:
        os.sched_setaffinity(0, cores)


def raise_descriptor_limit() -> int:
    """Set this process's soft limit of open descriptors to the hard one; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A TCP port that is free on every local address at this moment."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port: int = probe.getsockname()[1]
        return port


def describe() -> dict[str, str | int]:
    """What a reader of the figures must know about this machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": f"{os.getloadavg()[0]:.2f}",
    }


def busy_seconds(cores: frozenset[int] | None) -> float:
    """CPU time that `cores` (None: all) spent on anything so far, time stolen by the host included."""
    names = None if cores is None else {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in names if names is not None else name == "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
