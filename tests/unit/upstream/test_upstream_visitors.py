"""Which backend a sticky visitor is sent to while that one is unwell: his own is tried as any other is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from acme_wsgi.config.schema.upstream import ConnectionDraining, HealthCheck, StickySessions
from acme_wsgi.upstream.board import ROUND_ROBIN, Group
from acme_wsgi.upstream.plan import GroupPlan, PeerPlan
from tests.unit.files.in_loop import in_loop
from tests.unit.upstream.backends import SECOND, group_of, key


def balancer_of(group: Group) -> Any:
    """A balancer over the group; a lane knows its number alone."""
    from acme_wsgi.upstream.balancer import Balancer

    members = tuple(
        PeerPlan(f"http://b{n}", f"http://b{n}", 1, HealthCheck(), key(n), key(100 + n))
        for n in range(group.size)
    )
    plan = GroupPlan(
        "backends", members, ROUND_ROBIN, key(50), StickySessions(enabled=True), ConnectionDraining()
    )
    lanes: list[Any] = [SimpleNamespace(group=group, member=number) for number in range(group.size)]
    return Balancer(plan, lanes, (), bytes(32))


def visitor_of(balancer: Any, member: int) -> dict[str, str]:
    """A request of somebody who has this backend's cookie."""
    cookies = (balancer.choose({}, 0, False) for _ in range(10))
    return next(
        {"HTTP_COOKIE": cookie.partition(";")[0]} for lane, cookie in cookies if lane.member == member
    )


@in_loop
def test_visitors_try_their_half_open_backend_one_at_a_time() -> None:
    board, group = group_of((1, 1))
    balancer = balancer_of(group)
    visitor = visitor_of(balancer, 0)
    assert balancer.choose(visitor, 0, True)[0].member == 0
    for _ in range(3):
        group.failed(0, connecting=False)
    board.clock_ns += SECOND
    assert balancer.choose(visitor, 0, False)[0].member == 1, "first with what can be sent again"
    assert balancer.choose(visitor, 0, True)[0].member == 0, "the trial"
    assert balancer.choose(visitor, 0, True)[0].member == 1, "another one is under way"
    group.begin(0, 0)
    group.end(0, 0, False, 1000)
    board.clock_ns += SECOND // 2
    assert balancer.choose(visitor, 0, True)[0].member == 1, "it failed: the pause has begun again"


@in_loop
def test_visitors_who_stay_take_nobody_elses_turn() -> None:
    _, group = group_of((3, 1))
    balancer = balancer_of(group)
    visitor = visitor_of(balancer, 1)
    before = [balancer.next(0, True).member for _ in range(8)]
    after = []
    for _ in range(8):
        assert balancer.choose(visitor, 0, True)[0].member == 1
        after.append(balancer.next(0, True).member)
    assert after == before
