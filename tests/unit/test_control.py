"""The control socket: real sockets, a poll loop of the test's own, and everything a client can do wrong."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi import control, rundir
from acme_wsgi.cli import client
from acme_wsgi.control import Control, ControlError, Order
from tests.server import wait_until
from tests.unit.descriptors import descriptors, left_open

NOBODY = 65534
STATUS = b'{"acme": 1, "verb": "status", "arguments": {}}\n'


def names(directory: Path | str) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


class House:
    """A Control and the loop around it; `obey` may be replaced by the test."""

    def __init__(self, directory: Path) -> None:
        self.orders: list[Order] = []
        self.obey: Callable[[Order], None] = lambda order: order.reply(heard=order.verb)
        self.control = Control.open(str(directory), self._obey)

    def _obey(self, order: Order) -> None:
        self.orders.append(order)
        self.obey(order)

    @property
    def clients(self) -> int:
        return len(self.control.descriptors()) - 1

    def turn(self, milliseconds: int = 20) -> None:
        """One round of the loop."""
        poll = select.poll()
        for fd, events in self.control.descriptors():
            poll.register(fd, events)
        self.control.handle(poll.poll(milliseconds))
        self.control.expire(time.monotonic())

    def until(self, condition: Callable[[], object], what: str) -> Any:
        def turned() -> object:
            self.turn()
            return condition()

        return wait_until(turned, what)

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.control.path)
        sock.setblocking(False)
        return sock

    def answer(self, sock: socket.socket) -> list[dict[str, Any]]:
        """Everything up to the end that the server makes."""
        received = bytearray()

        def ended() -> bool:
            try:
                while data := sock.recv(1 << 20):
                    received.extend(data)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                pass  # it has not read all that we sent
            return True

        self.until(ended, "the connection's end")
        sock.close()
        return [json.loads(line) for line in received.splitlines()]

    def ask(self, request: bytes) -> list[dict[str, Any]]:
        sock = self.dial()
        sock.sendall(request)
        return self.answer(sock)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    opened = House(tmp_path)
    yield opened
    opened.control.close()


# -- orders and answers


def test_an_order_and_its_answer(house: House) -> None:
    assert house.ask(STATUS) == [{"acme": 1, "ok": True, "heard": "status"}]
    house.until(lambda: house.clients == 0, "the client forgotten")


def test_arguments_may_be_left_out_and_are_handed_on_as_they_came(house: House) -> None:
    house.ask(b'{"acme": 1, "verb": "stop"}\n')
    house.ask(b'{"acme": 1, "verb": "stop", "arguments": {"quick": "\xc3\xa9"}}\n')
    assert [order.arguments for order in house.orders] == [{}, {"quick": "é"}]


def test_an_answer_may_come_later_with_progress_before_it(house: House) -> None:
    house.obey = lambda order: order.progress("begun\nanew")
    sock = house.dial()
    sock.sendall(b'{"acme": 1, "verb": "reload"}\n')
    house.until(lambda: house.orders, "the order")
    house.control.expire(time.monotonic() + 3600)  # waiting for us is no fault of the client's
    house.orders[0].progress("half")
    house.orders[0].reply(generation=2)
    assert house.answer(sock) == [
        {"acme": 1, "progress": "begun\nanew"},
        {"acme": 1, "progress": "half"},
        {"acme": 1, "ok": True, "generation": 2},
    ]


def test_only_the_first_last_word_is_said(house: House) -> None:
    def obey(order: Order) -> None:
        order.fail("no", problems=["a: b"])
        order.reply()
        order.progress("still")

    house.obey = obey
    assert house.ask(STATUS) == [{"acme": 1, "ok": False, "error": "no", "problems": ["a: b"]}]


def test_a_half_closed_client_gets_its_answer(house: House) -> None:
    house.obey = lambda order: None
    sock = house.dial()
    sock.sendall(STATUS)
    sock.shutdown(socket.SHUT_WR)
    house.until(lambda: house.orders, "the order")
    house.turn()
    assert not house.orders[0].gone
    house.orders[0].reply()
    assert house.answer(sock) == [{"acme": 1, "ok": True}]


def test_an_order_that_fails_does_not_take_the_server_with_it(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def obey(order: Order) -> None:
        raise KeyError("secret")

    house.obey = obey
    assert house.ask(STATUS) == [{"acme": 1, "ok": False, "error": "internal error: KeyError"}]
    assert "status failed" in caplog.text and "KeyError: 'secret'" in caplog.text

    def refuse(order: Order) -> None:
        raise ControlError("not now")

    house.obey = refuse
    assert house.ask(STATUS) == [{"acme": 1, "ok": False, "error": "not now"}]


def test_a_request_in_pieces(house: House) -> None:
    sock = house.dial()
    for index in range(len(STATUS)):
        sock.sendall(STATUS[index : index + 1])
        house.turn(0)
    assert house.answer(sock)[0]["ok"] is True


def test_a_large_answer_goes_out_as_it_is_read(house: House) -> None:
    text = "x" * (3 << 20)
    house.obey = lambda order: order.reply(text=text)
    assert house.ask(STATUS) == [{"acme": 1, "ok": True, "text": text}]


def test_an_answer_that_is_too_large_is_an_error(house: House) -> None:
    house.obey = lambda order: order.reply(text="x" * control.MAX_PENDING)
    assert "over 4194304 bytes" in house.ask(STATUS)[0]["error"]


# -- what is refused


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (b"\n", "not a line of JSON"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a line of JSON"),
        (b"\x00\xff\xfe\n", "not a line of JSON"),
        ('{"acme": 1}\n'.encode("utf-16-le"), "not a line of JSON"),
        (b"[" * 60_000 + b"\n", "not a line of JSON"),
        (b"1" * 60_000 + b"\n", "not a line of JSON"),
        (b"[]\n", "not a JSON object"),
        (b'{"verb": "status"}\n', "version None is not spoken here, but 1"),
        (b'{"acme": 2, "verb": "status"}\n', "version 2 is not spoken here, but 1"),
        (b'{"acme": true, "verb": "status"}\n', "version True is not spoken here"),
        (b'{"acme": 1, "verb": "stp"}\n', "unknown verb 'stp'; there are drain, reload, reopen, restart,"),
        (b'{"acme": 1, "verb": "\\u001b[2J"}\n', "unknown verb '\\x1b[2J'"),
        (b'{"acme": 1, "verb": ["status"]}\n', "unknown verb ['status']"),
        (b'{"acme": 1, "verb": "status", "arguments": []}\n', "arguments are not a JSON object"),
        (b"x" * control.MAX_REQUEST + b"\n", "at most 65536 bytes"),
        (b"x" * (control.MAX_REQUEST + 1), "at most 65536 bytes"),
    ],
)
def test_what_is_no_order_is_told_so(house: House, request_: bytes, told: str) -> None:
    answers = house.ask(request_)
    assert len(answers) == 1 and answers[0]["ok"] is False
    assert told in answers[0]["error"] and len(answers[0]["error"]) < 200
    assert house.orders == []
    house.until(lambda: house.clients == 0, "the client forgotten")


def test_the_longest_request_there_may_be(house: House) -> None:
    padding = b" " * (control.MAX_REQUEST - len(STATUS))
    assert house.ask(padding + STATUS)[0]["ok"] is True


def test_a_request_without_an_end(house: House) -> None:
    sock = house.dial()
    sock.sendall(STATUS.rstrip())
    sock.shutdown(socket.SHUT_WR)
    assert house.answer(sock)[0]["error"] == "the request ended amid its line"


def test_a_flood_is_not_read_to_its_end(house: House) -> None:
    sock = house.dial()
    sent = 0

    def flooded() -> bool:
        nonlocal sent
        try:
            sent += sock.send(b"x" * 65536)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    house.until(flooded, "the server has closed")
    assert sent < 4 << 20
    sock.close()


# -- clients that don't do their part


def test_a_client_that_says_nothing_or_half_a_line_is_dropped(house: House) -> None:
    silent, half = house.dial(), house.dial()
    half.sendall(STATUS[:20])
    house.until(lambda: house.clients == 2, "both here")
    house.control.expire(time.monotonic() + control.PATIENCE - 5)
    assert house.clients == 2
    house.control.expire(time.monotonic() + control.PATIENCE + 1)
    assert house.clients == 0
    assert silent.recv(1) == b""
    silent.close()
    half.close()


def test_a_client_that_reads_nothing_is_dropped(house: House) -> None:
    house.obey = lambda order: order.reply(text="x" * (2 << 20))
    sock = house.dial()
    sock.sendall(STATUS)
    house.until(lambda: house.orders, "the order")
    assert house.clients == 1 and not house.orders[0].gone
    house.control.expire(time.monotonic() + control.PATIENCE + 1)
    assert house.clients == 0 and house.orders[0].gone
    sock.close()


def test_what_piles_up_for_a_client_is_bounded(house: House) -> None:
    house.obey = lambda order: None
    sock = house.dial()
    sock.sendall(STATUS)
    house.until(lambda: house.orders, "the order")
    order = house.orders[0]
    for _ in range(10):
        order.progress("x" * (1 << 20))
    assert order.gone
    order.reply()  # is lost, and nothing more
    assert house.clients == 0
    sock.close()


def test_progress_that_is_too_large_is_left_out(house: House) -> None:
    def obey(order: Order) -> None:
        order.progress("x" * (control.MAX_PENDING + 1))
        order.reply()

    house.obey = obey
    assert house.ask(STATUS) == [{"acme": 1, "ok": True}]


def test_a_client_that_leaves_before_the_answer(house: House) -> None:
    house.obey = lambda order: None
    sock = house.dial()
    sock.sendall(STATUS)
    house.until(lambda: house.orders, "the order")
    sock.close()
    house.until(lambda: house.orders[0].gone, "seen that it has left")
    house.orders[0].progress("on")
    house.orders[0].reply()
    assert house.clients == 0


def test_an_order_is_obeyed_even_if_nobody_waits_for_the_answer(house: House) -> None:
    house.obey = lambda order: order.reply(text="x" * (1 << 20))
    sock = house.dial()
    sock.sendall(STATUS)
    sock.close()
    house.until(lambda: house.orders and house.clients == 0, "obeyed and forgotten")


def test_further_orders_on_a_connection_are_not_taken(house: House) -> None:
    house.obey = lambda order: None
    sock = house.dial()
    sock.sendall(STATUS + STATUS)
    house.until(lambda: house.orders, "the order")
    sock.sendall(STATUS)
    house.turn()
    assert house.control.descriptors()[1][1] == 0, "polled for its end alone: no busy loop"
    house.orders[0].reply()
    assert len(house.answer(sock)) == 1
    assert len(house.orders) == 1


def test_a_hundred_silent_clients_keep_nobody_out(house: House) -> None:
    crowd = []
    for _ in range(100):
        crowd.append(house.dial())
        house.turn(0)
    assert house.clients == control.MAX_CLIENTS
    assert house.ask(STATUS)[0]["ok"] is True
    for sock in crowd:
        sock.close()
    house.until(lambda: house.clients == 0, "all forgotten")


def test_a_hundred_clients_that_wait_for_an_answer(house: House) -> None:
    house.obey = lambda order: None
    waiting = []
    for _ in range(control.MAX_CLIENTS):
        waiting.append(house.dial())
        waiting[-1].sendall(STATUS)
        house.turn(0)
    house.until(lambda: len(house.orders) == control.MAX_CLIENTS, "all orders")
    for _ in range(100 - control.MAX_CLIENTS):
        assert house.ask(STATUS)[0]["error"] == "32 clients are being served already"
    for order in house.orders:
        order.reply()
    for sock in waiting:
        assert house.answer(sock) == [{"acme": 1, "ok": True}]
    assert house.clients == 0


def test_without_descriptors_it_neither_fails_nor_spins(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        def __init__(self, real: socket.socket) -> None:
            self.real = real
            self.fileno = real.fileno
            self.close = real.close

        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    listener = house.control._listener
    sock = house.dial()
    sock.sendall(STATUS)
    monkeypatch.setattr(house.control, "_listener", Exhausted(listener))
    house.control.handle([(listener.fileno(), select.POLLIN)])
    assert house.control.descriptors() == []
    house.control.expire(time.monotonic())
    assert house.control.descriptors() == [(listener.fileno(), select.POLLIN)]
    monkeypatch.setattr(house.control, "_listener", listener)
    assert house.answer(sock)[0]["ok"] is True


def test_descriptors_of_others_are_passed_over(house: House) -> None:
    house.control.handle([(0, select.POLLIN), (9999, select.POLLHUP)])
    assert house.ask(STATUS)[0]["ok"] is True


# -- who may


def in_child(action: Callable[[], bool], uid: int | None = None) -> bool:
    """Whether `action` is true in a forked child, as that user."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            status = 0 if action() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def test_the_socket_is_ours_alone_from_the_first_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    listen = socket.socket.listen

    def spy(sock: socket.socket, backlog: int) -> None:
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.glob("control.sock*"))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", spy)
    umask = os.umask(0)
    try:
        opened = Control.open(str(tmp_path), lambda order: None)
        assert os.umask(0) == 0, "the process's umask is as it was"
    finally:
        os.umask(umask)
    assert modes == [0o600]
    assert names(tmp_path) == ["control.sock"]
    opened.close()
    assert names(tmp_path) == []


