"""What the service manager hears: a datagram socket plays it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from acme_wsgi import systemd
from acme_wsgi.systemd import Manager

ID = "0123456789abcdef" * 2


class Ear:
    """The manager's end."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.setblocking(False)
        name = self.sock.getsockname()
        self.name = name if isinstance(name, str) else "@" + name[1:].decode()

    def heard(self) -> str | None:
        try:
            return self.sock.recv(4096).decode()
        except BlockingIOError:
            return None

    def close(self) -> None:
        self.sock.close()


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    with closing(Ear(str(tmp_path / "notify") if request.param == "path" else "")) as made:
        yield made


def manager(ear: Ear, **more: str) -> Manager:
    return Manager({"NOTIFY_SOCKET": ear.name, **more})


def test_ready_names_this_process_and_what_it_serves(ear: Ear) -> None:
    manager(ear).ready("serving on 127.0.0.1:80")
    assert ear.heard() == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving on 127.0.0.1:80"
    assert ear.heard() is None


def test_reloading_tells_when_it_began(ear: Ear) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager(ear).reloading()
    said = dict(line.split("=", 1) for line in str(ear.heard()).splitlines())
    assert said["RELOADING"] == "1"
    assert before <= int(said["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_the_other_words(ear: Ear) -> None:
    said = manager(ear)
    said.stopping()
    assert "STOPPING=1" in str(ear.heard()).splitlines()
    said.main_pid(4711)
    assert ear.heard() == "MAINPID=4711"
    said.status("12 requests a second")
    assert ear.heard() == "STATUS=12 requests a second"


def test_a_status_cannot_carry_another_word(ear: Ear) -> None:
    manager(ear).status("x\nMAINPID=1\r\nSTOPPING=1")
    assert ear.heard() == "STATUS=x MAINPID=1 STOPPING=1"


def test_the_variables_are_not_passed_on_but_to_a_successor(ear: Ear) -> None:
    environ = {
        "NOTIFY_SOCKET": ear.name,
        "WATCHDOG_USEC": "4000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    made = Manager(environ)
    assert environ == {"HOME": "/"}
    assert made.environ() == {"NOTIFY_SOCKET": ear.name, "WATCHDOG_USEC": "4000000"}
    successor = Manager(made.environ())
    assert successor.watchdog(0.0) and ear.heard() == "WATCHDOG=1"
    assert Manager({}).environ() == {}


def test_a_successor_that_has_yet_to_prove_itself_is_not_the_main_process(ear: Ear) -> None:
    manager(ear).ready("serving", main=False)
    assert ear.heard() == "READY=1\nSTATUS=serving"


# -- watchdog


def test_the_watchdog_hears_from_us_twice_an_interval(ear: Ear) -> None:
    watched = manager(ear, WATCHDOG_USEC="4000000")
    told = []
    for tick in range(100):
        now = 1000 + tick / 4
        if watched.watchdog(now):
            told.append(now)
            assert ear.heard() == "WATCHDOG=1"
    assert told == [1000 + 2 * index for index in range(13)]
    assert ear.heard() is None
    assert watched.seconds_to_watchdog(1025.5) == 0.5
    assert watched.seconds_to_watchdog(1030) == 0.0


@pytest.mark.parametrize("usec", ["", "0", "-5", "x", "4e6", "9" * 30])
def test_without_a_watchdog_there_is_nothing_to_tell(ear: Ear, usec: str) -> None:
    watched = manager(ear, WATCHDOG_USEC=usec)
    assert not watched.watchdog(5.0)
    assert watched.seconds_to_watchdog(5.0) is None
    assert ear.heard() is None
    assert "WATCHDOG_USEC" not in watched.environ()


@pytest.mark.parametrize(("pid", "ours"), [("own", True), ("", True), ("1", False), ("x", False)])
def test_somebody_elses_watchdog_is_not_fed(ear: Ear, pid: str, ours: bool) -> None:
    pid = str(os.getpid()) if pid == "own" else pid
    assert manager(ear, WATCHDOG_USEC="4000000", WATCHDOG_PID=pid).watchdog(5.0) is ours


def test_a_full_queue_delays_the_watchdog_and_blocks_nobody(ear: Ear) -> None:
    watched = manager(ear, WATCHDOG_USEC="4000000")
    while systemd.notify(ear.name, "X=1"):
        pass
    began = time.monotonic()
    assert not watched.watchdog(10.0)
    assert time.monotonic() - began < 4
    while ear.heard():
        pass
    assert watched.watchdog(10.5), "it is told as soon as there is room, not an interval later"
    assert ear.heard() == "WATCHDOG=1"


def test_what_must_not_be_missed_waits_for_room(ear: Ear) -> None:
    said = manager(ear)
    while systemd.notify(ear.name, "X=1"):
        pass
    began = time.monotonic()
    said.stopping()
    assert 0.5 < time.monotonic() - began < 5, "it waits, but not forever"


# -- nobody there


@pytest.mark.parametrize(
    "address", ["", "relative", "/no/such/socket", "@no such name", "vsock:2:1", "/" * 200]
)
def test_a_manager_that_is_not_there_is_no_error(address: str) -> None:
    said = Manager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    said.ready("serving")
    said.reloading()
    said.stopping()
    said.main_pid(1)
    said.watchdog(1.0)
    assert not systemd.notify(address, "READY=1")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"INVOCATION_ID": ID}, ID),
        ({}, None),
        ({"INVOCATION_ID": "x\ny"}, None),
        ({"INVOCATION_ID": ID + "\n"}, None),
    ],
)
def test_the_invocation_has_a_name(environ: dict[str, str], found: str | None) -> None:
    assert systemd.invocation_id(environ) == found
