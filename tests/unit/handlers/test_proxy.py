"""What the proxy does about each attempt's outcome: the attempts are the test's own, the choices are real."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeRequest, receive

from acme_wsgi.config.schema.routes import Route
from acme_wsgi.errors import BackendError, BodyError, ClientDisconnected, HTTPError
from acme_wsgi.handlers import Handler, proxy
from acme_wsgi.http.writer import Response
from acme_wsgi.upstream.exchange import Exchange, Lane, Patience
from acme_wsgi.upstream.payload import WHOLE, Payload
from acme_wsgi.upstream.pool import PoolFull
from tests.rogue import Rogue
from tests.unit.engine_harness import Rig, in_engine
from tests.unit.upstream.services import HOSTS, ROUTE, STICKY, THREE, Made, made, urls

Outcome = BaseException | Response
SECOND = 1_000_000_000


def ok() -> Response:
    return Response("200 OK", [("X-From", "backend")], b"hello")


def refused() -> BackendError:
    return BackendError.unreachable("Connection refused")


def no_connection_in_time() -> BackendError:
    return BackendError.slow("it took too long to connect", connecting=True)


def closed() -> BackendError:
    return BackendError.broke_off("it closed the connection without an answer", False)


def cut() -> BackendError:
    return BackendError.broke_off("it closed the connection before its answer was whole", True)


def slow() -> BackendError:
    return BackendError.slow("it took too long to answer")


def nonsense() -> BackendError:
    return BackendError.nonsense("no HTTP")


class Stale(BackendError):
    """In place of a failure of an idle connection."""

    def __init__(self) -> None:
        super().__init__(502, "broke off", "it closed the connection without an answer", retriable=True)


class Attempts:
    """Stands for exchange.Exchange: each attempt's outcome is the next of a list, the last one for ever."""

    def __init__(self, *outcomes: Callable[[], Outcome]) -> None:
        self.outcomes = list(outcomes)
        self.lanes: list[Lane] = []
        self.fresh: list[bool] = []
        self.left = False
        self.until: list[int] = []
        self.cookies: list[str | None] = []
        self.patience: Patience | None = None
        self.payloads: list[Payload] = []

    def __call__(self, lane: Lane, patience: Patience, until_ns: int = 0) -> Any:
        self.patience = patience
        self.until.append(until_ns)
        exchange = SimpleNamespace(lane=lane, until_ns=until_ns or 77, stale=False, left=self.left)

        def run(request: Any, shaper: Any, payload: Payload, fresh: bool = False) -> Response:
            self.lanes.append(lane)
            self.fresh.append(fresh)
            self.payloads.append(payload)
            self.cookies.append(request.environ.get("HTTP_COOKIE"))
            outcome = (self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0])()
            exchange.stale = isinstance(outcome, Stale)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        exchange.run = run
        return exchange

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def asked(self) -> list[str]:
        return [lane.shown for lane in self.lanes]


