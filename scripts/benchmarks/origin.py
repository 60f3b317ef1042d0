"""What stands behind the proxies: an nginx with small answers and files, and a sink for uploads.

Its law: it runs on the clients' cores and in processes of its own, so nothing of it is in a proxy's figures.
It counts the connections that come to it, which is what a proxy says least reliably of itself.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .apps import HELLO
from .machine import MachineError, free_port, pin
from .peers import nginx
from .peers.base import SCRIPTS
from .processes import ProcessTree

_PATIENCE = 15.0  # seconds until it answers
_PERIOD = 0.02  # seconds between two looks at the number of connections
_BLOCK = 4 << 20

_CONFIGURATION = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log error.log;
{user}
events {{
    worker_connections 20000;
}}
http {{
    access_log off;
    default_type application/octet-stream;
    {always}
    sendfile on;
    tcp_nopush on;
    open_file_cache max=100 inactive=1h;
    server {{
        listen 127.0.0.1:{port} backlog=65535;
        root {root};
        location = / {{
            default_type text/plain;
            return 200 "{hello}";
        }}
        location = /health {{
            return 200;
        }}
    }}
    server {{
        listen 127.0.0.1:{status};
        location / {{
            stub_status;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Counts:
    """Connections to the origin: accepted since it started, and open now. Those for asking aren't in it."""

    accepted: int
    active: int


def read_status(text: str, own: int) -> Counts:
    """What nginx's stub_status tells, without the `own` connections that ask for it. Raises ValueError."""
    active = re.search(r"^Active connections: (\d+)", text)
    accepted = re.search(r"^\s*(\d+) \d+ \d+\s*$", text, re.MULTILINE)
    if active is None or accepted is None:
        raise ValueError(f"not a stub_status: {text[:200]!r}")
    return Counts(int(accepted.group(1)) - own, int(active.group(1)) - own)


class Watch:
    """What the origin saw meanwhile: the most connections at once, and how many were opened.

    `most` is looked at fifty times a second; where no more than `most` can have been there at all, because so
    few were opened, it is exact.
    """

    def __init__(self, before: Counts) -> None:
        self._before = self.last = before
        self.most = before.active

    def look(self, now: Counts) -> None:
        """One more look."""
        self.last = now
        self.most = max(self.most, now.active)

    @property
    def opened(self) -> int:
        """Connections since the start of the watch."""
        return self.last.accepted - self._before.accepted


class Origin:
    """A running one. `port`: answers and files, `/health` too. `sink`: takes uploads."""

    def __init__(self, port: int, sink: int, status: int, root: Path) -> None:
        self.port = port
        self.sink = sink
        self.root = root
        # One connection for all questions, so that those that ask are known: it stays open.
        self._status = http.client.HTTPConnection("127.0.0.1", status, timeout=10)
        self._lock = threading.Lock()

    def path(self, size: int) -> str:
        """Where an answer of this size is."""
        return "/" if size == len(HELLO) else f"/{size}"

    def body(self, size: int) -> bytes:
        """What it holds."""
        return HELLO if size == len(HELLO) else (self.root / str(size)).read_bytes()

    def counts(self) -> Counts:
        """Ask nginx. Raises MachineError."""
        try:
            with self._lock:
                self._status.request("GET", "/")
                return read_status(self._status.getresponse().read().decode("ascii"), own=1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MachineError(f"the origin doesn't tell its connections: {error!r}") from error

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Count connections until the end of the block."""
        watch = Watch(self.counts())
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(_PERIOD):
                watch.look(self.counts())

        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look)
            try:
                yield watch
            finally:
                stop.set()
            looking.result()
        watch.look(self.counts())

    def close(self) -> None:
        """Ask no more."""
        self._status.close()


@contextmanager
def serving(
    base: Path, cores: frozenset[int] | None, sizes: Sequence[int], large: int = 0
) -> Iterator[Origin]:
    """Start it below `base`, on `cores`, with an answer of each of `sizes` and a sparse one of `large` bytes.

    Raises MachineError when it doesn't start.
    """
    directory = base / "origin"
    root = directory / "files"
    root.mkdir(parents=True)
    for size in set(sizes) - {len(HELLO)}:
        (root / str(size)).write_bytes(random.Random(size).randbytes(size))
    if large:
        write_sparse(root / str(large), large)
    port, status, sink = free_port(), free_port(), free_port()
    settings = directory / "nginx.conf"
    settings.write_text(
        _CONFIGURATION.format(
            port=port,
            status=status,
            root=root,
            hello=HELLO.decode(),
            user=nginx.user(),
            always=nginx.ALWAYS,
        )
    )
    with ExitStack() as stack:
        stack.enter_context(_process(nginx.command_line(settings), cores))
        stack.enter_context(_process([sys.executable, "-m", "benchmarks.sink", str(sink)], cores))
        origin = Origin(port, sink, status, root)
        stack.callback(origin.close)
        _await(lambda: _ask(port), "the origin")
        _await(lambda: _ask(sink), "the origin's sink")
        yield origin


@contextmanager
def _process(command: list[str], cores: frozenset[int] | None) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        start_new_session=True,
        preexec_fn=lambda: pin(cores),
    )
    try:
        yield
    finally:
        ProcessTree(process.pid).stop()
        process.wait()


def _ask(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        if (body := connection.getresponse().read()) != HELLO:
            raise MachineError(f"the origin answered {body[:80]!r}")
    finally:
        connection.close()


def _await(ask: Callable[[], None], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise MachineError(f"{what} doesn't serve: {error}") from error
            time.sleep(0.05)


def write_sparse(path: Path, size: int) -> None:
    """A file of zeros that takes next to no disk, with random bytes at the start of every 4 MB.

    So a piece that is missing, doubled or in a wrong place shows, however large the file is.
    """
    numbers = random.Random(size)
    with open(path, "wb") as file:
        file.truncate(size)
        for start in range(0, size, _BLOCK):
            file.seek(start)
            file.write(numbers.randbytes(min(4096, size - start)))
