"""What a worker process says of its start and its end, in words."""

from __future__ import annotations

import json
import os
import signal
from typing import Any, cast

import pytest

from acme_wsgi import child as child_
from acme_wsgi.errors import BootError, ConfigError, Problem
from acme_wsgi.limits import ResourceError
from acme_wsgi.scoreboard import Scoreboard


@pytest.mark.parametrize(
    ("failures", "pause"), [(0, 0.0), (1, 0.1), (2, 0.2), (5, 1.6), (9, 25.6), (10, 30.0), (10**6, 30.0)]
)
def test_pauses_before_a_new_start_double_up_to_a_bound(failures: int, pause: float) -> None:
    assert child_.backoff(failures) == pytest.approx(pause)


def test_an_end_in_words() -> None:
    assert child_.ended_how(3 << 8) == "exited with status 3"
    assert child_.ended_how(signal.SIGSEGV) == "was ended by SIGSEGV"
    assert child_.ended_how(50) == "was ended by signal 50"


def child(said: object = None, **facts: Any) -> child_.Child:
    slot = Scoreboard(1).slot(0)
    text = b"" if said is None else json.dumps(said).encode() + b"\n"
    stacks = cast(Any, None)
    return child_.Child(
        pid=4711,
        slot=slot,
        number=1,
        generation=cast(Any, None),
        stacks=stacks,
        forked=0.0,
        report=-1,
        said=text,
        **facts,
    )


def test_what_a_worker_said_of_its_failed_start_is_what_is_raised() -> None:
    error = child_.start_error(child({"where": "route /*", "cause": "E: x", "traceback": "T"}), 3 << 8, "")
    assert isinstance(error, BootError)
    assert (error.where, error.cause, error.traceback) == ("route /*", "E: x", "T")
    error = child_.start_error(child({"problems": [["f", 1, 2, "k", "bad", None]]}), 78 << 8, "")
    assert isinstance(error, ConfigError) and error.problems == (Problem("f", 1, 2, "k", "bad"),)
    error = child_.start_error(child({"limit": "too small"}), 1 << 8, "")
    assert isinstance(error, ResourceError) and str(error) == "too small"


@pytest.mark.parametrize("said", [b"", b'{"where": "rou'])
def test_a_worker_that_died_without_a_word_is_told_with_its_stacks(said: bytes) -> None:
    dead = child(killed="was starting for 700.0 s")
    dead.said = said
    error = child_.start_error(dead, signal.SIGKILL, "in f")
    assert isinstance(error, BootError)
    assert error.cause == "was ended by SIGKILL while starting (was starting for 700.0 s)"
    assert error.traceback == "in f"


def test_a_report_ends_with_its_line_whoever_else_holds_the_pipe() -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    starting = child()
    starting.report = reading
    try:
        os.write(writing, b'{"rea')
        starting.read_report()
        assert not starting.ready
        os.write(writing, b'dy": true}\n')  # and the end stays open, in what the application has forked
        starting.read_report()
        assert starting.ready and starting.report == -1
    finally:
        os.close(writing)
        starting.close_report()


@pytest.mark.parametrize(
    "said",
    [b"[]", b"7", b'"where"', b'{"problems": 7}', b'{"problems": [[]]}', b'{"where": "w"}', b"[" * 200_000],
)
def test_what_is_no_report_is_as_good_as_none(said: bytes) -> None:
    dead = child()
    dead.said = said
    error = child_.start_error(dead, 3 << 8, "")
    assert isinstance(error, BootError) and error.cause == "exited with status 3 while starting"
