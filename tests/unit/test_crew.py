"""The crew with real processes that are no workers: whose turn it is, who follows whom, who is buried how."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi import worker
from acme_wsgi.config import load
from acme_wsgi.crew import Crew
from acme_wsgi.errors import AcmeError, BootError
from acme_wsgi.generation import Generation
from acme_wsgi.scoreboard import READY, Scoreboard
from acme_wsgi.sockets import Listener
from acme_wsgi.upstream.board import ROUND_ROBIN, Board
from tests.server import wait_until
from tests.unit.descriptors import descriptors, left_open


def behave(task: worker.Assignment) -> int:
    """What a stand-in for a worker does: the application's name says it."""
    told = task.config.routes[0].app or ""
    task.slot.reset_gauges()
    task.slot.pid, task.slot.number = os.getpid(), task.index + 1
    if "crash" in told:
        os.kill(os.getpid(), signal.SIGKILL)
    if "slow" in told:
        signal.pause()
    if "broken" in told:
        os.write(task.report, json.dumps({"where": "app", "cause": "broken", "traceback": "T"}).encode())
        return 3
    stop = [signal.SIGTERM, signal.SIGQUIT]
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    task.slot.state = READY
    task.slot.beat()
    os.write(task.report, b'{"ready": true}\n')
    os.close(task.report)
    if "fleeting" in told:
        os.kill(os.getpid(), signal.SIGKILL)
    if "stubborn" in told:
        while True:
            signal.pause()
    signal.sigwait(stop)
    return 0


class Case:
    """A crew of stand-ins."""

    def __init__(self, workers: int = 2, app: str = "good", *sets: str) -> None:
        self.pss: dict[int, int] = {}
        self.strangers: list[tuple[int, int]] = []
        self.outcomes: list[AcmeError | None] = []
        self.crew = Crew(
            Scoreboard(16, used=0),
            Board(16),
            self.generation(1, workers, app, *sets),
            None,
            lambda: None,
            pss=self.pss.get,
            stranger=lambda pid, status: self.strangers.append((pid, status)),
        )

    def generation(
        self, number: int, workers: int, app: str, *sets: str, listeners: tuple[Listener, ...] = ()
    ) -> Generation:
        return Generation(number, load([], {}, sets, app=f"{app}:app"), listeners, workers)

    def until(self, condition: Callable[[], object]) -> None:
        def round_() -> object:
            self.crew.step()
            return condition()

        wait_until(round_, "the crew gets there")

    def settled(self) -> list[int]:
        """Run until everybody serves, and nobody leaves; the pids, by place."""
        self.until(lambda: self.crew.settled and not self.crew.leaving)
        return self.pids()

    def pids(self) -> list[int]:
        return [place.child.pid for place in self.crew.places if place.child is not None]

    def attempt(self, generation: Generation) -> None:
        self.crew.attempt(generation, self.outcomes.append)


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Case]]:
    monkeypatch.setattr(worker, "run", behave)
    made: list[Case] = []

    def make(*arguments: Any) -> Case:
        made.append(Case(*arguments))
        return made[-1]

    yield make
    for case in made:
        case.crew.take_down()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


Cases = Callable[..., Case]


def test_every_place_is_filled_and_has_a_slot_of_its_own(cases: Cases) -> None:
    case = cases(3)
    assert len(set(case.settled())) == 3
    assert [child.slot.index for child in case.crew] == [0, 1, 2]
    assert [child.slot.number for child in case.crew] == [1, 2, 3]
    assert case.crew.board.used == 3 and case.crew.serving


def test_what_the_dead_held_of_backends_is_let_go(cases: Cases) -> None:
    case = cases(2)
    first, _ = case.settled()
    peer = case.crew.backends.enrol(b"p" * 16, unhealthy_threshold=3, healthy_threshold=2)
    group = case.crew.backends.group(b"g" * 16, ROUND_ROBIN, [(peer, 1)])
    for slot in (0, 1):
        group.begin(0, slot)
    os.kill(first, signal.SIGKILL)
    case.until(lambda: first not in case.pids())
    assert group.active(0) == 1


def test_generations_live_in_their_processes(cases: Cases) -> None:
    case = cases(1, "stubborn")
    case.settled()
    old, new = case.crew.generation, case.generation(2, 1, "good")
    assert case.crew.generations == {old}
    case.attempt(new)
    assert case.crew.generations == {old, new}
    case.until(lambda: case.outcomes)
    assert case.crew.generation is new and case.crew.generations == {old, new}, "one still leaves"
    os.kill(case.crew.leaving[0].pid, signal.SIGKILL)
    case.settled()
    assert case.crew.generations == {new}


