"""Active health checks: who is asked, when, by whom. The board is a fake, the loop gevent's, in a child."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
import pytest
from gevent.event import Event

from acme_wsgi.config.schema.upstream import HealthCheck
from acme_wsgi.errors import AcmeError
from acme_wsgi.upstream import health
from acme_wsgi.upstream.board import ROUND_ROBIN, Board, Group
from acme_wsgi.upstream.health import Checker, pace
from tests.unit.files.in_loop import in_loop, until


@dataclass(frozen=True)
class Backend:
    """What a configuration says of one."""

    number: int
    check: HealthCheck

    @property
    def key(self) -> bytes:
        return self.number.to_bytes(16, "big")

    @property
    def shown(self) -> str:
        return f"http://app{self.number}"


@dataclass
class Entry:
    """A backend on the board: down after three bad checks, up after two good ones."""

    down: bool = False
    since_ns: int = 0
    checked_ns: int = 0
    row: int = 0
    noted: list[tuple[bool, str]] = field(default_factory=list)

    def snapshot(self) -> dict[str, Any]:
        return {"since_ns": self.since_ns, "checked_ns": self.checked_ns}

    def note_check(self, ok: bool, text: str) -> str | None:
        self.noted.append((ok, text))
        self.row = self.row + 1 if ok == self.down else 0
        if self.row < (2 if self.down else 3):
            return None
        self.row, self.down = 0, not ok
        return "down" if self.down else "up"


class FakeBoard:
    def __init__(self, backends: list[Backend]) -> None:
        self.entries = {backend.key: Entry() for backend in backends}
        self.holder: int | None = None
        self.asked: list[tuple[int, int]] = []
        self.resigned: list[int] = []

    def elect(self, pid: int, generation: int) -> bool:
        self.asked.append((pid, generation))
        if self.holder is None:
            self.holder = pid
        return self.holder == pid

    def resign(self, pid: int) -> None:
        self.resigned.append(pid)
        if self.holder == pid:
            self.holder = None

    def peer(self, key: bytes) -> Entry:
        return self.entries[key]


class Site:
    """Backends, a board and one worker's checker, on a clock that stands still unless it is moved."""

    def __init__(self, count: int = 1, **check: Any) -> None:
        self.backends = [Backend(number, HealthCheck(**check)) for number in range(count)]
        self.board = FakeBoard(self.backends)
        self.now = 1000.0
        self.probed: list[tuple[float, int]] = []
        self.answer: Callable[[Backend], tuple[bool, str]] = lambda backend: (True, "200")
        self.checker = self.worker(7)

    def worker(self, pid: int, generation: int = 1) -> Checker[Backend]:
        return Checker(
            self.board, self.backends, self.probe, pid, generation,
            clock=lambda: self.now, jitter=lambda: 0.0,
        )  # fmt: skip

    def probe(self, backend: Backend, timeout: float) -> tuple[bool, str]:
        assert timeout == backend.check.timeout
        self.probed.append((round(self.now - 1000.0, 3), backend.number))
        return self.answer(backend)

    def step(self, seconds: float = 0.0) -> float:
        self.now += seconds
        pause = self.checker._step()
        gevent.sleep(0)
        return pause

    def pass_by(self, seconds: float, tick: float = 0.0625) -> None:
        # A fraction that adds up exactly.
        for _ in range(int(seconds / tick)):
            self.step(tick)

    def entry(self, number: int = 0) -> Entry:
        return self.board.entries[self.backends[number].key]


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        health.log.addHandler(self)
        health.log.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


# -- when


@in_loop
def test_backends_are_checked_one_after_the_other_over_the_interval() -> None:
    site = Site(4, interval=2.0)
    site.step()
    site.pass_by(3.9)
    assert site.probed == [
        (0.0, 0), (0.5, 1), (1.0, 2), (1.5, 3),
        (2.0, 0), (2.5, 1), (3.0, 2), (3.5, 3),
    ]  # fmt: skip
    assert site.entry(2).noted == [(True, "200")] * 2


@in_loop
def test_the_first_checks_are_put_off_a_little_at_random() -> None:
    site = Site(2, interval=10.0)
    site.checker._jitter = iter((1.0, 0.5)).__next__
    site.step()
    assert [subject.due - site.now for subject in site.checker._subjects] == [
        pytest.approx(0.5), pytest.approx(5.25),
    ]  # fmt: skip


