"""From the configuration to groups of backends, and from one generation's groups to the next one's."""

from __future__ import annotations

import dataclasses

import pytest

from acme_wsgi.config import Config, load
from acme_wsgi.config.schema.routes import Route
from acme_wsgi.config.schema.upstream import Backend
from acme_wsgi.errors import ConfigError
from acme_wsgi.upstream import plan
from acme_wsgi.upstream.board import IP_HASH, LEAST_CONN, MAX_MEMBERS, ROUND_ROBIN, Board, BoardFull
from acme_wsgi.upstream.plan import GroupPlan

TWO = "backends=[{url: 'http://a:1', weight: 5}, {url: 'http://u:hush@b:1'}]"


def planned(*sets: str) -> dict[int, GroupPlan]:
    return plan.plan(load([], {}, sets))


def routes(*items: str) -> str:
    return "routes=[" + ", ".join(f"{{{item}}}" for item in items) + "]"


def proxy(path: str, more: str = "") -> str:
    return f"path: '{path}', type: proxy" + (f", {more}" if more else "")


# -- one configuration ------------------------------------------------------------------------------------


def test_routes_without_backends_of_their_own_share_the_servers() -> None:
    plans = planned(TWO, routes(proxy("/a"), "path: /b, type: wsgi, app: x", proxy("/c/*")))
    assert list(plans) == [0, 2]
    assert plans[0] == plans[2]
    group = plans[0]
    assert (group.name, group.algorithm, group.leaving) == ("backends", ROUND_ROBIN, ())
    assert [(each.url, each.shown, each.weight) for each in group.members] == [
        ("http://a:1", "http://a:1", 5),
        ("http://u:hush@b:1", "http://u:***@b:1", 1),
    ]
    assert "hush" not in repr(plans)


def test_a_route_has_its_own() -> None:
    plans = planned(
        TWO,
        "load_balancing={algorithm: ip_hash, connection_draining: {timeout: 9s}}",
        routes(
            proxy("/one", "backend: 'http://c'"),
            proxy("/two", "backends: [{url: 'http://c', weight: 2}], load_balancing: least_conn"),
            proxy("/three", "load_balancing: {sticky_sessions: {enabled: true}}, health_check: {path: /up}"),
        ),
    )
    one, two, three = plans.values()
    assert (one.name, one.algorithm, one.members[0].weight) == ("route /one", IP_HASH, 1)
    assert (two.name, two.algorithm, two.members[0].weight) == ("route /two", LEAST_CONN, 2)
    assert (three.name, three.algorithm, three.sticky.enabled) == ("backends", IP_HASH, True)
    assert {each.draining.timeout for each in plans.values()} == {9.0}
    assert {each.check.path for each in three.members} == {"/up"}


def test_names_tell_routes_of_one_path_apart() -> None:
    plans = planned(
        routes(
            proxy("/a", "backend: 'http://a', method: [GET, HEAD]"),
            proxy("/a", "backend: 'http://b', method: POST, host: example.org"),
            proxy("/a", "backend: 'http://c'"),
        )
    )
    assert [each.name for each in plans.values()] == [
        "route /a (GET, HEAD)",
        "route /a (POST; example.org)",
        "route /a",
    ]


def test_a_peer_is_the_same_one_wherever_it_stands() -> None:
    plans = planned(
        "backends=[{url: 'http://a', weight: 2}]",
        routes(
            proxy("/a"),
            proxy("/b", "backend: 'HTTP://A:80/'"),
            proxy("/c", "backend: 'http://a', health_check: {interval: 20s}"),
            proxy("/d", "backend: 'http://a:8080'"),
            proxy("/e", "backend: 'http://u:p@a'"),
        ),
    )
    first, same, otherwise_checked, other_port, with_account = (each.members[0] for each in plans.values())
    assert first.key == same.key and len(first.key) == 16
    assert len({first.key, otherwise_checked.key, other_port.key, with_account.key}) == 4
    assert first.identity == otherwise_checked.identity
    assert len({first.identity, other_port.identity, with_account.identity}) == 3