def test_who_dies_is_replaced_in_its_place(cases: Cases) -> None:
    case = cases(2)
    first, second = case.settled()
    os.kill(first, signal.SIGKILL)
    case.until(lambda: first not in case.pids() and len(case.pids()) == 2)
    assert case.pids()[1] == second


def test_a_first_start_that_fails_ends_it_all(cases: Cases) -> None:
    case = cases(2, "broken")
    case.until(lambda: case.crew.failed is not None and not any(case.crew))
    assert isinstance(case.crew.failed, BootError) and case.crew.failed.cause == "broken"


def test_a_generation_is_tried_with_one_and_then_everybody_follows(cases: Cases) -> None:
    case = cases(3)
    before = case.settled()
    most = 0

    def all_new() -> bool:
        nonlocal most
        most = max(most, sum(1 for place in case.crew.places if place.successor is not None))
        return case.crew.settled and not case.crew.leaving

    case.attempt(case.generation(2, 3, "good"))
    assert not case.outcomes and case.crew.trying
    case.until(lambda: case.outcomes)
    assert case.outcomes == [None] and not case.crew.settled
    case.until(all_new)
    assert not set(before) & set(case.pids()) and len(case.pids()) == 3
    assert most == 1, "one after the other"
    assert {child.generation.number for child in case.crew} == {2}


@pytest.mark.parametrize("app", ["broken", "crash"])
def test_a_generation_that_does_not_start_changes_nothing(cases: Cases, app: str) -> None:
    case = cases(2)
    before = case.settled()
    case.attempt(case.generation(2, 5, app))
    case.until(lambda: case.outcomes)
    assert isinstance(case.outcomes[0], BootError)
    assert case.settled() == before and case.crew.generation.number == 1


def test_a_successor_that_dies_as_soon_as_it_is_ready_changes_nothing(cases: Cases) -> None:
    case = cases(1)
    before = case.settled()
    case.attempt(case.generation(2, 1, "fleeting"))
    successor = case.crew.places[0].successor
    assert successor is not None
    os.waitid(os.P_PID, successor.pid, os.WEXITED | os.WNOWAIT)  # both of it are there in one round
    case.crew.step()
    [error] = case.outcomes
    assert isinstance(error, BootError) and error.cause == "was ended by SIGKILL as soon as it was ready"
    assert case.settled() == before and case.crew.generation.number == 1


def test_who_dies_during_a_trial_is_replaced_before_its_end(cases: Cases) -> None:
    case = cases(1)
    [first] = case.settled()
    case.attempt(case.generation(2, 1, "slow"))
    os.kill(first, signal.SIGKILL)
    case.until(lambda: case.crew.serving and case.pids() != [first])
    assert case.crew.trying and not case.outcomes
    trial = case.crew.places[0].successor
    assert trial is not None
    os.kill(trial.pid, signal.SIGKILL)
    case.until(lambda: case.outcomes)
    assert len(case.settled()) == 1 and case.crew.generation.number == 1


def test_more_and_fewer_workers(cases: Cases) -> None:
    case = cases(2)
    case.settled()
    case.attempt(case.generation(2, 4, "good"))
    case.until(lambda: case.outcomes)
    assert len(case.settled()) == 4
    case.attempt(case.generation(3, 1, "good"))
    case.until(lambda: len(case.outcomes) == 2)
    assert len(case.settled()) == 1


def test_slots_are_used_again(cases: Cases) -> None:
    case = cases(2)
    for number in range(2, 12):
        case.settled()
        case.attempt(case.generation(number, 2, "good"))
        case.until(lambda number=number: len(case.outcomes) == number - 1)
    case.settled()
    assert case.crew.board.used <= 5


def test_a_reload_comes_before_a_successor_that_only_replaces_the_worn(cases: Cases) -> None:
    case = cases(1, "good", "server.max_requests=3")
    [first] = case.settled()
    child = case.crew.places[0].child
    assert child is not None
    for _ in range(3):
        child.slot.observe(200, 1, 1)
    case.crew.step()
    assert case.crew.places[0].successor is not None and case.pids() == [first]
    case.attempt(case.generation(2, 1, "good"))
    case.until(lambda: case.outcomes)
    assert case.outcomes == [None] and case.settled() != [first]


