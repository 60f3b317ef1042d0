"""The proxy before backends that break every rule: the right answer, and nobody ever gets another's bytes.

Each row of tests/misbehaviours.py is one test: a request meets the misbehaviour; then the same client
connection is used again, then a dozen requests ask for their own targets. One server, one worker, one backend
for all rows: what one row leaves behind in the pool is met by the next.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.backends import Backends, closing_all
from tests.conversation import Conversation, Request
from tests.misbehaviours import CASES, CUT, HASTY, OWN, Case
from tests.rogue import Rogue, reply
from tests.server import Launcher, Server, wait_until
from tests.wire import Reply, Wire

pytestmark = pytest.mark.slow

FOLLOWING = 12
LIMITS = {"timeout": "20s", "max_body_size": "100MB"}
ALONE = {"health_check": {"enabled": False}}
"""Nobody but the test speaks to the backends."""

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def rogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rogue]:
    with closing_all(Backends(tmp_path_factory.mktemp("rogue"))) as backends:
        yield backends.rogue({case.name: case.script for case in CASES})


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, rogue: Rogue) -> Iterator[Server]:
    launcher = Launcher(tmp_path_factory.mktemp("proxy"))
    hasty = {"proxy_read_timeout": "1500ms", "proxy_write_timeout": "1500ms"}
    try:
        server = launcher(
            {
                "server": LIMITS,
                "load_balancing": ALONE,
                "routes": [
                    {"path": "/*", "type": "proxy", "backend": rogue.url},
                    {"path": f"{HASTY}/*", "type": "proxy", "backend": rogue.url, **hasty},
                ],
            }
        )
        workers = server.worker_pids()
        yield server
        assert server.worker_pids() == workers, "a worker was lost"
        wait_until(lambda: len(rogue.open) <= FOLLOWING, f"{len(rogue.open)} connections left open")
        assert "Traceback" not in server.stderr, server.stderr
        server.errors_expected = True  # it may well complain of such a backend
        launcher.finish()
    finally:
        launcher.kill()


# ------------------------------------------------------------------- a client that looks closely


@dataclass(frozen=True)
class Seen:
    """What a client got: the head, the interim ones before, and the body, if that came to its end."""

    head: Reply
    interims: tuple[Reply, ...]
    body: bytes | None

    @property
    def outcome(self) -> int:
        return CUT if self.body is None else self.head.status

    @property
    def closes(self) -> bool:
        return (self.head.header("Connection") or "").lower() == "close"


def observe(wire: Wire, method: str = "GET", at_head: Callable[[], object] = lambda: None) -> Seen:
    """Take one response; `at_head` is called when its head is here. A body cut off is no error."""
    interims = []
    while (head := wire.reply(head=True)).status < 200 and head.status != 101:
        interims.append(head)
    at_head()
    if method == "HEAD":
        return Seen(head, tuple(interims), b"")
    try:
        body: bytes | None = wire.body(head)
    except (AssertionError, ConnectionError):
        body = None
    return Seen(head, tuple(interims), body)


def upload(wire: Wire, size: int) -> threading.Thread:
    """Send so many bytes beside; whoever refuses them may close."""

    def send() -> None:
        piece = bytes(1 << 16)
        with contextlib.suppress(OSError):
            for _ in range(size // len(piece)):
                wire.send(piece)
            wire.send(bytes(size % len(piece)))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def own_answers(proxy: Server, count: int = FOLLOWING) -> None:
    """So many requests, each with its own answer."""
    with proxy.connect() as wire:
        for _ in range(count):
            own_answer(wire)


def own_answer(wire: Wire, method: str = "GET") -> Reply:
    target = f"/own/{next(numbers)}"
    body = ["Content-Length: 0"] if method == "POST" else []
    got = wire.request(target, method=method, headers=body)
    assert (got.status, got.text) == (200, target)
    return got


def connections(rogue: Rogue, requests: list[Request]) -> list[Conversation]:
    """Those on which these requests came."""
    return [rogue.connections[number - 1] for number in sorted({one.connection for one in requests})]


# ------------------------------------------------------------------- the table


def meet(wire: Wire, rogue: Rogue, case: Case, target: str) -> Seen:
    """Ask for the misbehaviour and take what comes of it."""
    wire.send(case.request(target))
    sending = upload(wire, case.upload)
    seen = observe(wire, case.method, lambda: rogue.release(case.name))
    rogue.release("seen")
    sending.join(10)
    return seen


def check_body(case: Case, seen: Seen) -> None:
    """What came whole and not from the proxy itself is the backend's body, and nothing else."""
    if seen.outcome in (200, 413, 418, 500, 503, 599) and case.body is not None:
        assert seen.body == case.body
    elif seen.outcome == 502 and case.name == "502":
        assert seen.body == OWN
    elif seen.outcome in (204, 304):
        assert seen.body == b""


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_misbehaviour(proxy: Server, rogue: Rogue, case: Case) -> None:
    target = f"{case.route}/script/{case.name}?{next(numbers)}"
    with proxy.connect() as wire:
        seen = meet(wire, rogue, case, target)
        assert seen.outcome in case.outcomes, seen
        check_body(case, seen)
        if case.minor == 0:
            assert not seen.interims, "HTTP/1.0 knows no interim responses"
        if seen.outcome == CUT:
            wire.rest()  # which fails when the connection stays open
        elif case.stays:
            assert not seen.closes
            own_answer(wire)
    asked = rogue.asked(target)
    assert case.tries[0] <= len(asked) <= case.tries[1], "how often the backend was asked"
    before = len(rogue.requests)
    own_answers(proxy)
    later = {one.connection for one in rogue.requests[before:]}
    culprits = connections(rogue, asked)
    if case.reused is True:
        assert later & {one.number for one in culprits}, "the connection was good for more"
    elif case.reused is False:
        assert not later & {one.number for one in culprits}, "a spoilt connection is used again"
        wait_until(lambda: all(one.ended.is_set() for one in culprits), "the proxy closes its connection")


