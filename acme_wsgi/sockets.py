"""The listening sockets: bound by us, or handed over by systemd; and what a new configuration makes of them.

Law: makes sockets and takes them away again. Knows addresses and the kernel's options, not configuration,
workers or HTTP. Every listener is non-blocking and closed on exec; the workers inherit it by fork, so that
ONE queue feeds them all and a killed worker takes no waiting connection with it. What is listened on is
never given up before its replacement is bound.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from acme_wsgi.errors import AcmeError

UNIX = "unix:"
_SYSTEMD_FIRST = 3
_UNIX_MODE = 0o666  # like a TCP port, open to every local user; directory permissions narrow it
_PROBE_SECONDS = 1.0
_UNSPECIFIED = frozenset(("0.0.0.0", "::"))  # noqa: S104 - compared, not bound
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")

Address = tuple[str, int] | tuple[str, int, int, int]
"""A TCP address as the socket module has it: (host, port), and for IPv6 flow label and scope."""


class ListenError(AcmeError):
    """An address can't be listened on. The message says which, why, and who has it if that can be seen.

    :ivar exit_status: what the process exits with (1: another start, later, may well succeed)
    """

    exit_status = 1


@dataclass(slots=True, eq=False)
class Listener:
    """One listening socket.

    :ivar sock: bound, listening, non-blocking
    :ivar name: the address for people: ``127.0.0.1:8080``, ``[::1]:8080``, ``unix:/run/acme/http.sock``
    :ivar path: the UNIX socket's path if the server made it and so must remove it, else None
    :ivar identity: device and inode of `path` when it was made
    :ivar owner: the process that removes `path`; 0 is nobody
    :ivar wanted: host and port as configured, which this is (a part of) the answer to; None for a socket of
        systemd, which stays whatever they say
    """

    sock: socket.socket
    name: str
    path: str | None = None
    identity: tuple[int, int] = (0, 0)
    owner: int = 0
    wanted: tuple[str, int] | None = None
    _wanted_before: tuple[str, int] | None = None

    def close(self) -> None:
        """Close this process's copy; the socket itself lives on while another process has one."""
        self.sock.close()

    def unlink(self) -> None:
        """Remove the UNIX socket's path, if this process owns it and it is still that socket."""
        if self.path is None or self.owner != os.getpid():
            return
        path, self.path = self.path, None
        with contextlib.suppress(OSError):
            # Somebody else's by now if the inode differs: a new server may have taken the address over.
            if file_identity(path) == self.identity:
                os.unlink(path)  # noqa: PTH108 - the path as it was bound


def listeners(
    host: str, port: int, *, backlog: int, fastopen: bool, environ: MutableMapping[str, str]
) -> list[Listener]:
    """All listeners of the server: systemd's if it handed any over, else those bound to `host` and `port`.

    :param environ: the LISTEN_* variables are taken out of it, so that no child takes them for its own
    :raises ListenError: an address can't be bound
    """
    inherited = from_systemd(environ)
    for listener in inherited:
        _tune(listener.sock, backlog, fastopen)
    return inherited or rebind([], host, port, backlog=backlog, fastopen=fastopen)[0]


# -- another configuration -------------------------------------------------------------------------------


def rebind(
    old: Sequence[Listener], host: str, port: int, *, backlog: int, fastopen: bool
) -> tuple[list[Listener], list[Listener]]:
    """What to listen on from now on. An address that stays is never let go, nor are its waiting connections.

    Unchanged `host` and `port` are the same listeners: no name is resolved again, and a port that the kernel
    chose is kept. Sockets of systemd stay in any case.

    :param old: what is listened on; stays open and untouched, whatever comes
    :returns: what is listened on now, old ones and new; and the old ones not among them, to be unlinked and
        closed by the caller when nothing needs them any more. `undo` takes it back
    :raises ListenError: an address can't be bound; then nothing has changed
    """
    wanted = _normal(host, port)
    if old and any(listener.wanted is None for listener in old):
        return list(old), []
    if old and all(listener.wanted == wanted for listener in old):
        now = list(old)
    elif wanted[0].startswith(UNIX):
        now = [bind_unix(wanted[0][len(UNIX) :], backlog=backlog)]
    else:
        now = bind_tcp(host, port, backlog=backlog, fastopen=fastopen, have=old)
    for listener in now:
        listener._wanted_before, listener.wanted = listener.wanted, wanted
    return now, [listener for listener in old if listener not in now]


