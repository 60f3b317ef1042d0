"""Counting processors, on trees of /proc and /sys made up for the purpose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acme_wsgi import cpus

V2_MOUNT = "30 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 25 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct"


class Machine:
    """A root directory with cgroups in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def belongs_to(self, *lines: str) -> Machine:
        (self.root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
        return self

    def mounts(self, *lines: str) -> Machine:
        (self.root / "proc/self/mountinfo").write_text("".join(f"{line}\n" for line in lines))
        return self

    def v2(self, path: str, limit: str) -> Machine:
        return self.file(f"sys/fs/cgroup/{path}/cpu.max", limit)

    def v1(self, path: str, quota: int, period: int = 100_000) -> Machine:
        self.file(f"sys/fs/cgroup/cpu,cpuacct/{path}/cpu.cfs_quota_us", str(quota))
        return self.file(f"sys/fs/cgroup/cpu,cpuacct/{path}/cpu.cfs_period_us", str(period))

    def file(self, name: str, text: str) -> Machine:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text + "\n")
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def modern(machine: Machine) -> Machine:
    return machine.mounts(V2_MOUNT.format(root="/")).belongs_to("0::/system.slice/acme.service")


def test_without_a_quota_affinity_counts(modern: Machine) -> None:
    modern.v2("system.slice/acme.service", "max 100000")
    assert cpus.available(modern.root, affinity=6) == 6
    assert cpus.quota_cpus(modern.root) is None


@pytest.mark.parametrize(
    ("limit", "workers"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("1 100000", 1), ("800000 100000", 6)],
)
def test_a_quota_narrows_it_and_a_started_processor_counts(modern: Machine, limit: str, workers: int) -> None:
    modern.v2("system.slice/acme.service", limit)
    assert cpus.available(modern.root, affinity=6) == workers


def test_the_tightest_quota_on_the_way_up_counts(modern: Machine) -> None:
    modern.v2("system.slice/acme.service", "400000 100000")
    modern.v2("system.slice", "300000 100000").v2("", "900000 100000")
    assert cpus.quota_cpus(modern.root) == 3.0


def test_a_container_that_sees_its_own_cgroup_as_the_root(machine: Machine) -> None:
    machine.mounts(V2_MOUNT.format(root="/")).belongs_to("0::/").v2("", "200000 100000")
    assert cpus.available(machine.root, affinity=8) == 2


def test_version_1(machine: Machine) -> None:
    machine.mounts(V1_MOUNT.format(root="/"))
    machine.belongs_to("4:memory:/a", "3:cpu,cpuacct:/a/b", "1:name=systemd:/")
    machine.v1("a/b", -1).v1("a", 250_000).v1("", -1)
    assert cpus.quota_cpus(machine.root) == 2.5
    assert cpus.available(machine.root, affinity=8) == 3


def test_version_1_in_a_container_whose_path_is_the_hosts(machine: Machine) -> None:
    machine.mounts(V1_MOUNT.format(root="/docker/4711")).belongs_to("3:cpu,cpuacct:/docker/4711")
    machine.v1("", 100_000)
    assert cpus.available(machine.root, affinity=8) == 1


def test_a_path_outside_of_what_is_mounted_falls_back_to_the_mount(machine: Machine) -> None:
    machine.mounts(V2_MOUNT.format(root="/")).belongs_to("0::/../../other").v2("", "300000 100000")
    assert cpus.quota_cpus(machine.root) == 3.0


@pytest.mark.parametrize("text", ["", "max", "x y", "100000 0", "-1 100000", "1 2 3", "\xff\xfe"])
def test_nonsense_in_a_limit_is_no_limit(modern: Machine, text: str) -> None:
    modern.v2("system.slice/acme.service", text)
    assert cpus.available(modern.root, affinity=4) == 4


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    assert cpus.available(tmp_path, affinity=4) == 4


@pytest.mark.parametrize("line", ["", "::", "0::relative", "not a line at all", "0::/a\0b"])
def test_nonsense_in_the_membership_is_survived(modern: Machine, line: str) -> None:
    modern.belongs_to(line)
    assert cpus.available(modern.root, affinity=4) == 4


def test_a_mount_point_with_a_space(machine: Machine) -> None:
    machine.mounts("30 24 0:26 / /my\\040cgroups rw - cgroup2 cgroup2 rw").belongs_to("0::/a")
    machine.file("my cgroups/a/cpu.max", "200000 100000")
    assert cpus.quota_cpus(machine.root) == 2.0


def test_never_less_than_one(modern: Machine) -> None:
    assert cpus.available(modern.root, affinity=0) == 1


def test_affinity_of_this_process_is_obeyed() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpus.available() == 1
    finally:
        os.sched_setaffinity(0, before)
