"""Which member a group picks, in one process; live against nginx: integration/test_nginx_picks.py."""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.upstream.board import IP_HASH, LEAST_CONN, MAX_MEMBERS, MAX_WEIGHT, ROUND_ROBIN, Board, Group
from tests.unit.upstream.backends import SECOND, Nginx, effective, enrolled, group_of, key

# -- round robin


def test_the_documented_sequence() -> None:
    _, group = group_of((5, 1, 1))
    assert "".join("abc"[group.pick()] for _ in range(14)) == "aabacaaaabacaa"


@pytest.mark.parametrize(
    "weights", [(5, 3, 2), (5, 1, 1), (1, 1, 1), (7, 2, 1), (1, 100), (3,), (1, 2, 3, 4, 5)]
)
def test_a_thousand_picks_are_those_of_nginx(weights: tuple[int, ...]) -> None:
    _, group = group_of(weights)
    nginx = Nginx(weights)
    assert [group.pick() for _ in range(1000)] == [nginx.pick() for _ in range(1000)]


@given(
    weights=st.lists(st.integers(1, 30), min_size=2, max_size=8),
    steps=st.lists(st.tuples(st.integers(0, 255), st.booleans()), max_size=60),
    threshold=st.integers(2, 5),
)
def test_failures_cost_the_turns_that_they_cost_in_nginx(
    weights: list[int], steps: list[tuple[int, bool]], threshold: int
) -> None:
    # Lighter ones: test_a_failure_costs_a_light_member_one_turn.
    weights = [weight + threshold for weight in weights]
    _, group = group_of(weights, unhealthy=threshold)
    nginx = Nginx(weights, threshold)
    for tried, ok in steps:
        excluded = [member for member in range(len(weights)) if tried >> member & 1]
        if len(excluded) == len(weights):
            assert group.pick(tried) == -1
            continue
        picked = group.pick(tried)
        assert picked == nginx.pick(excluded)
        if not ok:
            group.failed(picked, True)
            nginx.failed(picked)
            # So that no circuit opens.
            group.end(picked, 0, True, 1)
        assert effective(group) == nginx.effective


def test_lost_weight_comes_back_by_one_with_each_pick() -> None:
    _, group = group_of((9, 9))
    group.failed(0, connecting=True)
    assert effective(group) == [6, 9]
    found = []
    for _ in range(4):
        group.pick()
        found.append(effective(group)[0])
    assert found == [7, 8, 9, 9]


def test_a_failure_costs_a_light_member_one_turn() -> None:
    """Where nginx's division leaves nothing: a failure must not pass without a trace."""
    _, group = group_of((1, 1, 1))
    group.failed(0, connecting=False)
    assert effective(group) == [0, 1, 1]
    assert [group.pick() for _ in range(3)] == [1, 2, 0]


def test_effective_weight_stays_above_zero() -> None:
    _, group = group_of((2, 2), unhealthy=1)
    for _ in range(5):
        group.failed(0, connecting=True)
    assert effective(group) == [0, 2]


def test_members_tried_are_not_picked_again() -> None:
    _, group = group_of((1, 1, 1))
    first = group.pick()
    second = group.pick(1 << first)
    third = group.pick(1 << first | 1 << second)
    assert {first, second, third} == {0, 1, 2}
    assert group.pick(0b111) == -1


def test_the_largest_group_and_weights() -> None:
    _, group = group_of([MAX_WEIGHT] * MAX_MEMBERS)
    assert [group.pick() for _ in range(MAX_MEMBERS)] == list(range(MAX_MEMBERS))
    assert group.pick((1 << MAX_MEMBERS) - 1) == -1
    assert group.pick((1 << MAX_MEMBERS - 1) - 1) == MAX_MEMBERS - 1


# -- fewest connections


@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 63), st.integers(0, 2)), max_size=80),
)
def test_least_conn_is_nginxs(weights: list[int], steps: list[tuple[bool, int, int]]) -> None:
    _, group = group_of(weights, LEAST_CONN, slots=3)
    nginx = Nginx(weights)
    running: list[tuple[int, int]] = []
    for begins, number, slot in steps:
        if begins or not running:
            tried = number if number & ((1 << len(weights)) - 1) != (1 << len(weights)) - 1 else 0
            picked = group.pick(tried)
            assert picked == nginx.least([member for member in range(len(weights)) if tried >> member & 1])
            group.begin(picked, slot)
            nginx.active[picked] += 1
            running.append((picked, slot))
        else:
            member, at = running.pop(number % len(running))
            group.end(member, at, True, 1000)
            nginx.active[member] -= 1
        assert [group.active(member) for member in range(len(weights))] == nginx.active


def test_least_conn_counts_requests_of_all_groups() -> None:
    board = Board(2)
    peers = enrolled(board, 2)
    one = board.group(key(1), LEAST_CONN, [(peer, 1) for peer in peers])
    other = board.group(key(2), ROUND_ROBIN, [(peers[0], 1)])
    other.begin(other.pick(), 1)
    assert [one.pick() for _ in range(3)] == [1, 1, 1]


