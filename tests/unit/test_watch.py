"""What the arbiter concludes from what it sees of its workers; live: integration/test_watchdog_live.py."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from acme_wsgi import watch
from acme_wsgi.errors import BootError, ConfigError, Problem
from acme_wsgi.limits import ResourceError
from acme_wsgi.scoreboard import Scoreboard
from acme_wsgi.stacks import Stacks


@pytest.mark.parametrize(
    ("failures", "pause"), [(0, 0.0), (1, 0.1), (2, 0.2), (5, 1.6), (9, 25.6), (10, 30.0), (10**6, 30.0)]
)
def test_pauses_before_a_new_start_double_up_to_a_bound(failures: int, pause: float) -> None:
    assert watch.backoff(failures) == pytest.approx(pause)


def test_an_end_in_words() -> None:
    assert watch.ended_how(3 << 8) == "exited with status 3"
    assert watch.ended_how(signal.SIGSEGV) == "was ended by SIGSEGV"
    assert watch.ended_how(50) == "was ended by signal 50"


def child(said: object = None, **facts: Any) -> watch.Child:
    slot = Scoreboard(1).slot(0)
    text = b"" if said is None else json.dumps(said).encode() + b"\n"
    stacks = cast(Any, None)
    return watch.Child(
        pid=4711, slot=slot, number=1, stacks=stacks, forked=0.0, report=-1, said=text, **facts
    )


def test_what_a_worker_said_of_its_failed_start_is_what_is_raised() -> None:
    error = watch.start_error(child({"where": "route /*", "cause": "E: x", "traceback": "T"}), 3 << 8, "")
    assert isinstance(error, BootError)
    assert (error.where, error.cause, error.traceback) == ("route /*", "E: x", "T")
    error = watch.start_error(child({"problems": [["f", 1, 2, "k", "bad", None]]}), 78 << 8, "")
    assert isinstance(error, ConfigError) and error.problems == (Problem("f", 1, 2, "k", "bad"),)
    error = watch.start_error(child({"limit": "too small"}), 1 << 8, "")
    assert isinstance(error, ResourceError) and str(error) == "too small"


@pytest.mark.parametrize("said", [b"", b'{"where": "rou'])
def test_a_worker_that_died_without_a_word_is_told_with_its_stacks(said: bytes) -> None:
    dead = child(killed="was starting for 700.0 s")
    dead.said = said
    error = watch.start_error(dead, signal.SIGKILL, "in f")
    assert isinstance(error, BootError)
    assert error.cause == "was ended by SIGKILL while starting (was starting for 700.0 s)"
    assert error.traceback == "in f"


# -- judging heartbeats: the arbiter's decisions with a clock and workers of the test's own


class Watched:
    """An arbiter with one worker that is only a record, on a clock of its own; signals are noted down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, timeout: float = 10.0) -> None:
        self.signals: list[int] = []
        self.logged: list[str] = []
        self.now = 0.0
        self.slot = cast(Any, SimpleNamespace(heartbeat=0))
        self.stacks = Stacks("test")
        self.child = watch.Child(4711, self.slot, 1, self.stacks, forked=-1.0, report=-1, ready=-0.5)
        monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.watch = watch.Watch(timeout)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.signals.append(number))
        monkeypatch.setattr(watch, "log_with_stacks", self._note)

    def _note(self, _level: int, text: str, stacks: str) -> None:
        self.logged.append(f"{text}\n{stacks}")

    def beats(self, seconds: float) -> Watched:
        """The worker's heart beats at this time (it did at 0)."""
        self.slot.heartbeat = int(seconds * 1e9)
        return self

    def at(self, seconds: float) -> Watched:
        """The arbiter looks at this time."""
        self.now = seconds
        self.watch.look([self.child])
        return self


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    return lambda **options: Watched(monkeypatch, **options)


def test_a_beating_worker_is_left_alone(watched: Callable[..., Watched]) -> None:
    case = watched().at(4.9).beats(4.9).at(9.0).beats(9.5).at(14.0)
    assert case.signals == [] and case.logged == []


def test_a_standstill_is_reported_once_while_it_lasts(watched: Callable[..., Watched]) -> None:
    case = watched().at(5.1)
    os.write(case.stacks.file.fileno(), b"File x line 3 in f")
    case.at(5.2).at(5.5).at(6.0).at(7.0).at(9.0)
    assert case.signals == [signal.SIGUSR2]
    [report] = case.logged
    assert "has stood still for 5.1 s; it is here:" in report and "line 3 in f" in report
    case.beats(9.5).at(9.9).at(15.0)
    assert case.signals == [signal.SIGUSR2] * 2, "the next standstill is another one"


def test_a_standstill_past_the_timeout_is_the_end(watched: Callable[..., Watched]) -> None:
    case = watched().at(5.1).at(5.5).at(10.9)
    assert signal.SIGKILL not in case.signals
    case.at(11.1).at(11.5)
    assert case.signals[-2:] == [signal.SIGUSR2, signal.SIGKILL]
    assert "is replaced" in case.logged[-1]
    count = len(case.signals)
    case.at(12.0).at(13.0)
    assert len(case.signals) == count, "it is killed once"


def test_a_worker_that_comes_back_at_the_last_moment_is_spared(watched: Callable[..., Watched]) -> None:
    case = watched().at(11.1).beats(11.2).at(11.5)
    assert signal.SIGKILL not in case.signals
    assert "has stood still for 11.1 s and goes on now" in case.logged[-1]


def test_after_the_arbiter_was_stopped_itself_no_heartbeat_is_judged_at_first(
    watched: Callable[..., Watched],
) -> None:
    case = watched()
    case.now = 100.0
    case.watch.new_round()
    assert case.at(100.0).signals == []
    assert case.at(104.0).signals == []
    assert case.at(106.0).signals == [signal.SIGUSR2], "but a worker that stays still is noticed"


def test_short_timeouts_shorten_the_early_report_too(watched: Callable[..., Watched]) -> None:
    case = watched(timeout=1.0).at(0.4)
    assert case.signals == []
    assert case.at(0.6).signals == [signal.SIGUSR2]


def test_a_worker_that_is_still_starting_gets_its_time(watched: Callable[..., Watched]) -> None:
    case = watched()
    case.child.ready = 0.0
    assert case.at(8.5).signals == []
    case.at(30.0).at(30.5)
    assert case.signals == [signal.SIGUSR2] and "has been starting for" in case.logged[0]
    case.at(601.0).at(601.5)
    assert case.signals[-1] == signal.SIGKILL