class Site:
    """A proxy route whose attempts have these outcomes."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        backends: Made,
        *outcomes: Callable[[], Outcome],
        route: int = 0,
    ) -> None:
        self.backends = backends
        self.attempts = Attempts(*outcomes)
        self.slept: list[float] = []
        monkeypatch.setattr(proxy, "Exchange", self.attempts)
        monkeypatch.setattr(proxy, "gevent", SimpleNamespace(sleep=self.slept.append))
        monkeypatch.setattr(proxy, "backoff", lambda attempt: attempt * 100.0)
        self.handler: Handler = proxy.build(backends.config.routes[route], backends.context(route))

    def ask(self, method: str = "GET", body: bytes | None = None, **environ: Any) -> Response:
        request = FakeRequest("/x", method, body=body or b"", **environ)
        if body is None and "CONTENT_LENGTH" not in environ:
            del request.environ["CONTENT_LENGTH"]
        return self.handler(request)

    def error(self, method: str = "GET", body: bytes | None = None, **environ: Any) -> HTTPError:
        with pytest.raises(HTTPError) as caught:
            self.ask(method, body, **environ)
        return caught.value


class Sites:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, *outcomes: Callable[[], Outcome], backends: Made | None = None) -> Site:
        return Site(self._monkeypatch, backends or made(THREE), *outcomes)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Sites:
    """Makes a route over three backends, whose attempts have these outcomes."""
    return Sites(monkeypatch)


def field(response: Response, name: str) -> str | None:
    return receive(response).header(name)


# -- what is tried again ----------------------------------------------------------------------------------

BODIES: dict[str, dict[str, Any]] = {
    "none": {},
    "small": {"body": b"x" * 100},
    "chunks": {"HTTP_TRANSFER_ENCODING": "chunked"},
    "large": {"CONTENT_LENGTH": str(WHOLE + 1)},
    "expected": {"CONTENT_LENGTH": "100", "HTTP_EXPECT": "100-continue"},
}
WHOLE_BODIES = ("none", "small", "chunks")
REPEATABLE = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")

ALWAYS, WHERE_REPEATABLE, NEVER = range(3)
FAILURES = [
    (refused, 502, ALWAYS),
    (no_connection_in_time, 504, ALWAYS),
    (closed, 502, WHERE_REPEATABLE),
    (cut, 502, WHERE_REPEATABLE),
    (Stale, 502, WHERE_REPEATABLE),
    (slow, 504, NEVER),
    (nonsense, 502, NEVER),
]


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("method", [*REPEATABLE, "POST", "PATCH", "REPORT", "get"])
@pytest.mark.parametrize(("failure", "status", "when"), FAILURES)
def test_attempts(
    site: Sites, failure: Callable[[], Outcome], status: int, when: int, method: str, kind: str
) -> None:
    repeatable = method in REPEATABLE and kind in WHOLE_BODIES
    again = when == ALWAYS or (when == WHERE_REPEATABLE and repeatable)
    failing = site(failure)
    assert failing.error(method, **BODIES[kind]).status == status
    assert len(failing.attempts) == (3 if again else 1)
    # That an idle one breaks can happen to a request once.
    assert failing.attempts.fresh == [False, True, True][: len(failing.attempts)]
    if failure is not Stale:
        assert len(set(failing.attempts.asked)) == len(failing.attempts)

    recovering = site(failure, ok)
    if again:
        assert receive(recovering.ask(method, **BODIES[kind])).body == b"hello"
        assert len(recovering.attempts) == 2
        assert recovering.attempts.payloads[0] is recovering.attempts.payloads[1]
    else:
        assert recovering.error(method, **BODIES[kind]).status == status


def test_a_success_is_asked_for_once(site: Sites) -> None:
    here = site(ok)
    response = here.ask()
    assert receive(response).body == b"hello" and field(response, "Set-Cookie") is None
    assert len(here.attempts) == 1 and not here.slept
    assert [here.backends.peer(member).snapshot()["retries"] for member in range(3)] == [0, 0, 0]


def test_a_trace_would_show_the_client_what_is_secret(site: Sites) -> None:
    here = site(ok)
    assert here.error("TRACE").status == 501
    assert not here.attempts.lanes


@pytest.mark.parametrize(
    ("hops", "left"),
    [("3", "2"), ("1", "0"), ("007", "6"), ("1000000000", "254"), ("9" * 5000, "254"), ("x", "x")],
)
def test_options_are_counted_down(site: Sites, hops: str, left: str) -> None:
    here = site(ok)
    request = FakeRequest("/x", "OPTIONS", HTTP_MAX_FORWARDS=hops)
    here.handler(request)
    assert request.environ["HTTP_MAX_FORWARDS"] == left


def test_options_that_may_go_no_further_are_answered_here(site: Sites) -> None:
    here = site(ok)
    assert here.ask("OPTIONS", HTTP_MAX_FORWARDS="0").status == "204 No Content"
    assert not here.attempts.lanes


def test_a_request_that_goes_in_a_circle_ends(site: Sites) -> None:
    here = site(ok)
    here.ask(HTTP_VIA="1.0 fred, 1.1 acme, 1.1 acme")
    assert here.error(HTTP_VIA=", ".join(["1.1 acme"] * 8)).status == 508
    assert len(here.attempts) == 1


def test_a_client_that_leaves_before_the_next_attempt_has_none(site: Sites) -> None:
    here = site(refused)
    here.attempts.left = True
    with pytest.raises(ClientDisconnected):
        here.ask()
    assert len(here.attempts) == 2, "the second goes at once, the third after a pause"


def test_an_error_of_the_backends_own_is_an_answer(site: Sites) -> None:
    here = site(lambda: Response("503 Service Unavailable", [], b"busy"))
    assert receive(here.ask()).status == "503 Service Unavailable"
    assert len(here.attempts) == 1


@pytest.mark.parametrize(
    "error", [PoolFull, lambda: BodyError("cut"), lambda: ClientDisconnected("away"), lambda: ValueError("x")]
)
def test_what_is_no_backends_failure_is_not_tried_again(site: Sites, error: Callable[[], Outcome]) -> None:
    here = site(error)
    with pytest.raises(type(error())):
        here.ask()
    assert len(here.attempts) == 1
    again = site(refused, error)
    with pytest.raises(type(error())):
        again.ask()
    assert len(again.attempts) == 2


def test_the_last_failure_counts(site: Sites) -> None:
    assert site(refused, no_connection_in_time, nonsense).error().message == nonsense().message
    mixed = site(refused, slow)
    assert mixed.error().status == 504 and len(mixed.attempts) == 2


def test_only_the_third_attempt_waits(site: Sites) -> None:
    here = site(refused, ok)
    here.ask()
    assert here.slept == []
    here = site(refused)
    here.error()
    assert here.slept == [200.0]


def test_one_time_limit_holds_over_all_attempts(site: Sites) -> None:
    here = site(refused)
    here.error()
    assert here.attempts.until == [0, 77, 77]


def test_retries_are_counted_where_the_request_failed(site: Sites) -> None:
    here = site(refused)
    here.error()
    counted = {
        here.backends.peer(member).key: here.backends.peer(member).snapshot()["retries"]
        for member in range(3)
    }
    assert [counted[lane.shelf.peer.key] for lane in here.attempts.lanes] == [1, 1, 0]


def test_the_only_backend_is_tried_again(site: Sites) -> None:
    here = site(refused, backends=made(urls(HOSTS[0])))
    assert here.error().status == 502
    assert here.attempts.asked == [HOSTS[0]] * 3
    # Whatever took its time would take it again.
    here = site(no_connection_in_time, backends=made(urls(HOSTS[0])))
    assert here.error().status == 504
    assert len(here.attempts) == 1


def test_where_others_are_down_the_same_one_is_tried_again(site: Sites) -> None:
    backends = made(THREE)
    backends.down(0, 2)
    here = site(refused, ok, backends=backends)
    here.ask()
    assert here.attempts.asked == [HOSTS[1]] * 2


def test_two_backends_are_tried_before_one_is_again(site: Sites) -> None:
    here = site(refused, backends=made(urls(*HOSTS[:2])))
    here.error()
    assert len(set(here.attempts.asked[:2])) == 2 and len(here.attempts) == 3


# -- the budget -------------------------------------------------------------------------------------------


def exhausted(backends: Made) -> Made:
    while backends.balancer().budget.withdraw():
        pass
    return backends


def test_repeating_has_a_budget(site: Sites) -> None:
    here = site(closed, backends=exhausted(made(THREE)))
    assert here.error().status == 502
    assert len(here.attempts) == 1


@pytest.mark.parametrize("failure", [refused, Stale])
def test_what_no_backend_has_seen_costs_nothing_of_it(site: Sites, failure: Callable[[], Outcome]) -> None:
    here = site(failure, ok, backends=exhausted(made(THREE)))
    here.ask()
    assert len(here.attempts) == 2
    fresh = made(THREE)
    site(failure, backends=fresh).error()
    left = 0
    while fresh.balancer().budget.withdraw():
        left += 1
    assert left == 10


def test_retries_add_a_fifth_to_the_load_at_most(site: Sites) -> None:
    here = site(closed)
    for _ in range(200):
        here.error()
    assert 200 + 40 - 1 <= len(here.attempts) <= 200 + 40


# -- an idle connection that breaks -----------------------------------------------------------------------


def test_after_a_stale_connection_another_backend_is_asked(
    site: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    """The first may be dead for all that is known; where visitors stay, its own is asked again."""
    caplog.set_level(logging.DEBUG, "acme.upstream")
    here = site(Stale, ok)
    here.ask()
    assert len(set(here.attempts.asked)) == 2
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_a_stale_connection_moves_no_visitor(site: Sites) -> None:
    backends = made(THREE, STICKY)
    here = site(ok, backends=backends)
    cookie = str(field(here.ask(), "Set-Cookie")).partition(";")[0]
    home = here.attempts.asked
    for _ in range(4):
        here = site(Stale, ok, backends=backends)
        assert field(here.ask(HTTP_COOKIE=cookie), "Set-Cookie") is None
        assert here.attempts.asked == home * 2
    # Then it is really away.
    here = site(Stale, refused, ok, backends=backends)
    assert field(here.ask(HTTP_COOKIE=cookie), "Set-Cookie") is not None
    assert here.attempts.asked[:2] == home * 2 and here.attempts.asked[2] not in home


def test_a_new_visitor_has_his_cookie_after_a_stale_connection(site: Sites) -> None:
    backends = made(THREE, STICKY)
    here = site(Stale, ok, backends=backends)
    cookie = str(field(here.ask(), "Set-Cookie")).partition(";")[0]
    again = site(ok, backends=backends)
    again.ask(HTTP_COOKIE=cookie)
    assert set(again.attempts.asked) == set(here.attempts.asked)


# -- sticky sessions --------------------------------------------------------------------------------------


def test_a_retried_response_has_the_cookie_of_who_answered(site: Sites) -> None:
    backends = made(THREE, STICKY)
    here = site(refused, refused, ok, backends=backends)
    response = here.ask(HTTP_COOKIE="a=b")
    assert field(response, "Cache-Control") == "private"
    cookie = str(field(response, "Set-Cookie")).partition(";")[0]
    again = site(ok, backends=backends)
    again.ask(HTTP_COOKIE=cookie)
    assert again.attempts.asked == here.attempts.asked[2:]
    assert here.attempts.cookies == ["a=b"] * 3 and again.attempts.cookies == [None]


def test_a_failure_sets_no_cookie(site: Sites) -> None:
    backends = made(THREE, STICKY)
    assert not site(nonsense, backends=backends).error().headers
    backends.down(0, 1, 2)
    assert [name for name, _ in site(ok, backends=backends).error().headers] == ["Retry-After"]


def departed(*rest: str) -> tuple[Made, str]:
    """A generation that has lost HOSTS[2], and the cookie of a visitor of that."""
    backends = made(urls(*rest), STICKY, before=(urls(*rest, HOSTS[2]), STICKY))
    (gone,) = backends.group().leaving
    assert gone.shown == HOSTS[2]
    balancer = backends.balancer()
    return backends, balancer._seal({}, len(rest)).partition(";")[0]


def test_a_visitor_of_a_backend_that_has_left_goes_on(site: Sites) -> None:
    backends, cookie = departed(*HOSTS[:2])
    here = site(ok, backends=backends)
    assert field(here.ask(HTTP_COOKIE=cookie), "Set-Cookie") is None
    assert here.attempts.asked == [HOSTS[2]]


@pytest.mark.parametrize("failure", [refused, no_connection_in_time, closed])
def test_and_to_any_other_when_it_fails(site: Sites, failure: Callable[[], Outcome]) -> None:
    backends, cookie = departed(HOSTS[0])
    here = site(failure, ok, backends=backends)
    assert field(here.ask(HTTP_COOKIE=cookie), "Set-Cookie") is not None
    assert here.attempts.asked == [HOSTS[2], HOSTS[0]]


# -- nobody can answer ------------------------------------------------------------------------------------


def test_all_down_is_503_with_retry_after(site: Sites) -> None:
    backends = made(THREE)
    backends.down(0, 1, 2)
    here = site(ok, backends=backends)
    error = here.error()
    assert (error.status, error.headers) == (503, (("Retry-After", "5"),))
    assert "http://" not in error.message and not here.attempts.lanes


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Settings of a route with a page of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sorry.html").write_text("<p>sorry")
    return "routes=[{path: '/*', type: proxy, fallback: sorry.html}]"


def is_the_page(response: Response) -> bool:
    got = receive(response)
    assert got.headers == [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Retry-After", "5"),
    ]
    return (got.status, got.body) == ("503 Service Unavailable", b"<p>sorry")


def test_or_the_routes_own_page(site: Sites, page: str) -> None:
    backends = made(THREE, page)
    backends.down(0, 1, 2)
    here = site(ok, backends=backends)
    first = here.ask()
    assert is_the_page(first)
    assert isinstance(first.headers, list)
    first.headers.append(("X-Changed", "by a layer above"))
    assert is_the_page(here.ask("POST", b"x"))


@pytest.mark.parametrize(("failure", "status", "when"), FAILURES)
def test_the_page_is_for_when_nobody_can_be_reached(
    site: Sites, page: str, failure: Callable[[], Outcome], status: int, when: int
) -> None:
    here = site(failure, backends=made(THREE, page))
    if when == ALWAYS:
        assert is_the_page(here.ask())
        assert len(here.attempts) == 3
    else:
        assert here.error().status == status


def test_the_page_sets_no_cookie(site: Sites, page: str) -> None:
    assert is_the_page(site(refused, backends=made(THREE, page, STICKY)).ask())


def test_a_page_that_cannot_be_read_is_an_error_at_the_start(page: str, tmp_path: Path) -> None:
    backends = made(THREE, page)
    (tmp_path / "sorry.html").unlink()
    with pytest.raises(ValueError, match=r"sorry\.html"):
        proxy.build(backends.config.routes[0], backends.context())


# -- what is logged ---------------------------------------------------------------------------------------


def test_each_failure_is_told_once_without_a_password(site: Sites, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "acme.upstream")
    secret = "http://user:hush@192.0.2.9"
    site(refused, ok, backends=made(urls(secret))).ask()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "backend http://user:***@192.0.2.9: Connection refused (GET /x, request 0123456789abcdef)"
    )


# -- how it is built --------------------------------------------------------------------------------------


def patience_of(site: Sites, *keys: str, server: str = "server.timeout=20s") -> Patience:
    route = ", ".join(["path: '/*'", "type: proxy", *keys])
    here = site(ok, backends=made(THREE, f"routes=[{{{route}}}]", server))
    here.ask()
    assert here.attempts.patience is not None
    return here.attempts.patience


@pytest.mark.parametrize(
    ("keys", "connect", "read", "write", "queue", "total"),
    [
        ([], 20, 20, 20, 20, 0),
        (["timeout: 7s"], 7, 7, 7, 7, 0),
        (["proxy_timeout: 5s"], 5, 5, 5, 5, 5),
        (["proxy_timeout: 5s", "timeout: 7s"], 5, 5, 5, 5, 5),
        (["proxy_connect_timeout: 1s"], 1, 20, 20, 20, 0),
        (["proxy_read_timeout: 2s"], 20, 2, 20, 20, 0),
        (["proxy_write_timeout: 3s"], 20, 20, 3, 20, 0),
        (["proxy_timeout: 5s", "proxy_connect_timeout: 500ms"], 0.5, 5, 5, 5, 5),
    ],
)
def test_time_limits(
    site: Sites, keys: list[str], connect: float, read: float, write: float, queue: float, total: float
) -> None:
    found = patience_of(site, *keys)
    assert [found.connect_ns, found.read_ns, found.write_ns, found.queue_ns, found.total_ns] == [
        seconds * SECOND for seconds in (connect, read, write, queue, total)
    ]


def test_the_engines_clock_does_not_end_it(site: Sites) -> None:
    here = site(ok)
    request = FakeRequest("/")
    here.handler(request)
    assert request.timeout is not None and request.timeout > 1e6


@pytest.mark.parametrize(("keys", "idle"), [("", 75.0), (", proxy_read_timeout: 2s", 2.0)])
def test_how_long_a_tunnel_may_be_idle(site: Sites, keys: str, idle: float) -> None:
    route = f"routes=[{{path: '/*', type: proxy{keys}}}]"
    here = site(ok, backends=made(THREE, route, "server.keep_alive_timeout=75s"))
    here.ask(HTTP_UPGRADE="websocket", HTTP_CONNECTION="Upgrade")
    (payload,) = here.attempts.payloads
    assert payload.upgrade and payload.tunnel_idle == idle


def test_what_a_route_takes_out_of_a_request_has_no_consequences(site: Sites) -> None:
    route = "routes=[{path: '/*', type: proxy, headers: {remove: [expect, Upgrade]}}]"
    here = site(ok, backends=made(THREE, route))
    here.ask(HTTP_UPGRADE="websocket", HTTP_CONNECTION="Upgrade")
    here.ask("POST", b"abc", HTTP_EXPECT="100-continue")
    plain, posted = here.attempts.payloads
    assert not plain.upgrade
    assert not posted.expect and posted.data == b"abc"


def test_a_route_needs_backends() -> None:
    backends = made(THREE)
    route: Route = backends.config.routes[0]
    context = backends.context(route=5)
    with pytest.raises(ValueError, match="needs backends"):
        proxy.build(route, context)


def test_what_stands_in_for_an_attempt_is_like_one() -> None:
    lane = made(THREE, ROUTE).balancer().lanes[0]
    real = Exchange(lane, Patience(1, 1, 1, 1, None))
    assert (real.lane, real.until_ns, real.stale) == (lane, 0, False)
    assert Exchange(lane, Patience(1, 1, 1, 1, 1)).until_ns > 0


# -- with real attempts -----------------------------------------------------------------------------------


def served(rig: Rig, *sets: str) -> Made:
    """The rig's requests go to a proxy route."""
    backends = made(*sets)
    rig.dispatch = proxy.build(backends.config.routes[0], backends.context())
    return backends


