"""What the arbiter concludes from what it sees of its workers; live: integration/test_watchdog_live.py."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from acme_wsgi import watch
from acme_wsgi.child import Child
from acme_wsgi.config import load
from acme_wsgi.generation import Generation
from acme_wsgi.log.errorlog import MAX_TRACEBACK
from acme_wsgi.stacks import REPORT_SIGNAL, STACK_SIGNAL, Answer, Stacks

# -- judging heartbeats: the arbiter's decisions with a clock and workers of the test's own


class Slot:
    """What the watch sees of a worker's slot, and what it noted there."""

    heartbeat = 0
    current = ""
    in_flight = 1

    def snapshot(self) -> dict[str, int]:
        return {}

    def __init__(self) -> None:
        self.noted: list[Any] = []

    def note_stall(self, since_ns: int, route: str, where: str) -> None:
        self.noted.append((since_ns / 1e9, route, where))

    def end_stall(self, duration_ns: int) -> None:
        self.noted.append(duration_ns / 1e9)


THREADS = 'Current thread 0x1 (most recent call first):\n  File "/app/shop.py", line 3 in search\n'
REQUEST = ["GET", "/find", "/f*", "4bf9", 1.25]


def answer(*waiting: Any, request: Any = REQUEST, end: bool = True) -> bytes:
    """What a worker writes that stands in search(); `waiting` are the frames of other greenlets."""
    said: list[Any] = [
        {
            "acme": "running",
            "frames": [["/app/shop.py", 3, "search"], ["/app/shop.py", 9, "app"]],
            "more": 0,
            "requests": [request] if request else [],
            "count": 1,
        }
    ]
    said += [{"acme": "waiting", "frames": one, "more": 0, "requests": [], "count": 1} for one in waiting]
    said += [{"acme": "end", "left_out": 0}] if end else []
    return (THREADS + "\n".join(map(json.dumps, said))).encode()


class Watched:
    """A watch over one worker that is only a record, on a clock of its own; signals are noted down."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, timeout: float = 10.0, blocked_after: float = 1.0
    ) -> None:
        self.signals: list[int] = []
        self.logged: list[str] = []
        self.now = 0.0
        self.slot = Slot()
        self.stacks = Stacks("test")
        slot = cast(Any, self.slot)
        config = load([], {}, [f"server.timeout={timeout}", f"server.blocked_after={blocked_after}"])
        generation = Generation(1, config, (), 1)
        self.child = Child(4711, slot, 1, generation, self.stacks, forked=-1.0, report=-1, ready=-0.5)
        monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.watch = watch.Watch()
        monkeypatch.setattr(os, "kill", lambda pid, number: self.signals.append(number))
        monkeypatch.setattr(watch, "log_with_stacks", self._note)
        monkeypatch.setattr(watch.log, "warning", lambda text, *args: self.logged.append(text % args))

    def _note(self, level: int, text: str, stacks: str) -> None:
        self.logged.append(f"{logging.getLevelName(level)} {text}\n{stacks}")

    def beats(self, seconds: float) -> Watched:
        """The worker's heart beats at this time (it did at 0)."""
        self.slot.heartbeat = int(seconds * 1e9)
        return self

    def says(self, text: bytes) -> Watched:
        """The worker writes into its file."""
        os.write(self.stacks.file.fileno(), text)
        return self

    def at(self, seconds: float) -> Watched:
        """The arbiter looks at this time."""
        self.now = seconds
        self.watch.look([self.child])
        return self


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    return lambda **options: Watched(monkeypatch, **options)


ASKED = [STACK_SIGNAL, REPORT_SIGNAL]


def test_a_beating_worker_is_left_alone(watched: Callable[..., Watched]) -> None:
    case = watched().at(0.9).beats(0.9).at(1.8).beats(2.5).at(3.4)
    assert case.signals == [] and case.logged == [] and case.slot.noted == []


def test_a_standstill_is_reported_once_while_it_lasts(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1)
    assert case.signals == ASKED
    case.says(answer()).at(1.2).at(1.5).at(6.0).at(9.0)
    assert case.signals == ASKED
    [report] = case.logged
    assert report == (
        "WARNING worker 1 (pid 4711) has stood still for 1.2 s in GET /find (route /f*), at "
        "/app/shop.py:3 in search\nGET /find (route /f*), request 4bf9, 1.2 s:\n"
        '  File "/app/shop.py", line 3 in search\n  File "/app/shop.py", line 9 in app'
    )
    assert case.slot.noted == [(0.0, "/f*", "/app/shop.py:3 in search")]


def test_when_it_goes_on_the_log_says_how_long_it_took(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).says(answer()).at(1.2).at(3.0).beats(3.4).at(3.5).at(3.9)
    assert case.logged[1:] == [
        "worker 1 (pid 4711) goes on, after it stood still for 3.4 s in GET /find (route /f*)"
    ]
    assert case.slot.noted[1:] == [3.4]
    assert case.stacks.read() == Answer(), "should it crash later, these are not its last stacks"
    assert case.at(4.5).signals == ASKED * 2, "the next standstill is another one"


def test_a_standstill_that_is_over_when_it_is_reported(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).says(answer()).beats(1.15).at(1.2)
    first, second = case.logged
    assert first.startswith("WARNING worker 1 (pid 4711) has stood still for 1.1 s in GET /find (route /f*)")
    assert "goes on, after it stood still for 1.1 s" in second
    assert [entry for entry in case.slot.noted if isinstance(entry, float)] == [1.15]