def test_there_are_forty_ways_at_least() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 40


def test_hints_reach_a_client_that_knows_them(proxy: Server, rogue: Rogue) -> None:
    with proxy.connect() as wire:
        wire.send(b"GET /script/hint-first HTTP/1.1\r\nHost: a\r\n\r\n")
        seen = observe(wire)
    hints = [one for one in seen.interims if one.status == 103]
    assert [one.header("Link") for one in hints] == ["</a.css>; rel=preload"]
    assert seen.body == OWN


@pytest.mark.parametrize("name", ["obs-fold", "status-999", "two-lengths", "closes-in-head"])
def test_nothing_of_a_bad_response_is_shown(proxy: Server, name: str) -> None:
    """The 502 is the server's own, in its own form."""
    got = proxy.get(f"/script/{name}")
    assert got.status == 502
    assert got.header("Content-Type") == "application/json"
    assert OWN not in got.body and got.header("X-Folded") is None
    assert '"status": 502' in got.text or '"status":502' in got.text


# ------------------------------------------------------------------- idle connections


UNSOLICITED = {
    "response": reply(b"not asked for"),
    "timeout": reply(b"", "Connection: close", status="408 Request Timeout"),
    "garbage": b"\0\xff garbage",
    "line-end": b"\r\n",
    "part": b"HTTP/1.1 200 OK\r\n",
}


@pytest.mark.parametrize("data", UNSOLICITED.values(), ids=UNSOLICITED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_bytes_on_an_idle_connection_end_it(proxy: Server, rogue: Rogue, data: bytes, method: str) -> None:
    with proxy.connect() as wire:
        own_answer(wire)
        idle = list(rogue.open)
        for one in idle:
            with contextlib.suppress(OSError):  # the pool may have let one go just now
                one.send(data)
        wait_until(lambda: all(one.ended.is_set() for one in idle), "the proxy drops them")
        own_answer(wire, method)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_connection_that_ended_while_idle_is_not_used(
    proxy: Server, rogue: Rogue, how: str, method: str
) -> None:
    with proxy.connect() as wire:
        own_answer(wire)
        idle = list(rogue.open)
        for one in idle:
            one.disconnect(reset=how == "reset")
        wait_until(lambda: all(one.ended.is_set() for one in idle), "they end")
        own_answer(wire, method)


# ------------------------------------------------------------------- all at once


def test_the_pool_stays_clean_in_a_storm(proxy: Server, rogue: Rogue) -> None:
    """Eight clients: misbehaviours, and requests that must get their own answers, in any order."""
    quick = [
        case
        for case in CASES
        if case.method in ("GET", "HEAD") and not case.route and "when-reused" not in case.name
    ]

    def client(seed: int) -> int:
        choice, wire = random.Random(seed), proxy.connect()
        answered = 0
        for _ in range(40):
            case = choice.choice(quick)
            if choice.random() < 0.5:
                own_answer(wire)
                answered += 1
                continue
            seen = meet(wire, rogue, case, f"/script/{case.name}?{next(numbers)}")
            # A script that waited for its client once waits no more: its cut may come before a head.
            early = (502,) if CUT in case.outcomes else ()
            assert seen.outcome in (*case.outcomes, *early), (case.name, seen)
            check_body(case, seen)
            if seen.outcome == CUT or seen.closes:
                wire.close()
                wire = proxy.connect()
        wire.close()
        return answered

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) > 100
    own_answers(proxy)


