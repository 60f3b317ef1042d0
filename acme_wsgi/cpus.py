"""How many processors this process may really use: the default number of workers.

A machine's count is a lie inside a container, so two limits are asked: the scheduler's affinity mask (which a
cpuset cgroup narrows too) and the CPU quota of every cgroup from ours up to the root, versions 1 and 2.

Law: reads files under a given root, changes nothing, knows nothing of workers or configuration.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    """One mounted cgroup hierarchy: where it stands, and which of its directories stands there."""

    point: PurePosixPath
    root: PurePosixPath
    version: int


def available(root: Path = Path("/"), affinity: int | None = None) -> int:
    """The processors this process may use, at least 1.

    :param root: where /proc and /sys are looked up; tests put a tree of their own here
    :param affinity: the number of processors in the affinity mask; None asks the kernel
    :returns: the smaller of affinity and quota. A quota of one and a half processors counts as two: with
        one worker, a third of what was granted could never be used
    """
    count = len(os.sched_getaffinity(0)) if affinity is None else affinity
    quota = quota_cpus(root)
    if quota is not None:
        count = min(count, math.ceil(quota))
    return max(count, 1)


def quota_cpus(root: Path = Path("/")) -> float | None:
    """The tightest CPU quota between our cgroup and the root, in processors; None where there is none."""
    ours = dict(_own_cgroups(root))
    quotas = []
    for mount in _cgroup_mounts(root):
        path = ours.get(mount.version)
        if path is None:
            continue
        for directory in _upwards(mount, path):
            quota = _read_quota(root / directory.relative_to("/"), mount.version)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _own_cgroups(root: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """(version, path) of the cgroups that can hold a CPU quota for us; cgroups(7), /proc/[pid]/cgroup."""
    for line in _lines(root / "proc/self/cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        if hierarchy == "0" and not controllers:
            yield 2, PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            yield 1, PurePosixPath(path)


def _cgroup_mounts(root: Path) -> Iterator[_Mount]:
    """The mounted hierarchies that can limit the CPU; proc(5), /proc/[pid]/mountinfo."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(tail) < 3:
            continue
        top, point = (PurePosixPath(_unescape(fields[index])) for index in (3, 4))
        if not point.is_absolute():
            continue
        if tail[0] == "cgroup2":
            yield _Mount(point, top, 2)
        elif tail[0] == "cgroup" and "cpu" in tail[2].split(","):
            yield _Mount(point, top, 1)


def _upwards(mount: _Mount, path: PurePosixPath) -> Iterator[PurePosixPath]:
    """Our directory under the mount, then its parents up to the mount point."""
    # A container often sees its own cgroup mounted as the top, while /proc names the path on the host.
    below = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
    if ".." in below.parts:
        # Outside of our cgroup namespace: only what is mounted can be read.
        below = PurePosixPath()
    directory = mount.point / below
    yield directory
    while directory != mount.point:
        directory = directory.parent
        yield directory


def _read_quota(directory: Path, version: int) -> float | None:
    """The quota of one cgroup in processors; None when it has none or can't be read."""
    if version == 2:
        text = " ".join(_lines(directory / "cpu.max")).split()
    else:
        text = [*_lines(directory / "cpu.cfs_quota_us"), *_lines(directory / "cpu.cfs_period_us")]
    if len(text) != 2:
        return None
    try:
        quota, period = int(text[0]), int(text[1])
    except ValueError:  # "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes: a space in a path stands there as backslash 040."""
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _lines(path: Path) -> list[str]:
    """A small kernel file's lines; none when it isn't there: not every kernel has every controller."""
    try:
        return path.read_text(errors="replace").splitlines()
    except (OSError, ValueError):  # ValueError: a path no file can have
        return []