@in_loop
def test_a_backend_that_begins_to_fail_is_asked_more_often_until_it_is_down() -> None:
    said = Lines()
    site = Site(1, interval=10.0)
    site.answer = lambda backend: (False, "503")
    site.step()
    site.pass_by(12.5)
    assert [at for at, _ in site.probed] == [0.0, 1.0, 2.0, 12.0]
    assert said.lines == ["WARNING backend http://app0 is down: 503"]


@in_loop
def test_a_backend_that_comes_back_is_asked_more_often_until_it_is_up() -> None:
    said = Lines()
    site = Site(1, interval=10.0)
    site.answer = lambda backend: (False, "503")
    site.step()
    site.pass_by(2.5)
    site.answer = lambda backend: (True, "200")
    site.pass_by(22.0)
    assert [at for at, _ in site.probed] == [0.0, 1.0, 2.0, 12.0, 13.0, 23.0]
    assert said.lines[1:] == ["INFO backend http://app0 is up again after 11s"]


@in_loop
def test_one_bad_check_has_no_consequences() -> None:
    said = Lines()
    site = Site(1, interval=4.0)
    answers = [(True, "200"), (False, "503"), (True, "200"), (True, "200")]
    site.answer = lambda backend: answers.pop(0)
    site.step()
    site.pass_by(9.5)
    assert [at for at, _ in site.probed] == [0.0, 4.0, 5.0, 9.0]
    assert said.lines == []


@pytest.mark.parametrize(
    ("interval", "steady", "changing"),
    [(60.0, 60.0, 1.0), (10.0, 10.0, 1.0), (2.0, 2.0, 0.5), (0.4, 0.4, 0.1), (0.1, 0.1, 0.1)],
)
def test_the_pace(interval: float, steady: float, changing: float) -> None:
    assert pace(interval, False) == steady
    assert pace(interval, True) == changing


@in_loop
def test_the_loop_sleeps_until_the_next_check_but_not_past_a_tick() -> None:
    site = Site(2, interval=0.3)
    assert site.step() == pytest.approx(0.15)
    assert site.step(0.1) == pytest.approx(0.05)
    site = Site(1, interval=10.0)
    assert site.step() == health.TICK
    assert site.step(9.999) == health._SHORTEST


# -- whom


@in_loop
def test_backends_without_checks_are_left_out() -> None:
    site = Site(2)
    site.backends[0] = Backend(0, HealthCheck(enabled=False))
    site.checker = site.worker(7)
    site.step()
    site.pass_by(10.5)
    assert {number for _, number in site.probed} == {1}


@in_loop
def test_a_worker_with_nobody_to_check_is_no_candidate() -> None:
    site = Site(2, enabled=False)
    site.checker.run()
    assert site.board.asked == []
    assert site.board.resigned == []


@in_loop
def test_a_backend_of_several_groups_is_checked_once() -> None:
    site = Site(1)
    site.backends *= 3
    site.checker = site.worker(7)
    site.step()
    site.pass_by(9.5)
    assert len(site.probed) == 1


@in_loop
def test_a_backend_that_has_left_the_board_is_left_alone() -> None:
    site = Site(2, interval=1.0)
    site.step()
    del site.board.entries[site.backends[0].key]
    site.pass_by(2.9)
    assert [number for _, number in site.probed] == [0, 1, 1, 1]


@in_loop
def test_a_backend_that_leaves_the_board_during_its_check() -> None:
    site = Site(1, interval=1.0)
    gate = Event()
    site.answer = lambda backend: (gate.wait(5), "200")
    site.step()
    entry = site.board.entries.pop(site.backends[0].key)
    gate.set()
    until(lambda: site.checker._running == 0)
    assert entry.noted == []


# -- one check


@in_loop
def test_a_backend_is_checked_once_at_a_time() -> None:
    site = Site(1, interval=0.1)
    gate = Event()
    site.answer = lambda backend: (gate.wait(5), "200")
    site.step()
    site.pass_by(3.0)
    assert len(site.probed) == 1
    gate.set()
    until(lambda: site.checker._running == 0)
    site.step()
    assert len(site.probed) == 2


@in_loop
def test_so_many_are_checked_at_once_and_the_others_get_their_turn() -> None:
    site = Site(50, interval=0.001)
    gate = Event()
    site.answer = lambda backend: (gate.wait(5), "200")
    loop = gevent.spawn(site.checker.run)
    until(lambda: site.probed)
    site.now += 1.0
    until(lambda: len(site.probed) == health.MAX_AT_ONCE)
    for _ in range(20):
        gevent.sleep(0)
    assert len(site.probed) == health.MAX_AT_ONCE
    gate.set()
    begun = time.monotonic()
    until(lambda: len({number for _, number in site.probed}) == 50)
    assert time.monotonic() - begun < 5
    site.checker.stop()
    loop.join(5)
    assert loop.ready()


