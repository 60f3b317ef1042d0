"""More work than there is room for: what fits is answered in time, the rest is turned away in order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.apps import HELLO
from scripts.benchmarks.load import wrk
from scripts.benchmarks.open_loop import Offer, OpenLoop, percentile
from tests.server import Launcher, Server, wait_until
from tests.wire import Reply, Wire

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

SPIN = "from scripts.benchmarks.apps import spin as app\n"
SLEEP = "from scripts.benchmarks.apps import sleep as app\n"


def serve(acme: Launcher, source: str, **keys: Any) -> Server:
    return acme({"server": keys}, app="shop:app", files={"shop.py": source})


def offer(server: Server, rate: float, seconds: float) -> Offer:
    loop = OpenLoop((server.host, server.port), HELLO, limit=2000)
    try:
        return loop.offer(rate, seconds, settle=1.0)
    finally:
        loop.close()


def begin(server: Server, seconds: float) -> Wire:
    """A request that takes so long, on a connection of its own."""
    return server.connect().send(f"GET /?{seconds} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


def worker(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.status()["workers"][0]
    return found


def shed(reply: Reply) -> bool:
    """Turned away in order: the client is told when to come back."""
    assert reply.status in (200, 503), reply
    return reply.status == 503 and int(reply.header("Retry-After") or 0) >= 1


def test_ten_times_more_than_a_busy_worker_can_do(acme: Launcher) -> None:
    server = serve(acme, SPIN, queue_timeout="0.3s")
    capacity = wrk(f"{server.url}/", None, seconds=1, connections=8).rate
    over = offer(server, 10 * capacity, 3)
    assert dict(over.failures) == {}, "everybody got an answer"
    assert over.due == len(over.good) + len(over.shed)
    assert over.goodput > capacity / 3, "it goes on working (the generator needs the processor as well)"
    assert len(over.shed) > over.due / 2
    slowest = percentile(over.good, 0.99)
    assert slowest is not None and slowest < 0.3 + 1, "whoever is let in does not wait for long"
    calm = offer(server, capacity / 3, 1)
    assert len(calm.good) == calm.due, "afterwards all is as before"


def test_ten_times_more_than_may_run_at_the_same_time(acme: Launcher) -> None:
    source = "from scripts.benchmarks.apps import wait as app\n"
    server = serve(acme, source, max_concurrency=5, queue_timeout="0.3s")
    over = offer(server, 1000, 2)  # five times 20 a second can be done
    assert dict(over.failures) == {}
    assert over.due == len(over.good) + len(over.shed) == 2000
    assert 50 < over.goodput <= 101
    slowest = percentile(over.good, 0.99)
    assert slowest is not None and slowest < 0.3 + 0.05 + 1


def test_so_many_run_so_many_wait_and_the_others_are_turned_away(acme: Launcher) -> None:
    server = serve(acme, SLEEP, max_concurrency=5, queue_size=10, queue_timeout="10s")
    running = [begin(server, 1.5) for _ in range(5)]
    wait_until(lambda: worker(server)["in_flight"] == 5, "five are running")
    waiting = [begin(server, 0) for _ in range(10)]
    wait_until(lambda: worker(server)["queued"] == 10, "ten are waiting")
    turned_away = [begin(server, 0) for _ in range(7)]
    assert all(shed(wire.reply()) for wire in turned_away)
    assert worker(server)["queued"] == 10, "they were turned away at once"
    assert [wire.reply().status for wire in running + waiting] == [200] * 15
    for wire in running + waiting + turned_away:
        wire.close()


def test_never_more_than_max_concurrency_run(acme: Launcher) -> None:
    source = (
        "import time\n"
        "now = most = 0\n"
        "def app(environ, start_response):\n"
        "    global now, most\n"
        "    now += 1\n"
        "    most = max(most, now)\n"
        "    time.sleep(0.02)\n"
        "    now -= 1\n"
        "    start_response('200 OK', [])\n"
        "    return [b'%d' % most]\n"
    )
    server = serve(acme, source, max_concurrency=3)
    wires = [begin(server, 0) for _ in range(40)]
    seen = Counter(wire.reply().text for wire in wires)
    assert max(seen) == "3" and sum(seen.values()) == 40
    for wire in wires:
        wire.close()


def test_whoever_waits_longer_than_queue_timeout_is_turned_away(acme: Launcher) -> None:
    server = serve(acme, SLEEP, max_concurrency=1, queue_timeout="0.3s")
    with begin(server, 2) as running:
        wait_until(lambda: worker(server)["in_flight"] == 1, "one is running")
        with begin(server, 0) as waiting:
            assert waiting.silent(0.2), "for so long there is hope"
            assert shed(waiting.reply())
        assert running.silent(0.2), "it was turned away before its turn"
        assert running.reply().status == 200


def test_who_leaves_while_waiting_is_not_served(acme: Launcher, tmp_path: Path) -> None:
    served = tmp_path / "served"
    source = (
        "import time\n"
        "def app(environ, start_response):\n"
        f"    with open({str(served)!r}, 'a') as file:\n"
        "        file.write(environ['QUERY_STRING'] + '\\n')\n"
        "    time.sleep(float(environ['QUERY_STRING']))\n"
        "    start_response('200 OK', [])\n"
        "    return [b'done']\n"
    )
    server = serve(acme, source, max_concurrency=1)
    with begin(server, 1) as running:
        wait_until(lambda: worker(server)["in_flight"] == 1, "one is running")
        leaver, stayer = begin(server, 0.01), begin(server, 0.02)
        wait_until(lambda: worker(server)["queued"] == 2, "two are waiting")
        leaver.close()
        wait_until(lambda: worker(server)["queued"] == 1, "it is gone from the queue")
        assert running.reply().status == 200
        assert stayer.reply().text == "done"
        stayer.close()
    assert served.read_text().split() == ["1", "0.02"]


def test_a_stop_answers_those_who_wait(acme: Launcher) -> None:
    server = serve(acme, SLEEP, max_concurrency=1, queue_timeout="10s")
    with begin(server, 1) as running:
        wait_until(lambda: worker(server)["in_flight"] == 1, "one is running")
        with begin(server, 0) as waiting:
            wait_until(lambda: worker(server)["queued"] == 1, "one is waiting")
            server.stop()
            assert running.reply().status == 200
            reply = waiting.reply()
            assert reply.status == 200 or shed(reply)
