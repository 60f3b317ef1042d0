"""Which backend gets a request: shares, hashing, sticky visitors, health, draining, and backends that die.

Rogues tell their requests apart; who is killed with -9 is a real gunicorn.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.backends import Backends
from tests.conversation import Conversation
from tests.load import more_answers, nothing_lost, under_load
from tests.proxying import config
from tests.rogue import Rogue, named, reply
from tests.server import Launcher, Server, wait_until
from tests.wire import Reply, Wire

pytestmark = pytest.mark.slow

CHECKS = {"enabled": True, "interval": "200ms", "timeout": "200ms", "healthy_threshold": 2,
          "unhealthy_threshold": 2, "path": "/health"}  # fmt: skip
TRUSTING = {"trusted_proxies": ["127.0.0.0/8"]}


class Patient:
    """A backend whose health the test decides: `status` of /health, 0 = no answer."""

    def __init__(self, backends: Backends) -> None:
        self.status = 200
        self.rogue = backends.rogue({"stalls": self._stall}, default=self._answer)

    @property
    def url(self) -> str:
        return self.rogue.url

    @property
    def served(self) -> int:
        """Requests of clients that it got."""
        return sum(one.target != "/health" for one in list(self.rogue.requests))

    def _answer(self, c: Conversation) -> None:
        if c.request.target != "/health":
            named(c)
        elif self.status:
            c.send(reply(b"", status=f"{self.status} Health"))
        else:
            c.gone()

    def _stall(self, c: Conversation) -> None:
        c.wait(c.request.target)
        named(c)


def ask(server: Server, count: int) -> None:
    """So many requests, each answered, on one connection unless a worker on its way out closes it."""
    wire = server.connect()
    for number in range(count):
        got = wire.request(f"/{number}")
        assert got.status == 200
        if (got.header("Connection") or "").lower() == "close":
            wire.close()
            wire = server.connect()
    wire.close()


def shares(rogues: Sequence[Rogue]) -> list[int]:
    return [len(one.requests) for one in rogues]


def spared(server: Server, patient: Patient) -> bool:
    """Whether ten requests pass it by."""
    before = patient.served
    ask(server, 10)
    return patient.served == before


def used(server: Server, patient: Patient) -> bool:
    """Whether it gets one of fifty."""
    before = patient.served
    ask(server, 50)
    return patient.served > before


# ------------------------------------------------------------------- shares


@pytest.mark.parametrize("workers", [1, 2])
def test_weights_are_kept_exactly_over_all_workers(acme: Launcher, backends: Backends, workers: int) -> None:
    rogues = [backends.rogue() for _ in range(3)]
    weighted = [{"url": one.url, "weight": weight} for one, weight in zip(rogues, (5, 3, 2), strict=True)]
    server = acme(config(*weighted), workers=workers)
    wires = [server.connect() for _ in range(20)]
    for number in range(50):
        for wire in wires:
            assert wire.request(f"/{number}").status == 200
    assert shares(rogues) == [500, 300, 200]
    for wire in wires:
        wire.close()


def test_shares_are_smooth(acme: Launcher, backends: Backends) -> None:
    """nginx's order for 5:1:1, to the pick."""
    rogues = [backends.rogue() for _ in range(3)]
    weighted = [{"url": one.url, "weight": weight} for one, weight in zip(rogues, (5, 1, 1), strict=True)]
    server = acme(config(*weighted))
    order = ""
    with server.connect() as wire:
        for _ in range(14):
            before = shares(rogues)
            assert wire.request("/").status == 200
            order += "abc"[[new > old for old, new in zip(before, shares(rogues), strict=True)].index(True)]
    assert order == "aabacaa" * 2


def test_the_one_with_the_least_to_do_gets_the_next(acme: Launcher, backends: Backends) -> None:
    one, two = Patient(backends), Patient(backends)
    server = acme(config(one.url, two.url, load_balancing={"algorithm": "least_conn"}))
    held = server.connect().send(b"GET /script/stalls HTTP/1.1\r\nHost: a\r\n\r\n")
    busy = wait_until(lambda: (one.served and one) or (two.served and two), "one of them is asked")
    free = two if busy is one else one
    ask(server, 20)
    assert (busy.served, free.served) == (1, 20)
    busy.rogue.release("/script/stalls")
    assert held.reply().status == 200
    held.close()


