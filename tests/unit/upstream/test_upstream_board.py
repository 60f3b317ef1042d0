"""The memory of the board: entries and handles, counters, and who is elected."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from acme_wsgi.upstream.board import (
    IP_HASH,
    LEAST_CONN,
    MAX_MEMBERS,
    MAX_WEIGHT,
    ROUND_ROBIN,
    Board,
    BoardFull,
    Group,
    Peer,
)
from tests.unit.processes import in_child, joined
from tests.unit.upstream.backends import SECOND, enrolled, group_of, key

# -- entries


def test_the_same_key_is_the_same_entry_and_keeps_its_state() -> None:
    board = Board(1)
    peer = enrolled(board, 1)[0]
    for _ in range(3):
        peer.note_check(False, "refused")
    again = enrolled(board, 1)[0]
    assert (again.index, again.key, again.state()) == (peer.index, key(0), "down")
    assert board.peer(key(0)).index == peer.index


def test_the_same_group_goes_on_where_it_was() -> None:
    board = Board(1)
    members = [(peer, 1) for peer in enrolled(board, 3)]
    one = board.group(key(9), ROUND_ROBIN, members)
    other = board.group(key(9), ROUND_ROBIN, members)
    assert [one.pick(), other.pick(), board.find(key(9)).pick()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("algorithm", "weights"), [(LEAST_CONN, (1, 1)), (ROUND_ROBIN, (1, 2)), (ROUND_ROBIN, (1,))]
)
def test_a_key_stands_for_one_group(algorithm: int, weights: tuple[int, ...]) -> None:
    board = Board(1)
    peers = enrolled(board, 2)
    board.group(key(9), ROUND_ROBIN, [(peer, 1) for peer in peers])
    with pytest.raises(ValueError, match="other members"):
        board.group(key(9), algorithm, list(zip(peers, weights, strict=False)))


def test_who_is_not_there_is_not_found() -> None:
    board = Board(1)
    with pytest.raises(KeyError):
        board.peer(key(1))
    with pytest.raises(KeyError):
        board.find(key(1))


@pytest.mark.parametrize("bad", [b"", b"short", bytes(17)])
def test_keys_have_sixteen_bytes(bad: bytes) -> None:
    board = Board(1)
    peers = enrolled(board, 1)
    for attempt in (
        lambda: board.enrol(bad, unhealthy_threshold=1, healthy_threshold=1),
        lambda: board.group(bad, ROUND_ROBIN, [(peers[0], 1)]),
        lambda: board.peer(bad),
        lambda: board.find(bad),
    ):
        with pytest.raises(ValueError, match="16 bytes"):
            attempt()


def test_what_is_out_of_bounds() -> None:
    board, other = Board(1), Board(1)
    peer, foreign = enrolled(board, 1)[0], enrolled(other, 1)[0]
    with pytest.raises(ValueError, match="algorithm"):
        board.group(key(9), 3, [(peer, 1)])
    for weight in (0, -1, MAX_WEIGHT + 1):
        with pytest.raises(ValueError, match="weight"):
            board.group(key(9), IP_HASH, [(peer, weight)])
    for count in (0, MAX_MEMBERS + 1):
        with pytest.raises(ValueError, match="members"):
            board.group(key(9), IP_HASH, [(peer, 1)] * count)
    with pytest.raises(ValueError, match="not on this board"):
        board.group(key(9), IP_HASH, [(foreign, 1)])
    with pytest.raises(ValueError, match="thresholds"):
        board.enrol(key(1), unhealthy_threshold=0, healthy_threshold=1)
    with pytest.raises(ValueError, match="at least one"):
        Board(0)
    for kind in (Peer, Group):
        with pytest.raises(TypeError):
            kind()


def test_a_full_board_says_so() -> None:
    board = Board(1, peers=3, groups=2, members=4)
    peers = enrolled(board, 3)
    with pytest.raises(BoardFull, match="3 backends"):
        enrolled(board, 4)
    board.group(key(1), ROUND_ROBIN, [(peers[0], 1), (peers[1], 1)])
    with pytest.raises(BoardFull, match="4 members"):
        board.group(key(2), ROUND_ROBIN, [(peer, 1) for peer in peers])
    board.group(key(2), ROUND_ROBIN, [(peers[0], 1)])
    with pytest.raises(BoardFull, match="2 groups"):
        board.group(key(3), ROUND_ROBIN, [(peers[0], 1)])
    # None of that harmed what is there.
    assert [board.find(key(1)).size, board.find(key(2)).size] == [2, 1]


# -- freed and used again


def test_what_is_not_retained_is_free_again() -> None:
    board = Board(1, peers=2, groups=2, members=3)
    for first in range(0, 40, 2):
        peers = enrolled(board, 2, first=first)
        board.group(key(first), ROUND_ROBIN, [(peers[0], 1), (peers[1], 1)])
        board.group(key(first + 1), ROUND_ROBIN, [(peers[1], 1)])
        board.retain({key(first + 1)}, {key(first + 1)})
        assert board.peer(key(first + 1)).alive and board.find(key(first + 1)).pick() == 0
        with pytest.raises(KeyError):
            board.peer(key(first))
        board.retain(set(), set())
    assert board.describe() == []


def test_the_gap_that_a_group_left_is_filled() -> None:
    board = Board(1, members=6)
    peers = enrolled(board, 3)
    for number, size in ((1, 2), (2, 2), (3, 2)):
        board.group(key(number), ROUND_ROBIN, [(peer, 1) for peer in peers[:size]])
    board.retain({peer.key for peer in peers}, {key(1), key(3)})
    with pytest.raises(BoardFull):
        board.group(key(4), ROUND_ROBIN, [(peer, 1) for peer in peers])
    board.group(key(4), ROUND_ROBIN, [(peer, 7) for peer in peers[:2]])
    assert [member["weight"] for number in (1, 4, 3) for member in board.find(key(number)).describe()] == [
        1, 1, 7, 7, 1, 1,
    ]  # fmt: skip


def test_a_stale_handle_writes_into_nobodys_entry() -> None:
    board = Board(2, peers=1, groups=1)
    old = enrolled(board, 1)[0]
    stale = board.group(key(1), ROUND_ROBIN, [(old, 1)])
    stale.begin(0, 0)
    board.retain(set(), set())
    assert not old.alive and not stale.alive
    new = enrolled(board, 1, first=50)[0]
    group = board.group(key(2), ROUND_ROBIN, [(new, 1)])
    assert new.index == old.index
    before = new.snapshot()
    assert before["active"] == before["requests"] == 0
    # Everything that a worker of the generation before may still do.
    stale.begin(0, 1)
    stale.end(0, 0, True, 1000)
    stale.end(0, 0, False, 1000)
    stale.failed(0, True)
    stale.abandon(0, 0)
    old.add_connections(0, 3)
    old.count_retry()
    old.draining_since = old.removed_since = 5
    assert old.note_check(False, "refused") is None
    assert stale.pick() == -1 and not stale.usable(0) and stale.active(0) == 0
    assert new.snapshot() == before
    assert (old.state(), old.draining_since, old.removed_since) == ("down", 0, 0)
    assert old.snapshot()["requests"] == 0
    assert stale.describe()[0]["state"] == "down"
    assert group.pick() == 0


def test_a_member_whose_peer_is_freed_is_out() -> None:
    board = Board(1)
    peers = enrolled(board, 2)
    group = board.group(key(9), ROUND_ROBIN, [(peer, 1) for peer in peers])
    board.retain({peers[1].key}, {key(9)})
    enrolled(board, 5, first=20)
    assert {group.pick() for _ in range(5)} == {1}
    with pytest.raises(ValueError, match="not on this board"):
        board.group(key(10), ROUND_ROBIN, [(peers[0], 1)])


def test_the_memory_lives_as_long_as_a_handle() -> None:
    group = group_of((1, 1))[1]
    gc.collect()
    assert [group.pick() for _ in range(3)] == [0, 1, 0]


# -- counters


def test_a_snapshot_has_what_happened_in_any_process() -> None:
    _, group = group_of((1, 1))

    def work() -> None:
        group.begin(0, 1)
        group.begin(0, 1)
        group.end(0, 1, True, 2_000_000)
        group.failed(0, connecting=True)
        group.peer(0).add_connections(1, 4)
        group.peer(0).count_retry()

    assert joined(in_child(work)) == 0
    group.begin(0, 0)
    group.end(0, 0, False, 10_000_000)
    group.begin(0, 0)
    group.end(0, 0, False, 1000, True)
    group.peer(0).add_connections(0, 2)
    found = group.peer(0).snapshot()
    expected = {
        "state": "up", "active": 1, "connections": 6, "requests": 4, "failures": 3, "connect_errors": 2,
        "retries": 1, "latency_sum_ns": 12_000_000, "latency_seconds": 0.003, "since_ns": found["since_ns"],
    }  # fmt: skip
    assert {name: found[name] for name in expected} | {"state": "up"} == expected
    assert group.describe()[0]["weight"] == 1


def test_the_latency_follows_slowly() -> None:
    _, group = group_of((1,))
    for duration in [1_000_000] * 10 + [9_000_000]:
        group.begin(0, 0)
        group.end(0, 0, True, duration)
    assert group.peer(0).snapshot()["latency_seconds"] == pytest.approx(0.002)


def test_the_board_describes_all_its_peers() -> None:
    board = Board(1)
    enrolled(board, 3)
    board.peer(key(1)).draining_since = 1
    assert [(peer["key"], peer["state"]) for peer in board.describe()] == [
        (key(0).hex(), "up"),
        (key(1).hex(), "draining"),
        (key(2).hex(), "up"),
    ]


# -- the election


def elections() -> Board:
    board = Board(1)
    board.clock_ns = 1000 * SECOND
    return board


def test_the_first_is_elected_and_stays() -> None:
    board, first, second = elections(), os.getpid(), os.getppid()
    assert board.elect(first, 1)
    assert not board.elect(second, 1)
    for _ in range(5):
        board.clock_ns += 2 * SECOND
        assert board.elect(first, 1) and not board.elect(second, 1)


def test_who_falls_silent_loses() -> None:
    board = elections()
    assert board.elect(os.getpid(), 1)
    board.clock_ns += 3 * SECOND
    assert not board.elect(os.getppid(), 1)
    board.clock_ns += 1
    assert board.elect(os.getppid(), 1)
    assert not board.elect(os.getpid(), 1)


def test_who_is_dead_loses_at_once() -> None:
    board = elections()
    pid = in_child(lambda: None)
    assert joined(pid) == 0
    assert board.elect(pid, 1)
    assert board.elect(os.getpid(), 1)


def test_a_later_generation_wins() -> None:
    board = elections()
    assert board.elect(os.getpid(), 1)
    assert board.elect(os.getppid(), 2)
    assert not board.elect(os.getpid(), 1)


def test_who_resigns_makes_room() -> None:
    board = elections()
    assert board.elect(os.getpid(), 2)
    board.resign(os.getppid())
    assert not board.elect(os.getppid(), 2)
    board.resign(os.getpid())
    assert board.elect(os.getppid(), 1)


def test_the_arbiter_may_load_it() -> None:
    source = "import sys, acme_wsgi.upstream.board; sys.exit('gevent' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)
