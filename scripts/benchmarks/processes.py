"""A server's whole process tree: its CPU time, its memory, its connections, its end.

Reads /proc and knows nothing of what the processes are.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat behind the command name, counted from the state (proc(5) numbers it 3).
_PPID, _SESSION, _UTIME, _CSTIME = 1, 3, 11, 14


@dataclass(frozen=True)
class Memory:
    """Bytes of a tree: resident (shared pages counted for each process), proportional (counted once, as far
    as the tree is alone in sharing them), and private (not shared with anyone)."""

    rss: int
    pss: int
    private: int


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _status_bytes(pid: int, name: str) -> int:
    """A field of /proc/PID/status that the kernel gives in kB; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


class ProcessTree:
    """The process `root` and all that came from it: its descendants and its session's members."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.stopped = False
        self._session = root

    def follow(self, root: int) -> None:
        """The server has replaced itself: its root is another process from now on, the session stays."""
        self.root = root

    def pids(self) -> list[int]:
        """The living members, the root first; zombies count until they are reaped."""
        parents: dict[int, int] = {}
        members: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(pid := int(entry.name))) is not None:
                parents[pid] = int(stat[_PPID])
                if int(stat[_SESSION]) == self._session:
                    members.append(pid)
        for pid in parents:
            above, seen = pid, set()
            while above in parents and above not in seen and above != self.root:
                seen.add(above)
                above = parents[above]
            if above == self.root and pid not in members:
                members.append(pid)
        return sorted(members, key=lambda pid: (pid != self.root, pid))

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, with the time of members that died and were reaped.

        A member's `cutime` holds only what its reaped children used, so nothing is counted twice.
        """
        ticks = 0
        for pid in self.pids():
            if (stat := _stat(pid)) is not None:
                ticks += sum(map(int, stat[_UTIME : _CSTIME + 1]))
        return ticks * TICK

    def memory(self) -> Memory:
        """RSS, PSS and private memory of the tree, from /proc/PID/smaps_rollup."""
        sums = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
        for pid in self.pids():
            with contextlib.suppress(OSError):  # died since it was listed, or a zombie without memory
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in sums:
                        sums[name] += int(value.split()[0]) * 1024
        return Memory(sums["Rss"], sums["Pss"], sums["Private_Clean"] + sums["Private_Dirty"])

    def reset_peak(self) -> int:
        """Let the kernel forget each member's highest resident memory; the tree's now, in bytes (RSS)."""
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since it was listed
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): VmHWM becomes VmRSS
        return sum(_status_bytes(pid, "VmRSS") for pid in self.pids())

    def peak(self) -> int:
        """The sum of the members' highest resident memory (VmHWM) since `reset_peak`, in bytes."""
        return sum(_status_bytes(pid, "VmHWM") for pid in self.pids())

    def stop(self, patience: float = 10.0) -> None:
        """SIGTERM to the root; SIGKILL to every member that is still there after `patience` seconds."""
        self.stopped = True
        members = self.pids()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.root, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            members = [pid for pid in members if alive(pid)]
            if not members:
                return
            time.sleep(0.02)
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process still runs; our own dead children are reaped, others' zombies count as ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    stat = _stat(pid)
    return stat is not None and stat[0] != "Z"
