"""What the kernel says of a process: the processor time it took, the memory it holds.

Law: reads /proc and knows nothing of servers. A process that is gone, or whose numbers we may not see, is an
answer (None) and no error: between looking for a process and looking at it, it can always end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
"""In how many parts of a second the kernel counts processor time."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_ENOUGH = 8192  # bytes; each of the files read here is shorter


@dataclass(frozen=True, slots=True)
class Cpu:
    """Processor time of one process.

    :ivar ticks: user and system time so far, in 1 / TICKS_PER_SECOND
    :ivar started: when the process began, in ticks since the machine did: tells two owners of one id apart
    """

    ticks: int
    started: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process in bytes; what the kernel doesn't tell us is None.

    :ivar rss: pages in memory, shared ones in full
    :ivar pss: pages in memory, shared ones divided by the number of processes that share them
    :ivar private: pages in memory that no other process has
    :ivar shared: pages in memory that others have too
    :ivar swap: pages in swap, shared ones divided likewise
    """

    rss: int
    pss: int | None = None
    private: int | None = None
    shared: int | None = None
    swap: int | None = None


def cpu(pid: int) -> Cpu | None:
    """Processor time of a process; None when there is no such process."""
    said = _read(pid, "stat")
    if said is None:
        return None
    # The name, in parentheses, may hold anything, parentheses and blanks included.
    fields = said.rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    return Cpu(int(fields[11]) + int(fields[12]), int(fields[19]))


def memory(pid: int) -> Memory | None:
    """Memory of a process, only `rss` if the rest isn't for us to see; None when it has none any more."""
    said = _read(pid, "smaps_rollup")
    sizes = _sizes(said) if said else {}
    if "Pss" in sizes and "Rss" in sizes:
        return Memory(
            rss=sizes["Rss"],
            pss=sizes["Pss"],
            private=sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0),
            shared=sizes.get("Shared_Clean", 0) + sizes.get("Shared_Dirty", 0),
            swap=sizes.get("SwapPss", sizes.get("Swap", 0)),
        )
    said = _read(pid, "statm")
    pages = int(said.split()[1]) if said else 0
    return Memory(rss=pages * _PAGE) if pages else None


def _sizes(rollup: bytes) -> dict[str, int]:
    """The lines ``Pss:  1234 kB`` in bytes, by name."""
    sizes = {}
    for line in rollup.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == b"kB" and words[1].isdigit():
            sizes[words[0].rstrip(b":").decode("ascii", "replace")] = int(words[1]) * 1024
    return sizes


def _read(pid: int, name: str) -> bytes | None:
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no such process, no such file in this kernel, or not for us
        return None
    try:
        return os.read(descriptor, _ENOUGH)
    except OSError:  # it ended in between; a zombie has no memory to tell of
        return None
    finally:
        os.close(descriptor)