# ------------------------------------------------------------------- hashing


def test_an_address_keeps_its_backend(acme: Launcher, backends: Backends) -> None:
    """The visitor's address behind a trusted proxy, the same over both workers."""
    rogues = [backends.rogue() for _ in range(4)]
    urls = [one.url for one in rogues]
    server = acme(config(*urls, load_balancing={"algorithm": "ip_hash"}, server=TRUSTING), workers=2)
    for number in range(100):
        for turn in range(3):
            field = f"X-Forwarded-For: 198.51.100.{number}"
            assert server.get(f"/{number}/{turn}", headers=[field]).status == 200
    for number in range(100):
        assert sum(bool(one.asked(f"/{number}/")) for one in rogues) == 1, "it was sent to more than one"
    assert min(shares(rogues)) > 3 * 5, "all have visitors"


def test_an_address_moves_when_its_backend_is_away(acme: Launcher, backends: Backends) -> None:
    rogues = [backends.rogue() for _ in range(4)]
    urls = [one.url for one in rogues]
    server = acme(config(*urls, load_balancing={"algorithm": "ip_hash"}, server=TRUSTING))
    server.errors_expected = True
    places = {}
    for number in range(60):
        where(server, number)
        places[number] = next(one for one in rogues if one.asked(f"/who/{number}"))
    gone = places[0]
    gone.kill()
    for number, place in places.items():
        before = [len(one.asked(f"/who/{number}")) for one in rogues]  # health checks come besides
        where(server, number)
        asked = [len(one.asked(f"/who/{number}")) for one in rogues]
        after = next(one for one, old, new in zip(rogues, before, asked, strict=True) if new > old)
        assert (after is not gone) if place is gone else (after is place), f"{number}: {shares(rogues)}"


def where(server: Server, number: int) -> Reply:
    got = server.get(f"/who/{number}", headers=[f"X-Forwarded-For: 203.0.113.{number}"])
    assert got.status == 200
    return got


# ------------------------------------------------------------------- sticky visitors


def sticky(*rogues: Rogue, **more: object) -> dict[str, object]:
    sessions = {"enabled": True, "ttl": 600}
    return config(*(one.url for one in rogues), load_balancing={"sticky_sessions": sessions}, **more)


def cookie(got: Reply) -> str | None:
    """The visitor's cookie that a response sets, with its attributes."""
    found = [value for name, value in got.headers if name.lower() == "set-cookie"]
    ours = [value for value in found if value.startswith("ACME_BACKEND=")]
    assert len(ours) <= 1
    return ours[0] if ours else None


def visit(server: Server, given: str, *fields: str) -> Reply:
    pair = given.partition(";")[0]
    got = server.get("/visit", headers=[f"Cookie: other=1; {pair}", *fields])
    assert got.status == 200
    return got


@pytest.fixture
def three(backends: Backends) -> list[Rogue]:
    return [backends.rogue() for _ in range(3)]


def test_a_visitor_stays_where_he_is(acme: Launcher, three: list[Rogue]) -> None:
    """Over both workers: the key is the server's."""
    server = acme(sticky(*three), workers=2)
    for _ in range(3):
        before = shares(three)
        given = cookie(server.get("/first"))
        assert given is not None
        chosen = [new > old for old, new in zip(before, shares(three), strict=True)].index(True)
        before = shares(three)
        for _ in range(20):
            assert cookie(visit(server, given)) is None, "it is good still"
        grown = [new - old for old, new in zip(before, shares(three), strict=True)]
        assert grown == [20 * (index == chosen) for index in range(3)]


