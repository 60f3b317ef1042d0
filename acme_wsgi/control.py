"""The control socket: what an operator's commands say to the running arbiter, and its answers.

Law: carries orders and answers, and knows nothing of what they mean. It lives in the arbiter's poll loop: it
never waits, starts no thread, and bounds everything, so that no client can hold the arbiter up or fill its
memory. Only our own user and root are listened to. The other end, which may wait, is acme_wsgi/cli/client.py.

On the wire: a UNIX stream socket, one order a connection. The order is one line of JSON, the answers are
lines of JSON, the last of which has ``ok``:

    > {"acme": 1, "verb": "reload", "arguments": {}}
    < {"acme": 1, "progress": "reading the configuration"}
    < {"acme": 1, "ok": true, "generation": 2}          or  {"acme": 1, "ok": false, "error": "..."}
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from acme_wsgi.errors import AcmeError
from acme_wsgi.rundir import ControlError, default_directory, open_directory, unusable

__all__ = ["QUESTIONS", "SOCKET", "VERBS", "Control", "ControlError", "Order", "default_directory"]

PROTOCOL = 1
"""The version of what is spoken; a request in another one is refused."""

VERBS = frozenset({"status", "stats", "reload", "restart", "stop", "reopen", "drain"})
"""The orders there are."""

QUESTIONS = frozenset({"status", "stats"})
"""Those that change nothing. They can be asked again, and are asked every second by whoever watches: not
worth a line in the log."""

SOCKET = "control.sock"
MAX_REQUEST = 64 << 10
MAX_PENDING = 4 << 20
MAX_CLIENTS = 32
PATIENCE = 10.0
"""Seconds that a client may take to say what it wants, and to take what it is answered."""

_LOCK = "control.lock"
_MODE = 0o600
_BACKLOG = 64
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

log = logging.getLogger("acme.control")


# -- orders, and who gives them ---------------------------------------------------------------------------


class Order:
    """What one client asks for. It is answered when it suits: now, or rounds later.

    :ivar verb: one of `VERBS`
    :ivar arguments: as the client sent them; nobody has looked at them yet
    """

    __slots__ = ("_client", "arguments", "verb")

    def __init__(self, verb: str, arguments: dict[str, Any], client: _Client) -> None:
        self.verb = verb
        self.arguments = arguments
        self._client = client

    @property
    def gone(self) -> bool:
        """The client has left, or was dropped; whatever it is told now is lost."""
        return self._client.gone

    def reply(self, **facts: Any) -> None:
        """It is done. Of several last words only the first one is said."""
        self._client.say({"ok": True, **facts}, last=True)

    def fail(self, reason: str, **facts: Any) -> None:
        """It can't be done."""
        self._client.say({"ok": False, "error": reason, **facts}, last=True)

    def progress(self, text: str) -> None:
        """How far it is, for a person to read; any number of times before the last word."""
        self._client.say({"progress": text})


