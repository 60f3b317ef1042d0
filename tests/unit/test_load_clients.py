"""The load clients account for every request: what a server loses, cuts or mixes up is seen, by kind.

Against a scripted server, so that what went wrong is known; whoever trusts a "0 failed" trusts these tests.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.benchmarks.answers import Answer, NotAnAnswer, read_answer
from scripts.benchmarks.closed_loop import ClosedLoop, going
from scripts.benchmarks.load import LoadFailed, wrk_going
from scripts.benchmarks.open_loop import UNSENT, OpenLoop, percentile
from scripts.benchmarks.orders import OrderFailed, order
from scripts.benchmarks.scenarios.overload import verdict

pytestmark = pytest.mark.slow  # they wait for what must not come

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


class Scripted:
    """A server that does for each connection, request by request, what the next script says.

    ok, last (`Connection: close`), other (another one's mark), status (500), shed (503), long (bytes too
    many), cut, drop (end without an answer), reset, silent. A connection ends after its script; the last
    script is for all connections that follow.
    """

    def __init__(self, *scripts: list[str], pid: int = 71) -> None:
        self.pid = pid
        self.scripts = list(scripts)
        self.connections = 0
        self.requests = 0
        self.release = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            threading.Thread(target=self._serve, args=(client, script), daemon=True).start()

    def _serve(self, client: socket.socket, script: list[str]) -> None:
        with client:
            for act in script:
                try:
                    request = client.recv(4096)
                except ConnectionResetError:
                    return
                if not request:
                    return
                self.requests += 1
                mark = request.partition(b"?")[2].partition(b" ")[0]
                if not self._answer(client, act, b"%d %b" % (self.pid, mark) if mark else b"good"):
                    return

    def _answer(self, client: socket.socket, act: str, body: bytes) -> bool:
        """Do it; whether the connection goes on."""
        answer = HEAD % (len(body), body)
        match act:
            case "ok":
                client.sendall(answer)
            case "last":
                client.sendall(answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                return False
            case "other":
                body += b"1"
                client.sendall(HEAD % (len(body), body))
            case "status":
                client.sendall(answer.replace(b"200 OK", b"500 Oh", 1))
            case "shed":
                client.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            case "long":
                client.sendall(answer + b"!")
            case "cut":
                client.sendall(answer[:-1])
                return False
            case "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            case "silent":
                self.release.wait(10)
                return False
            case _:
                return False
        return True

    def close(self) -> None:
        self.release.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@contextmanager
def scripted(*scripts: list[str]) -> Iterator[Scripted]:
    server = Scripted(*scripts)
    try:
        yield server
    finally:
        server.close()


FOREVER = ["ok"] * 1_000_000


# -- one answer


def test_an_answer_is_whole_or_not_yet() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nHello"
    for end in range(len(whole)):
        assert read_answer(whole[:end]) is None
    answer = read_answer(whole)
    assert answer is not None and answer.last
    assert (answer.status, answer.body) == (200, b"Hello")


@pytest.mark.parametrize(
    "came",
    [
        b"garbage",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello!",
    ],
)
def test_what_is_no_answer_is_said_to_be_none(came: bytes) -> None:
    with pytest.raises(NotAnAnswer):
        read_answer(came)


def test_a_field_is_found_by_its_name_alone() -> None:
    answer = Answer(503, b"http/1.1 503 busy\r\nx-retry-after: 1", b"")
    assert not answer.has(b"retry-after")
    assert answer.has(b"x-retry-after")


# -- the closed loop


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        ("drop", "closed"),
        ("cut", "cut"),
        ("reset", "reset"),
        ("other", "wrong"),
        ("status", "wrong"),
        ("long", "wrong"),
        ("silent", "timeout"),
    ],
)
def test_each_way_to_lose_a_request_is_counted_once_under_its_name(act: str, kind: str) -> None:
    with scripted(["ok", "ok", act], FOREVER) as server:
        loop = ClosedLoop(server.address, 1, marks=True, patience=0.3)
        loop.run(time.monotonic() + (2.5 if kind == "timeout" else 0.3))
        loop.drain()
        loop.close()
    outcome = loop.outcome
    assert outcome.kinds() == {kind: 1}
    assert outcome.failures[0].worker == 71
    assert outcome.answered > 2 and outcome.asked == outcome.answered + 1 == server.requests


def test_a_connection_that_the_server_announced_to_close_is_no_failure() -> None:
    with scripted(["ok", "last"]) as server:
        loop = ClosedLoop(server.address, 3, marks=True)
        loop.run(time.monotonic() + 0.3)
        loop.drain()
        loop.close()
    assert loop.outcome.failures == []
    assert loop.outcome.asked == loop.outcome.answered == server.requests
    assert server.connections >= loop.outcome.answered / 2 > 10


def test_fresh_clients_have_a_connection_for_each_request() -> None:
    with scripted(FOREVER) as server:
        loop = ClosedLoop(server.address, 0, fresh=2, marks=True)
        loop.run(time.monotonic() + 0.3)
        loop.drain()
        loop.close()
    assert loop.outcome.failures == []
    assert loop.outcome.answered == server.requests == server.connections > 10


def test_refusals_are_counted_and_end_the_loop_after_its_patience() -> None:
    with scripted(["ok"]) as server:
        address = server.address
    loop = ClosedLoop(address, 1, patience=0.3)
    with pytest.raises(ConnectionRefusedError):
        loop.run(time.monotonic() + 10)
    loop.close()
    assert set(loop.outcome.kinds()) == {"refused"} and loop.outcome.kinds()["refused"] > 5
    assert loop.outcome.answered == 0


def test_a_loop_in_a_thread_hands_its_error_on() -> None:
    with scripted(["ok"]) as server:
        address = server.address
    with pytest.raises(ConnectionRefusedError), going(ClosedLoop(address, 1, patience=0.1)) as outcome:
        deadline = time.monotonic() + 5
        while outcome.asked < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)


def test_a_loop_in_a_thread_leaves_nothing_under_way() -> None:
    with scripted(FOREVER) as server, going(ClosedLoop(server.address, 3, fresh=3, marks=True)) as outcome:
        deadline = time.monotonic() + 5
        while outcome.answered < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert outcome.answered >= 100 and outcome.under_way == 0 and outcome.failures == []
    assert outcome.asked == server.requests


# -- the open loop


def test_an_offer_accounts_for_every_request_that_was_due() -> None:
    with scripted(["ok", "shed"] * 100_000) as server:
        loop = OpenLoop(server.address, b"good")
        offer = loop.offer(500, 0.6, settle=0.2)
        loop.close()
    assert offer.due == 300 and offer.under_way == 0
    assert len(offer.good) + len(offer.shed) == 300 and offer.shed_share == pytest.approx(0.5, abs=0.1)
    assert not offer.failures
    assert server.requests == 400  # those while it settled too
    assert offer.goodput == pytest.approx(250, rel=0.2)


@pytest.mark.parametrize(
    ("act", "kind"), [("drop", "closed"), ("cut", "cut"), ("reset", "reset"), ("status", "wrong")]
)
def test_an_offer_counts_what_is_lost(act: str, kind: str) -> None:
    with scripted(["ok", act]) as server:
        loop = OpenLoop(server.address, b"good")
        offer = loop.offer(200, 0.5)
        loop.close()
    assert offer.due == 100 and offer.under_way == 0
    assert set(offer.failures) == {kind}
    # Each connection has one good answer and then loses one request; the last few have not lost theirs yet.
    assert 0 <= len(offer.good) - offer.failures[kind] < 20


def test_the_rate_of_an_offer_does_not_wait_for_answers() -> None:
    with scripted(["silent"]) as server:
        loop = OpenLoop(server.address, b"good", patience=0.5)
        offer = loop.offer(100, 0.5)
        loop.close()
    assert server.requests == offer.due == 50
    assert dict(offer.failures) == {"timeout": 50}


def test_the_connections_of_an_offer_are_bounded() -> None:
    with scripted(["silent"]) as server:
        loop = OpenLoop(server.address, b"good", patience=0.5, limit=10)
        offer = loop.offer(100, 0.4)
        loop.close()
    assert dict(offer.failures) == {"timeout": 10, UNSENT: 30}
    assert server.connections == 10


def test_times_run_from_when_a_request_was_due() -> None:
    """A generator that was held up itself must not hide that the requests came late."""
    with scripted(FOREVER) as server:
        loop = OpenLoop(server.address, b"good")
        launch = loop._launch
        held = iter([True])

        def late(due: float) -> None:
            if next(held, False):
                time.sleep(0.5)
            launch(due)

        loop._launch = late  # type: ignore[method-assign]
        offer = loop.offer(100, 1)
        loop.close()
    assert offer.due == len(offer.good) == 100
    assert 40 <= sum(seconds > 0.1 for seconds in offer.good) <= 60
    slowest = percentile(offer.good, 1)
    assert slowest is not None and slowest >= 0.5


# -- wrk that goes on, orders, the verdict


def test_wrk_goes_on_until_it_is_told_to_end() -> None:
    with (
        scripted(FOREVER) as server,
        wrk_going(f"http://127.0.0.1:{server.address[1]}/", None, connections=2) as wrk,
    ):
        deadline = time.monotonic() + 10
        while server.requests < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        load = wrk.finish()
    assert load.requests >= 90 and load.errors == {}


def test_wrk_tells_of_connections_that_were_cut() -> None:
    with (
        scripted(["ok", "cut"]) as server,
        wrk_going(f"http://127.0.0.1:{server.address[1]}/", None, connections=2) as wrk,
    ):
        deadline = time.monotonic() + 10
        while server.requests < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        load = wrk.finish()
    assert load.errors["read"] >= 20


def test_a_wrk_that_nobody_answers_is_a_failure() -> None:
    with scripted(["ok"]) as server:
        port = server.address[1]
    with wrk_going(f"http://127.0.0.1:{port}/", None, connections=1) as wrk, pytest.raises(LoadFailed):
        wrk.finish()


def test_an_order_to_nobody_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(OrderFailed, match=r"control\.sock"):
        order(tmp_path, "reload")


def row(multiple: float, goodput: float, p99_ms: float | None = 100, failed: int = 0) -> dict[str, object]:
    return {"multiple": multiple, "goodput": goodput, "p99_ms": p99_ms, "failed": failed, "kinds": "cut 1"}


def test_the_verdict_on_a_server_that_holds() -> None:
    assert verdict([row(1, 190), row(2, 200), row(10, 171)], bound=0.5) == []


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row(2, 200), row(10, 169)], "goodput is 84% of the peak"),
        ([row(2, 200, 501), row(10, 200)], "at 2x p99 501 ms, beyond 500 ms"),
        ([row(2, 200), row(10, 200, None)], "at 10x no answer"),
        ([row(2, 200), row(10, 200, failed=1)], r"at 10x 1 requests failed \(cut 1\)"),
        ([row(2, 0), row(10, 0)], "no good answer"),
    ],
)
def test_the_verdict_names_what_does_not_hold(rows: list[dict[str, object]], complaint: str) -> None:
    assert any(re.search(complaint, said) for said in verdict(rows, bound=0.5))
