"""The arbiter's answers to orders, without processes; with workers: integration/test_processes.py."""

from __future__ import annotations

from typing import Any, cast

import pytest

from acme_wsgi.arbiter import Arbiter
from acme_wsgi.backends import Backends
from acme_wsgi.config import load
from acme_wsgi.control import ControlError
from acme_wsgi.crew import Crew
from acme_wsgi.draining import UnknownBackend
from acme_wsgi.generation import Generation
from acme_wsgi.history import History
from acme_wsgi.reload import Reload
from acme_wsgi.scoreboard import Scoreboard
from acme_wsgi.upstream.board import Board


class Order:
    """What the control socket hands over, keeping what was answered."""

    def __init__(self, verb: str, **arguments: Any) -> None:
        self.verb, self.arguments = verb, arguments
        self.answers: list[Any] = []

    def reply(self, **facts: Any) -> None:
        self.answers.append(facts)

    def fail(self, reason: str, **_facts: Any) -> None:
        self.answers.append(reason)

    def progress(self, text: str) -> None:
        self.answers.append(text)


@pytest.fixture
def arbiter() -> Arbiter:
    made = Arbiter(load(), environ={})
    made.history = History(Scoreboard(1))
    made.reload = Reload(made)
    return made


def answer(arbiter: Arbiter, verb: str, **arguments: Any) -> Any:
    order = Order(verb, **arguments)
    arbiter._obey(cast(Any, order))
    return order.answers[-1] if order.answers else None


def test_an_order_that_nobody_knows(arbiter: Arbiter) -> None:
    assert answer(arbiter, "fly") == "this server knows no 'fly'"


@pytest.mark.parametrize("seconds", [5, "5", None, -1, 10**9, 1.5, [1]])
def test_statistics_bear_any_window(arbiter: Arbiter, seconds: object) -> None:
    assert "requests_per_second" in answer(arbiter, "stats", seconds=seconds, history="perhaps")


def test_backends_are_taken_out_of_the_generation_that_holds(arbiter: Arbiter) -> None:
    config = load([], {}, ["routes=[{path: /*, type: proxy, backend: 'http://a'}]"])
    arbiter.backends = Backends(Board(4), "")
    generation = Generation(1, config, (), 1, *arbiter.backends.prepare(config))
    arbiter.crew = Crew(Scoreboard(4), arbiter.backends.board, generation, None, lambda: None)
    arbiter.backends.look(arbiter.crew.generations)
    assert answer(arbiter, "drain", url="http://a/")["backends"] == ["http://a"]
    (group,) = arbiter.backends.describe(generation)
    assert [member["state"] for member in group["members"]] == ["draining"]
    with pytest.raises(UnknownBackend, match="did you mean http://a"):
        answer(arbiter, "drain", url="http://b")


def test_a_reload_waits_until_the_server_is_up(arbiter: Arbiter) -> None:
    assert answer(arbiter, "reload") == "asked for" and arbiter.reload.busy
    arbiter.reload.advance()
    assert arbiter.reload.busy
    arbiter.reload.cancel("the server stops")
    assert not arbiter.reload.busy


def test_no_upgrade_before_the_server_is_up(arbiter: Arbiter) -> None:
    assert answer(arbiter, "restart") == "the server is starting or stopping"


def test_without_a_directory_for_the_control_socket_it_serves_all_the_same(
    arbiter: Arbiter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_environ: object) -> str:
        raise ControlError("'/tmp/acme-1' is somebody else's")

    monkeypatch.setattr("acme_wsgi.arbiter.default_directory", refuse)
    arbiter.directory = arbiter._runtime_directory()
    arbiter._open_control(None)
    assert arbiter._control is None
    assert [record.getMessage() for record in caplog.records] == ["'/tmp/acme-1' is somebody else's"]