def undo(old: Sequence[Listener], now: Sequence[Listener]) -> None:
    """Take a `rebind` from `old` to `now` back: what it has bound is removed, what was kept is as before."""
    for listener in now:
        if listener in old:
            listener.wanted = listener._wanted_before
        else:
            listener.unlink()
            listener.close()


def _normal(host: str, port: int) -> tuple[str, int]:
    """Host and port in the one form that all ways to write them share."""
    if host.startswith(UNIX):
        # Path.absolute() would leave ".." standing.
        return UNIX + os.path.abspath(host[len(UNIX) :]), 0  # noqa: PTH100
    return _without_brackets(host), port


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


# -- TCP --------------------------------------------------------------------------------------------------


def bind_tcp(
    host: str, port: int, *, backlog: int, fastopen: bool, have: Sequence[Listener] = ()
) -> list[Listener]:
    """Listen on every address that `host` resolves to.

    ``::`` takes IPv4 as well: `host` names one address, and this is the one that means "all of them".

    :param port: 0 lets the kernel choose one, the same for all addresses
    :param have: what is listened on already; one of these that fits is taken instead of a new one
    :raises ListenError: nothing to resolve, or an address can't be bound; then none is
    """
    found: list[Listener] = []
    try:
        addresses = _resolve(host, port)
        for family, address in addresses:
            if port == 0 and found:
                address = (address[0], found[0].sock.getsockname()[1], *address[2:])
            v6_only = address[0] != "::" or len(addresses) > 1
            fitting = [listener for listener in have if _is_at(listener.sock, family, address, v6_only)]
            found += fitting or [_bind_one(family, address, v6_only, backlog, fastopen, have)]
    except ListenError:
        for listener in found:
            if listener not in have:
                listener.close()
        raise
    return found