@as_root
def test_other_users_are_turned_away(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    house = House(tmp_path)

    def refused() -> bool:
        try:
            house.dial()
        except PermissionError:
            return True
        return False

    assert in_child(refused, NOBODY)
    # And should the mode have been widened: the kernel says who it is.
    Path(house.control.path).chmod(0o666)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(house.control.path)
            os.write(writing, sock.recv(4096))  # it need not even ask
        finally:
            os._exit(0)
    os.close(writing)
    house.until(lambda: select.select([reading], [], [], 0)[0], "the answer")
    answer = os.read(reading, 4096)
    os.close(reading)
    os.waitpid(pid, 0)
    assert json.loads(answer)["error"] == f"user {NOBODY} has no say here"
    assert house.orders == []
    house.control.close()


# -- the socket's place


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    house = House(tmp_path)
    assert house.ask(STATUS)[0]["ok"] is True
    house.control.close()


def test_a_living_server_is_left_alone_and_named(house: House, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=rf"the server with pid {os.getpid()} answers in '{tmp_path}'"):
        Control.open(str(tmp_path), lambda order: None)
    house.control.expire(time.monotonic())
    assert house.ask(STATUS)[0]["ok"] is True


def test_a_living_server_with_a_full_queue_is_left_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(tmp_path / "control.sock"))
        busy.listen(0)
        first.connect(str(tmp_path / "control.sock"))
        with pytest.raises(ControlError, match="another server answers"):
            Control.open(str(tmp_path), lambda order: None)