def test_the_cookie_is_for_the_browser_alone(acme: Launcher, three: list[Rogue]) -> None:
    given = cookie(acme(sticky(*three)).get("/"))
    assert given is not None
    value, *attributes = [part.strip().lower() for part in given.split(";")]
    assert {"path=/", "httponly", "samesite=lax", "max-age=600"} <= set(attributes)
    assert "secure" not in attributes
    assert not any(str(one.port) in value or "127.0.0.1" in value for one in three), "it is opaque"


def test_the_cookie_is_secure_when_the_visit_is(acme: Launcher, three: list[Rogue]) -> None:
    server = acme(sticky(*three, server=TRUSTING))
    for proto, secure in (("https", True), ("http", False)):
        given = cookie(
            server.get("/", headers=["X-Forwarded-For: 203.0.113.9", f"X-Forwarded-Proto: {proto}"])
        )
        assert given is not None and ("; secure" in given.lower()) is secure


@pytest.mark.parametrize("value", ["", "forged", "A" * 40, "127.0.0.1", "1", "\xff\xfe", "=;=", "A" * 4000])
def test_a_forged_cookie_is_nothing(acme: Launcher, three: list[Rogue], value: str) -> None:
    server = acme(sticky(*three))
    for _ in range(6):
        assert cookie(visit(server, f"ACME_BACKEND={value}")) is not None
    assert shares(three) == [2, 2, 2], "nobody chooses"


def test_a_changed_cookie_is_forged(acme: Launcher, three: list[Rogue]) -> None:
    server = acme(sticky(*three))
    given = cookie(server.get("/"))
    assert given is not None
    pair = given.partition(";")[0]
    index = len("ACME_BACKEND=") + 3
    changed = pair[:index] + ("A" if pair[index] != "A" else "B") + pair[index + 1 :]
    assert cookie(visit(server, changed)) is not None


def test_a_visitor_moves_when_his_backend_dies(acme: Launcher, three: list[Rogue]) -> None:
    server = acme(sticky(*three))
    server.errors_expected = True
    given = cookie(server.get("/first"))
    assert given is not None
    chosen = next(one for one in three if one.requests)
    chosen.kill()
    moved = cookie(visit(server, given))
    assert moved is not None and moved != given
    before = shares(three)
    for _ in range(5):
        visit(server, moved)
    grown = [new - old for old, new in zip(before, shares(three), strict=True)]
    assert sorted(grown) == [0, 0, 5]


def test_a_visitor_stays_when_an_idle_connection_has_ended(acme: Launcher, backends: Backends) -> None:
    """The backend is well: it has closed what it took for idle, just as the next request came."""

    def once(c: Conversation) -> None:
        if len(c.requests) > 1:
            c.close()
        else:
            named(c)

    rogues = [backends.rogue(default=once) for _ in range(3)]
    server = acme(sticky(*rogues))
    given = cookie(server.get("/first"))
    assert given is not None
    mine = shares(rogues).index(1)
    got = server.get("/second", headers=[f"Cookie: {given.partition(';')[0]}"])
    assert got.text == "/second" and cookie(got) is None
    assert [number for number in range(3) if rogues[number].requests] == [mine]


def test_a_response_that_sets_the_cookie_is_private(acme: Launcher, backends: Backends) -> None:
    def public(c: Conversation) -> None:
        c.send(reply(b"page", "Cache-Control: public, s-maxage=600, max-age=600"))

    rogues = [backends.rogue(default=public) for _ in range(2)]
    server = acme(sticky(*rogues))
    first = server.get("/")
    given = cookie(first)
    assert given is not None
    rules = (first.header("Cache-Control") or "").lower()
    assert "private" in rules and "public" not in rules and "s-maxage" not in rules
    assert visit(server, given).header("Cache-Control") == "public, s-maxage=600, max-age=600"


# ------------------------------------------------------------------- health


@pytest.mark.parametrize("status", [500, 404, 0], ids=["500", "404", "silent"])
def test_a_sick_backend_is_passed_by_until_it_is_well(
    acme: Launcher, backends: Backends, status: int
) -> None:
    one, two = Patient(backends), Patient(backends)
    server = acme(config(one.url, two.url, load_balancing={"health_check": CHECKS}), workers=2)
    server.errors_expected = True
    assert used(server, one) and used(server, two)
    one.status = status
    wait_until(lambda: spared(server, one), "traffic is off the sick one", 20)
    one.status = 200
    wait_until(lambda: used(server, one), "it comes back by itself", 20)


