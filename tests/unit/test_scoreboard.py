"""The scoreboard as several processes use it."""

from __future__ import annotations

import gc
import math
import mmap
import os
import struct
import time

import pytest

from acme_wsgi.scoreboard import READY, Scoreboard, bucket_edges
from tests.unit.processes import in_child, joined


def test_what_a_child_writes_its_parent_reads() -> None:
    board = Scoreboard(3)

    def work() -> None:
        slot = board.slot(1)
        slot.pid, slot.state = os.getpid(), READY
        slot.observe(200, 1000, 5_000_000)
        slot.beat()

    before = time.monotonic_ns()
    assert joined(in_child(work)) == 0
    slot = board.slot(1)
    assert slot.pid not in (0, os.getpid()) and slot.state == READY
    assert before <= slot.heartbeat <= time.monotonic_ns()
    assert slot.snapshot()["requests_total"] == 1
    assert board.slot(0).snapshot()["requests_total"] == 0


def test_counters_survive_the_process_and_gauges_do_not() -> None:
    board = Scoreboard(1)
    assert joined(in_child(lambda: board.slot(0).observe(404, 10, 1000))) == 0
    slot = board.slot(0)
    slot.pid, slot.state = 4711, READY
    slot.reset_gauges()
    found = slot.snapshot()
    assert (found["pid"], found["state"], found["connections"], found["in_flight"]) == (0, 0, 0, 0)
    assert (found["requests_total"], found["status_4xx"], found["bytes_out"]) == (1, 1, 10)


def test_totals_are_sums_over_all_slots() -> None:
    board = Scoreboard(4)
    for index in range(4):
        for _ in range(index + 1):
            board.slot(index).observe(200 + 100 * index, 7, 1_000_000)
    totals = board.totals()
    assert totals["requests_total"] == 10 and totals["bytes_out"] == 70
    assert [totals[f"status_{family}xx"] for family in (2, 3, 4, 5)] == [1, 2, 3, 4]
    assert "pid" not in totals
    assert sum(board.latency()) == 10


def test_statuses_outside_of_the_table_are_counted_as_requests_only() -> None:
    slot = Scoreboard(1).slot(0)
    for status in (-1, 600, 10**6):
        slot.observe(status, 1, 1)
    assert slot.snapshot()["requests_total"] == 3 and slot.statuses() == {}


@pytest.mark.parametrize("nanoseconds", [0, 1, 999, 1000, 1001, 12_345, 999_999, 10**6, 10**9, 10**12, 2**62])
def test_a_duration_falls_into_the_bucket_whose_edges_enclose_it(nanoseconds: int) -> None:
    slot = Scoreboard(1).slot(0)
    slot.observe(200, 0, nanoseconds)
    index = slot.latency().index(1)
    edges = bucket_edges()
    lower = edges[index - 1] if index else 0.0
    # Durations are cut to whole microseconds before they are sorted in.
    assert lower <= math.floor(nanoseconds / 1000) / 1e6 + 1e-12 and nanoseconds // 1000 / 1e6 <= edges[index]


def test_bucket_edges_rise_and_end_at_infinity() -> None:
    edges = bucket_edges()
    assert list(edges) == sorted(set(edges)) and edges[-1] == math.inf
    assert len(edges) == len(Scoreboard(1).latency())


def test_a_slot_keeps_the_memory_alive() -> None:
    slot = Scoreboard(2).slot(1)
    slot.pid = 42
    assert slot.pid == 42 and slot.board.size == 2


@pytest.mark.parametrize("index", [-1, 2, 10**6])
def test_there_is_no_slot_outside_of_the_board(index: int) -> None:
    with pytest.raises(IndexError):
        Scoreboard(2).slot(index)


def test_a_board_has_at_least_one_slot() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Scoreboard(0)


# -- standstills: the arbiter's words about a worker


def test_a_standstill_is_there_while_it_lasts_and_counted_afterwards() -> None:
    slot = Scoreboard(1).slot(0)
    assert slot.stall() is None
    slot.note_stall(time.monotonic_ns() - 3_000_000_000, "/users/:id", "shop.py:12 in search")
    found = slot.stall()
    assert found is not None and (found["route"], found["where"]) == ("/users/:id", "shop.py:12 in search")
    assert 3.0 <= found["seconds"] < 60
    slot.end_stall(5_000_000_000)
    slot.note_stall(1, "", "")
    slot.end_stall(2_000_000_000)
    assert slot.stall() is None
    numbers = slot.snapshot()
    assert (numbers["stalls"], numbers["stall_last_ns"]) == (2, 2_000_000_000)
    assert numbers["stall_longest_ns"] == 5_000_000_000


def test_a_process_in_the_slot_of_one_that_stood_still_does_not() -> None:
    board = Scoreboard(2)
    board.slot(0).note_stall(1, "/*", "here")
    assert joined(in_child(board.slot(0).reset_gauges)) == 0
    assert board.slot(0).stall() is None
    assert board.totals()["stalls"] == 1 and "stall_longest_ns" not in board.totals()


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a" * 1000, "a" * 127), ("ä" * 1000, "ä" * 63), ("\udcff\ud800", "??"), ("a\0b", "a"), ("", "")],
)
def test_long_and_odd_texts_are_cut_to_their_place(text: str, kept: str) -> None:
    board = Scoreboard(2)
    board.slot(0).note_stall(1, text, text * 2)
    found = board.slot(0).stall()
    assert found is not None and found["route"] == kept and found["where"].startswith(kept)
    assert len(found["where"].encode()) <= 255
    assert board.slot(1).snapshot()["pid"] == 0 and board.slot(1).stall() is None


def test_the_request_begun_last_is_shown_escaped() -> None:
    board = Scoreboard(1)
    slot = board.slot(0)
    assert slot.current == ""
    # Its writer is the engine. The layout: length, text, four numbers, the route of the standstill.
    slot.note_stall(1, "here is the route", "")
    [memory] = [thing for thing in gc.get_referents(board) if isinstance(thing, mmap.mmap)]
    at = memory.find(b"here is the route") - 4 * 8 - 128
    for length, shown in ((9, "GET /\\x0a\\xff"), (0, ""), (65535, "GET /\\x0a\\xff" + "\\x00" * 119)):
        memory[at : at + 9] = struct.pack("=H7s", min(length, 7) if length < 10 else length, b"GET /\n\xff")
        assert slot.current == shown