def test_a_successor_takes_the_name_over_and_the_predecessor_does_not_remove_it(
    house: House, tmp_path: Path
) -> None:
    with pytest.raises(ControlError, match="answers in"):
        Control.open(str(tmp_path), lambda order: None, predecessor=1)
    waiting = house.dial()
    successor = Control.open(str(tmp_path), lambda order: order.reply(who="new"), predecessor=os.getpid())
    waiting.sendall(STATUS)
    assert house.answer(waiting)[0]["heard"] == "status", "who has come to the old one is answered by it"
    house.control.close()
    assert (tmp_path / "control.sock").exists()
    house.control = successor
    assert house.ask(STATUS)[0]["who"] == "new"


def test_anything_else_at_its_name_is_left_alone(tmp_path: Path) -> None:
    victim = tmp_path / "elsewhere"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(victim))
    for make in (
        lambda path: path.symlink_to(victim),
        lambda path: path.symlink_to(tmp_path / "nowhere"),
        lambda path: path.write_text("precious"),
        lambda path: path.mkdir(),
    ):
        directory = tmp_path / "run"
        directory.mkdir()
        make(directory / "control.sock")
        with pytest.raises(ControlError, match=r"control\.sock is there and is no socket"):
            Control.open(str(directory), lambda order: None)
        with pytest.raises(ControlError, match="is no socket"):
            client.call(str(directory), "status")
        assert names(directory) == ["control.sock"]
        directory.rename(tmp_path / f"done-{len(names(tmp_path))}")
    assert victim.is_socket() and not (tmp_path / "nowhere").exists()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "control.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ControlError, match=r"server\.runtime_dir"):
        Control.open(str(tmp_path / "run"), lambda order: None)
    assert not (tmp_path / "victim").exists()


