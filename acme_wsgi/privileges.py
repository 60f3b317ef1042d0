"""Whom the workers run as, and how a process becomes that user for good.

Law: looks accounts up and changes the identity of the process it runs in. The arbiter calls `account` once,
before it forks; a worker calls `drop` while it has a single thread. Neither opens a file or knows the other.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from acme_wsgi.errors import AcmeError, ConfigError, Problem

_USER, _GROUP = "server.user", "server.group"
_HIGHEST_ID = 2**32 - 2  # one more is -1, which to setresuid(2) means "leave it as it is"


class PrivilegeError(AcmeError):
    """The kernel does not let this process become the user it shall run as, or not for good.

    :ivar exit_status: what the process exits with (1)
    """

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Account:
    """A user to become, with the groups it gets.

    :ivar groups: its supplementary groups, all of them; the process keeps none it had before
    :ivar name: for people: the user's name, or its number if it has none
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str


def account(user: str | None, group: str | None, origins: Mapping[str, str] | None = None) -> Account | None:
    """Whom the workers shall run as.

    With `group`, that group is the only one they are in; without, they are in all of the user's own.

    :param user: server.user: a name or a number
    :param group: server.group, likewise
    :param origins: where the configuration's values came from, by dotted key, to be told in the error
    :returns: None when they run as whoever runs now: nothing to drop
    :raises ConfigError: an account that doesn't exist, one that we can't become, or root without being asked
    """
    return _Lookup(origins or {}).account(user, group)


def drop(account: Account) -> None:
    """Become `account`, for good: real, effective and saved ids, and no group of before.

    The kernel clears PR_SET_PDEATHSIG with that (prctl(2)): set it afterwards. It also makes the process not
    dumpable, which stays so: other programs of that user can't read what root has put into its memory.

    :raises PrivilegeError: the kernel refuses, or the way back is open; the process must end then
    """
    try:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise PrivilegeError(
            f"cannot run as {account.name} (uid {account.uid}, gid {account.gid}): {error.strerror};"
            " that needs CAP_SETUID and CAP_SETGID"
        ) from error
    _verify(account)


def _verify(account: Account) -> None:
    if os.getresuid() != (account.uid,) * 3 or os.getresgid() != (account.gid,) * 3:
        raise PrivilegeError(f"running as uid {os.getresuid()}, gid {os.getresgid()}, not as {account.name}")
    if set(os.getgroups()) != set(account.groups):
        raise PrivilegeError(f"the groups of {account.name} are {account.groups}, not {os.getgroups()}")
    # Capabilities that survived (securebits) would show only here.
    user = account.uid != 0 and _granted(os.setresuid)
    if user or (account.uid != 0 and account.gid != 0 and _granted(os.setresgid)):
        raise PrivilegeError(f"running as {account.name}, but this process could become root again")


def _granted(become: Callable[[int, int, int], None]) -> bool:
    """Whether the kernel lets this process become root by that call."""
    try:
        become(0, 0, 0)
    except OSError:
        return False
    return True


class _Lookup:
    """Finds an account, and says of what is wrong where it was written."""

    def __init__(self, origins: Mapping[str, str]) -> None:
        self._origins = origins

    def account(self, user: str | None, group: str | None) -> Account | None:
        if os.geteuid() != 0:
            self._must_be_us(user, group)
            return None
        if user is None:
            raise self._wrong(
                _USER,
                "workers would run as root, and whoever breaks into one would own the machine",
                "name a user for them (server.user: acme), or write server.user: root if you mean it",
            )
        uid, entry = self._user(user)
        if group is not None:
            gid = self._group(group)
            return Account(uid, gid, (gid,), user)
        if uid == 0:
            return None
        if entry is None:
            raise self._wrong(
                _GROUP, f"missing; user {user} is not in the user database, so its groups aren't known"
            )
        return Account(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)), entry.pw_name)

    def _must_be_us(self, user: str | None, group: str | None) -> None:
        """Without root there is only one user that we can run as."""
        if user is not None and self._user(user)[0] != os.geteuid():
            raise self._wrong(
                _USER,
                f"only root can run workers as {user}, and this is uid {os.geteuid()}",
                "start the server as root or as that user, or leave server.user out",
            )
        if group is not None and self._group(group) != os.getegid():
            raise self._wrong(
                _GROUP,
                f"only root can run workers in group {group}, and this is gid {os.getegid()}",
                "start the server as root or in that group, or leave server.group out",
            )

    def _user(self, user: str) -> tuple[int, pwd.struct_passwd | None]:
        """A user's number, and its entry in the user database; a number needs none."""
        try:
            if not user.isdecimal():
                entry = pwd.getpwnam(user)
                return entry.pw_uid, entry
            uid = self._number(_USER, user)
            return uid, pwd.getpwuid(uid)
        except KeyError:
            if user.isdecimal():
                return int(user), None
            raise self._wrong(
                _USER, f"there is no user {user}", f"adduser --system --group {user} makes one"
            ) from None

    def _group(self, group: str) -> int:
        if group.isdecimal():
            return self._number(_GROUP, group)
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            raise self._wrong(_GROUP, f"there is no group {group}") from None

    def _number(self, key: str, text: str) -> int:
        number = int(text)
        if number > _HIGHEST_ID:
            raise self._wrong(key, f"{text} is not the number of an account; the highest is {_HIGHEST_ID}")
        return number

    def _wrong(self, key: str, message: str, hint: str | None = None) -> ConfigError:
        return ConfigError([Problem(self._origins.get(key), None, None, key, message, hint)])
