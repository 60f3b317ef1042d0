"""Real servers for tests: the installed command, a configuration of the test's own, a port nobody else has.

    def test_greeting(acme):
        server = acme(app="tests.apps.basic:app")                  # module:app on the command line
        assert server.get("/").text == "hello\\n"

    def test_routes(acme):
        server = acme({"routes": [{"path": "/*", "type": "wsgi", "app": "tests.apps.basic:app"}]}, workers=2)
        server = acme("server: {timeout: 1s}", app="shop:app", files={"shop.py": SOURCE})     # YAML

        with server.connect() as wire:                             # bytes in, bytes out (tests/wire.py)
            reply = wire.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n").reply()
        assert server.raw(b"GARBAGE\\r\\n\\r\\n").startswith(b"HTTP/1.1 400 ")
        server.wait_for_log("stood still")                         # polls, with a deadline
        server.stop()                                              # SIGTERM; asserts a clean exit

        ended = acme.fails(app="no.such:app")                      # a start that must not succeed
        assert ended.status == 3 and "no.such" in ended.stderr

Unless a test says otherwise there is one worker, host and port are 127.0.0.1 and one that the kernel chooses,
the runtime_dir is its own, and workers run as whoever runs the tests. The server says through NOTIFY_SOCKET
that it is ready and where it listens: nothing is guessed or polled. After the test each server that still
runs gets SIGTERM and must exit with status 0; no log may hold a traceback or a line of level error or above,
unless the test set `server.errors_expected = True`; and no process may be left.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypedDict, Unpack

import yaml

from acme_wsgi.cli import client
from tests.wire import DEADLINE, Reply, Wire

ROOT = Path(__file__).resolve().parent.parent
START_DEADLINE = 30.0
"""Seconds that a server may take to get ready; generous, since test machines are busy."""

_NOT_INHERITED = ("ACME_", "LISTEN_", "NOTIFY_")
_BAD = re.compile(
    r'Traceback \(most recent|^\S+ (error|critical) |"level": "(error|critical)"|level=(error|critical) ',
    re.MULTILINE,
)


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> Any:
    """Poll until `condition()` is true and return what it returned.

    :raises AssertionError: it isn't, for so long
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return result