class _Client:
    """One connection: first its request comes, then the answers go, then it is closed.

    :ivar order: what it asked for, once that is here
    :ivar deadline: when it is dropped (monotonic); infinite while it waits for us
    :ivar ended: the last word is said; what is pending still goes out
    """

    __slots__ = ("_pending", "_received", "asker", "deadline", "ended", "gone", "order", "sock")

    def __init__(self, sock: socket.socket, asker: str) -> None:
        self.sock = sock
        self.asker = asker
        self.order: Order | None = None
        self.deadline = time.monotonic() + PATIENCE
        self.ended = False
        self.gone = False
        self._received = bytearray()
        self._pending = bytearray()

    @property
    def events(self) -> int:
        """What to poll for. That the client has left (POLLHUP) is told in any case."""
        if self._pending:
            return select.POLLOUT
        return 0 if self.order or self.ended else select.POLLIN

    def receive(self) -> bytes | None:
        """The request's line once it is whole; None as long as it isn't, or if there won't be one.

        :raises ValueError: it can't become a request any more
        """
        try:
            data = self.sock.recv(MAX_REQUEST + 1 - len(self._received))
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            self.drop("it has left")
            return None
        self._received += data
        line, end, _ = self._received.partition(b"\n")
        if len(line) >= MAX_REQUEST:
            raise ValueError(f"a request is at most {MAX_REQUEST} bytes")
        if end:
            return bytes(line)
        if not data and line:
            raise ValueError("the request ended amid its line")
        if not data:
            self.drop("it has left")
        return None

    def say(self, facts: dict[str, Any], *, last: bool = False) -> None:
        """Send a line, or as much of it as goes out now; a client that lets too much pile up is dropped."""
        if self.gone or self.ended:
            return
        line = _line(facts)
        if len(line) > MAX_PENDING:
            line = _line({"ok": False, "error": f"the answer is over {MAX_PENDING} bytes"}) if last else b""
        if len(self._pending) + len(line) > MAX_PENDING:
            self.drop("it does not take its answers")
            return
        if not self._pending:
            self.deadline = time.monotonic() + PATIENCE
        self._pending += line
        self.ended = last
        self.flush()

    def flush(self) -> None:
        """Send what goes out without waiting; close the connection after the last word."""
        try:
            while self._pending:
                del self._pending[: self.sock.send(self._pending)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.drop("it has left")
            return
        if self.ended:
            self.drop("")
        elif self.order is not None:
            self.deadline = math.inf

    def drop(self, why: str) -> None:
        """Let go of the connection."""
        if self.gone:
            return
        if why:
            log.debug("%s: dropped: %s", self.asker, why)
        self.gone = True
        self._pending.clear()
        self._received.clear()
        self.sock.close()


def _line(facts: dict[str, Any]) -> bytes:
    return json.dumps({"acme": PROTOCOL, **facts}).encode("ascii") + b"\n"


class Control:
    """The listening end of the control socket, in the arbiter.

    :ivar path: where it lies, for people: the server itself knows it by the directory's descriptor
    """

    def __init__(
        self, path: str, directory: int, listener: socket.socket, obey: Callable[[Order], None]
    ) -> None:
        self.path = path
        self._directory = directory
        self._listener = listener
        self._identity = _identity(directory, SOCKET)
        self._owner = os.getpid()
        self._obey = obey
        self._clients: dict[int, _Client] = {}
        self._deaf = False  # no descriptor to be had for another client; until the next round

    @classmethod
    def open(
        cls, directory: str, obey: Callable[[Order], None], *, predecessor: int | None = None
    ) -> Control:
        """Listen in a directory. A dead server's socket there is replaced, anything else left alone.

        :param obey: called with each order from within `handle`; it may answer at once or keep the order
        :param predecessor: process id of the server whose place we take, which may still answer there
        :raises ControlError: the directory is of no use, or another server answers in it
        """
        path = os.path.join(directory, SOCKET)  # noqa: PTH118 - as it was named, not tidied up
        descriptor = open_directory(directory)
        try:
            with _lock(descriptor, directory):
                _insist_on_free(descriptor, directory, predecessor)
                return cls(path, descriptor, _listen(descriptor), obey)
        except OSError as error:
            os.close(descriptor)
            raise ControlError(unusable(directory, error.strerror or str(error))) from error
        except BaseException:
            os.close(descriptor)
            raise

    # -- in the arbiter's loop

    def descriptors(self) -> list[tuple[int, int]]:
        """What the arbiter's poll is to watch: descriptor and event mask."""
        if self._listener.fileno() < 0:
            return []
        watched = [] if self._deaf else [(self._listener.fileno(), select.POLLIN)]
        self._forget_gone()
        return watched + [(fd, client.events) for fd, client in self._clients.items()]

    def handle(self, ready: Iterable[tuple[int, int]]) -> None:
        """Work off what poll has found; descriptors that aren't ours are passed over. Never waits."""
        arrivals = False
        for fd, events in ready:
            if fd == self._listener.fileno():
                arrivals = True
            elif (client := self._clients.get(fd)) is not None and not client.gone:
                self._attend(client, events)
        self._forget_gone()
        # Last of all: a new client may get the descriptor of one that has just left.
        if arrivals:
            self._accept()

    def expire(self, now: float) -> None:
        """Drop the clients whose time is over. To be called once a round, with the monotonic time."""
        self._deaf = False
        for client in self._clients.values():
            if now >= client.deadline:
                client.drop(f"it took more than {PATIENCE:g} s")
        self._forget_gone()

    def close(self) -> None:
        """The arbiter's end: whoever still waits is told, and the socket's file goes if it is still ours."""
        for client in self._clients.values():
            if client.order is not None:
                client.order.fail("the server stopped before it was done")
        if self._listener.fileno() >= 0 and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                if _identity(self._directory, SOCKET) == self._identity:
                    os.unlink(SOCKET, dir_fd=self._directory)
        self.abandon()

    def abandon(self) -> None:
        """In a forked child, whose business this is not: close the descriptors and touch nothing else."""
        if self._listener.fileno() < 0:
            return
        for client in self._clients.values():
            client.drop("")
        self._clients.clear()
        self._listener.close()
        os.close(self._directory)

    # -- clients

    def _forget_gone(self) -> None:
        gone = [fd for fd, client in self._clients.items() if client.gone]
        for fd in gone:
            del self._clients[fd]

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._deaf = True  # it stays readable: poll would come back at once, again and again
                log.warning("no control client can be accepted: %s", error.strerror)
                return
            self._take_in(sock)

    def _take_in(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        pid, uid, _ = peer(sock)
        client = _Client(sock, f"pid {pid}, uid {uid}")
        if uid not in (0, os.geteuid()):
            client.say({"ok": False, "error": f"user {uid} has no say here"}, last=True)
        elif len(self._clients) >= MAX_CLIENTS and not self._make_room():
            client.say({"ok": False, "error": f"{MAX_CLIENTS} clients are being served already"}, last=True)
        else:
            self._clients[sock.fileno()] = client
            return
        client.drop("it was turned away")

    def _make_room(self) -> bool:
        """Who has not said for the longest time what it wants makes room."""
        idle = [client for client in self._clients.values() if client.order is None]
        if not idle:
            return False
        min(idle, key=lambda client: client.deadline).drop("another one came")
        self._forget_gone()
        return True

    def _attend(self, client: _Client, events: int) -> None:
        if events & select.POLLOUT:
            client.flush()
        elif events & select.POLLIN and client.order is None and not client.ended:
            try:
                line = client.receive()
                if line is not None:
                    client.order = _understand(line, client)
            except ValueError as error:
                client.say({"ok": False, "error": str(error)}, last=True)
            if client.order is not None:
                self._carry_out(client.order, client)
        elif events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            client.drop("it has left")

    def _carry_out(self, order: Order, client: _Client) -> None:
        client.deadline = math.inf
        if order.verb not in QUESTIONS:
            log.info("%s: asked for by %s", order.verb, client.asker)
        try:
            self._obey(order)
        except AcmeError as error:
            order.fail(str(error))
        except Exception as error:  # an order that fails must not take the server with it
            log.error("%s failed", order.verb, exc_info=True)
            order.fail(f"internal error: {type(error).__name__}")


def _understand(line: bytes, client: _Client) -> Order:
    """The order in a request's line.

    :raises ValueError: there is none; the text says why
    """
    try:
        request = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("the request is not a line of JSON") from error
    if not isinstance(request, dict):
        raise ValueError("the request is not a JSON object")
    version, verb, arguments = request.get("acme"), request.get("verb"), request.get("arguments", {})
    if type(version) is not int or version != PROTOCOL:
        raise ValueError(f"version {version!a:.40} is not spoken here, but {PROTOCOL}")
    if not isinstance(verb, str) or verb not in VERBS:
        raise ValueError(f"unknown verb {verb!a:.40}; there are {', '.join(sorted(VERBS))}")
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are not a JSON object")
    return Order(verb, arguments, client)


# -- making the socket ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _lock(directory: int, name: str) -> Iterator[None]:
    """Two servers that start at once shall not both find a stale socket and replace each other's."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(_LOCK, flags, _MODE, dir_fd=directory)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ControlError(f"another server is being started in {name!r}") from None
        if os.fstat(descriptor).st_nlink == 0:  # whoever held it has removed it meanwhile
            raise ControlError(f"another server has just been started in {name!r}")
        try:
            yield
        finally:
            os.unlink(_LOCK, dir_fd=directory)
    finally:
        os.close(descriptor)


def _insist_on_free(directory: int, name: str, predecessor: int | None) -> None:
    try:
        mode = os.lstat(SOCKET, dir_fd=directory).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(unusable(name, f"{SOCKET} is there and is no socket"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        holder = "another server"
        try:
            probe.connect(_address(directory, SOCKET))
            pid = peer(probe)[0]
            if pid == predecessor:
                return
            holder = f"the server with pid {pid}"
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its queue is full: whoever it is, it lives
    raise ControlError(f"{holder} answers in {name!r}; server.runtime_dir gives this one another directory")


def _listen(directory: int) -> socket.socket:
    """A listening socket, put in place whole: whoever may connect to it can, and nobody else ever could."""
    temporary = f"{SOCKET}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)  # of a process of our number that died amid this
        umask = os.umask(0o777 & ~_MODE)
        try:
            listener.bind(_address(directory, temporary))
        finally:
            os.umask(umask)
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        os.rename(temporary, SOCKET, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        listener.close()
        raise
    return listener


def _address(directory: int, name: str) -> str:
    """A path as short as a socket address must be (107 bytes), however long the directory's own is."""
    return f"/proc/self/fd/{directory}/{name}"


def _identity(directory: int, name: str) -> tuple[int, int]:
    status = os.lstat(name, dir_fd=directory)
    return status.st_dev, status.st_ino


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end, as the kernel knows them."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    return pid, uid, gid
