"""Workers that are replaced because they have worked long enough or hold too much: nobody notices."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.load import MARK, more_answers, nothing_lost, under_load
from tests.server import Launcher, Server, wait_until

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

_TOLD = re.compile(r"has answered (\d+) requests: it is replaced")


def serve(acme: Launcher, *, workers: int = 2, **keys: Any) -> Server:
    return acme({"server": keys}, app="shop:app", workers=workers, files={"shop.py": MARK})


def answered(server: Server) -> list[int]:
    """How many requests each worker had answered when it was replaced."""
    return [int(count) for count in _TOLD.findall(server.stderr)]


def test_recycling_under_load_loses_nothing(acme: Launcher) -> None:
    server = serve(acme, max_requests=100, max_requests_jitter=100)
    with under_load(server) as outcome:
        wait_until(lambda: len(answered(server)) >= 8, f"workers are replaced; failed: {outcome.kinds()}", 30)
        more_answers(outcome)
    nothing_lost(outcome)
    assert min(answered(server)) >= 100
    assert len(outcome.by_worker) >= 8
    status = server.status()
    assert status["pid"] == server.pid and status["generation"] == 1
    wait_until(lambda: len(server.worker_pids()) <= 3, "everybody who was replaced has left")


def test_a_worker_is_replaced_at_its_number_and_not_before(acme: Launcher) -> None:
    server = serve(acme, workers=1, max_requests=30)
    [pid] = server.worker_pids()
    for number in range(29):
        assert server.get(f"/?{number}").text == f"{pid} {number}"
    assert server.worker_pids() == [pid] and answered(server) == []
    server.get("/")
    wait_until(lambda: pid not in server.worker_pids(), "it is replaced")
    assert answered(server) == [30]
    assert server.get("/?9").text == f"{server.worker_pids()[0]} 9"


def test_the_jitter_parts_workers_of_the_same_age(acme: Launcher) -> None:
    """With the same jitter for all, sixteen workers in a row would be replaced at the same number."""
    server = serve(acme, workers=1, max_requests=2, max_requests_jitter=1000)
    for number in range(100):
        server.get(f"/?{number}")
    # A quota of at most 100 has a chance of a tenth, twice in a row of a hundredth.
    assert len(answered(server)) <= 8, "max_requests alone would have replaced them every other request"


def test_whoever_cannot_be_followed_goes_on(acme: Launcher) -> None:
    server = serve(acme, workers=1, max_requests=100)
    server.errors_expected = True
    [pid] = server.worker_pids()
    (server.cwd / "shop.py").write_text("import no_such_module\n")
    with under_load(server) as outcome:
        server.wait_for_log(r"was to follow and cannot start: .*no_such_module")
        more_answers(outcome, 200)
        assert pid in server.worker_pids()
        (server.cwd / "shop.py").write_text(MARK)
        wait_until(lambda: pid not in server.worker_pids(), "a later one can", 30)
        more_answers(outcome)
    nothing_lost(outcome)


GREEDY = (
    "from scripts.benchmarks.apps import mark\n"
    "kept = []\n"
    "def app(environ, start_response):\n"
    "    if environ['PATH_INFO'] == '/grow':\n"
    "        kept.append(b'x' * (150 << 20))\n"
    "    return mark(environ, start_response)\n"
)


def test_a_worker_with_too_much_memory_is_replaced(acme: Launcher) -> None:
    config = {"server": {"max_memory": "120MB"}}
    server = acme(config, app="shop:app", workers=1, files={"shop.py": GREEDY})
    with under_load(server) as outcome:
        [pid] = server.worker_pids()
        assert server.get("/grow").status == 200
        # Memory is looked at every five seconds, and no reason in a worker's first ten.
        server.wait_for_log(r"uses 1\d\d MB of memory: it is replaced", 30)
        wait_until(lambda: pid not in server.worker_pids(), "it has left")
        more_answers(outcome)
    nothing_lost(outcome)
    assert len(outcome.by_worker) == 2, "the new one, which holds little, stays"
