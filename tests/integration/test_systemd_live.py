"""The real command under a service manager, played by a datagram socket that sees who is speaking."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.server import Configuration, Launcher, Server, wait_until

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.basic:app"
CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


@dataclass
class Word:
    """One message: what it says, which process said it, and when it was heard (monotonic seconds)."""

    says: dict[str, str]
    pid: int
    at: float


@dataclass
class Manager:
    """What systemd does with the messages of a service, as far as a server can notice."""

    sock: socket.socket
    heard: list[Word] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.sock.getsockname())

    def listen(self) -> list[Word]:
        """Everything heard up to now."""
        while True:
            try:
                text, ancillary, _, _ = self.sock.recvmsg(4096, 256)
            except BlockingIOError:
                return self.heard
            [(_, _, data)] = ancillary
            says = dict(line.split("=", 1) for line in text.decode().splitlines())
            self.heard.append(Word(says, CREDENTIALS.unpack(data)[0], time.monotonic()))

    def all(self, key: str) -> list[Word]:
        return [word for word in self.listen() if key in word.says]

    def wait(self, key: str, count: int = 1, seconds: float = 30) -> Word:
        """Wait for the `count`th message with that key."""
        wait_until(lambda: len(self.all(key)) >= count, f"{count} times {key}=", seconds)
        return self.all(key)[count - 1]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.setblocking(False)
        path = str(tmp_path / "notify")
        assert len(path) < 108
        sock.bind(path)
        yield Manager(sock)


@pytest.fixture
def start(acme: Launcher, manager: Manager) -> Callable[..., Server]:
    """Start a server that reports to `manager`, and wait until it says that it is ready."""

    def started(config: Configuration = None, **env: str) -> Server:
        environ = {"NOTIFY_SOCKET": manager.address, **env}
        server, unused = acme._spawn(config, {"app": APP, "env": environ})
        unused.close()
        ready = manager.wait("READY")
        server.addresses = tuple(ready.says["STATUS"].removeprefix("serving on ").split(", "))
        return server

    return started


def test_ready_comes_from_the_main_process_once_it_serves(
    start: Callable[..., Server], manager: Manager
) -> None:
    server = start()
    [word] = manager.all("READY")
    assert word.says["MAINPID"] == str(word.pid) == str(server.pid)
    assert server.get("/").text == "hello\n"


def test_stopping_comes_before_the_end(start: Callable[..., Server], manager: Manager) -> None:
    server = start()
    assert not manager.all("STOPPING")
    server.stop()
    [word] = manager.all("STOPPING")
    assert word.pid == server.pid


def test_nobody_but_the_arbiter_speaks(start: Callable[..., Server], manager: Manager) -> None:
    server = start()
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGTERM)
    server.wait_for_log("a new one starts")
    server.errors_expected = True
    server.stop()
    assert {word.pid for word in manager.listen()} == {server.pid}


def test_a_manager_that_goes_away_is_no_reason_to_stop(
    start: Callable[..., Server], manager: Manager
) -> None:
    server = start(WATCHDOG_USEC="1000000")
    Path(manager.address).unlink()
    manager.sock.close()
    server.tell(signal.SIGUSR1)
    server.wait_for_log("logs reopened")
    assert server.get("/").status == 200


# -- reload, watchdog, upgrade


def test_a_reload_is_told_from_its_beginning_to_its_end(
    start: Callable[..., Server], manager: Manager
) -> None:
    server = start()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    server.tell(signal.SIGHUP)
    began = manager.wait("RELOADING", seconds=5)
    ended = manager.wait("READY", 2)
    assert before <= int(began.says["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert began.pid == ended.pid == server.pid
    assert manager.heard.index(began) < manager.heard.index(ended)
    assert ended.says["STATUS"] == "serving on " + ", ".join(server.addresses)


def test_a_reload_that_fails_ends_as_well(start: Callable[..., Server], manager: Manager) -> None:
    """Without it systemd would wait for the end of the reload, and then take the server for dead."""
    server = start({"server": {"timeout": "20s"}})
    (server.cwd / "conf.d" / "60-broken.yaml").write_text("server: {no_such_key: 1}\n")
    server.errors_expected = True
    server.tell(signal.SIGHUP)
    manager.wait("RELOADING", seconds=5)
    assert manager.wait("READY", 2).pid == server.pid
    assert server.get("/").status == 200


def test_the_watchdog_is_fed_in_time(start: Callable[..., Server], manager: Manager) -> None:
    interval = 2.0
    server = start(WATCHDOG_USEC=str(int(interval * 1e6)))
    manager.wait("WATCHDOG", 4, seconds=3 * interval)
    fed = manager.all("WATCHDOG")
    assert {word.pid for word in fed} == {server.pid}
    gaps = [later.at - earlier.at for earlier, later in itertools.pairwise(fed)]
    assert max(gaps) < interval, f"systemd would have killed it: {gaps}"


def test_an_arbiter_that_hangs_does_not_feed_the_watchdog(
    start: Callable[..., Server], manager: Manager
) -> None:
    server = start(WATCHDOG_USEC="2000000")
    manager.wait("WATCHDOG", 2, seconds=6)
    server.tell(signal.SIGSTOP)
    try:
        wait_until(lambda: Path(f"/proc/{server.pid}/stat").read_text().split(") ")[1][0] == "T", "stopped")
        count, stopped = len(manager.all("WATCHDOG")), time.monotonic()
        wait_until(lambda: time.monotonic() > stopped + 2.0, "an interval has passed")
        assert len(manager.all("WATCHDOG")) == count
    finally:
        server.tell(signal.SIGCONT)
    manager.wait("WATCHDOG", count + 1, seconds=6)


def test_an_upgrade_names_the_new_main_process(start: Callable[..., Server], manager: Manager) -> None:
    server = start(WATCHDOG_USEC="2000000")
    server.tell(signal.SIGUSR2)
    word = manager.wait("READY", 2)
    successor = word.pid
    assert successor != server.pid and successor in server.group() and "MAINPID" not in word.says
    try:
        assert manager.wait("MAINPID", 2).says == {"MAINPID": str(successor)}, "once it has proven itself"
        assert server.wait(30).status == 0
        assert server.get("/").text == "hello\n"
        count = len(manager.all("WATCHDOG"))
        assert manager.wait("WATCHDOG", count + 1, seconds=6).pid == successor
        assert not manager.all("STOPPING"), "systemd would end the whole service"
    finally:
        if successor in server.group():
            os.kill(successor, signal.SIGTERM)
    wait_until(lambda: not server.group(), "the successor's end", 30)
    assert [one.pid for one in manager.all("STOPPING")] == [successor]


def test_a_stop_right_after_an_upgrade_stops_both(start: Callable[..., Server], manager: Manager) -> None:
    """The manager knows the predecessor only, and kills whoever is left when that ends."""
    server = start()
    server.tell(signal.SIGUSR2)
    successor = manager.wait("READY", 2).pid
    server.wait_for_log("it goes on as the server")
    server.stop(seconds=30)
    assert not server.group()
    assert [one.pid for one in manager.all("STOPPING")] == [successor]


def test_applications_do_not_see_the_managers_address(start: Callable[..., Server], manager: Manager) -> None:
    """A program that an application starts must not report in the server's name."""
    server = start(
        {"routes": [{"path": "/variables", "type": "handler", "handler": "tests.apps.variables:names"}]},
        WATCHDOG_USEC="60000000",
    )
    assert "WATCHDOG_USEC" not in server.get("/variables").text
    assert "NOTIFY_SOCKET" not in server.get("/variables").text
