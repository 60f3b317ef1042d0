"""Workers that become another user, with real servers: who they are, what they may still do, and what not."""

from __future__ import annotations

import os
import pwd
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import ROOT, Launcher, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has anything to give up"),
]

APP = "tests.apps.basic:app"
NOBODY = pwd.getpwnam("nobody")


def openly() -> tuple[str, ...]:
    """A command to run a server under, so that every user can read the interpreter and the checkout.

    Both may lie below a directory that is root's alone (/root). Then the server sees an empty one in its
    place, in a mount namespace of its own, with nothing in it except what every user needs.
    """
    needed = dict.fromkeys((Path(sys.base_prefix).resolve(), ROOT, Path(sys.prefix)))
    closed = {
        next((above for above in reversed(path.parents) if not above.stat().st_mode & 0o001), None)
        for path in needed
    } - {None}
    if not closed:
        return ()
    [top] = closed
    inside = [path for path in needed if path.is_relative_to(str(top))]
    lines = ["set -e", "stand=$(mktemp -d)", "mount -t tmpfs -o mode=755 tmpfs $stand"]
    for path in inside:
        below = f"$stand/{path.relative_to(str(top))}"
        lines += [f"mkdir -p {below}", f"mount --rbind {path} {below}"]
    lines += [f"mount --rbind $stand {top}", 'exec "$@"']
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own is root's alone."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def identity(pid: int) -> dict[str, str]:
    """Real, effective, saved and file system ids, and the groups, as the kernel says."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}


def test_workers_run_as_the_user_and_the_arbiter_goes_on_as_root(acme: Launcher) -> None:
    server = acme({"server": {"user": "nobody"}}, app=APP, workers=2, wrap=openly())
    for pid in server.worker_pids():
        found = identity(pid)
        assert set(found["Uid"].split()) == {str(NOBODY.pw_uid)}
        assert set(found["Gid"].split()) == {str(NOBODY.pw_gid)}
        assert found["CapEff"].strip("0") == "" and found["CapPrm"].strip("0") == ""
        assert "0" not in found["Groups"].split()
    assert identity(server.pid)["Uid"].split()[0] == "0"
    assert server.get("/").text == "hello\n"


def test_a_worker_that_dies_as_another_user_follows_its_arbiter_still(acme: Launcher) -> None:
    server = acme({"server": {"user": "nobody"}}, app=APP, wrap=openly())
    [worker] = server.worker_pids()
    server.errors_expected = True
    server.tell(signal.SIGKILL)
    server.wait()
    wait_until(
        lambda: not Path(f"/proc/{worker}").exists(), "the kernel tells the worker that its arbiter died"
    )


def test_logs_that_root_opened_are_written_and_opened_anew_by_the_workers(
    acme: Launcher, open_place: Path
) -> None:
    # A directory where workers may not make files: the arbiter makes them, and gives them away.
    access, errors = open_place / "access.log", open_place / "error.log"
    server = acme(
        {
            "server": {"user": "nobody"},
            "logging": {"output": str(errors), "access": {"output": str(access)}},
        },
        app=APP,
        wrap=openly(),
    )
    server.get("/before")
    wait_until(lambda: "/before" in access.read_text(), "the first line")
    access.rename(open_place / "access.1")
    server.tell(signal.SIGUSR1)
    wait_until(
        lambda: access.exists() and access.stat().st_uid == NOBODY.pw_uid, "the new file is the workers'"
    )

    def logged() -> bool:
        server.get("/after")
        return "/after" in access.read_text()

    wait_until(logged, "a line in the new file")
    assert "can't" not in errors.read_text()


def test_root_must_be_meant(acme: Launcher) -> None:
    ended = acme.fails("server: {user: !replace null}", app=APP)
    assert ended.status == 78
    assert "server.user: workers would run as root" in ended.stderr and "user: root" in ended.stderr


def test_an_account_that_is_not_there(acme: Launcher) -> None:
    ended = acme.fails({"server": {"user": "no-such-user"}}, app=APP)
    assert ended.status == 78
    assert "50-test.yaml:2" in ended.stderr and "there is no user no-such-user" in ended.stderr


def test_a_reload_as_another_user(acme: Launcher) -> None:
    server = acme({"server": {"user": "nobody"}}, app=APP, workers=2, wrap=openly())
    before = server.worker_pids()
    assert server.order("reload")["ok"]
    wait_until(lambda: len(server.worker_pids()) == 2, "the former workers are gone")
    assert not set(before) & set(server.worker_pids())
    assert server.get("/").text == "hello\n"
