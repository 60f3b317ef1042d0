"""Whom workers run as, and that the way back to root is closed."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from acme_wsgi import privileges
from acme_wsgi.errors import ConfigError, Problem
from acme_wsgi.privileges import Account, PrivilegeError, account, drop

NOBODY = pwd.getpwnam("nobody")
WWW = pwd.getpwnam("www-data")
PR_SET_SECUREBITS = 28
NO_SETUID_FIXUP = 1 << 2

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def in_child(work: Callable[[], object]) -> None:
    """Run `work` in a forked process; what fails there fails here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        failed = b""
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent raises it
            failed = traceback.format_exc().encode()
        os.write(writing, failed)
        os._exit(bool(failed))
    os.close(writing)
    with os.fdopen(reading) as said:
        failure = said.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, failure


def problem(user: str | None, group: str | None, origins: dict[str, str] | None = None) -> Problem:
    """The one problem of an account that can't be used."""
    with pytest.raises(ConfigError) as caught:
        account(user, group, origins)
    assert caught.value.exit_status == 78
    [found] = caught.value.problems
    return found


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process looks like one of nobody's."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: NOBODY.pw_gid)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


# -- looking up


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("user", ["www-data", str(WWW.pw_uid)])
def test_a_user_comes_with_all_its_groups(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    asked = []

    def groups(name: str, gid: int) -> list[int]:
        asked.append((name, gid))
        return [gid, 4711]

    monkeypatch.setattr(os, "getgrouplist", groups)
    assert account(user, None) == Account(WWW.pw_uid, WWW.pw_gid, (WWW.pw_gid, 4711), "www-data")
    assert asked == [("www-data", WWW.pw_gid)]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("group", ["daemon", str(grp.getgrnam("daemon").gr_gid)])
def test_a_group_that_is_named_is_the_only_one(group: str) -> None:
    daemon = grp.getgrnam("daemon").gr_gid
    assert account("www-data", group) == Account(WWW.pw_uid, daemon, (daemon,), "www-data")


@pytest.mark.usefixtures("as_root")
def test_numbers_need_no_entry_in_the_user_database() -> None:
    assert account("54321", "54322") == Account(54321, 54322, (54322,), "54321")
    found = problem("54321", None)
    assert found.key == "server.group" and "54321" in found.message


@pytest.mark.usefixtures("as_root")
def test_root_must_be_asked_for() -> None:
    found = problem(None, None)
    assert found.key == "server.user" and found.file is None
    assert "would run as root" in found.message
    assert "server.user: acme" in str(found.hint) and "server.user: root" in str(found.hint)
    assert problem(None, "www-data").key == "server.user"


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("user", ["root", "0"])
def test_root_that_is_asked_for_drops_nothing(user: str) -> None:
    assert account(user, None) is None
    assert account(user, "www-data") == Account(0, WWW.pw_gid, (WWW.pw_gid,), user)


@pytest.mark.parametrize("who", ["as_root", "as_user"])
def test_unknown_accounts_are_named_with_their_place(who: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(who)
    found = problem("no-such-user", None, {"server.user": "conf.d/10-server.yaml:7"})
    assert str(found).startswith("conf.d/10-server.yaml:7: server.user: there is no user no-such-user")
    found = problem("nobody", "no-such-group", {"server.group": "--set"})
    assert str(found) == "--set: server.group: there is no group no-such-group"


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("number", ["4294967295", "9999999999"])
def test_a_number_that_would_mean_no_change_is_refused(number: str) -> None:
    assert problem(number, "nogroup").key == "server.user"
    assert problem("nobody", number).key == "server.group"


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("user", [None, "nobody", str(NOBODY.pw_uid)])
@pytest.mark.parametrize("group", [None, "nogroup", str(NOBODY.pw_gid)])
def test_without_root_there_is_nothing_to_drop(user: str | None, group: str | None) -> None:
    assert account(user, group) is None


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("user", "group", "key"),
    [
        ("www-data", None, "server.user"),
        ("root", None, "server.user"),
        (None, "www-data", "server.group"),
        ("nobody", "root", "server.group"),
    ],
)
def test_without_root_nobody_else_can_be_had(user: str | None, group: str | None, key: str) -> None:
    found = problem(user, group)
    assert found.key == key and "only root" in found.message


# -- dropping


def expect(want: Account) -> None:
    """This process is `want` in every way the kernel knows, and can't be anybody else."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert status["Uid"].split() == [str(want.uid)] * 4, "real, effective, saved, file system"
    assert status["Gid"].split() == [str(want.gid)] * 4
    assert {int(gid) for gid in status["Groups"].split()} == set(want.groups)
    for held in ("CapPrm", "CapEff", "CapAmb"):
        assert int(status[held], 16) == 0, held
    for become in (os.setuid, os.seteuid, os.setgid, os.setegid):
        with pytest.raises(PermissionError):
            become(0)
    with pytest.raises(PermissionError):
        os.setgroups([0])


@needs_root
@pytest.mark.parametrize(
    "want",
    [
        Account(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,), "nobody"),
        Account(54321, 54322, (54322, 54323), "54321"),
        Account(54321, 54322, (), "54321"),
    ],
)
def test_the_drop_is_for_good(want: Account) -> None:
    def work() -> None:
        os.setgroups([0, 4, 27])
        drop(want)
        expect(want)

    in_child(work)


@needs_root
def test_a_file_of_roots_is_out_of_reach_afterwards(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)

    def work() -> None:
        secret.read_text()
        drop(Account(54321, 54322, (54322,), "54321"))
        with pytest.raises(PermissionError):
            secret.read_text()

    in_child(work)


@needs_root
def test_the_group_may_be_roots() -> None:
    def work() -> None:
        drop(Account(54321, 0, (0,), "54321"))
        assert os.getresuid() == (54321,) * 3 and os.getresgid() == (0,) * 3

    in_child(work)


@needs_root
def test_root_in_another_group() -> None:
    def work() -> None:
        drop(Account(0, 54322, (54322,), "root"))
        assert os.getresuid() == (0,) * 3
        assert os.getresgid() == (54322,) * 3 and os.getgroups() == [54322]

    in_child(work)


@needs_root
def test_capabilities_that_survive_are_noticed() -> None:
    """With this securebit a process keeps all of root's capabilities, and so the way back."""

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0) != 0:
            raise AssertionError(os.strerror(ctypes.get_errno()))
        with pytest.raises(PrivilegeError, match="could become root again"):
            drop(Account(54321, 54322, (54322,), "54321"))

    in_child(work)


@needs_root
def test_the_parent_death_signal_has_to_be_set_anew() -> None:
    """What the docstring promises: the kernel forgets it."""

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(1, 15, 0, 0, 0)
        drop(Account(54321, 54322, (54322,), "54321"))
        number = ctypes.c_int(-1)
        libc.prctl(2, ctypes.byref(number), 0, 0, 0)
        assert number.value == 0
        assert libc.prctl(3, 0, 0, 0, 0) != 1, "not dumpable"

    in_child(work)


@needs_root
def test_a_process_that_may_not_is_told_what_is_missing() -> None:
    def work() -> None:
        drop(Account(54321, 54322, (54322,), "54321"))
        with pytest.raises(PrivilegeError, match=r"cannot run as nobody .*CAP_SETUID") as caught:
            drop(Account(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,), "nobody"))
        assert caught.value.exit_status == 1

    in_child(work)


def test_a_call_that_lies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may pretend: setuid answered with success and without effect."""
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *_: None)
    with pytest.raises(PrivilegeError, match="not as 54321"):
        privileges.drop(Account(54321, 54322, (54322,), "54321"))
