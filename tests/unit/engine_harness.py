"""An Engine inside a test: `@in_engine()` runs the test function in a forked child, with gevent, an engine
that listens on a loopback port, and a dispatch function of the test's own.

    @in_engine("server.timeout=1s")
    def test_hello(rig: Rig) -> None:
        rig.dispatch = lambda request: Response("200 OK", [], b"hello")
        with rig.connect() as wire:
            assert wire.request("/").text == "hello"

Whatever the child's function raises fails the test in the parent. Afterwards the engine must hold no
connection and no request, have logged no error unless `rig.errors_expected`, and each request once.

Knows the engine's public face and sockets. gevent is imported in the child alone.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from acme_wsgi.config import load
from acme_wsgi.http.writer import Response
from acme_wsgi.scoreboard import READY, Scoreboard
from tests.unit.processes import fresh_loop
from tests.wire import DEADLINE, Wire

Dispatch = Callable[[Any], Response]

OK = "200 OK"
CHILD_SECONDS = 60
"""A child that takes longer is ended by the kernel."""


class CountingLog:
    """An access log that keeps its last entries and their number."""

    needs_environ = False

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self.last: list[tuple[Any, ...]] = []
        self.total = 0

    def flush(self) -> None:
        if self.entries:
            self.last = self.entries.copy()
            self.total += len(self.last)
            self.entries.clear()


class Records(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Rig:
    """One engine at work. `dispatch` may be set at any time; `family` is that of its listener.

    With `start=False` the engine is only built: it rehearses.
    """

    def __init__(
        self, *sets: str, family: int = socket.AF_INET, directory: str = "", start: bool = True
    ) -> None:
        from acme_wsgi.engine import Engine

        self.records = Records()
        logging.getLogger().addHandler(self.records)
        logging.getLogger("acme").setLevel(logging.INFO)
        self.errors_expected = False
        self.dispatch: Dispatch = lambda request: Response(OK, [], b"hello")
        self.board = Scoreboard(1)
        self.slot = self.board.slot(0)
        self.slot.state = READY
        self.log = CountingLog()
        self.config = config = load(sets=sets, app="nobody:calls_it")
        self.base = base = {"SCRIPT_NAME": "", "wsgi.version": (1, 0), "wsgi.url_scheme": "http"}
        # An access log of the tests' own: the engine needs no more of it.
        log: Any = self.log
        self.engine = Engine(config, lambda request: self.dispatch(request), log, self.slot, self.board, base)
        self.family = family
        self.listener = socket.socket(family)
        self.listener.bind(directory or ("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self.listener.listen(128)
        self.listener.setblocking(False)
        self.engine.listen(self.listener)
        if start:
            self.engine.start()

    def connect(self, *, receive_buffer: int = 0) -> Wire:
        """A client whose waiting lets the engine work."""
        import gevent.socket

        sock = gevent.socket.socket(self.family)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(self.listener.getsockname())
        return Wire(sock)

    def count(self, name: str) -> int:
        """A number of the scoreboard."""
        return self.slot.snapshot()[name]

    def until(self, condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
        """Let the engine work until something is true."""
        import gevent

        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; {self.records.lines}"
            gevent.sleep(0.002)

    def finish(self) -> None:
        """Everything is over: nothing may be left, and every request was logged once."""
        self.until(lambda: not self.count("in_flight"), "no request in flight")
        self.engine.drain()
        self.until(lambda: not self.engine.connections, "no connection")
        assert self.engine.open_requests == 0
        self.engine.close_all()
        assert self.log.total == self.count("requests_total")
        bad = [line for line in self.records.lines if line.startswith(("ERROR", "CRITICAL"))]
        assert self.errors_expected or not bad, bad


def body_of(length: int) -> bytes:
    """A body whose every position can be told from its neighbours."""
    return b"".join(b"%07d\n" % number for number in range(length // 8 + 1))[:length]


def in_engine(*sets: str, **options: Any) -> Callable[[Callable[[Rig], None]], Callable[[], None]]:
    """Run a test with a Rig, in a child of its own; see the file's docstring."""

    def decorate(function: Callable[[Rig], None]) -> Callable[[], None]:
        def test() -> None:
            _in_child(function, sets, options)

        # Not `__wrapped__`: pytest would look for a fixture of the inner function's argument.
        functools.update_wrapper(test, function)
        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return decorate


def _in_child(function: Callable[[Rig], None], sets: tuple[str, ...], options: dict[str, Any]) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(function, sets, options, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0 and not told, f"exit status {status}\n{told}"


def _child(
    function: Callable[[Rig], None], sets: tuple[str, ...], options: dict[str, Any], writing: int
) -> None:
    import signal

    status = 1
    try:
        signal.alarm(CHILD_SECONDS)
        fresh_loop()
        unraisable: list[str] = []
        sys.unraisablehook = lambda args: unraisable.extend(traceback.format_exception(args.exc_value))
        rig = Rig(*sets, **options)
        function(rig)
        rig.finish()
        gc.collect()
        assert not unraisable, unraisable
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent raises it
        os.write(writing, traceback.format_exc().encode()[:60000])
    finally:
        os._exit(status)


def dialled(timeout: float = DEADLINE, *, buffers: int = 0) -> tuple[Any, socket.socket]:
    """A stream in the engine's care and the socket at its other end, whose waiting lets the engine work.

    :param buffers: how much the kernel is asked to hold for each end, in bytes; 0: what it likes
    """
    import gevent.socket

    from acme_wsgi.stream import Dialled

    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        ours = socket.create_connection(listener.getsockname())
        other = listener.accept()[0]
    if buffers:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    theirs = gevent.socket.socket(fileno=other.detach())
    theirs.settimeout(timeout)
    return Dialled(ours), theirs