def test_two_that_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = control._listen

    def second(directory: int) -> socket.socket:
        monkeypatch.setattr(control, "_listen", listen)
        with pytest.raises(ControlError, match="another server is being started"):
            Control.open(str(tmp_path), lambda order: None)
        return listen(directory)

    monkeypatch.setattr(control, "_listen", second)
    house = House(tmp_path)
    assert house.ask(STATUS)[0]["ok"] is True
    house.control.close()


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200)
    opened = Control.open(str(directory), lambda order: order.reply())
    assert len(opened.path) > 200 and Path(opened.path).is_socket()
    assert directory.stat().st_mode & 0o777 == 0o750
    house = House.__new__(House)
    house.control, house.orders = opened, []
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(client.call(str(directory), "status")))
    asking.start()
    house.until(lambda: answers, "the answer")
    asking.join()
    opened.close()


@pytest.mark.parametrize("name", ["/proc/acme", "/no/such/parent", "/etc/passwd", "a\0b"])
def test_a_directory_that_cannot_be_had(name: str) -> None:
    with pytest.raises(ControlError) as caught:
        Control.open(name, lambda order: None)
    assert repr(name) in str(caught.value) and "server.runtime_dir" in str(caught.value)
    assert caught.value.exit_status == 1


@as_root
def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    def told() -> bool:
        os.chdir(tmp_path)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            Control.open(".", lambda order: None)
        except ControlError as error:
            return "it can't be written to" in str(error)
        return False

    assert in_child(told)


