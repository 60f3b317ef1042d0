"""Listening sockets that go on in the next program: a real one, executed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi import handover, sockets
from acme_wsgi.sockets import Listener, ListenError
from tests.server import ROOT

# What the executed program does: take over, answer one connection at each listener, tell what it sees.
SUCCESSOR = """
import json, os, sys
from acme_wsgi import handover, sockets
taken = handover.take(os.environ)
host, port, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
now, removed = sockets.rebind(taken.listeners, host, port, backlog=10, fastopen=False)
if "serve" in steps:
    taken.serve()
    for listener in taken.listeners:
        listener.sock.settimeout(20)
        connection, _ = listener.sock.accept()
        connection.sendall(b"successor")
        connection.close()
for listener in removed:
    listener.unlink()
if "stop" in steps:
    for listener in now:
        listener.unlink()
print(json.dumps({
    "names": [listener.name for listener in taken.listeners],
    "now": [listener.name for listener in now],
    "removed": [listener.name for listener in removed],
    "wanted": [listener.wanted for listener in taken.listeners],
    "predecessor": taken.predecessor,
    "left": [name for name in os.environ if name.startswith("LISTEN")],
    "inheritable": [listener.sock.get_inheritable() for listener in taken.listeners],
    "blocking": [listener.sock.getblocking() for listener in taken.listeners if "serve" not in steps],
}))
"""


@pytest.fixture
def opened() -> Iterator[list[Listener]]:
    """Listeners put in here are closed after the test."""
    found: list[Listener] = []
    yield found
    for listener in found:
        listener.close()


def bound(host: str, opened: list[Listener]) -> list[Listener]:
    made, _ = sockets.rebind([], host, 0, backlog=10, fastopen=False)
    opened += made
    return made


def served(reading: int) -> bool | None:
    """Whether the successor says that it serves; None while it says nothing."""
    try:
        return os.read(reading, 64) == handover.SERVES
    except BlockingIOError:
        return None


class Next:
    """A successor, started as the arbiter does it."""

    def __init__(self, listeners: list[Listener], *arguments: str) -> None:
        self.reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "LISTEN_PID": "1", "LISTEN_FDS": "7"}
        self.descriptors, environ = handover.offer(listeners, writing, environ)
        self.output, stdout = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            handover.let_pass(self.descriptors)
            os.dup2(stdout, 1)
            os.execve(sys.executable, [sys.executable, "-c", SUCCESSOR, *arguments], environ)
        os.close(writing)
        os.close(stdout)

    def said(self) -> dict[str, Any]:
        """What it saw, once it has ended."""
        with os.fdopen(self.output) as output:
            text = output.read()
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        found: dict[str, Any] = json.loads(text)
        return found

    def served(self) -> bool | None:
        try:
            return served(self.reading)
        finally:
            os.close(self.reading)


def ask(address: Any) -> bytes:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(20)
        client.connect(address)
        return client.recv(100)


def test_waiting_clients_are_answered_by_the_successor(tmp_path: Path, opened: list[Listener]) -> None:
    """Nothing is refused or lost: the client has connected before the successor was there."""
    old = bound("127.0.0.1", opened)
    address = old[0].sock.getsockname()
    with socket.create_connection(address, 20) as early:
        successor = Next(old, "127.0.0.1", "0", "serve")
        assert early.recv(100) == b"successor"
    said = successor.said()
    assert successor.served() is True
    assert said["names"] == said["now"] == [old[0].name] and said["removed"] == []
    assert said["wanted"] == [["127.0.0.1", 0]]
    assert said["predecessor"] == os.getpid()
    assert said["left"] == [], "neither the description nor what systemd says of its sockets is passed on"
    assert said["inheritable"] == [False]


def test_nothing_else_of_this_process_becomes_inheritable(opened: list[Listener]) -> None:
    old = bound("127.0.0.1", opened)
    successor = Next(old, "127.0.0.1", "0")
    assert not old[0].sock.get_inheritable()
    assert successor.said()["blocking"] == [False]


def test_a_successor_that_fails_leaves_everything_to_its_predecessor(
    tmp_path: Path, opened: list[Listener]
) -> None:
    path = tmp_path / "s"
    old = bound(f"unix:{path}", opened)
    successor = Next(old, f"unix:{path}", "0", "stop")
    successor.said()
    assert successor.served() is False
    assert path.exists(), "not the successor's to remove before it serves"
    old[0].unlink()
    assert not path.exists()


def test_a_unix_path_belongs_to_the_successor_once_it_serves(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    old = bound(f"unix:{path}", opened)
    successor = Next(old, f"unix:{path}", "0", "serve")
    assert ask(str(path)) == b"successor"
    said = successor.said()
    assert successor.served() is True and said["removed"] == []
    handover.surrender(old)
    old[0].unlink()
    assert path.exists(), "not the predecessor's any more"


def test_a_successor_removes_the_path_at_its_own_stop(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    successor = Next(bound(f"unix:{path}", opened), f"unix:{path}", "0", "serve", "stop")
    ask(str(path))
    successor.said()
    assert successor.served() is True
    assert not path.exists()


def test_the_successor_may_have_another_configuration(tmp_path: Path, opened: list[Listener]) -> None:
    old = bound(f"unix:{tmp_path}/a", opened)
    successor = Next(old, f"unix:{tmp_path}/b", "0", "serve")
    ask(f"{tmp_path}/a")
    said = successor.said()
    assert said["now"] == [f"unix:{tmp_path}/b"] and said["removed"] == [f"unix:{tmp_path}/a"]
    assert successor.served() is True
    assert not (tmp_path / "a").exists(), "what is not wanted any more is the successor's to remove, too"


def test_a_successor_that_says_nothing_yet() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    assert served(reading) is None
    os.close(writing)
    assert served(reading) is False
    os.close(reading)


def test_a_predecessor_that_has_died_is_no_obstacle(opened: list[Listener]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    taken = handover.Handover(bound("127.0.0.1", opened), 1, writing)
    taken.serve()
    assert taken.ready == -1
    taken.close()


# -- what must not be believed


class Forged:
    """A description that is right, to be made wrong in one point."""

    def __init__(self, opened: list[Listener], tmp_path: Path) -> None:
        self.listeners = bound("127.0.0.1", opened)
        self.unix = bound(f"unix:{tmp_path}/s", opened)
        self.reading, self.writing = os.pipe()
        self.fds = [os.dup(listener.sock.fileno()) for listener in (*self.listeners, *self.unix)]
        _, environ = handover.offer([*self.listeners, *self.unix], self.writing, {})
        self.described = json.loads(environ[handover.VARIABLE])
        for one, descriptor in zip(self.described["listeners"], self.fds, strict=True):
            one["fd"] = descriptor

    def take(self, text: str | None = None) -> handover.Handover | None:
        environ = {handover.VARIABLE: text if text is not None else json.dumps(self.described)}
        try:
            return handover.take(environ)
        finally:
            assert environ == {}

    def close(self) -> None:
        for descriptor in (self.reading, self.writing, *self.fds):
            os.close(descriptor)


@pytest.fixture
def forged(opened: list[Listener], tmp_path: Path) -> Iterator[Forged]:
    made = Forged(opened, tmp_path)
    yield made
    made.close()


def test_a_true_description_is_taken(forged: Forged) -> None:
    taken = forged.take()
    assert taken is not None
    assert [one.name for one in taken.listeners] == [forged.listeners[0].name, forged.unix[0].name]
    for listener in taken.listeners:
        listener.unlink()
        listener.sock.detach()
    assert forged.unix[0].path is not None and Path(forged.unix[0].path).exists()


def test_without_a_predecessor_there_is_nothing_to_take() -> None:
    environ = {"LISTEN_FDS": "1", "HOME": "/"}
    assert handover.take(environ) is None
    assert environ == {"LISTEN_FDS": "1", "HOME": "/"}, "systemd's own are for somebody else to read"


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "[]", "null", "{}", '{"acme": 2}', "[" * 100_000,
        '{"acme": 1}', '{"acme": 1, "listeners": []}', '{"acme": 1, "listeners": [{}]}',
        '{"acme": 1, "listeners": [{}], "ready": 5, "predecessor": 5}',
        '{"acme": 1, "listeners": 5, "ready": 5, "predecessor": 5}',
    ],
)  # fmt: skip
def test_what_is_no_description(text: str, forged: Forged) -> None:
    with pytest.raises(ListenError, match="LISTEN_HANDOVER"):
        forged.take(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fd", 2), ("fd", -1), ("fd", "3"), ("fd", True), ("fd", 2**40), ("fd", 2**70), ("fd", 1_000_000),
        ("name", 5), ("name", "127.0.0.1:1"), ("path", 5), ("path", "/etc/passwd"), ("identity", [1]),
        ("identity", ["a", "b"]), ("identity", None), ("wanted", "x"), ("wanted", ["x", -1]),
        ("wanted", [1, 1]),
    ],
)  # fmt: skip
def test_a_listener_that_is_not_what_it_says(key: str, value: object, forged: Forged) -> None:
    forged.described["listeners"][0][key] = value
    with pytest.raises(ListenError):
        forged.take()


@pytest.mark.parametrize(
    ("key", "value"),
    [("ready", 0), ("ready", 2**40), ("ready", None), ("predecessor", 0), ("predecessor", "1"), ("acme", 2)],
)
def test_a_description_that_is_not_what_it_says(key: str, value: object, forged: Forged) -> None:
    forged.described[key] = value
    with pytest.raises(ListenError):
        forged.take()


def test_one_descriptor_for_two_things(forged: Forged) -> None:
    forged.described["listeners"][0]["fd"] = forged.described["ready"]
    with pytest.raises(ListenError, match="two things"):
        forged.take()


@pytest.mark.parametrize("kind", ["file", "connection", "datagram", "unlistened"])
def test_a_descriptor_that_does_not_listen(kind: str, forged: Forged, tmp_path: Path) -> None:
    pair = socket.socketpair()
    with (
        open(tmp_path / "f", "w") as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as unlistened,
        pair[0],
        pair[1],
    ):
        numbers = {
            "file": file.fileno(),
            "connection": pair[0].fileno(),
            "datagram": datagram.fileno(),
            "unlistened": unlistened.fileno(),
        }
        forged.described["listeners"][0]["fd"] = numbers[kind]
        with pytest.raises(ListenError, match=r"127\.0\.0\.1:"):
            forged.take()


def test_the_word_back_goes_through_a_pipe_only(forged: Forged, tmp_path: Path) -> None:
    with open(tmp_path / "f", "w") as file:
        forged.described["ready"] = file.fileno()
        with pytest.raises(ListenError, match="not a pipe"):
            forged.take()


@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_a_unix_path_that_is_not_the_socket_any_more(what: str, forged: Forged) -> None:
    path = Path(str(forged.unix[0].path))
    path.rename(path.with_name("moved"))
    if what == "replaced":
        path.write_text("")
    with pytest.raises(ListenError, match="not the socket any more"):
        forged.take()


def test_the_program_is_really_another_one(opened: list[Listener]) -> None:
    """A guard for the tests above: without the variable there is nothing at those descriptors."""
    old = bound("127.0.0.1", opened)
    _, environ = handover.offer(old, 5, {**os.environ, "PYTHONPATH": str(ROOT)})
    command = [sys.executable, "-c", SUCCESSOR, "x", "0"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert ended.returncode != 0 and "LISTEN_HANDOVER" in ended.stderr