def test_a_group_is_the_same_one_only_with_the_same_members_weights_and_algorithm() -> None:
    same = routes(
        proxy("/a", "backends: [{url: 'http://a'}, {url: 'http://b'}]"),
        proxy("/b", "backends: [{url: 'http://a'}, {url: 'http://b'}]"),
        proxy("/c", "backends: [{url: 'http://b'}, {url: 'http://a'}]"),
        proxy("/d", "backends: [{url: 'http://a', weight: 2}, {url: 'http://b'}]"),
        proxy("/e", "backends: [{url: 'http://a'}, {url: 'http://b'}], load_balancing: ip_hash"),
    )
    keys = [each.key for each in planned(same).values()]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4 and {len(key) for key in keys} == {16}
    assert keys == [each.key for each in planned(same).values()], "the same in every process"


def test_how_long_a_backend_taken_out_may_go_on() -> None:
    (group,) = planned(routes(proxy("/", "backend: 'http://a'"))).values()
    assert group.patience == 30.0
    off = "load_balancing.connection_draining.enabled=false"
    (group,) = planned(off, routes(proxy("/", "backend: 'http://a'"))).values()
    assert group.patience == 0.0


def test_what_no_loader_lets_through_is_refused_all_at_once() -> None:
    many = tuple(Backend(url=f"http://a:{port}") for port in range(1, MAX_MEMBERS + 2))
    made = (
        Route(path="/a", type="proxy"),
        Route(path="/b", type="proxy", backend="http://a", backends=many[:1]),
        Route(path="/c", type="proxy", backends=many),
        Route(path="/d", type="proxy", backends=many[:-1]),
    )
    origins = {"routes[0]": "a.yaml:3", "routes[2].backends": "a.yaml:7"}
    config = dataclasses.replace(Config(), routes=made, origins=origins)
    with pytest.raises(ConfigError) as caught:
        plan.plan(config)
    assert [str(each) for each in caught.value.problems] == [
        "a.yaml:3: routes[0].backends: missing; a route of type proxy needs backend or backends",
        "default: routes[1].backend: written beside backends",
        "a.yaml:7: routes[2].backends: 65 backends; allowed: 64",
    ]


# -- the next generation ----------------------------------------------------------------------------------

STICKY = "load_balancing={sticky_sessions: {enabled: true}, connection_draining: {timeout: 10s}}"
S = 1_000_000_000


def of(*urls: str, sets: tuple[str, ...] = (STICKY,), more: str = "") -> dict[int, GroupPlan]:
    listed = ", ".join(f"{{url: '{url}'}}" for url in urls)
    return planned(*sets, f"backends=[{listed}]", routes(proxy("/", more)))


def after(new: dict[int, GroupPlan], old: dict[int, GroupPlan], now: int) -> dict[int, GroupPlan]:
    return plan.follow(new, old.values(), now)


def left(plans: dict[int, GroupPlan]) -> list[tuple[str, int]]:
    return [(gone.shown, gone.until_ns) for group in plans.values() for gone in group.leaving]


def test_sticky_clients_may_finish_where_they_were() -> None:
    first = of("http://a", "http://u:hush@b")
    second = after(of("http://a"), first, 5 * S)
    assert left(second) == [("http://u:***@b", 15 * S)]
    (gone,) = second[0].leaving
    assert (gone.url, gone.key, gone.identity) == (
        "http://u:hush@b", first[0].members[1].key, first[0].members[1].identity,
    )  # fmt: skip
    assert "hush" not in repr(gone)
    # Another reload neither prolongs nor shortens its time; who has come back has left nothing.
    third = after(of("http://c"), second, 7 * S)
    assert left(third) == [("http://a", 17 * S), ("http://u:***@b", 15 * S)]
    assert left(after(of("http://c", "http://a"), third, 8 * S)) == [("http://u:***@b", 15 * S)]
    assert left(after(of("http://c"), third, 16 * S)) == [("http://a", 17 * S)]
    assert left(after(of("http://c"), third, 17 * S)) == []