def test_python_code_gets_time_to_answer_but_not_for_ever(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).says(THREADS.encode())
    case.slot.current = "GET /hash"
    assert case.at(1.3).at(1.6).logged == []
    case.at(1.75)
    assert case.logged == [
        "WARNING worker 1 (pid 4711) has stood still for 1.8 s, at /app/shop.py:3 in search; the request "
        "begun last is GET /hash\n" + THREADS.rstrip()
    ]
    assert case.slot.noted == [(0.0, "", "/app/shop.py:3 in search")]


def test_a_worker_that_does_not_answer_is_told_too(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).at(1.8)
    [report] = case.logged
    assert report.endswith("has stood still for 1.8 s\n(it did not answer: stopped, or stuck in the kernel)")


def test_what_comes_from_a_client_stays_on_its_line(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).says(answer(request=["GET", "/\n\x1b[2J", "/*", "id", 1.0])).at(1.2)
    assert "in GET /\\n\\x1b[2J (route /*), at" in case.logged[0].split("\n")[0]


def test_work_of_no_request_is_told_as_such(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).says(answer(request=None)).at(1.2)
    assert "has stood still for 1.2 s in no request, at /app/shop.py:3 in search\n" in case.logged[0]


def test_a_standstill_past_the_timeout_is_the_end(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).says(answer()).at(1.2).at(10.9)
    assert signal.SIGKILL not in case.signals
    waiting = [["/app/shop.py", 30, "wait"]]
    case.at(11.1).says(answer(waiting)).at(11.2)
    assert case.signals == [*ASKED, *ASKED, signal.SIGKILL]
    _, last, others = case.logged
    assert last.startswith("ERROR") and "at /app/shop.py:3 in search; it is replaced\n" in last
    assert others.startswith("ERROR worker 1 (pid 4711): its other stacks\n")
    assert 'a greenlet without a request:\n  File "/app/shop.py", line 30 in wait' in others
    assert "Current thread" not in others, "it is told in the first record"
    assert case.child.killed == "stood still for 11.2 s" and case.slot.noted[1:] == [11.2]
    assert case.at(12.0).at(13.0).signals[-1:] == [signal.SIGKILL] and len(case.signals) == 5


def test_a_worker_that_comes_back_at_the_last_moment_is_spared(watched: Callable[..., Watched]) -> None:
    case = watched().at(1.1).says(answer()).at(1.2).at(11.1).beats(11.15).says(answer()).at(11.2)
    assert signal.SIGKILL not in case.signals
    assert "goes on, after it stood still for 11.2 s" in case.logged[-1]


def test_after_the_arbiter_was_stopped_itself_no_heartbeat_is_judged_at_first(
    watched: Callable[..., Watched],
) -> None:
    case = watched()
    case.now = 100.0
    case.watch.new_round()
    assert case.at(100.0).signals == []
    assert case.at(104.0).signals == [] and case.watch.due([case.child]) == watch.TICK
    assert case.at(106.0).signals == ASKED, "but a worker that stays still is noticed"


def test_short_timeouts_shorten_the_early_report_too(watched: Callable[..., Watched]) -> None:
    case = watched(timeout=1.0).at(0.4)
    assert case.signals == []
    assert case.at(0.6).signals == ASKED


def test_a_worker_that_is_still_starting_gets_its_time(watched: Callable[..., Watched]) -> None:
    case = watched()
    case.child.ready = 0.0
    assert case.at(8.5).signals == []
    case.at(30.0).at(30.7)
    assert case.signals == ASKED and "has been starting for 31.7 s" in case.logged[0]
    case.at(601.0).at(601.7)
    assert case.signals[-1] == signal.SIGKILL and case.child.killed == "was starting for 602.7 s"
    assert case.slot.noted == [], "a start is no standstill"


def test_a_start_that_ends_while_it_is_looked_into(watched: Callable[..., Watched]) -> None:
    case = watched()
    case.child.ready = 0.0
    case.at(30.0)
    case.child.ready = 30.05
    case.beats(30.05).says(answer(request=None)).at(30.1).at(30.5)
    [report] = case.logged
    assert "has been starting for 31.1 s, at /app/shop.py:3" in report
    assert case.slot.noted == [] and case.signals == ASKED


def test_the_next_look_is_due_when_it_can_find_something(watched: Callable[..., Watched]) -> None:
    case = watched(blocked_after=0.3)
    due = case.watch.due
    assert due([]) == watch.TICK
    assert due([case.child]) == pytest.approx(0.3)
    case.at(0.31)
    assert due([case.child]) == pytest.approx(watch.STACK_DELAY)
    case.says(answer()).at(0.4)
    assert due([case.child]) == pytest.approx(0.1), "its end shall be measured well"
    case.child.killed = "yes"
    assert due([case.child]) == watch.TICK


def test_a_report_is_within_two_seconds(watched: Callable[..., Watched]) -> None:
    """Stepping by what `due` says, as the arbiter does, with nothing but the threads' stacks to be had."""
    case = watched()
    while not case.logged:
        case.now += case.watch.due([case.child])
        if case.at(case.now).signals and not case.stacks.read().threads:
            case.says(THREADS.encode())
    assert 1.0 < case.now < 1.7


def test_stacks_are_logged_in_records_that_the_log_takes_whole() -> None:
    stacks = ["\n".join(f"{number}: {line}" for line in range(50)) for number in range(7)]
    parts = list(watch.records([*stacks, "\n".join("long" for _ in range(400))]))
    assert [part.count("\n") + 1 for part in parts] == [150, 150, 50, 180, 180, 40]
    assert "\n".join(parts).split("\n")[:350] == "\n".join(stacks).split("\n")
    assert max(part.count("\n") + 1 for part in parts) <= MAX_TRACEBACK
    assert list(watch.records([])) == []