def test_requests_of_a_dead_worker_are_active_no_more() -> None:
    board, group = group_of((1, 1), LEAST_CONN)
    for _ in range(3):
        group.begin(0, 2)
    group.begin(1, 1)
    group.peer(0).add_connections(2, 5)
    assert group.pick() == 1
    board.release(2)
    assert [group.active(0), group.active(1)] == [0, 1]
    assert group.peer(0).snapshot()["connections"] == 0
    assert group.pick() == 0
    # What counted stays counted, and an end that comes late takes nothing away.
    assert group.peer(0).snapshot()["requests"] == 3
    group.end(0, 2, True, 1)
    assert group.active(0) == 0


# -- by the client's address


def hashes(count: int) -> list[int]:
    """What a worker would make of so many client addresses."""
    base = int(ipaddress.ip_address("10.0.0.0"))
    return [
        int.from_bytes(
            hashlib.blake2b(str(ipaddress.ip_address(base + at * 7)).encode(), digest_size=8).digest()
        )
        for at in range(count)
    ]


def homes(group: Group, clients: Iterable[int]) -> list[int]:
    return [group.pick(0, client) for client in clients]


@pytest.mark.parametrize("clients", [hashes(10_000), range(167772160, 167782160)], ids=["hash", "raw"])
def test_a_backend_that_goes_moves_its_own_clients_only(clients: Iterable[int]) -> None:
    clients = list(clients)
    _, group = group_of([1] * 8, IP_HASH)
    before = homes(group, clients)
    shares = Counter(before)
    assert len(shares) == 8
    assert all(abs(share - 1250) < 125 for share in shares.values()), shares
    group.peer(3).draining_since = 1
    after = homes(group, clients)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old for old, _ in moved} == {3}
    assert len(moved) == shares[3]
    # They go to all the others alike.
    each = shares[3] / 7
    assert all(abs(count - each) < each * 0.3 for count in Counter(new for _, new in moved).values())
    group.peer(3).draining_since = 0
    assert homes(group, clients) == before


def test_leaving_the_list_is_like_being_out_of_order() -> None:
    board = Board(1)
    peers = enrolled(board, 8)
    eight = board.group(key(100), IP_HASH, [(peer, 1) for peer in peers])
    seven = board.group(key(101), IP_HASH, [(peer, 1) for at, peer in enumerate(peers) if at != 5])
    for client in hashes(2000):
        home = eight.pick(0, client)
        if home != 5:
            assert seven.peer(seven.pick(0, client)).key == eight.peer(home).key


def test_clients_follow_the_weights() -> None:
    _, group = group_of((5, 3, 2), IP_HASH)
    shares = Counter(homes(group, hashes(10_000)))
    for member, expected in enumerate((5000, 3000, 2000)):
        assert abs(shares[member] - expected) < 200


def test_a_change_of_one_weight_moves_clients_to_or_from_that_backend_only() -> None:
    board = Board(1)
    peers = enrolled(board, 4)
    light = board.group(key(100), IP_HASH, [(peer, 2) for peer in peers])
    heavy = board.group(key(101), IP_HASH, [(peer, 3 if peer is peers[0] else 2) for peer in peers])
    for client in hashes(3000):
        old, new = light.pick(0, client), heavy.pick(0, client)
        assert old == new or new == 0


def test_clients_come_back_gradually() -> None:
    board, group = group_of([1] * 4, IP_HASH)
    clients = hashes(4000)
    before = homes(group, clients)
    for _ in range(3):
        group.peer(2).note_check(False, "refused")
    for _ in range(2):
        group.peer(2).note_check(True, "200")
    returned = 0
    for seconds in (0, 5, 15, 25, 30):
        board.clock_ns = (1000 + seconds) * SECOND
        now = homes(group, clients)
        # Nobody else's clients move meanwhile.
        assert all(new == old for new, old in zip(now, before, strict=True) if old != 2)
        assert now.count(2) > returned
        returned = now.count(2)
    assert homes(group, clients) == before


# -- bounds


@pytest.mark.parametrize("member", [-1, 3, 1000])
def test_members_past_the_end(member: int) -> None:
    _, group = group_of((1, 1, 1))
    with pytest.raises(IndexError):
        group.begin(member, 0)
    with pytest.raises(IndexError):
        group.end(member, 0, True, 1)
    with pytest.raises(IndexError):
        group.failed(member, True)
    with pytest.raises(IndexError):
        group.usable(member)
    with pytest.raises(IndexError):
        group.peer(member)
    with pytest.raises(IndexError):
        group.abandon(member)


@pytest.mark.parametrize("slot", [-1, 4])
def test_slots_past_the_end(slot: int) -> None:
    board, group = group_of((1,))
    with pytest.raises(IndexError):
        group.begin(0, slot)
    with pytest.raises(IndexError):
        group.end(0, slot, True, 1)
    with pytest.raises(IndexError):
        group.peer(0).add_connections(slot, 1)
    with pytest.raises(IndexError):
        board.release(slot)