def test_a_successor_that_a_reload_overtakes_may_finish_what_it_has_begun(cases: Cases) -> None:
    case = cases(1, "good", "server.max_requests=1")
    [first] = case.settled()
    child = case.crew.places[0].child
    assert child is not None
    child.slot.observe(200, 1, 1)
    case.crew.step()
    successor = case.crew.places[0].successor
    assert successor is not None
    wait_until(lambda: successor.slot.state == READY, "it serves, and the crew doesn't know yet")
    case.attempt(case.generation(2, 1, "good"))
    status = os.waitid(os.P_PID, successor.pid, os.WEXITED | os.WNOWAIT)
    assert status is not None and (status.si_code, status.si_status) == (os.CLD_EXITED, 0)
    assert case.pids() == [first]


def test_the_worn_are_replaced_their_successor_first(cases: Cases) -> None:
    case = cases(2, "good", "server.max_requests=5", "server.max_requests_jitter=5")
    first, second = case.settled()
    child = case.crew.places[0].child
    assert child is not None and 5 <= child.quota <= 10
    for _ in range(child.quota):
        child.slot.observe(200, 1, 1)
    seen: set[int] = set()

    def replaced() -> bool:
        seen.add(len(case.pids()))
        return first not in case.pids() and not case.crew.leaving

    case.until(replaced)
    assert case.pids()[1] == second and seen == {2}


def test_memory_wears_too_but_not_in_the_first_seconds(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases(1, "good", "server.max_memory=100MB")
    [first] = case.settled()
    case.pss[0] = 101 << 20
    for _ in range(3):
        case.crew.step()
    assert case.crew.places[0].successor is None
    monkeypatch.setattr("acme_wsgi.crew._WORN_AFTER", 0.0)
    case.until(lambda: case.pids() and case.pids() != [first])


def test_who_does_not_leave_in_time_is_killed(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STOP_MARGIN", 0.1)
    case = cases(1, "stubborn", "server.shutdown_timeout=100ms")
    [first] = case.settled()
    case.attempt(case.generation(2, 1, "good"))
    case.until(lambda: case.outcomes)
    assert [child.pid for child in case.crew.leaving] == [first]
    case.until(lambda: not case.crew.leaving)
    assert case.crew.settled


def test_a_stop_and_a_stop_that_is_taken_back(cases: Cases) -> None:
    case = cases(2)
    before = case.settled()
    case.crew.stop(quick=False)
    case.until(lambda: not any(case.crew))
    case.crew.resume()
    assert not case.crew.settled, "nobody serves yet"
    assert len(case.settled()) == 2 and not set(before) & set(case.pids())


def test_a_stop_ends_the_trial(cases: Cases) -> None:
    case = cases(1)
    case.settled()
    case.attempt(case.generation(2, 1, "slow"))
    case.crew.step()
    case.crew.stop(quick=False)
    assert isinstance(case.outcomes[0], AcmeError)
    case.until(lambda: not any(case.crew))


def test_processes_of_others_are_told_of(cases: Cases) -> None:
    case = cases(1)
    case.settled()
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    case.until(lambda: case.strangers)
    assert case.strangers == [(pid, 7 << 8)]


def test_a_socket_that_a_generation_gives_up_does_not_live_on_in_its_workers(cases: Cases) -> None:
    case = cases(1)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        case.crew.generation = case.generation(1, 1, "good", listeners=(Listener(sock, "old"),))
        case.settled()
        link = str(Path(f"/proc/self/fd/{sock.fileno()}").readlink())
        assert link in links(case.pids()[0])
        case.attempt(case.generation(2, 1, "good"))
        case.until(lambda: case.outcomes)
        case.settled()
        assert link not in links(case.pids()[0])


def links(pid: int) -> set[str]:
    """What a process has open."""
    return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_no_slot_no_process(cases: Cases) -> None:
    case = cases(1, "stubborn")
    case.settled()
    for child in list(case.crew):
        case.crew.leaving += [child] * 15
    case.crew.board = Scoreboard(1)
    case.crew.places[0].child = None
    before = time.monotonic()
    case.crew._start_missing()
    assert case.crew.places[0].child is None and case.crew.next_start() > before
    case.crew.leaving = case.crew.leaving[:1]


def test_a_fork_that_the_kernel_refuses_is_tried_again_later(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    case = cases(1)
    place = case.crew.places[0]
    monkeypatch.setattr(os, "fork", refuse)
    opened = descriptors()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for pause in (0.1, 0.2, 0.4):
        before = time.monotonic()
        place.start_at = 0.0
        case.crew.step()
        assert place.child is None
        assert place.start_at - before == pytest.approx(pause, abs=0.09)
    assert left_open(opened) == {}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