def test_a_backend_that_nobody_said_has_a_health_page_is_well_without(
    acme: Launcher, backends: Backends
) -> None:
    """As long as it answers: most applications answer 404 for a path that they don't know."""
    patient = Patient(backends)
    patient.status = 404
    checks = {name: value for name, value in CHECKS.items() if name != "path"}
    server = acme(config(patient.url, load_balancing={"health_check": checks}))
    wait_until(lambda: len(patient.rogue.asked("/health")) > 5, "it was checked often enough")
    assert used(server, patient)


def test_checks_come_from_one_worker(acme: Launcher, backends: Backends) -> None:
    """At the interval, whatever the number of workers."""
    patient = Patient(backends)
    checks = {**CHECKS, "interval": "1s"}
    acme(config(patient.url, load_balancing={"health_check": checks}), workers=4).errors_expected = True
    before = wait_until(lambda: len(patient.rogue.asked("/health")), "the first check")
    threading.Event().wait(2.2)  # what is measured is a rate
    assert 1 <= len(patient.rogue.asked("/health")) - before <= 4


@pytest.fixture
def sick(acme: Launcher, backends: Backends) -> Iterator[tuple[Server, list[Patient], Path]]:
    """A server all of whose backends are down; the page for that."""
    patients = [Patient(backends), Patient(backends)]
    page = backends.directory / "sorry.html"
    page.write_text("<h1>Back soon</h1>")
    urls = [one.url for one in patients]
    both = [{"url": url} for url in urls]
    made = config(*urls, load_balancing={"health_check": CHECKS})
    made["routes"].append({"path": "/shop/*", "type": "proxy", "fallback": str(page), "backends": both})
    server = acme(made)
    server.errors_expected = True
    for one in patients:
        one.status = 503
    wait_until(lambda: server.get("/").status == 503, "all are down", 20)
    yield server, patients, page


def test_when_all_are_down_it_is_503_until_one_is_well(sick: tuple[Server, list[Patient], Path]) -> None:
    server, patients, _ = sick
    with server.connect() as wire:
        got = wire.request("/")
        assert got.status == 503 and int(got.header("Retry-After") or 0) > 0
        served = [one.served for one in patients]
        assert wire.request("/", method="POST", headers=["Content-Length: 0"]).status == 503
        assert [one.served for one in patients] == served, "nobody was asked"
        patients[1].status = 200
        wait_until(lambda: wire.request("/").status == 200, "one is back", 20)


def test_when_all_are_down_there_may_be_a_page(sick: tuple[Server, list[Patient], Path]) -> None:
    server, _, page = sick
    got = wait_until(lambda: (r := server.get("/shop/x")).status == 503 and r, "all are down there too", 20)
    assert got.text == page.read_text()
    assert (got.header("Content-Type") or "").startswith("text/html")
    assert int(got.header("Retry-After") or 0) > 0


def test_failures_of_real_traffic_count(acme: Launcher, backends: Backends) -> None:
    """Without any check: 5xx in a row take a backend out, the last one stays."""
    failing = backends.rogue(default=lambda c: c.send(reply(b"bad", status="500 Bad")) and None)
    well = backends.rogue()
    server = acme(config(failing.url, well.url))
    server.errors_expected = True
    statuses = Counter(server.get(f"/{number}").status for number in range(40))
    assert statuses[500] <= 6 and statuses[200] >= 34, statuses
    alone = acme(config(failing.url))
    alone.errors_expected = True
    assert [alone.get("/").status for _ in range(10)] == [500] * 10


