"""Backends from the arbiter's side: enrolled, described, freed; taken out by orders, and in again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from acme_wsgi.backends import Backends
from acme_wsgi.config import load
from acme_wsgi.draining import LOOK, UnknownBackend, match
from acme_wsgi.errors import ConfigError
from acme_wsgi.generation import Generation
from acme_wsgi.upstream import plan
from acme_wsgi.upstream.board import Board, BoardFull, Group, Peer

S = 1_000_000_000
A, B, C = "http://a:1", "http://u:hush@b:1", "http://c:1"


class Order:
    """What the control socket hands over, keeping what was answered."""

    def __init__(self, url: object = A, **arguments: Any) -> None:
        self.verb, self.arguments = "drain", {"url": url, **arguments}
        self.said: list[str] = []
        self.answer: Any = None  # its last word
        self.gone = False

    def reply(self, **facts: Any) -> None:
        self.answer = {"ok": True, **facts}

    def fail(self, reason: str, **facts: Any) -> None:
        self.answer = {"ok": False, "error": reason, **facts}

    def progress(self, text: str) -> None:
        self.said.append(text)


class House:
    """The backends of a server, one generation after the other."""

    def __init__(self, directory: str = "", **board: int) -> None:
        self.backends = Backends(Board(4, **board), directory)
        self.generation: Generation = Generation(0, load([], {}, [], app="x:y"), (), 1)

    def serve(self, *urls: str, sets: tuple[str, ...] = ()) -> Generation:
        """The next generation, with the one before still alive."""
        before, self.generation = self.generation, self.prepared(*urls, sets=sets)
        self.backends.look([before, self.generation])
        if before.number:
            self.backends.holds(before, self.generation)
        return self.generation

    def prepared(self, *urls: str, sets: tuple[str, ...] = ()) -> Generation:
        listed = ", ".join(f"{{url: '{url}'}}" for url in urls)
        config = load([], {}, [f"backends=[{listed}]", "routes=[{path: /*, type: proxy}]", *sets])
        prepared = self.backends.prepare(config, self.generation.plans)
        return Generation(self.generation.number + 1, config, (), 1, *prepared)

    def settle(self) -> None:
        self.backends.look([self.generation])

    def drain(self, url: object = A, **arguments: Any) -> Order:
        order = Order(url, **arguments)
        self.backends.draining.obey(cast(Any, order), self.generation.plans)
        return order

    def group(self) -> Group:
        return self.backends.board.find(self.generation.plans[0].key)

    def peer(self, number: int = 0) -> Peer:
        return self.group().peer(number)

    def look(self, after: float = 0.0) -> None:
        """A look, so many seconds after the first backend was taken out."""
        self.backends.draining.look(self.peer().draining_since + round(after * S))


@pytest.fixture
def house(caplog: pytest.LogCaptureFixture) -> House:
    caplog.set_level(logging.INFO)
    made = House()
    made.serve(A, B)
    caplog.clear()
    return made


# -- which backend is meant


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://a:1", [A]),
        ("HTTP://A:1/", [A]),
        ("http://u:hush@b:1/", [B]),
        ("http://u:***@b:1", [B]),
        ("http://b:1/", [B]),
    ],
)
def test_a_backend_is_known_however_its_url_is_written(house: House, url: str, found: list[str]) -> None:
    assert [member.url for member in match(url, house.generation.plans)] == found


def test_those_that_look_the_same_are_meant_together(house: House) -> None:
    house.serve("http://u:1@a", "http://u:2@a", "http://v:1@a")
    plans = house.generation.plans
    assert len(match("http://u:***@a", plans)) == 2
    assert len(match("http://u:1@a", plans)) == 1
    assert len(match("http://a", plans)) == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a:2", "no backend 'http://a:2'; did you mean http://a:1?"),
        ("//a:1", "no backend '//a:1'; did you mean http://a:1?"),
        ("xyz", "no backend 'xyz'; there are http://a:1, http://u:***@b:1"),
        ("http://u:guess@b:2", "no backend 'http://u:***@b:2'; did you mean http://u:***@b:1?"),
        ("http://u:guess@[b", "no backend '[b'; there are"),
        ("", "which backend?"),
        (None, "which backend?"),
        (["http://a:1"], "which backend?"),
        ("http://" + "a" * 5000, "which backend?"),
    ],
)
def test_one_that_is_not_there(house: House, url: object, message: str) -> None:
    with pytest.raises(UnknownBackend) as caught:
        house.drain(url)
    assert str(caught.value).startswith(message)
    assert "guess" not in str(caught.value) and "hush" not in str(caught.value)


def test_without_any_backend() -> None:
    with pytest.raises(UnknownBackend, match="no route has any"):
        House().drain()


# -- out and in again


def test_a_backend_is_taken_out_and_in(house: House, caplog: pytest.LogCaptureFixture) -> None:
    order = house.drain("http://u:***@b:1")
    assert order.answer == {
        "ok": True, "backends": ["http://u:***@b:1"], "groups": ["backends"], "draining": True,
        "changed": True, "in_flight": 0, "patience": 30.0, "warnings": [],
    }  # fmt: skip
    assert house.peer(1).draining_since and house.peer(1).state() == "draining"
    assert {house.group().pick() for _ in range(4)} == {0}
    assert house.drain(B).answer["changed"] is False
    house.settle()
    answer = house.drain(B, undo=True).answer
    assert (answer["ok"], answer["draining"], answer["changed"]) == (True, False, True)
    assert house.peer(1).draining_since == 0
    assert {house.group().pick() for _ in range(4)} == {0, 1}
    assert house.drain(B, undo=True).answer["changed"] is False
    assert [record.getMessage() for record in caplog.records] == [
        "backend http://u:***@b:1 is drained: it gets no new requests; 0 in flight may take 30 s",
        "backend http://u:***@b:1 is empty: nothing is in flight",
        "backend http://u:***@b:1 takes requests again",
    ]


def test_whoever_waits_hears_how_many_are_left(house: House) -> None:
    for slot in (0, 1):
        house.group().begin(0, slot)
    assert house.backends.draining.due() == float("inf")
    order = house.drain(wait=True)
    assert (order.said, order.answer) == (["2 requests left"], None)
    assert house.backends.draining.due() == LOOK
    house.look(1)
    house.group().end(0, 0, True, 1)
    house.look(2)
    house.look(3)
    assert (order.said, order.answer) == (["2 requests left", "1 request left"], None)
    house.backends.board.release(1)  # its worker died
    house.look(4)
    assert order.answer["ok"] and order.answer["in_flight"] == 0
    assert house.backends.draining.due() == float("inf")


def test_who_waits_for_an_empty_one_has_its_answer_at_once(house: House) -> None:
    assert house.drain(wait=True).answer["ok"] is True


def test_the_time_it_may_take_comes_to_an_end(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.group().begin(0, 0)
    order = house.drain(wait=True)
    house.look(29.9)
    assert order.answer is None
    house.look(30.0)
    assert order.answer["ok"] is False and order.answer["in_flight"] == 1
    assert order.answer["error"].startswith("1 request still in flight after 30 s")
    assert house.peer().draining_since, "it stays out"
    house.look(31.0)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "backend http://a:1: 1 requests are still in flight after connection_draining.timeout (30 s)"
    ]


def test_without_draining_nothing_is_waited_for() -> None:
    house = House()
    house.serve(A, B, sets=("load_balancing.connection_draining.enabled=false",))
    house.group().begin(0, 0)
    order = house.drain(wait=True)
    assert order.answer["ok"] is False and order.answer["patience"] == 0.0


def test_sticky_clients_may_come_for_that_time() -> None:
    house = House()
    house.serve(A, B, sets=("load_balancing.sticky_sessions.enabled=true",))
    order = house.drain(wait=True)
    assert (order.said, order.answer) == (["0 requests left; sticky clients may still come"], None)
    house.look(30.0)
    assert order.answer["ok"] is True


def test_who_left_is_waited_for_no_longer(house: House) -> None:
    house.group().begin(0, 0)
    order = house.drain(wait=True)
    order.gone = True
    house.look(1)
    assert order.answer is None and house.backends.draining.due() == float("inf")
    assert house.peer().draining_since, "it stays out"


def test_taken_in_while_somebody_waits(house: House) -> None:
    house.group().begin(0, 0)
    order = house.drain(wait=True)
    house.drain(undo=True)
    assert order.answer["error"] == "http://a:1 was taken in again"
    assert house.backends.draining.due() == float("inf")


# -- the last one


def test_the_last_one_is_warned_about(house: House, caplog: pytest.LogCaptureFixture) -> None:
    assert house.drain(A).answer["warnings"] == []
    warning = "group 'backends' has only backends that are drained or down: new requests are answered 503"
    assert house.drain(B).answer["warnings"] == [warning]
    assert warning in caplog.text
    assert house.group().pick() == -1


def test_the_only_one_is_warned_about() -> None:
    house = House()
    house.serve(A)
    answer = house.drain(A).answer
    assert answer["warnings"] == ["group 'backends' has no other backend: new requests are answered 503"]


def test_the_last_healthy_one_is_warned_about(house: House) -> None:
    for _ in range(3):
        house.peer(1).note_check(False, "503")
    assert len(house.drain(A).answer["warnings"]) == 1


# -- reloads


def test_a_reload_that_keeps_a_backend_keeps_it_out(house: House) -> None:
    house.drain(A)
    since = house.peer().draining_since
    house.serve(A, C)
    assert house.peer().draining_since == since
    # With other checks it is another entry, of the same backend.
    house.serve(A, C, sets=("load_balancing.health_check.path=/up",))
    assert house.peer().draining_since == since
    house.settle()
    assert house.drain(A, undo=True).answer["changed"] is True
    assert house.peer().draining_since == 0


def test_all_generations_obey_while_they_live(house: House) -> None:
    old = house.peer()
    house.serve(A, C, sets=("load_balancing.health_check.path=/up",))
    house.drain(A)
    assert old.draining_since and house.peer().draining_since
    house.backends.board.find(house.generation.plans[0].key).begin(0, 0)
    house.drain(A, undo=True)
    assert not old.draining_since and not house.peer().draining_since


def test_who_was_removed_comes_back_as_new(house: House) -> None:
    house.drain(A)
    house.serve(B)
    house.serve(A, B)  # before the generation that drained it has gone
    assert house.peer().draining_since == 0
    house.drain(A)
    house.serve(B)
    house.settle()
    house.serve(A, B)
    assert house.peer().draining_since == 0


def test_who_waits_for_a_removed_one_waits_for_its_last_worker(house: House) -> None:
    house.group().begin(0, 0)
    order = house.drain(A, wait=True)
    house.serve(B)
    assert order.answer is None
    house.settle()
    assert order.answer["ok"] is True


def test_what_a_reload_takes_out_and_in_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.group().begin(1, 0)
    house.serve(A, C)
    assert [record.getMessage() for record in caplog.records] == [
        "backend http://u:***@b:1 is taken out by the reload;"
        " 1 requests in flight may take 30 s once their workers are replaced",
        "backend http://c:1 is taken in by the reload",
    ]


@pytest.mark.parametrize(("shutdown", "draining", "told"), [("2s", "20s", 2), ("20s", "3s", 3)])
def test_the_shorter_of_both_limits_is_told(
    caplog: pytest.LogCaptureFixture, shutdown: str, draining: str, told: int
) -> None:
    caplog.set_level(logging.INFO)
    house = House()
    sets = (f"server.shutdown_timeout={shutdown}", f"load_balancing.connection_draining.timeout={draining}")
    house.serve(A, B, sets=sets)
    # Those of the configuration that its requests began with count.
    house.serve(A)
    assert f"0 requests in flight may take {told} s" in caplog.text


def test_what_a_reload_takes_out_is_marked_for_the_workers_that_have_it_until_it_is_back(
    house: House,
) -> None:
    first, (kept, old) = house.generation, (house.peer(0), house.peer(1))
    house.serve(A, C)
    assert old.removed_since and not kept.removed_since and not old.draining_since
    second = house.generation
    third = house.prepared(A, B)
    assert old.removed_since, "it may yet be refused"
    house.backends.look([first, second, third])
    house.backends.holds(second, third)
    assert not old.removed_since and house.backends.board.peer(second.plans[0].members[1].key).removed_since


def test_one_that_only_changes_groups_is_not_taken_out(house: House) -> None:
    old = house.peer(1)
    own = "routes=[{path: /a, type: proxy}, {path: /b, type: proxy, backend: 'http://u:hush@b:1'}]"
    house.serve(A, sets=(own,))
    assert not old.removed_since


def test_entries_live_as_long_as_a_generation_that_uses_them(house: House) -> None:
    old = house.generation
    house.serve(A, C)
    assert len(house.backends.board.describe()) == 3
    house.settle()
    assert len(house.backends.board.describe()) == 2
    with pytest.raises(KeyError):
        house.backends.board.find(old.plans[0].key)


def test_a_reload_that_is_refused_leaves_nothing(house: House) -> None:
    house.prepared(A, C)
    assert len(house.backends.board.describe()) == 3
    house.settle()
    assert len(house.backends.board.describe()) == 2


def test_too_many_backends_are_refused_and_leave_nothing() -> None:
    house = House(peers=2)
    house.serve(A, B)
    with pytest.raises(BoardFull):
        house.prepared(A, B, C)
    with pytest.raises(ConfigError):
        house.prepared(*(f"http://a:{port}" for port in range(1, 100)))
    house.settle()
    assert len(house.backends.board.describe()) == 2


def test_who_is_out_is_told_of_before_another_program_comes(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.drain(A)
    house.drain(B)
    house.serve(A)
    caplog.clear()
    house.backends.draining.before_another_program()
    assert [record.getMessage() for record in caplog.records] == [
        "backend http://a:1 is drained: the next program won't know, drain it again"
    ]


# -- the key of cookies

STICKY = ("load_balancing.sticky_sessions.enabled=true",)


def test_the_key_is_made_for_the_first_sticky_group_and_stays(tmp_path: Path) -> None:
    house = House(str(tmp_path))
    assert house.serve(A).sticky_key == b""
    assert list(tmp_path.iterdir()) == []
    key = house.serve(A, sets=STICKY).sticky_key
    assert len(key) == 32 and key.hex() not in repr(house.generation)
    assert house.serve(A, B, sets=STICKY).sticky_key == key
    assert House(str(tmp_path)).serve(A, sets=STICKY).sticky_key == key


def test_without_a_directory_the_key_ends_with_the_server(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    assert house.serve(A, sets=STICKY).sticky_key != House().serve(A, sets=STICKY).sticky_key
    assert "without a runtime directory, sticky sessions end with this server" in caplog.text


# -- for `status`


def test_everything_that_is_known(house: House) -> None:
    group = house.group()
    group.begin(1, 0)
    group.begin(1, 0)
    group.end(1, 0, True, 4_000_000)
    house.peer(0).note_check(False, "connection refused")
    house.drain(A)
    (described,) = house.backends.describe(house.generation)
    assert {key: described[key] for key in ("group", "algorithm", "sticky", "routes", "leaving")} == {
        "group": "backends", "algorithm": "round_robin", "sticky": False, "routes": ["/*"], "leaving": [],
    }  # fmt: skip
    first, second = described["members"]
    assert (first["url"], first["state"], first["last_check"]) == (A, "draining", "connection refused")
    assert first["checked"] >= 0 and first["latency"] is None
    assert 0 <= first["since"] < second["since"], "it was up before that"
    assert (second["url"], second["state"], second["weight"]) == ("http://u:***@b:1", "up", 1)
    assert (second["active"], second["requests"], second["failures"]) == (1, 2, 0)
    assert second["latency"] == pytest.approx(0.004)
    assert second["checked"] is None and second["last_check"] is None and second["checked_actively"]


def test_routes_of_one_group_are_shown_together(house: House) -> None:
    routes = (
        "routes=[{path: /b, type: proxy, backend: 'http://x'}, {path: /c, type: proxy}, "
        "{path: /d, type: proxy, load_balancing: least_conn}]"
    )
    house.serve(A, B, sets=(routes,))
    described = house.backends.describe(house.generation)
    assert [(each["group"], each["algorithm"], each["routes"]) for each in described] == [
        ("backends", "round_robin", ["/*", "/c"]),
        ("route /b", "round_robin", ["/b"]),
        ("backends", "least_conn", ["/d"]),
    ]


def test_routes_that_keep_their_visitors_are_shown_apart() -> None:
    sticky = "load_balancing: {sticky_sessions: {enabled: true}}"
    routes = f"routes=[{{path: /b, type: proxy, {sticky}}}, {{path: /c, type: proxy, {sticky}}}]"
    house = House()
    house.serve(A, B, sets=(routes,))
    house.serve(A, sets=(routes,))
    described = house.backends.describe(house.generation)
    assert [(each["sticky"], each["routes"], len(each["leaving"])) for each in described] == [
        (False, ["/*"], 0),
        (True, ["/b", "/c"], 1),
    ]


def test_who_leaves_is_shown_as_long_as_it_may_be_used() -> None:
    house = House()
    house.serve(A, B, sets=STICKY)
    house.serve(A, sets=STICKY)
    (described,) = house.backends.describe(house.generation)
    (gone,) = described["leaving"]
    assert (gone["url"], gone["state"], gone["since"]) == ("http://u:***@b:1", "leaving", None)
    assert 25 < gone["seconds_left"] <= 30
    house.serve(A, sets=(*STICKY, "load_balancing.connection_draining.timeout=0"))
    house.generation = Generation(9, house.generation.config, (), 1, plan.plan(house.generation.config))
    assert house.backends.describe(house.generation)[0]["leaving"] == []
