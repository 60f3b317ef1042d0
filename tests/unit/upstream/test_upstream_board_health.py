"""When a backend gets requests and when not: single stories first, then all of them against a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from acme_wsgi.upstream.board import LEAST_CONN, ROUND_ROBIN, Board, Group
from tests.unit.upstream.backends import SECOND, enrolled, group_of, key


def forward(board: Board, seconds: float) -> None:
    board.clock_ns += int(seconds * SECOND)


def fail(group: Group, member: int, times: int = 3) -> list[bool]:
    return [group.failed(member, connecting=False) for _ in range(times)]


def trial(group: Group, member: int) -> None:
    """Pick until the member's trial is given out."""
    assert member in [group.pick() for _ in range(2 * group.size)]


# -- the circuit


def test_so_many_failures_in_a_row_open_the_circuit() -> None:
    _, group = group_of((1, 1))
    assert fail(group, 0) == [False, False, True]
    assert group.peer(0).state() == "open"
    assert not group.usable(0)
    assert {group.pick() for _ in range(10)} == {1}
    assert group.pick(0b10) == -1


def test_a_success_between_them_does_not() -> None:
    _, group = group_of((1, 1))
    fail(group, 0, 2)
    group.begin(0, 0)
    assert not group.end(0, 0, True, 1000)
    assert fail(group, 0) == [False, False, True]


def test_responses_count_like_connect_errors() -> None:
    _, group = group_of((1, 1))
    for _ in range(3):
        group.begin(0, 0)
    assert [group.end(0, 0, False, 1000) for _ in range(3)] == [False, False, True]
    found = group.peer(0).snapshot()
    assert (found["failures"], found["connect_errors"], found["opens"], found["active"]) == (3, 0, 1, 0)


def test_after_the_pause_one_request_tries() -> None:
    board, group = group_of((1, 1))
    fail(group, 0)
    forward(board, 0.99)
    assert {group.pick() for _ in range(10)} == {1}
    forward(board, 0.01)
    assert group.peer(0).state() == "half-open"
    assert [group.pick() for _ in range(10)].count(0) == 1
    assert group.peer(0).state() == "half-open"


@pytest.mark.parametrize("algorithm", [ROUND_ROBIN, LEAST_CONN])
def test_what_can_be_repeated_tries_first(algorithm: int) -> None:
    board, group = group_of((1, 1), algorithm)
    fail(group, 0)
    forward(board, 1)
    assert {group.pick(repeatable=False) for _ in range(10)} == {1}
    assert group.pick(0b10, repeatable=False) == -1
    assert group.pick(0b10) == 0


@pytest.mark.parametrize("algorithm", [ROUND_ROBIN, LEAST_CONN])
def test_where_nothing_can_be_repeated_one_of_the_others_tries_as_long_again_later(algorithm: int) -> None:
    board, group = group_of((1, 1), algorithm)
    fail(group, 0)
    for pause in (1, 2, 4):
        forward(board, 2 * pause - 0.01)
        assert {group.pick(repeatable=False) for _ in range(10)} == {1}
        forward(board, 0.01)
        assert [group.pick(repeatable=False) for _ in range(10)].count(0) == 1
        group.failed(0, connecting=False)
        assert group.peer(0).state() == "open", "the trial has failed"
    forward(board, 16)
    assert group.pick(0b10, repeatable=False) == 0
    group.begin(0, 0)
    group.end(0, 0, True, 1)
    assert group.peer(0).state() == "slow-start"


def test_the_trial_is_one_over_all_groups() -> None:
    board = Board(1)
    peers = enrolled(board, 3)
    one = board.group(key(100), ROUND_ROBIN, [(peers[0], 1), (peers[1], 1)])
    other = board.group(key(101), ROUND_ROBIN, [(peers[0], 1), (peers[2], 1)])
    board.clock_ns = SECOND
    fail(one, 0)
    forward(board, 1)
    assert one.pick(0b10) == 0
    assert other.pick(0b10) == -1