def _is_at(sock: socket.socket, family: socket.AddressFamily, address: Address, v6_only: bool) -> bool:
    """Whether a listening socket is what binding that address would give."""
    if sock.family != family or sock.getsockname() != address:
        return False
    return family == socket.AF_INET or v6_only == bool(
        sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Address]]:
    """The addresses behind a name or literal, each once, in the resolver's order."""
    literal = _without_brackets(host)
    try:
        found = socket.getaddrinfo(
            literal or None, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise ListenError(f"cannot listen on {host!r}: {reason}") from error
    addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
    return [pair for pair in addresses if pair[0] in (socket.AF_INET, socket.AF_INET6)]  # type: ignore[misc]


def _bind_one(
    family: socket.AddressFamily,
    address: Address,
    v6_only: bool,
    backlog: int,
    fastopen: bool,
    have: Sequence[Listener],
) -> Listener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        sock.bind(address)
        _tune(sock, backlog, fastopen)
    except OSError as error:
        sock.close()
        name = _tcp_name(address)
        ours = _overlapping(address, have) if error.errno == errno.EADDRINUSE else None
        if ours is not None:
            raise ListenError(
                f"cannot listen on {name} while this server still listens on {ours.name}: the kernel gives a"
                " port to all addresses or to single ones, not to both at once; stop the server and start it"
            ) from error
        raise ListenError(_explain(error, name, address[1])) from error
    return Listener(sock, _tcp_name(sock.getsockname()))


def _overlapping(address: Address, have: Sequence[Listener]) -> Listener | None:
    """The one of our own listeners that has the port of `address`, one of the two for all addresses."""
    for listener in have:
        if listener.sock.family != socket.AF_UNIX:
            own = listener.sock.getsockname()
            if own[1] == address[1] and not _UNSPECIFIED.isdisjoint((own[0], address[0])):
                return listener
    return None


def _tune(sock: socket.socket, backlog: int, fastopen: bool) -> None:
    """The options of a listener; those of TCP are inherited by the connections it accepts."""
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        # Responses leave in one piece; waiting for an acknowledgement (Nagle) would only delay the last one.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if fastopen:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, capped_backlog(backlog))
    sock.listen(backlog)


def capped_backlog(backlog: int) -> int:
    """What the kernel makes of a listen queue of `backlog` entries: never more than net.core.somaxconn."""
    try:
        return min(backlog, int(_SOMAXCONN.read_text()))
    except (OSError, ValueError):
        return min(backlog, socket.SOMAXCONN)


def _tcp_name(address: Address) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _explain(error: OSError, name: str, port: int) -> str:
    """Why an address could not be bound, with what to do about it where that is known."""
    if error.errno == errno.EADDRINUSE:
        holder = _listening_process(port)
        return f"cannot listen on {name}: already in use by {holder or 'another process'}"
    if error.errno == errno.EACCES and 0 < port < 1024:
        return f"cannot listen on {name}: ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {name}: this machine does not have that address"
    return f"cannot listen on {name}: {error.strerror}"


def _listening_process(port: int) -> str | None:
    """Who listens on a TCP port: ``nginx (pid 812)``; None when it can't be seen (another user's process)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(link) in inodes for link in (process / "fd").iterdir()):  # noqa: PTH115
                    command = (process / "comm").read_text().strip()
                    return f"{command!r} (pid {process.name})"
    return None


# -- UNIX -------------------------------------------------------------------------------------------------


def bind_unix(path: str, *, backlog: int) -> Listener:
    """Listen on a UNIX socket; a socket file that nobody answers on any more is replaced.

    :raises ListenError: the path is unusable, is not a socket, or somebody answers on it
    """
    name, _ = _normal(UNIX + path, 0)
    path = name[len(UNIX) :]
    _remove_stale(path, name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode must be right from the first instant; a chmod afterwards would leave a gap.
    umask = os.umask(0o777 & ~_UNIX_MODE)
    try:
        sock.bind(path)
        identity = file_identity(path)
        sock.setblocking(False)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)  # a path of over 107 bytes has no errno
        raise ListenError(f"cannot listen on {name}: {reason}") from error
    finally:
        os.umask(umask)
    return Listener(sock, name, path, identity, os.getpid())


def _remove_stale(path: str, name: str) -> None:
    """Make room at `path` if a dead server's socket lies there; touch nothing else."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # nothing there; bind() will say what is wrong with the directory
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen on {name}: a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except OSError as error:
            # A full queue (EAGAIN, a timeout) is a live server; anything else is not ours to judge.
            raise ListenError(f"cannot listen on {name}: in use ({error.strerror or error})") from error
        else:
            raise ListenError(f"cannot listen on {name}: another server answers on it")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def file_identity(path: str) -> tuple[int, int]:
    """Device and inode of a path: the same for the same file alone. Raises OSError."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino


# -- systemd ----------------------------------------------------------------------------------------------


def from_systemd(environ: MutableMapping[str, str]) -> list[Listener]:
    """The sockets of a systemd socket unit, sd_listen_fds(3): descriptors from 3 on, if meant for us.

    :param environ: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are removed from it
    :raises ListenError: a descriptor is not a stream socket of a family we speak
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not re.fullmatch(r"[0-9]{1,4}", count):
        return []
    return [_adopt(fd) for fd in range(_SYSTEMD_FIRST, _SYSTEMD_FIRST + int(count))]


def _adopt(fd: int) -> Listener:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"cannot listen on descriptor {fd} from systemd: {error.strerror}") from error
    name = name_of(sock)
    if not name:
        sock.detach()
        raise ListenError(f"cannot listen on descriptor {fd} from systemd: not a TCP or UNIX stream socket")
    return Listener(sock, name)


def name_of(sock: socket.socket) -> str:
    """The address of a TCP or UNIX stream socket for people; "" for any other socket."""
    if sock.type != socket.SOCK_STREAM:
        return ""
    address = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return _tcp_name(address)
    if sock.family != socket.AF_UNIX:
        return ""
    if isinstance(address, bytes):  # an abstract name: the @ is how systemd writes the zero byte
        return UNIX + "@" + address[1:].decode(errors="backslashreplace")
    return UNIX + str(address)