def test_where_everybody_may_write_only_a_closed_directory_of_our_own_will_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    own = tmp_path / "own"
    Control.open(str(own), lambda order: None).close()
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o750)
    with pytest.raises(ControlError, match="mode 0700"):
        Control.open(str(own), lambda order: None)
    (tmp_path / "link").symlink_to(own)
    own.chmod(0o700)
    with pytest.raises(ControlError, match="link"):
        Control.open(str(tmp_path / "link"), lambda order: None)
    with pytest.raises(ControlError, match="everybody may write"):
        Control.open(str(tmp_path), lambda order: None)
    if os.geteuid() == 0:
        os.chown(own, NOBODY, NOBODY)
        with pytest.raises(ControlError, match="directory of user 0"):
            Control.open(str(own), lambda order: None)


def test_the_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert control.default_directory({}) == "/run/acme"
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    monkeypatch.setattr(rundir, "RUN", str(tmp_path / "run"))
    assert control.default_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == str(tmp_path / "acme")
    assert control.default_directory({"XDG_RUNTIME_DIR": "relative"}) == "/tmp/acme-4000000"
    assert control.default_directory({"XDG_RUNTIME_DIR": str(tmp_path / "no")}) == "/tmp/acme-4000000"
    (tmp_path / "run").mkdir()
    assert control.default_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == str(tmp_path / "run")


def test_the_fallback_in_tmp_must_be_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = 4_000_000 + os.getpid()
    monkeypatch.setattr(rundir, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    fallback = Path(f"/tmp/acme-{uid}")
    fallback.mkdir(0o700)
    try:
        with pytest.raises(ControlError, match=f"directory of user {uid}, mode 0700"):
            control.default_directory({})
    finally:
        fallback.rmdir()


# -- forks and ends


def test_a_child_abandons_without_touching_anything(house: House) -> None:
    house.obey = lambda order: None
    sock = house.dial()
    sock.sendall(STATUS)
    house.until(lambda: house.orders, "the order")
    before = descriptors()

    def abandoned() -> bool:
        fds = [fd for fd, _ in house.control.descriptors()]
        house.control.abandon()
        house.control.close()
        left = descriptors()
        return not any(str(fd) in left for fd in fds) and house.control.descriptors() == []

    assert in_child(abandoned)
    assert left_open(before) == {}
    house.orders[0].reply()
    assert house.answer(sock) == [{"acme": 1, "ok": True}]
    assert Path(house.control.path).is_socket()


def test_a_child_that_closes_removes_nothing(house: House) -> None:
    assert in_child(lambda: house.control.close() is None)
    assert Path(house.control.path).is_socket()


def test_the_end_tells_those_who_wait_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = descriptors()
    house = House(tmp_path)
    house.obey = lambda order: None
    sock, silent = house.dial(), house.dial()
    sock.sendall(STATUS)
    house.until(lambda: house.orders and house.clients == 2, "both here")
    house.control.close()
    house.control.close()  # a second time does nothing
    assert json.loads(sock.recv(4096))["error"] == "the server stopped before it was done"
    assert silent.recv(1) == b""
    assert house.orders[0].gone and house.control.descriptors() == []
    house.control.handle([])
    house.control.expire(time.monotonic())
    sock.close()
    silent.close()
    assert names(tmp_path) == []
    assert left_open(before) == {}


def test_no_descriptor_survives_an_exec(house: House) -> None:
    house.dial().close()
    house.turn()
    for fd in (house.control._directory, *(fd for fd, _ in house.control.descriptors())):
        assert not os.get_inheritable(fd)


def test_a_dead_servers_socket_does_not_answer_though_its_children_live(tmp_path: Path) -> None:
    """What a fork inherits would keep the socket answering, if the child didn't let go of it."""
    reading, writing = os.pipe()
    arbiter = os.fork()
    if arbiter == 0:
        opened = Control.open(str(tmp_path), lambda order: None)
        worker = os.fork()
        if worker == 0:
            opened.abandon()
            os.write(writing, str(os.getpid()).encode())
            signal.pause()
        os._exit(0)
    os.waitpid(arbiter, 0)
    worker = int(os.read(reading, 100))
    os.close(reading)
    os.close(writing)
    try:
        with pytest.raises(client.NotRunning):
            client.call(str(tmp_path), "status")
        house = House(tmp_path)
        assert house.ask(STATUS)[0]["ok"] is True
        house.control.close()
    finally:
        os.kill(worker, signal.SIGKILL)