# ------------------------------------------------------------------- connecting, and other backends


def balanced(acme: Launcher, *urls: str, **route: Any) -> Server:
    """A server before these backends, one worker."""
    server = acme(
        {
            "server": LIMITS,
            "load_balancing": ALONE,
            "routes": [{"path": "/*", "type": "proxy", "backends": [{"url": url} for url in urls], **route}],
        }
    )
    server.errors_expected = True
    return server


def test_a_refused_connection_is_a_502(acme: Launcher, backends: Backends) -> None:
    refusing = backends.refusing()
    proxy = balanced(acme, refusing.url)
    with proxy.connect() as wire:
        for method in ("GET", "POST"):
            assert wire.request("/", method=method, headers=["Content-Length: 0"]).status == 502
        refusing.start()
        own_answer(wire)


def test_a_connection_that_never_comes_to_be_is_a_504(acme: Launcher, backends: Backends) -> None:
    proxy = balanced(acme, backends.unreachable().url, proxy_connect_timeout="300ms")
    with proxy.connect() as wire:
        assert wire.request("/").status == 504
        assert wire.request("/").status == 504


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_backend_is_asked_when_one_cannot_be_reached(
    acme: Launcher, backends: Backends, method: str
) -> None:
    """Nothing has been sent, so a POST may go to another as well."""
    good = backends.rogue()
    proxy = balanced(acme, backends.refusing().url, good.url)
    with proxy.connect() as wire:
        for _ in range(FOLLOWING):
            own_answer(wire, method)
    assert len(good.requests) == FOLLOWING


def test_another_backend_is_asked_when_connecting_takes_too_long(acme: Launcher, backends: Backends) -> None:
    good = backends.rogue()
    proxy = balanced(acme, backends.unreachable().url, good.url, proxy_connect_timeout="300ms")
    with proxy.connect() as wire:
        for _ in range(4):
            own_answer(wire)


@pytest.mark.parametrize("end", [Conversation.close, Conversation.reset], ids=["close", "reset"])
def test_an_idempotent_request_is_put_to_another_backend(
    acme: Launcher, backends: Backends, end: Callable[[Conversation], None]
) -> None:
    bad, good = backends.rogue(default=end), backends.rogue()
    proxy = balanced(acme, bad.url, good.url)
    with proxy.connect() as wire:
        for _ in range(FOLLOWING):
            own_answer(wire)
    assert bad.requests, "it was never asked"
    assert len(good.requests) == FOLLOWING


def test_a_post_is_never_put_twice(acme: Launcher, backends: Backends) -> None:
    """Each either has its answer or a 502; both backends together have seen it once."""
    bad, good = backends.rogue(default=Conversation.close), backends.rogue()
    proxy = balanced(acme, bad.url, good.url)
    targets = [f"/post/{number}" for number in range(FOLLOWING)]
    with proxy.connect() as wire:
        statuses = [
            wire.request(target, method="POST", headers=["Content-Length: 0"]).status for target in targets
        ]
    assert set(statuses) <= {200, 502} and 502 in statuses and 200 in statuses
    seen = sorted(one.target for one in (*bad.requests, *good.requests))
    assert seen == sorted(targets)


def test_three_tries_and_no_more(acme: Launcher, backends: Backends) -> None:
    """With five backends that all close, three are asked, each once."""
    bad = [backends.rogue(default=Conversation.close) for _ in range(5)]
    proxy = balanced(acme, *(one.url for one in bad))
    assert proxy.get("/first").status == 502
    assert sorted(len(one.requests) for one in bad) == [0, 0, 1, 1, 1]


def test_a_banner_before_the_request_is_a_502(acme: Launcher, backends: Backends) -> None:
    def banner(c: Conversation) -> None:
        c.send(b"220 mail.example ESMTP\r\n")

    proxy = balanced(acme, backends.rogue(on_connect=banner).url)
    with proxy.connect() as wire:
        assert wire.request("/").status == 502
        assert wire.request("/").status == 502


def test_a_client_that_leaves_takes_the_request_with_it(proxy: Server, rogue: Rogue) -> None:
    """The backend's connection is closed, not kept until the answer comes some day."""
    target = f"/script/mute?{next(numbers)}"
    with proxy.connect() as wire:
        wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        asked = wait_until(lambda: rogue.asked(target), "the backend is asked")
    wait_until(lambda: all(one.ended.is_set() for one in connections(rogue, asked)), "and left")
    own_answers(proxy)