def living(session: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@dataclass(frozen=True, slots=True)
class Ended:
    """A server that has ended: its exit status (negative: the signal), and what it wrote."""

    status: int
    stdout: str
    stderr: str


class Server:
    """A running `acme-wsgi`.

    :ivar process: the arbiter
    :ivar addresses: where it listens, as it said: ``127.0.0.1:40123``, ``unix:/...``
    :ivar cwd: its current directory; `files` lie there
    :ivar errors_expected: errors in its log are part of the test
    """

    def __init__(self, process: subprocess.Popen[bytes], cwd: Path) -> None:
        self.process = process
        self.cwd = cwd
        self.addresses: tuple[str, ...] = ()
        self.errors_expected = False

    # -- talking to it

    @property
    def host(self) -> str:
        return self.addresses[0].rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://{self.addresses[0]}"

    def connect(self, address: str | None = None, timeout: float = DEADLINE) -> Wire:
        """A connection to the first of its addresses, or to the one given."""
        address = address or self.addresses[0]
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(address.removeprefix("unix:"))
            return Wire(sock, timeout)
        host, _, port = address.rpartition(":")
        return Wire(socket.create_connection((host.strip("[]"), int(port)), timeout), timeout)

    def raw(self, data: bytes, *, timeout: float = DEADLINE) -> bytes:
        """Send these bytes on a new connection and return everything up to its end."""
        with self.connect(timeout=timeout) as wire:
            return wire.send(data).rest()

    def get(self, target: str = "/", *, method: str = "GET", headers: Iterable[str] = ()) -> Reply:
        """One request on a connection of its own. `headers` are whole lines: ``["Accept: text/html"]``."""
        with self.connect() as wire:
            return wire.request(target, method=method, headers=[*headers, "Connection: close"])

    def http(self) -> HTTPConnection:
        """The standard library's client."""
        return HTTPConnection(self.host, self.port, timeout=DEADLINE)

    # -- looking at it

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        """What it wrote to stdout so far: the access log, unless configured otherwise."""
        return (self.cwd / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote to stderr so far: the error log, unless configured otherwise."""
        return (self.cwd / "stderr").read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        """Its workers now, starting ones included."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def wait_for_log(self, pattern: str, seconds: float = DEADLINE) -> re.Match[str]:
        """Wait until a regular expression matches somewhere in stderr or stdout; returns the match."""
        expression = re.compile(pattern, re.MULTILINE)
        found: re.Match[str] = wait_until(
            lambda: expression.search(self.stderr) or expression.search(self.stdout),
            f"{pattern!r} in the log",
            seconds,
        )
        return found

    # -- telling it what to do

    def order(self, verb: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give it an order through its control socket; returns its last answer, be that a yes or a no."""
        answers = client.converse(str(self.cwd / "run"), verb, arguments, timeout=START_DEADLINE)
        return list(answers)[-1]

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return self.order("status")

    def configure(self, config: str | Mapping[str, Any]) -> None:
        """Write the test's configuration anew; the next reload reads it."""
        text = config if isinstance(config, str) else yaml.safe_dump(dict(config))
        (self.cwd / "conf.d" / "50-test.yaml").write_text(text)

    # -- ending it

    def tell(self, number: int) -> None:
        """Send the arbiter a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> Ended:
        """Wait for the arbiter's end."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s; its log:\n{self.stderr}") from None
        return Ended(status, self.stdout, self.stderr)

    def stop(self, number: int = signal.SIGTERM, seconds: float = DEADLINE) -> Ended:
        """Stop it; it must exit with status 0."""
        self.tell(number)
        ended = self.wait(seconds)
        assert ended.status == 0, f"exit status {ended.status}; its log:\n{ended.stderr}"
        return ended

    def group(self) -> list[int]:
        """The processes of its session that live: itself, workers, what they started."""
        return living(self.pid)

    def check(self) -> None:
        """What must hold for every server at the end of a test."""
        if self.process.poll() is None:
            self.stop(seconds=START_DEADLINE)
        wait_until(lambda: not self.group(), f"no process left of {self.group()}")
        bad = None if self.errors_expected else _BAD.search(self.stderr + self.stdout)
        assert bad is None, f"the log has an error:\n{self.stderr}"

    def kill(self) -> None:
        """End whatever is left of it."""
        for pid in self.group():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(DEADLINE)


class Options(TypedDict, total=False):
    """How a server can be started."""

    app: str | None
    """module:app on the command line."""
    workers: int | None
    """server.workers, 1 if not given; None leaves it to the server."""
    sets: Sequence[str]
    """--set options."""
    files: Mapping[str, str]
    """Further files in its current directory, by name: modules, what the configuration refers to."""
    env: Mapping[str, str]
    """Additions to its environment."""
    listen: Sequence[socket.socket]
    """Listening sockets, handed over as systemd does it."""
    wrap: Sequence[str]
    """A command to run it under: ("prlimit", "--stack=...")."""


Configuration = str | Mapping[str, Any] | None
"""YAML text or a mapping; becomes conf.d/50-test.yaml and wins over the defaults given here."""


@dataclass
class Launcher:
    """The `acme` fixture: call it to start a server."""

    tmp_path: Path
    servers: list[Server] = field(default_factory=list)

    def __call__(self, config: Configuration = None, **options: Unpack[Options]) -> Server:
        """Start a server and wait until it is ready."""
        server, notices = self._spawn(config, options)
        with notices:
            self._wait_ready(server, notices)
        return server

    def fails(self, config: Configuration = None, **options: Unpack[Options]) -> Ended:
        """Start a server that must end by itself without ever being ready."""
        server, notices = self._spawn(config, options)
        server.errors_expected = True
        with notices:
            ended = server.wait(START_DEADLINE)
            assert not select.select([notices], [], [], 0)[0], "the server said that it is ready"
        return ended

    def finish(self) -> None:
        """Check every server; all of them, also when one fails."""
        failures = []
        for server in self.servers:
            try:
                server.check()
            except AssertionError as error:
                failures.append(str(error))
        assert not failures, "\n\n".join(failures)

    def kill(self) -> None:
        """Leave no process behind, whatever happened."""
        for server in self.servers:
            server.kill()

    def _spawn(self, config: Configuration, options: Options) -> tuple[Server, socket.socket]:
        cwd = self.tmp_path / f"server-{len(self.servers) + 1}"
        conf = cwd / "conf.d"
        conf.mkdir(parents=True)
        defaults: dict[str, Any] = {
            "server": {"host": "127.0.0.1", "port": 0, "runtime_dir": str(cwd / "run")}
        }
        if os.geteuid() == 0:
            defaults["server"]["user"] = "root"
        workers = options.get("workers", 1)
        if workers is not None:
            defaults["server"]["workers"] = workers
        (conf / "00-defaults.yaml").write_text(yaml.safe_dump(defaults))
        if config is not None:
            text = config if isinstance(config, str) else yaml.safe_dump(dict(config))
            (conf / "50-test.yaml").write_text(text)
        for name, content in options.get("files", {}).items():
            (cwd / name).parent.mkdir(parents=True, exist_ok=True)
            (cwd / name).write_text(content)
        command = [*options.get("wrap", ()), sys.executable, "-m", "acme_wsgi", "-c", str(conf)]
        for one in options.get("sets", ()):
            command += ["--set", one]
        app = options.get("app")
        if app is not None:
            command.append(app)
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notices.bind("")  # an abstract name: a path under tmp_path may be longer than an address can hold
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_INHERITED)}
        environ = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": notices.getsockname().decode().replace("\0", "@"),
            **options.get("env", {}),
        }
        server = Server(_popen(command, cwd, environ, options.get("listen", ())), cwd)
        self.servers.append(server)
        return server, notices

    def _wait_ready(self, server: Server, notices: socket.socket) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline:
            if select.select([notices], [], [], 0.05)[0]:
                said = dict(line.split("=", 1) for line in notices.recv(4096).decode().splitlines())
                if said.get("READY") == "1":
                    server.addresses = tuple(said["STATUS"].removeprefix("serving on ").split(", "))
                    return
            elif server.process.poll() is not None:
                break
        status = server.process.poll()
        raise AssertionError(f"the server did not get ready (exit status {status}):\n{server.stderr}")


def _popen(
    command: list[str], cwd: Path, environ: dict[str, str], listen: Sequence[socket.socket]
) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, output in files, `listen` as descriptors from 3 on."""
    if listen:
        # The protocol wants the process id in the environment, which only the process itself knows: a shell
        # moves the descriptors into place and executes the server as itself.
        bash = shutil.which("bash")
        assert bash is not None
        high = [100 + index for index in range(len(listen))]
        moves = " ".join(f"{3 + index}<&{number} {number}<&-" for index, number in enumerate(high))
        script = f'LISTEN_PID=$$ LISTEN_FDS={len(listen)} exec "$@" {moves}'
        command = [bash, "-c", script, "bash", *command]
        for sock, number in zip(listen, high, strict=True):
            os.dup2(sock.fileno(), number)
    else:
        high = []
    try:
        with open(cwd / "stdout", "wb") as stdout, open(cwd / "stderr", "wb") as stderr:
            return subprocess.Popen(
                command,
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                pass_fds=high,
            )
    finally:
        for number in high:
            os.close(number)