@in_loop
def test_a_check_may_not_take_longer_than_its_timeout() -> None:
    said = Lines()
    site = Site(1, interval=0.1, timeout=0.02)
    site.checker._clock = time.monotonic
    site.answer = lambda backend: (Event().wait(), "never")
    loop = gevent.spawn(site.checker.run)
    until(lambda: said.lines)
    assert said.lines == ["WARNING backend http://app0 is down: no answer within 20ms"]
    site.checker.stop()
    loop.join(5)


@in_loop
def test_a_timeout_says_nothing_when_our_own_loop_stood_still() -> None:
    site = Site(1, interval=1.0, timeout=0.02)

    def stall(backend: Backend) -> tuple[bool, str]:
        site.now += 0.02 + health.LATE + 0.1
        return Event().wait(), "never"

    site.answer = stall
    site.step()
    until(lambda: site.checker._running == 0)
    assert site.entry().noted == []
    site.answer = lambda backend: (True, "200")
    site.pass_by(0.75)
    assert site.entry().noted == [(True, "200")]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (TimeoutError("too slow"), "too slow"),
        (OSError(), "OSError"),
        (AcmeError("a malformed response"), "a malformed response"),
        (AcmeError("x" * 5000), "x" * health.MAX_TEXT),
    ],
)
@in_loop
def test_an_error_is_a_bad_check(error: Exception, text: str) -> None:
    site = Site(1)
    site.answer = lambda backend: _raise(error)
    site.step()
    assert site.entry().noted == [(False, text)]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
@in_loop
def test_what_we_are_out_of_is_no_fault_of_the_backends(number: int) -> None:
    said = Lines()
    site = Site(1, interval=1.0)
    site.answer = lambda backend: _raise(OSError(number, "out of them"))
    site.step()
    assert site.entry().noted == []
    assert said.lines == ["WARNING backend http://app0 can't be checked: out of them"]
    site.answer = lambda backend: (True, "200")
    site.pass_by(1.0)
    assert site.entry().noted == [(True, "200")]


@in_loop
def test_a_fault_of_the_probe_takes_nobody_out() -> None:
    said = Lines()
    site = Site(1, interval=1.0)
    site.answer = lambda backend: _raise(TypeError("oops"))
    site.step()
    site.pass_by(5.0)
    assert site.entry().noted == []
    assert set(said.lines) == {"ERROR backend http://app0 can't be checked"}
    assert len(site.probed) == 6


# -- by whom


@in_loop
def test_one_worker_checks_and_another_takes_over_when_it_drains() -> None:
    site = Site(1, interval=0.1)
    site.checker._clock = time.monotonic
    other = Checker(site.board, site.backends, site.probe, 8, 2)
    first = gevent.spawn(site.checker.run)
    until(lambda: site.board.holder == 7)
    second = gevent.spawn(other.run)
    until(lambda: (8, 2) in site.board.asked)
    site.checker.stop()
    assert site.board.resigned == [7]
    first.join(5)
    assert first.ready()
    until(lambda: site.board.holder == 8)
    seen = len(site.probed)
    until(lambda: len(site.probed) > seen)
    other.stop()
    second.join(5)
    assert second.ready()
    assert site.board.resigned == [7, 8]


@in_loop
def test_a_worker_that_loses_the_election_ends_its_checks_and_notes_nothing() -> None:
    site = Site(3, interval=0.003)
    ended: list[int] = []

    def answer(backend: Backend) -> tuple[bool, str]:
        try:
            return Event().wait(), "never"
        finally:
            ended.append(backend.number)

    site.answer = answer
    site.step()
    site.step(1.0)
    assert len(site.probed) == 3
    site.board.holder = 99
    assert site.step() == health.TICK
    until(lambda: sorted(ended) == [0, 1, 2])
    assert site.checker._running == 0
    assert all(entry.noted == [] for entry in site.board.entries.values())
    site.pass_by(1.0)
    assert len(site.probed) == 3
    site.checker.stop()
    assert site.board.resigned == [], "it is another's"