def test_success_of_the_trial_closes_it() -> None:
    board, group = group_of((1, 1))
    fail(group, 0)
    forward(board, 1)
    trial(group, 0)
    group.begin(0, 0)
    forward(board, 0.5)
    group.end(0, 0, True, SECOND // 2)
    assert group.peer(0).state() == "slow-start"
    forward(board, 30)
    assert group.peer(0).state() == "up"


def test_each_failed_trial_doubles_the_pause_up_to_a_minute() -> None:
    board, group = group_of((1, 1))
    fail(group, 0)
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        forward(board, pause - 0.01)
        assert not group.usable(0)
        forward(board, 0.01)
        trial(group, 0)
        assert not group.failed(0, connecting=True)
        assert group.peer(0).state() == "open"
    # A success forgets it.
    forward(board, 60)
    trial(group, 0)
    group.end(0, 0, True, 1)
    fail(group, 0)
    forward(board, 1)
    assert group.usable(0)


def test_a_trial_that_never_ends_is_forgotten() -> None:
    board, group = group_of((1, 1))
    fail(group, 0)
    forward(board, 1)
    trial(group, 0)
    forward(board, 9.99)
    assert not group.usable(0)
    forward(board, 0.01)
    assert group.usable(0)
    trial(group, 0)
    assert not group.usable(0)


def test_a_trial_given_back_may_be_tried_again() -> None:
    board, group = group_of((1, 1))
    fail(group, 0)
    forward(board, 1)
    trial(group, 0)
    group.abandon(0)
    assert group.peer(0).state() == "half-open" and group.usable(0)
    trial(group, 0)
    group.begin(0, 1)
    group.abandon(0, 1, 1000)
    assert group.usable(0) and group.active(0) == 0


def test_requests_from_before_the_opening_say_nothing_about_the_trial() -> None:
    board, group = group_of((1, 1))
    for _ in range(6):
        group.begin(0, 0)
    forward(board, 5)
    for _ in range(3):
        group.end(0, 0, False, 5 * SECOND)
    forward(board, 1)
    trial(group, 0)
    group.end(0, 0, True, 6 * SECOND)
    group.end(0, 0, False, 6 * SECOND)
    group.abandon(0, 0, 6 * SECOND)
    assert group.peer(0).state() == "half-open" and not group.usable(0)
    assert group.peer(0).snapshot()["opens"] == 1


# -- the last one


def test_marks_never_take_out_the_last_one() -> None:
    _, group = group_of((1, 1, 1))
    assert fail(group, 0)[-1] and fail(group, 1)[-1]
    assert fail(group, 2, 100) == [False] * 100
    assert {group.pick() for _ in range(10)} == {2}


def test_nor_the_only_one() -> None:
    _, group = group_of((1,))
    assert not any(fail(group, 0, 100))
    assert group.usable(0) and group.pick() == 0


def test_the_only_one_is_shown_as_down_when_nobody_can_connect() -> None:
    _, group = group_of((1,))
    for _ in range(3):
        group.failed(0, connecting=True)
    assert group.peer(0).state() == "down" and group.usable(0)
    group.end(0, 0, True, 1)
    assert group.peer(0).state() == "up"


def test_one_that_is_spare_elsewhere_is_used_where_it_is_all_there_is() -> None:
    board = Board(1)
    peers = enrolled(board, 2)
    both = board.group(key(100), ROUND_ROBIN, [(peer, 1) for peer in peers])
    alone = board.group(key(101), ROUND_ROBIN, [(peers[0], 1)])
    fail(both, 0)
    assert not both.usable(0)
    assert alone.usable(0) and alone.pick(repeatable=False) == 0
    # What it does there is heard everywhere.
    alone.end(0, 0, True, 1)
    assert both.usable(0)


def test_when_the_others_leave_later_an_open_circuit_is_better_than_nobody() -> None:
    _, group = group_of((1, 1))
    fail(group, 0)
    for _ in range(3):
        group.peer(1).note_check(False, "refused")
    assert group.pick(repeatable=False) == 0
    assert group.pick(0b01) == -1


def test_all_down_is_nobody() -> None:
    _, group = group_of((1, 1))
    for member in range(2):
        for _ in range(3):
            group.peer(member).note_check(False, "refused")
    assert group.pick() == -1 and not group.usable(0)


# -- checks


def test_checks_take_out_and_bring_back() -> None:
    _, group = group_of((1,))
    peer = group.peer(0)
    assert [peer.note_check(False, "503") for _ in range(4)] == [None, None, "down", None]
    assert peer.state() == "down" and group.pick() == -1
    assert [peer.note_check(True, "200") for _ in range(3)] == [None, "up", None]
    assert peer.state() == "slow-start" and group.pick() == 0


def test_a_check_between_starts_the_count_again() -> None:
    _, group = group_of((1,))
    peer = group.peer(0)
    for _ in range(5):
        assert [peer.note_check(ok, "") for ok in (False, False, True)] == [None, None, None]


def test_good_checks_at_boot_are_no_recovery() -> None:
    _, group = group_of((1,))
    assert [group.peer(0).note_check(True, "200") for _ in range(5)] == [None] * 5
    assert group.peer(0).state() == "up"


def test_good_checks_after_the_opening_close_the_circuit() -> None:
    _, group = group_of((1, 1))
    peer = group.peer(0)
    for _ in range(5):
        peer.note_check(True, "200")
    fail(group, 0)
    assert peer.note_check(True, "200") is None
    assert peer.state() == "open"
    assert peer.note_check(True, "200") == "up"
    assert peer.state() == "slow-start" and group.usable(0)


def test_the_latest_finding_is_kept_cut_between_characters() -> None:
    _, group = group_of((1,))
    peer = group.peer(0)
    peer.note_check(False, "ü" * 100)
    assert peer.snapshot()["last_check"] == "ü" * 63
    peer.note_check(True, "200 OK")
    found = peer.snapshot()
    assert (found["last_check"], found["checks_good"], found["checks_bad"]) == ("200 OK", 1, 1)
    assert found["checked_ns"] == 1000 * SECOND


# -- draining


def test_a_draining_backend_gets_nothing_new() -> None:
    board, group = group_of((1, 1))
    group.begin(0, 0)
    group.peer(0).draining_since = board.clock_ns
    assert group.peer(0).state() == "draining" and not group.usable(0)
    assert {group.pick() for _ in range(5)} == {1}
    group.end(0, 0, True, 1)
    group.peer(1).draining_since = board.clock_ns
    assert group.pick() == -1
    group.peer(0).draining_since = 0
    assert group.pick() == 0 and group.peer(0).state() == "up"


def test_what_a_reload_has_taken_out_is_for_need_alone() -> None:
    board, group = group_of((1, 1))
    group.peer(0).removed_since = board.clock_ns
    assert group.peer(0).removed_since == board.clock_ns
    assert {group.pick() for _ in range(5)} == {1} and not group.usable(0)
    group.peer(1).draining_since = board.clock_ns
    assert group.pick() == 0 and group.usable(0) and group.peer(0).state() == "up"
    group.peer(1).draining_since = 0
    group.peer(1).removed_since = board.clock_ns
    assert {group.pick() for _ in range(4)} == {0, 1}, "all are as good as before"
    assert group.pick(tried=1) == 1
    group.peer(0).removed_since = 0
    assert {group.pick() for _ in range(4)} == {0}


# -- slow start


def recovered() -> tuple[Board, Group]:
    board, group = group_of((1, 1))
    for ok in (False, False, False, True, True):
        group.peer(0).note_check(ok, "")
    return board, group


@pytest.mark.parametrize(("seconds", "factor"), [(0, 16), (7.5, 76), (15, 136), (30, 256), (100, 256)])
def test_its_share_grows_with_time(seconds: float, factor: int) -> None:
    board, group = recovered()
    forward(board, seconds)
    # The one takes `factor` turns for the other's 256; so many picks are whole rounds.
    picks = Counter(group.pick() for _ in range(factor + 256))
    assert picks == {0: factor, 1: 256}
    assert group.peer(0).state() == ("slow-start" if factor < 256 else "up")


def test_how_long_it_takes_can_be_set() -> None:
    board, group = recovered()
    board.slow_start_ns = 0
    assert group.peer(0).state() == "up"


def test_in_slow_start_least_conn_gives_it_fewer() -> None:
    board, group = group_of((1, 1), LEAST_CONN)
    for ok in (False, False, False, True, True):
        group.peer(0).note_check(ok, "")
    forward(board, 7.5)
    for _ in range(83):
        group.begin(group.pick(), 0)
    assert (group.active(0), group.active(1)) == (19, 64)


# -- everything at once


@dataclass
class Backend:
    """What a peer should be."""

    down: bool = False
    draining: bool = False
    until: int = 0
    opened: int = 0
    pause: int = 0
    trial: int | None = None
    slow: int | None = None
    fails: int = 0
    refused: int = 0
    good: int = 0
    bad: int = 0

    def standing(self) -> bool:
        return not self.down and not self.draining

    def due(self, now: int, repeatable: bool) -> bool:
        since = self.until if repeatable else self.until + self.pause
        return now >= since and (self.trial is None or now - self.trial >= 10 * SECOND)

    def opens(self, now: int, pause: int) -> None:
        self.until, self.opened, self.pause, self.trial, self.good = now + pause, now, pause, None, 0

    def returns(self, now: int) -> None:
        self.down, self.until, self.trial, self.slow, self.fails, self.refused = False, 0, None, now, 0, 0

    def state(self, now: int) -> str:
        if self.draining or self.down:
            return "draining" if self.draining else "down"
        if self.until:
            return "half-open" if now >= self.until else "open"
        if self.refused >= UNHEALTHY:
            return "down"
        return "slow-start" if self.slow is not None and now - self.slow < 30 * SECOND else "up"


UNHEALTHY, HEALTHY = 3, 2
MEMBERS = st.integers(0, 2)


class Story(RuleBasedStateMachine):
    """Three backends through anything that can happen to them."""

    @initialize(weights=st.tuples(*[st.integers(1, 5)] * 3), algorithm=st.sampled_from([0, 1, 2]))
    def begin(self, weights: tuple[int, ...], algorithm: int) -> None:
        self.board, self.group = group_of(weights, algorithm)
        self.models = [Backend() for _ in weights]
        self.running: list[tuple[int, int]] = []

    @property
    def now(self) -> int:
        return self.board.clock_ns

    def able(self, repeatable: bool) -> set[int]:
        standing = {at for at, model in enumerate(self.models) if model.standing()}
        closed = {at for at in standing if not self.models[at].until}
        trials = {at for at in standing - closed if self.models[at].due(self.now, repeatable)}
        return closed | trials if closed else standing

    def fails(self, member: int, began: int, connecting: bool) -> bool:
        model = self.models[member]
        model.fails += 1
        model.refused += connecting
        if not model.until:
            spare = any(m.standing() and not m.until for at, m in enumerate(self.models) if at != member)
            if spare and model.fails >= UNHEALTHY:
                model.opens(self.now, SECOND)
                return True
        elif model.trial is not None and began >= model.opened:
            model.opens(self.now, min(model.pause * 2, 60 * SECOND))
        return False

    @rule(quarters=st.integers(1, 50))
    def wait(self, quarters: int) -> None:
        self.board.clock_ns += quarters * SECOND // 4

    @rule(tried=st.integers(0, 7), client=st.integers(0, 2**64 - 1), repeatable=st.booleans())
    def request(self, tried: int, client: int, repeatable: bool) -> None:
        able = {member for member in self.able(repeatable) if not tried >> member & 1}
        trial_only = any(model.standing() and not model.until for model in self.models)
        picked = self.group.pick(tried, client, repeatable)
        assert picked in able if able else picked == -1
        if picked >= 0:
            if self.models[picked].until and trial_only:
                self.models[picked].trial = self.now
            self.group.begin(picked, 0)
            self.running.append((picked, self.now))

    @rule(number=st.integers(0, 100), how=st.sampled_from(["good", "good", "bad", "refused", "left"]))
    def outcome(self, number: int, how: str) -> None:
        if not self.running:
            return
        member, began = self.running.pop(number % len(self.running))
        model, took = self.models[member], self.now - began
        if how == "refused":
            assert self.group.end(member, 0, False, took, True) == self.fails(member, began, True)
        elif how == "bad":
            assert self.group.end(member, 0, False, took) == self.fails(member, began, False)
        elif how == "left":
            self.group.abandon(member, 0, took)
            if model.until and began >= model.opened:
                model.trial = None
        else:
            assert not self.group.end(member, 0, True, took)
            if not model.until:
                model.fails = model.refused = 0
            elif began >= model.opened and not model.down:
                model.returns(self.now)

    @rule(member=MEMBERS, ok=st.booleans(), times=st.integers(1, 3))
    def check(self, member: int, ok: bool, times: int) -> None:
        model = self.models[member]
        for _ in range(times):
            model.good, model.bad = (model.good + 1, 0) if ok else (0, model.bad + 1)
            change = None
            if model.good >= HEALTHY:
                model.refused = 0
            if model.good >= HEALTHY and (model.down or model.until):
                model.returns(self.now)
                change = "up"
            elif model.bad >= UNHEALTHY and not model.down:
                model.down, change = True, "down"
            assert self.group.peer(member).note_check(ok, "") == change

    @rule(member=MEMBERS, on=st.booleans())
    def drain(self, member: int, on: bool) -> None:
        self.models[member].draining = on
        self.group.peer(member).draining_since = self.now if on else 0

    @invariant()
    def as_the_model_says(self) -> None:
        assert [self.group.peer(at).state() for at in range(3)] == [
            model.state(self.now) for model in self.models
        ]
        assert {at for at in range(3) if self.group.usable(at)} == self.able(True)
        assert [self.group.active(at) for at in range(3)] == [
            sum(member == at for member, _ in self.running) for at in range(3)
        ]

    @invariant()
    def traffic_alone_leaves_somebody(self) -> None:
        assert self.able(False) or not any(model.standing() for model in self.models)


Story.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStory = Story.TestCase