def test_where_all_that_comes_is_posted_a_backend_comes_back_all_the_same(
    acme: Launcher, backends: Backends
) -> None:
    """Without any check, and without a request that could be repeated elsewhere should the trial fail."""
    state = {"status": "500 Bad"}
    patient = backends.rogue(default=lambda c: c.send(reply(b"", status=state["status"])) and None)
    well = backends.rogue()
    server = acme(config(patient.url, well.url), workers=2)
    server.errors_expected = True

    def posted() -> int:
        assert server.get("/", method="POST", headers=["Content-Length: 0"]).status in (200, 500)
        return len(patient.requests)

    def passed_by() -> bool:
        before = posted()
        return [posted() for _ in range(10)] == [before] * 10

    wait_until(passed_by, "its circuit is open", 20)
    state["status"] = "200 OK"
    before = len(patient.requests)
    wait_until(lambda: posted() > before + 1, "it has been tried, and gets its share again", 20)


# ------------------------------------------------------------------- backends that die


def test_nobody_notices_a_kill_minus_nine(acme: Launcher, backends: Backends) -> None:
    """One of two backends dies under load and comes back: no request fails, and it gets its share again."""
    one = backends.gunicorn("scripts.benchmarks.apps:mark")
    two = backends.gunicorn("scripts.benchmarks.apps:mark")
    checks = {**CHECKS, "path": "/"}
    server = acme(config(one.url, two.url, load_balancing={"health_check": checks}), workers=2)
    server.errors_expected = True
    with under_load(server) as outcome:
        wait_until(lambda: len(outcome.by_worker) == 2, "both serve")
        for _ in range(2):
            known = set(outcome.by_worker)
            one.kill()
            more_answers(outcome, 300)
            one.start()
            wait_until(lambda known=known: set(outcome.by_worker) - known, "it is back", 30)
            more_answers(outcome, 100)
    nothing_lost(outcome)


# ------------------------------------------------------------------- draining


@pytest.fixture
def pair(acme: Launcher, backends: Backends) -> tuple[Server, Patient, Patient]:
    one, two = Patient(backends), Patient(backends)
    return acme(config(one.url, two.url), workers=2), one, two


def hold(server: Server, one: Patient, other: Patient) -> tuple[str, Wire]:
    """A request that `one` has in hand: its target, and the client's connection."""
    for number in range(10):
        target = f"/script/stalls?{number}"
        wire = server.connect().send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wait_until(lambda: one.rogue.asked(target) or other.rogue.asked(target), "one of them is asked")  # noqa: B023
        if one.rogue.asked(target):
            return target, wire
        other.rogue.release(target)
        assert wire.reply().status == 200
        wire.close()
    raise AssertionError("it is never asked")


def test_who_is_drained_gets_nothing_new_and_ends_what_it_has(pair: tuple[Server, Patient, Patient]) -> None:
    server, one, two = pair
    target, wire = hold(server, one, two)
    assert server.order("drain", {"url": one.url, "undo": False})["ok"]
    before = one.served
    for _ in range(5):
        ask(server, 10)
    assert one.served == before
    one.rogue.release(target)
    assert wire.reply().text == target
    wire.close()
    assert server.order("drain", {"url": one.url, "undo": True})["ok"]
    wait_until(lambda: used(server, one), "it is asked again")


def test_draining_the_unknown_is_an_error(pair: tuple[Server, Patient, Patient]) -> None:
    server, *_ = pair
    assert not server.order("drain", {"url": "http://127.0.0.1:1", "undo": False})["ok"]
    ask(server, 10)


def test_a_backend_that_leaves_the_list_ends_what_it_has(pair: tuple[Server, Patient, Patient]) -> None:
    server, one, two = pair
    target, wire = hold(server, one, two)
    server.configure(config(two.url))
    assert server.order("reload")["ok"]
    before = one.served
    ask(server, 20)
    assert one.served == before
    one.rogue.release(target)
    assert wire.reply().text == target
    wire.close()


def test_a_backend_that_joins_gets_its_share_at_once(
    pair: tuple[Server, Patient, Patient], backends: Backends
) -> None:
    server, one, two = pair
    three = Patient(backends)
    server.configure(config(one.url, two.url, three.url))
    assert server.order("reload")["ok"]
    before = three.served
    ask(server, 30)
    # The first may still be a worker's that is on its way out with the old list.
    assert 8 <= three.served - before <= 10
