"""Boards for tests, and nginx's way of choosing in plain Python, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from acme_wsgi.upstream.board import ROUND_ROBIN, Board, Group, Peer

SECOND = 1_000_000_000


def key(number: int) -> bytes:
    """A key of 16 bytes."""
    return number.to_bytes(16, "big")


def enrolled(board: Board, count: int, unhealthy: int = 3, healthy: int = 2, first: int = 0) -> list[Peer]:
    return [
        board.enrol(key(number), unhealthy_threshold=unhealthy, healthy_threshold=healthy)
        for number in range(first, first + count)
    ]


def group_of(
    weights: Sequence[int], algorithm: int = ROUND_ROBIN, *, slots: int = 4, unhealthy: int = 3
) -> tuple[Board, Group]:
    """A board of its own with one group of as many peers as there are weights; its clock stands at 1000 s."""
    board = Board(slots)
    peers = enrolled(board, len(weights), unhealthy)
    board.clock_ns = 1000 * SECOND
    return board, board.group(key(1000), algorithm, list(zip(peers, weights, strict=True)))


@dataclass
class Nginx:
    """What ngx_http_upstream_get_peer, ..._get_least_conn_peer and ..._free_round_robin_peer do."""

    weights: Sequence[int]
    max_fails: int = 3
    current: list[int] = field(init=False)
    effective: list[int] = field(init=False)
    active: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.current = [0] * len(self.weights)
        self.effective = list(self.weights)
        self.active = [0] * len(self.weights)

    def pick(self, tried: Sequence[int] = ()) -> int:
        return self._turn([member for member in range(len(self.weights)) if member not in tried])

    def least(self, tried: Sequence[int] = ()) -> int:
        able = [member for member in range(len(self.weights)) if member not in tried]
        best = able[0]
        for member in able[1:]:
            if self.active[member] * self.weights[best] < self.active[best] * self.weights[member]:
                best = member
        tied = [
            member
            for member in able
            if self.active[member] * self.weights[best] == self.active[best] * self.weights[member]
        ]
        return self._turn(tied) if len(tied) > 1 else best

    def _turn(self, able: Sequence[int]) -> int:
        total, best = 0, able[0]
        for member in able:
            self.current[member] += self.effective[member]
            total += self.effective[member]
            if self.effective[member] < self.weights[member]:
                self.effective[member] += 1
        for member in able:
            if self.current[member] > self.current[best]:
                best = member
        self.current[best] -= total
        return best

    def failed(self, member: int) -> None:
        self.effective[member] = max(self.effective[member] - self.weights[member] // self.max_fails, 0)


def effective(group: Group) -> list[Any]:
    return [member["effective"] for member in group.describe()]