@pytest.mark.parametrize(
    "sets",
    [
        ("load_balancing={sticky_sessions: {enabled: false}}",),
        (STICKY, "load_balancing.connection_draining.enabled=false"),
    ],
)
def test_nobody_finishes_where_nobody_was_kept_or_that_is_off(sets: tuple[str, ...]) -> None:
    assert left(after(of("http://a", sets=sets), of("http://a", "http://b"), S)) == []


def test_a_check_whose_path_nobody_wrote_is_not_strict() -> None:
    own = "path: /b, type: proxy, health_check: {path: /up}"
    both = planned(TWO, routes(proxy("/a"), own))
    assert [member.strict for member in both[0].members] == [False, False]
    assert [member.strict for member in both[1].members] == [True, True]
    everywhere = planned(TWO, "load_balancing.health_check.path=/health", routes(proxy("/a")))
    assert all(member.strict for member in everywhere[0].members)
    keys = [{member.key for member in plans[0].members} for plans in (everywhere, both)]
    assert not keys[0] & keys[1], "they are not the same checks"


def test_another_spelling_another_weight_and_another_check_are_no_departure() -> None:
    first = of("http://a")
    assert left(after(of("HTTP://A:80/"), first, S)) == []
    assert left(after(of("http://a", more="health_check: {path: /up}"), first, S)) == []


def test_a_group_loses_only_what_was_its_own() -> None:
    old = planned(STICKY, routes(proxy("/a", "backend: 'http://a'"), proxy("/b", "backend: 'http://b'")))
    new = planned(STICKY, routes(proxy("/b", "backend: 'http://c'"), proxy("/d", "backend: 'http://d'")))
    plans = after(new, old, 0)
    assert [[gone.shown for gone in group.leaving] for group in plans.values()] == [["http://b"], []]


def test_no_more_are_remembered_than_a_group_may_have() -> None:
    plans = of("http://last")
    for reload in range(20):
        plans = after(of(*(f"http://a{reload}:{port}" for port in range(1, 11))), plans, reload)
    assert len(plans[0].leaving) == plan.MAX_LEAVING
    assert plans[0].leaving[0].until_ns == 19 + 10 * S


# -- on the board -----------------------------------------------------------------------------------------


def test_entries_are_made_once_and_found_again() -> None:
    board = Board(2)
    plans = planned(TWO, routes(proxy("/a"), proxy("/b", "load_balancing: ip_hash")))
    plan.enrol(board, plans)
    peer = board.peer(plans[0].members[0].key)
    peer.note_check(False, "503")
    assert board.find(plans[0].key).algorithm == ROUND_ROBIN
    assert board.find(plans[1].key).algorithm == IP_HASH
    assert [each["weight"] for each in board.find(plans[0].key).describe()] == [5, 1]
    plan.enrol(board, plans)
    assert board.peer(plans[0].members[0].key).snapshot()["checks_bad"] == 1
    assert len(board.describe()) == 2


def test_a_board_has_an_end() -> None:
    with pytest.raises(BoardFull):
        plan.enrol(Board(1, peers=1), planned(TWO, routes(proxy("/a"))))


def test_what_may_not_be_freed() -> None:
    first = of("http://a", "http://b")
    second = after(of("http://a"), first, 0)
    peers, groups = plan.keys(second)
    assert peers == {member.key for member in first[0].members}
    assert groups == {second[0].key, second[0].leaving[0].group}


# -- what a worker is given -------------------------------------------------------------------------------


def test_each_proxy_route_is_given_its_group() -> None:
    config = load([], {}, [TWO, routes(proxy("/a"), "path: /b, type: wsgi, app: x"), STICKY])
    made = plan.alone(config)
    assert made is not None and plan.is_sticky(made.plans)
    assert made.plans[0].name == "backends" and set(made.plans) == {0}
    assert made.board.find(made.plans[0].key).size == 2
    assert made.pool == config.server.connection_pool
    assert len(made.sticky_key) == 32 and made.sticky_key.hex() not in repr(made)


def test_nothing_is_made_where_nothing_is_proxied() -> None:
    assert plan.alone(load([], {}, [TWO], app="shop:app")) is None
