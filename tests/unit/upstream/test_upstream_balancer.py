"""Which backend a request goes to, visitors who stay with theirs, and what of that a backend sees."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.upstream.balancer import Balancer, hash_of
from acme_wsgi.upstream.exchange import Lane
from acme_wsgi.upstream.sticky import Sticky
from tests.unit.upstream.services import HOSTS, KEY, STICKY, THREE, Made, made, urls

TTL = 3600


def shown(lane: Lane | None) -> str | None:
    return lane.shown if lane is not None else None


def environ(cookies: str = "", address: str = "192.0.2.1", scheme: str = "http") -> dict[str, Any]:
    found = {"REMOTE_ADDR": address, "wsgi.url_scheme": scheme}
    return {**found, "HTTP_COOKIE": cookies} if cookies else found


def choice(
    balancer: Balancer, cookies: str = "", tried: int = 0, repeatable: bool = True, **asked: Any
) -> tuple[str | None, str]:
    """Whom a request goes to, and the cookie as the browser will send it."""
    lane, cookie = balancer.choose(environ(cookies, **asked), tried, repeatable)
    return shown(lane), cookie.partition(";")[0]


# -- in turn ----------------------------------------------------------------------------------------------


def test_backends_take_turns_by_weight() -> None:
    balancer = made(urls("http://a 5", "http://b 1", "http://c 1")).balancer()
    assert balancer.simple
    assert [shown(balancer.next(0, True)) for _ in range(7)] == [
        f"http://{name}" for name in ("a", "a", "b", "a", "c", "a", "a")
    ]
    assert [choice(balancer) for _ in range(2)] == [("http://a", ""), ("http://a", "")]


def test_the_least_busy_one() -> None:
    balancer = made(THREE, "load_balancing.algorithm=least_conn").balancer()
    first = balancer.next(0, True)
    assert balancer.simple and first is not None
    first.group.begin(first.member, 0)
    assert {shown(balancer.next(0, True)) for _ in range(10)} == set(HOSTS) - {first.shown}


def test_one_address_one_backend() -> None:
    balancer = made(THREE, "load_balancing.algorithm=ip_hash").balancer()
    assert not balancer.simple
    addresses = [f"198.51.100.{number}" for number in range(200)]
    homes = {address: choice(balancer, address=address) for address in addresses}
    assert all(choice(balancer, address=address) == homes[address] for address in addresses)
    assert set(homes.values()) == {(url, "") for url in HOSTS}
    # Neither cookies nor what a client sends beside its address has a say.
    assert choice(balancer, "ACME_BACKEND=x", address=addresses[0]) == homes[addresses[0]]


def test_the_hash_is_everywhere_the_same() -> None:
    assert hash_of("") == 0xCBF29CE484222325
    assert hash_of("a") == 0xAF63DC4C8601EC8C  # of the algorithm's authors
    assert hash_of("foobar") == 0x85944171F73967E8


@given(st.text(max_size=20))
def test_any_address_has_one(address: str) -> None:
    try:
        address.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return
    assert 0 <= hash_of(address) < 1 << 64


@pytest.mark.parametrize("algorithm", ["round_robin", "least_conn", "ip_hash"])
@pytest.mark.parametrize("sticky", [True, False])
def test_who_was_tried_is_not_chosen(algorithm: str, sticky: bool) -> None:
    balancer = made(THREE, f"load_balancing.algorithm={algorithm}", *[STICKY] * sticky).balancer()
    for tried in range(8):
        expected: set[str | None] = {HOSTS[member] for member in range(3) if not tried & 1 << member} or {
            None
        }
        addresses = [f"198.51.100.{number}" for number in range(60)]
        assert {choice(balancer, tried=tried, address=each)[0] for each in addresses} == expected
        assert {shown(balancer.next(tried, True)) for _ in range(6)} <= expected


def test_who_is_down_is_not_chosen() -> None:
    backends = made(THREE)
    backends.down(1)
    balancer = backends.balancer()
    assert {shown(balancer.next(0, True)) for _ in range(6)} == {HOSTS[0], HOSTS[2]}
    backends.down(0, 2)
    assert balancer.next(0, True) is None and choice(balancer) == (None, "")


# -- visitors who stay ------------------------------------------------------------------------------------


def sticky(*sets: str) -> tuple[Made, Balancer]:
    backends = made(*(sets or (THREE,)), STICKY)
    return backends, backends.balancer()


def test_a_visitor_gets_a_cookie_and_stays() -> None:
    _, balancer = sticky()
    assert not balancer.simple
    homes = Counter[str | None]()
    for _ in range(9):
        home, cookie = choice(balancer)
        assert cookie.startswith("ACME_BACKEND=")
        assert [choice(balancer, f"a=b; {cookie}; c=d") for _ in range(3)] == [(home, "")] * 3
        homes[home] += 1
    assert homes == dict.fromkeys(HOSTS, 3)  # whoever stays takes nobody's turn


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_the_cookie_is_for_this_server_alone(scheme: str, secure: bool) -> None:
    _, balancer = sticky()
    _, cookie = balancer.choose(environ(scheme=scheme), 0, True)
    parts = cookie.split("; ")[1:]
    assert parts == [f"Max-Age={TTL}", "Path=/", "HttpOnly", "SameSite=Lax", *["Secure"] * secure]


def test_a_cookie_is_set_again_when_half_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _, balancer = sticky()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    home, cookie = choice(balancer)
    now += TTL * 0.49
    assert choice(balancer, cookie) == (home, "")
    now += TTL * 0.02
    found, again = choice(balancer, cookie)
    assert found == home and again not in ("", cookie)
    now += TTL * 0.5
    assert choice(balancer, again)[0] == home
    assert choice(balancer, cookie)[1] != ""  # over: whoever it is now


def test_a_visitor_moves_when_his_backend_is_away() -> None:
    backends, balancer = sticky()
    home, cookie = choice(balancer)
    backends.down(HOSTS.index(str(home)))
    moved, again = choice(balancer, cookie)
    assert moved != home and again
    assert choice(balancer, again) == (moved, "")


def test_a_visitor_moves_when_his_backend_has_failed_him() -> None:
    _, balancer = sticky()
    home, cookie = choice(balancer)
    moved, again = choice(balancer, cookie, tried=1 << HOSTS.index(str(home)))
    assert moved != home and again
    assert choice(balancer, cookie, tried=0b111) == (None, "")


def forged(balancer: Balancer, member: int = 0) -> list[str]:
    """Cookies that we have not made, or not for now, for a visitor who would like to be with that member."""
    plan = balancer.plan
    names = [each.identity for each in plan.everybody]
    now = time.time()

    def real(key: bytes = KEY, at: float = now) -> str:
        return Sticky(key, plan.sticky, names).value(member, at, False).partition(";")[0]

    name, _, value = real().partition("=")
    flipped = [value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :] for at in range(len(value))]
    texts = ["", "0", str(member), HOSTS[member], value[:-1], value + "A", value + "=", "A" * len(value),
             value.lower(), "%" + value, f'"{value}"', "\xff" * len(value), *flipped]  # fmt: skip
    others = [real(key=bytes(32)), real(at=now - TTL - 1), f"X{name}={value}", f"{name.lower()}={value}"]
    return [f"{name}={text}" for text in texts] + others


def test_a_cookie_that_is_not_ours_chooses_nobody() -> None:
    _, balancer = sticky()
    lanes = Counter[str | None]()
    cookies = forged(balancer)
    for cookie in cookies:
        home, again = choice(balancer, cookie)
        assert again, cookie
        lanes[home] += 1
    assert max(lanes.values()) - min(lanes.values()) <= 1  # in turn, as without one


def test_a_cookie_of_another_group_chooses_nobody_unknown() -> None:
    one, other = sticky(urls(*HOSTS[:2]))[1], sticky(urls("http://other"))[1]
    _, cookie = choice(one)
    assert choice(other, cookie)[0] == "http://other"
    assert choice(other, cookie)[1] != ""


@given(st.text(max_size=80))
def test_any_cookie_is_read(text: str) -> None:
    _, balancer = READING
    for cookies in (text, f"ACME_BACKEND={text}"):
        assert choice(balancer, cookies)[0] in HOSTS
        asked = environ(cookies)
        balancer.hide(asked)
        assert "ACME_BACKEND=" not in asked.get("HTTP_COOKIE", "").replace(" ", "").split(";")


READING = sticky()


# -- backends that are being taken out --------------------------------------------------------------------


def test_visitors_of_a_drained_backend_stay_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backends, balancer = sticky(THREE, "load_balancing.connection_draining.timeout=30s")
    home, cookie = choice(balancer)
    member = HOSTS.index(str(home))
    since = time.monotonic_ns()
    backends.peer(member).draining_since = since
    assert {choice(balancer)[0] for _ in range(6)} == set(HOSTS) - {home}
    monkeypatch.setattr(time, "monotonic_ns", lambda: since + 29_999_999_999)
    assert choice(balancer, cookie) == (home, "")
    assert choice(balancer, cookie, tried=1 << member)[0] != home
    monkeypatch.setattr(time, "monotonic_ns", lambda: since + 30_000_000_000)
    moved, again = choice(balancer, cookie)
    assert moved != home and again
    # It comes back to the traffic, and its visitors to it.
    backends.peer(member).draining_since = 0
    assert choice(balancer, cookie) == (home, "")


def test_they_stay_as_long_in_a_worker_that_a_reload_has_yet_to_replace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends, balancer = sticky(THREE, "load_balancing.connection_draining.timeout=30s")
    home, cookie = choice(balancer)
    since = time.monotonic_ns()
    backends.peer(HOSTS.index(str(home))).removed_since = since
    assert home not in {choice(balancer)[0] for _ in range(6)}
    monkeypatch.setattr(time, "monotonic_ns", lambda: since + 29_999_999_999)
    assert choice(balancer, cookie) == (home, "")
    monkeypatch.setattr(time, "monotonic_ns", lambda: since + 30_000_000_000)
    assert choice(balancer, cookie)[0] != home


@pytest.mark.parametrize("mark", ["draining_since", "removed_since"])
def test_without_draining_they_move_at_once(mark: str) -> None:
    backends, balancer = sticky(THREE, "load_balancing.connection_draining.enabled=false")
    home, cookie = choice(balancer)
    setattr(backends.peer(HOSTS.index(str(home))), mark, time.monotonic_ns())
    assert choice(balancer, cookie)[0] != home


def leaving() -> tuple[Made, Balancer, str]:
    """A group that has lost HOSTS[2], and the cookie of a visitor of that."""
    before = (THREE, STICKY)
    _, old = sticky()
    cookie = ""
    while not cookie:
        home, made_now = choice(old)
        cookie = made_now if home == HOSTS[2] else ""
    backends = made(urls(*HOSTS[:2]), STICKY, before=before)
    return backends, backends.balancer(), cookie


def test_visitors_of_a_backend_that_a_reload_took_out_stay_for_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends, balancer, cookie = leaving()
    (gone,) = backends.group().leaving
    assert choice(balancer, cookie) == (HOSTS[2], "")
    assert HOSTS[2] not in {choice(balancer)[0] for _ in range(10)}
    # It has failed somebody, or a request that was somewhere else before.
    assert choice(balancer, cookie, tried=1)[0] == HOSTS[1]
    monkeypatch.setattr(time, "monotonic_ns", lambda: gone.until_ns - 1)
    assert choice(balancer, cookie) == (HOSTS[2], "")
    monkeypatch.setattr(time, "monotonic_ns", lambda: gone.until_ns)
    moved, again = choice(balancer, cookie)
    assert moved in HOSTS[:2] and again


def test_they_move_when_it_is_down_or_drained() -> None:
    backends, balancer, cookie = leaving()
    peer = backends.board.peer(backends.group().leaving[0].key)
    peer.draining_since = time.monotonic_ns()
    assert choice(balancer, cookie)[0] in HOSTS[:2]
    peer.draining_since = 0
    assert choice(balancer, cookie)[0] == HOSTS[2]
    while peer.state() != "down":
        peer.note_check(False, "test")
    assert choice(balancer, cookie)[0] in HOSTS[:2]


def test_its_requests_count_for_nobody_else() -> None:
    backends, balancer, cookie = leaving()
    lane, _ = balancer.choose(environ(cookie), 0, True)
    assert lane is not None and lane.group is not balancer.group
    lane.group.begin(lane.member, 0)
    assert [balancer.group.active(member) for member in range(2)] == [0, 0]
    assert backends.board.peer(backends.group().leaving[0].key).snapshot()["active"] == 1


# -- what a backend sees, and a cache ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cookies", "left"),
    [
        ("ACME_BACKEND=x", None),
        ("a=b; ACME_BACKEND=x", "a=b"),
        ("ACME_BACKEND=x; a=b; ACME_BACKEND=y;c=d", "a=b;c=d"),
        ("ACME_BACKEND =x; a=b", "a=b"),
        ("a=ACME_BACKEND=x", "a=ACME_BACKEND=x"),
        ("XACME_BACKEND=x", "XACME_BACKEND=x"),
    ],
)
def test_the_cookie_is_hidden_from_backends(cookies: str, left: str | None) -> None:
    _, balancer = sticky()
    asked = environ(cookies)
    balancer.hide(asked)
    assert asked.get("HTTP_COOKIE") == left
    asked = environ()
    balancer.hide(asked)
    assert "HTTP_COOKIE" not in asked


def test_where_nobody_stays_cookies_are_the_applications() -> None:
    asked = environ("ACME_BACKEND=x")
    made(THREE).balancer().hide(asked)
    assert asked["HTTP_COOKIE"] == "ACME_BACKEND=x"


def test_its_name_is_the_configurations() -> None:
    balancer = made(THREE, "load_balancing.sticky_sessions={enabled: true, cookie_name: home}").balancer()
    home, cookie = choice(balancer)
    assert cookie.startswith("home=") and choice(balancer, cookie) == (home, "")
    asked = environ(f"{cookie}; ACME_BACKEND=x")
    balancer.hide(asked)
    assert asked["HTTP_COOKIE"] == "ACME_BACKEND=x"


def test_no_cache_keeps_a_response_with_the_cookie() -> None:
    headers = [
        ("Cache-Control", "public, max-age=60"),
        ("Set-Cookie", "a=b"),
        ("CDN-Cache-Control", "max-age=9"),
    ]
    given = headers.copy()
    sealed = Balancer.seal(given, "ACME_BACKEND=x; Path=/")
    assert given == headers
    assert sealed == [
        ("Cache-Control", "private, max-age=60"),
        ("Set-Cookie", "a=b"),
        ("CDN-Cache-Control", "no-store"),
        ("Set-Cookie", "ACME_BACKEND=x; Path=/"),
    ]
