"""What the kernel says of a process, with real ones."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from acme_wsgi import procfs
from tests.server import wait_until
from tests.unit.processes import python


def gone() -> int:
    """The id of a process that was just reaped."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_processor_time_grows_with_work_and_the_start_stays() -> None:
    first = procfs.cpu(os.getpid())
    assert first is not None
    spent = time.process_time()
    while time.process_time() - spent < 0.1:
        sum(range(1000))
    second = procfs.cpu(os.getpid())
    assert second is not None and second.started == first.started
    assert 0.05 <= (second.ticks - first.ticks) / procfs.TICKS_PER_SECOND <= 2


def test_a_name_with_parentheses_and_blanks_misleads_nobody() -> None:
    source = "open('/proc/self/comm', 'w').write('a) S 1 (2 3')"
    with python(source) as pid:
        assert Path(f"/proc/{pid}/comm").read_text() == "a) S 1 (2 3\n"
        one, own = procfs.cpu(pid), procfs.cpu(os.getpid())
        assert one is not None and own is not None
        assert one.started >= own.started > 0 and one.ticks < 100 * procfs.TICKS_PER_SECOND


def test_memory_adds_up() -> None:
    with python("kept = b'x' * (32 << 20)") as pid:
        memory = procfs.memory(pid)
        assert memory is not None and memory.pss is not None
        assert memory.private is not None and memory.shared is not None and memory.swap is not None
        assert 32 << 20 < memory.private <= memory.pss <= memory.rss < 200 << 20
        assert memory.private + memory.shared == memory.rss


@pytest.mark.parametrize("rollup", [None, b"", b"Rss: many kB\nnonsense\n"])
def test_without_a_rollup_there_is_still_the_resident_size(
    monkeypatch: pytest.MonkeyPatch, rollup: bytes | None
) -> None:
    read = procfs._read
    monkeypatch.setattr(
        procfs, "_read", lambda pid, name: rollup if name == "smaps_rollup" else read(pid, name)
    )
    memory = procfs.memory(os.getpid())
    assert memory is not None and memory.rss > 1 << 20
    assert (memory.pss, memory.private, memory.shared, memory.swap) == (None, None, None, None)


def test_a_process_that_is_gone_is_no_error() -> None:
    pid = gone()
    assert procfs.cpu(pid) is None and procfs.memory(pid) is None


def test_a_zombie_has_processor_time_and_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: ") Z " in stat.read_text(), "a zombie")
        assert procfs.memory(process.pid) is None and procfs.cpu(process.pid) is not None