@in_loop
def test_a_worker_elected_again_begins_afresh() -> None:
    site = Site(2, interval=1.0)
    site.answer = lambda backend: (Event().wait(), "never")
    site.step()
    site.board.holder = 99
    site.step(0.1)
    site.board.holder = 7
    site.answer = lambda backend: (True, "200")
    site.step(0.1)
    site.pass_by(0.6)
    assert [number for _, number in site.probed] == [0, 0, 1]
    assert site.entry(0).noted == site.entry(1).noted == [(True, "200")]


@in_loop
def test_who_takes_over_goes_on_where_the_one_before_stopped() -> None:
    """Were each to begin anew with the first, workers that come and go would never get to the last."""
    site = Site(4, interval=4.0)
    site.entry(3).checked_ns = int((site.now - 10.0) * 1e9)  # overdue
    site.entry(1).checked_ns = int((site.now - 3.5) * 1e9)
    site.entry(0).checked_ns = int((site.now - 0.1) * 1e9)
    site.step()
    site.pass_by(0.9)
    assert {number for _, number in site.probed} >= {1, 3}


@in_loop
def test_who_takes_over_knows_who_is_down_and_since_when() -> None:
    said = Lines()
    site = Site(2, interval=4.0)
    site.entry(0).down, site.entry(0).since_ns = True, int(site.now * 1e9) - 90 * 10**9
    site.entry(1).down = True
    site.step()
    site.pass_by(3.9)
    assert [at for at, number in site.probed if number == 0] == [0.0, 1.0]
    assert said.lines == [
        "INFO backend http://app0 is up again after 91s",
        "INFO backend http://app1 is up again",
    ]


def checked_after(mark: Callable[[Board, Group], object], good: bool) -> list[float]:
    """When somebody who takes over a real board checks its one backend, after `mark` was left on that."""
    site = Site(1, interval=4.0)
    board = Board(1)
    board.clock_ns = int(site.now * 1e9)
    peer = board.enrol(site.backends[0].key, unhealthy_threshold=3, healthy_threshold=2)
    mark(board, board.group(bytes(16), ROUND_ROBIN, [(peer, 1)]))
    site.checker = Checker(
        board, site.backends, site.probe, 7, 1, clock=lambda: site.now, jitter=lambda: 0.0
    )  # fmt: skip
    site.answer = lambda backend: (good, "")
    site.step()
    site.pass_by(12.5)
    return [at for at, _ in site.probed]


@in_loop
def test_who_takes_over_does_not_take_refused_requests_for_bad_checks() -> None:
    def refuse(board: Board, group: Group) -> None:
        for _ in range(3):
            group.failed(0, connecting=True)
        assert group.peer(0).state() == "down"

    assert checked_after(refuse, True) == [0.0, 4.0, 8.0, 12.0]


@in_loop
def test_who_takes_over_knows_of_bad_checks_of_a_backend_that_is_drained_too() -> None:
    def drain(board: Board, group: Group) -> None:
        for _ in range(3):
            group.peer(0).note_check(False, "")
        group.peer(0).draining_since = board.clock_ns

    assert checked_after(drain, False) == [0.0, 4.0, 8.0, 12.0]


@in_loop
def test_stopping_ends_the_checks_under_way_and_may_be_repeated() -> None:
    site = Site(1)
    unwound = Event()

    def answer(backend: Backend) -> tuple[bool, str]:
        try:
            return Event().wait(), "never"
        finally:
            unwound.set()

    site.answer = answer
    loop = gevent.spawn(site.checker.run)
    until(lambda: site.probed)
    site.checker.stop()
    site.checker.stop()
    loop.join(5)
    assert loop.ready()
    assert unwound.wait(5)
    assert site.board.resigned == [7]
    assert site.entry().noted == []
    asked = len(site.board.asked)
    site.checker.run()
    assert len(site.board.asked) == asked


@in_loop
def test_a_greenlet_that_is_killed_resigns_too() -> None:
    site = Site(1)
    loop = gevent.spawn(site.checker.run)
    until(lambda: site.probed)
    loop.kill()
    assert site.board.resigned == [7]


@in_loop
def test_a_forked_child_checks_nothing_and_does_not_resign() -> None:
    site = Site(1)
    site.answer = lambda backend: (gevent.sleep(0.02), (False, "asked by nobody"))[1]
    running = gevent.spawn(site.checker.run)
    until(lambda: site.probed)
    site.checker.forget()
    running.join(5)
    assert running.ready()
    gevent.sleep(0.05)
    assert site.entry().noted == [] and site.board.resigned == []
    assert len(site.probed) == 1


def _raise(error: Exception) -> tuple[bool, str]:
    raise error