def done(rig: Rig, backends: Made) -> None:
    backends.service.stop()
    rig.until(lambda: not backends.service.pool.open, "no connection")


@in_engine()
def test_a_request_that_cannot_be_sent_costs_no_connection(rig: Rig) -> None:
    rewritten = "routes=[{path: '/*', type: proxy, rewrite: {from: '^/static(.*)$', to: '/files/\\1'}}]"
    with Rogue() as rogue:
        backends = served(rig, urls(rogue.url), rewritten)
        with rig.connect() as wire:
            assert wire.request("/static/a").body == b"/files/a"
            for _ in range(3):
                assert wire.request("/static../secret").status == 400
                assert backends.service.pool.open == 1
            assert wire.request("/static/b").body == b"/files/b"
        assert len(rogue.connections) == 1 and [one.target for one in rogue.requests] == [
            "/files/a",
            "/files/b",
        ]
        done(rig, backends)
        assert backends.peer(0).snapshot()["failures"] == backends.peer(0).snapshot()["active"] == 0


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n"
LENGTH = f"Content-Length: {len(SMUGGLED)}"
PIECE = f"\r\n{len(SMUGGLED):x}"

REFUSED = [
    ("POST /a HTTP/1.1", LENGTH, "Transfer-Encoding: chunked"),
    ("POST /a HTTP/1.1", "Transfer-Encoding: chunked, chunked"),
    ("POST /a HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    ("POST /a HTTP/1.1", "Transfer-Encoding: xchunked"),
    ("POST /a HTTP/1.1", "Transfer-Encoding : chunked"),
    ("POST /a HTTP/1.1", "Content-Length: +3"),
    ("POST /a HTTP/1.1", "Content-Length: 3, 3"),
    ("POST /a HTTP/1.1", "Content-Length: 3", LENGTH),
    ("GET /a HTTP/1.1", "X: 1\rY: 2", LENGTH),
    ("GET /a HTTP/1.1", "X: 1", " folded", LENGTH),
    ("GET /a b HTTP/1.1", LENGTH),
]
PASSED_ON = [
    ("POST /a HTTP/1.1", LENGTH),
    ("POST /a HTTP/1.1", "Content_Length: 3", LENGTH),
    ("POST /a HTTP/1.1", "Connection: content-length", LENGTH),
    ("POST /a HTTP/1.1", "Connection: transfer-encoding", "Transfer-Encoding: chunked", PIECE),
    ("GET /a HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c", LENGTH),
    ("GET /a%0d%0a%0d%0aGET%20/smuggled HTTP/1.1", LENGTH),
    ("HEAD /a HTTP/1.1", LENGTH),
    ("GET /a HTTP/1.0", "Connection: keep-alive", LENGTH),
]


@in_engine()
def test_nothing_that_a_client_writes_becomes_a_second_request(rig: Rig) -> None:
    with Rogue() as rogue:
        backends = served(rig, urls(rogue.url))
        for line, *fields in (*REFUSED, *PASSED_ON):
            with rig.connect() as wire:
                head = "\r\n".join([line, "Host: a", *fields, *[""] * (2 - (PIECE in fields))])
                wire.send(head.encode(), SMUGGLED, b"\r\n0\r\n\r\nnonsense\r\n\r\n")
                wire.rest()
        assert len(rogue.requests) == len(PASSED_ON)
        assert {one.target for one in rogue.requests} == {"/a", "/a%0D%0A%0D%0AGET%20/smuggled"}
        assert all(one.body in (b"", SMUGGLED) for one in rogue.requests)
        rogue.check()
        done(rig, backends)
