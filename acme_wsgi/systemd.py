"""The word to systemd, or to whatever else manages the service: sd_notify(3), sd_watchdog_enabled(3).

Law: sends datagrams to the address that the environment names, and never fails: a manager that isn't there,
or is gone, is no reason not to serve. Knows nothing of workers or sockets. No state is told that the caller
hasn't reached.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Mapping, MutableMapping

_PATIENCE = 1.0  # seconds to wait for room in the manager's queue, for words that it must not miss


class Manager:
    """What manages this service.

    :param environ: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are taken out of it, so that no program that
        an application starts speaks in our name
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._socket = environ.pop("NOTIFY_SOCKET", "")
        usec = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        self._usec = int(usec) if re.fullmatch(r"0*[1-9][0-9]{0,17}", usec) else 0
        if pid not in ("", str(os.getpid())):
            self._usec = 0  # meant for another process
        self._next = 0.0

    def environ(self) -> dict[str, str]:
        """The variables as a successor of this process needs them.

        Without WATCHDOG_PID, which names this process; whoever finds none takes the watchdog for its own.
        """
        found = {"NOTIFY_SOCKET": self._socket, "WATCHDOG_USEC": str(self._usec or "")}
        return {name: value for name, value in found.items() if value}

    # -- states ----------

    def ready(self, status: str, *, main: bool = True) -> None:
        """The server serves: at the start, and after a reload.

        :param main: this process is the one to look after
        """
        who = f"MAINPID={os.getpid()}\n" if main else ""
        self._must(f"READY=1\n{who}{_status(status)}")

    def reloading(self) -> None:
        """A reload has begun; `ready` says that it is over, however it went."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._must(f"RELOADING=1\nMONOTONIC_USEC={usec}\n{_status('reloading')}")

    def stopping(self) -> None:
        """The stop has begun."""
        self._must(f"STOPPING=1\n{_status('stopping')}")

    def status(self, text: str) -> None:
        """One line for people, shown by `systemctl status`."""
        self._send(_status(text))

    def main_pid(self, pid: int) -> None:
        """Another process is the one to look after from now on: the successor of this one."""
        self._must(f"MAINPID={pid}")

    # -- watchdog ----------

    def watchdog(self, now: float) -> bool:
        """The server is well; to be called often, and only while that is true.

        :param now: monotonic seconds
        :returns: whether the manager was told now, which is twice in each of its intervals
        """
        if not self._usec or now < self._next or not self._send("WATCHDOG=1"):
            return False
        self._next = now + self._usec / 2e6
        return True

    def seconds_to_watchdog(self, now: float) -> float | None:
        """How long `watchdog` has nothing to tell; None if it never has."""
        return max(self._next - now, 0.0) if self._usec else None

    # -- sending ----------

    def _must(self, state: str) -> None:
        self._send(state, _PATIENCE)

    def _send(self, state: str, patience: float = 0.0) -> bool:
        return notify(self._socket, state, patience)


def notify(address: str, state: str, patience: float = 0.0) -> bool:
    """Send a state to the manager's socket: a path, or an abstract name with an @ before it.

    :param address: as NOTIFY_SOCKET has it; "" is nobody
    :param patience: seconds to wait should its queue be full
    :returns: whether it was taken
    """
    if not address.startswith(("/", "@")):
        return False
    target = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience)
        sock.sendto(state.encode(), target)
        return True
    return False


def invocation_id(environ: Mapping[str, str]) -> str | None:
    """systemd's name of this run of the service, by which journalctl finds its lines; None without it."""
    found = environ.get("INVOCATION_ID", "")
    return found if re.fullmatch(r"[0-9a-f]{32}", found) else None


def _status(text: str) -> str:
    # A line break would end the status and begin another assignment.
    return "STATUS=" + " ".join(text.split())
