"""A backend that misbehaves by script: a raw socket server in threads of the test's own process.

    rogue = Rogue({"short": script})                  # a request for .../script/short gets this script
    rogue.url                                         # http://127.0.0.1:40123
    rogue.requests[-1].header("Via")                  # what came, as it came
    rogue.kill(); rogue.start()                       # away with resets; back on the same port

A script is a function of a Conversation: it reads the body or doesn't, sends bytes, stalls, resets. When it
returns with the connection still open, the next request on it is awaited. Everything received is kept (up to
RECORD bytes a connection, all of it counted).

Law: knows sockets and HTTP/1.1 framing, which it reads strictly: whatever is no well-formed request goes to
`faults`, and an exception of a script to `errors`; `check()` fails for either. Knows nothing of the server.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conversation import Conversation, Request
from tests.wire import DEADLINE

Script = Callable[[Conversation], None]


# ------------------------------------------------------------------- well-behaved scripts


def reply(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    """A response with a length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def named(c: Conversation) -> None:
    """Answers the request's own target: whoever gets another's answer sees it."""
    c.body()
    data = reply(c.request.target.encode(), f"X-Connection: {c.number}", "Content-Type: text/plain")
    c.send(data[: data.index(b"\r\n\r\n") + 4] if c.request.method == "HEAD" else data)


def tell(c: Conversation) -> None:
    """Answers what it was sent, as JSON."""
    if (c.request.header("Expect") or "").lower() == "100-continue":
        c.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    c.body()
    told = {
        "method": c.request.method,
        "target": c.request.target,
        "version": c.request.version,
        "headers": c.request.headers,
        "body": c.request.body.decode("latin-1"),
        "connection": c.number,
    }
    data = reply(json.dumps(told).encode(), "Content-Type: application/json")
    c.send(data[: data.index(b"\r\n\r\n") + 4] if c.request.method == "HEAD" else data)


def echo(c: Conversation) -> None:
    """Answers the body, piece by piece as it comes, in chunks."""
    c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in c.pieces():
        c.send(b"%x\r\n" % len(piece), piece, b"\r\n")
    c.send(b"0\r\n\r\n")


def upgrade(c: Conversation) -> None:
    """Switches protocols when asked to, and returns from then on what comes."""
    protocol = c.request.header("Upgrade") or "none"
    c.send(f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode())
    while True:
        c.send(c.raw())


def mute(c: Conversation) -> None:
    """Reads and never answers."""
    c.gone()


# ------------------------------------------------------------------- the server


class Rogue:
    """The server. Started when made; `stop()` it, or leave that to the `backends` fixture.

    :param scripts: by name; besides there are always named, tell, echo, upgrade and mute
    :param default: for requests that name no script
    :param on_connect: runs before the first request of each connection
    :param path: listen on a UNIX socket instead
    :param context: speak TLS
    :ivar connections: all that there ever were; `requests`: theirs, in the order in which heads were complete
    :ivar calls: how often each script was asked for
    """

    def __init__(
        self,
        scripts: Mapping[str, Script] | None = None,
        *,
        default: Script = named,
        on_connect: Script | None = None,
        path: Path | None = None,
        context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        built_in = {"named": named, "tell": tell, "echo": echo, "upgrade": upgrade, "mute": mute}
        self.scripts: dict[str, Script] = {**built_in, **(scripts or {})}
        self.default = default
        self.on_connect = on_connect
        self.path = path
        self.host = host
        self.context = context
        if context is not None:
            context.sni_callback = _note_name
        self.lock = threading.Lock()
        self.connections: list[Conversation] = []
        self.requests: list[Request] = []
        self.calls: Counter[str] = Counter()
        self.faults: list[str] = []
        self.errors: list[str] = []
        self._events: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        # Keeps the port ours while we don't listen: connecting to it is refused, nobody else can get it.
        self._holder, self.port = (None, 0) if path else reserve(host)
        self.start()

    @property
    def url(self) -> str:
        """What to write in the configuration."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"{'https' if self.context else 'http'}://{self.host}:{self.port}"

    @property
    def open(self) -> list[Conversation]:
        """The connections that there are now."""
        return [one for one in list(self.connections) if not one.ended.is_set()]

    def script_for(self, request: Request) -> Script:
        """By the path; an unknown name is an error of the test."""
        return self.default if request.script is None else self.scripts[request.script]

    def asked(self, target: str) -> list[Request]:
        """The requests whose target has this in it."""
        with self.lock:
            return [one for one in self.requests if target in one.target]

    def event(self, name: str) -> threading.Event:
        """What `Conversation.wait` waits for."""
        with self.lock:
            return self._events.setdefault(name, threading.Event())

    def release(self, name: str) -> None:
        """Let the scripts that wait for `name` go on, now and in the future."""
        self.event(name).set()

    def start(self) -> None:
        """Listen (again), on the same port."""
        assert self._listener is None, "it listens already"
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.path))
        else:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
        listener.listen(512)
        self._listener = listener
        self._spawn(self._accept, listener)

    def refuse(self) -> None:
        """Take no new connections: they are refused. Those that there are go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def kill(self) -> None:
        """Away at once: connections are reset, new ones refused."""
        self._leave(reset=True)

    def stop(self) -> None:
        """Away in order: connections are closed, new ones refused, no thread is left."""
        self._leave(reset=False)
        for event in self._events.values():
            event.set()
        for thread in self._threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in self._threads), "a script doesn't end"
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def check(self) -> None:
        """Nothing malformed came, and no script failed."""
        assert not self.faults, f"malformed requests: {self.faults}"
        assert not self.errors, f"scripts failed: {self.errors}"

    def __enter__(self) -> Rogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _leave(self, *, reset: bool) -> None:
        self.refuse()
        leaving = self.open
        for one in leaving:
            one.disconnect(reset=reset)
        for one in leaving:
            one.ended.wait(1)  # or a request that comes now would still be taken; a blocked sender ends later

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:  # refuse() has shut it
                return
            if self.path is None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                one = Conversation(self, sock, len(self.connections) + 1)
                self.connections.append(one)
            self._spawn(one.run)
            if self._listener is not listener:
                one.disconnect(reset=True)  # accepted while we left

    def _spawn(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True, name=f"rogue-{self.port}")
        self._threads.append(thread)
        thread.start()


def _note_name(sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
    sock.conversation.sni = name


def reserve(host: str = "127.0.0.1") -> tuple[socket.socket, int]:
    """A port that is ours and refuses connections, until a server with SO_REUSEADDR listens on it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((host, 0))
    return holder, int(holder.getsockname()[1])


class Unreachable:
    """A port where connecting takes for ever: its listen queue is full, and the kernel drops what knocks."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = int(self._listener.getsockname()[1])
        self._fillers: list[socket.socket] = []
        for _ in range(64):
            if not self._fill():
                return
        raise AssertionError("the queue doesn't get full")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Let go of the port."""
        for sock in (*self._fillers, self._listener):
            sock.close()

    def _fill(self) -> bool:
        """One more connection; whether it came to be."""
        sock = socket.socket()
        self._fillers.append(sock)
        sock.settimeout(0.2)
        try:
            sock.connect(("127.0.0.1", self.port))
        except TimeoutError:
            return False
        return True

    def __enter__(self) -> Unreachable:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
