"""What a worker tells when it is asked where it stands, and what its arbiter makes of it."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from acme_wsgi import stacks
from acme_wsgi.http.writer import Response
from acme_wsgi.stacks import Answer, Reporter, Stack, Stacks, frames_of, parse, place
from tests.unit.engine_harness import OK, Rig, in_engine

STDLIB = sysconfig.get_path("stdlib")
OURS = str(Path(stacks.__file__).parent)

# -- the answer, taken apart


THREADS = """Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f02 (most recent call first):
  File "/srv/my shop/views.py", line 42 in <listcomp>
  File "/srv/my shop/app.py", line 7 in app"""


def said(**changes: Any) -> str:
    line = {"acme": "running", "frames": [["a.py", 1, "f"]], "more": 0, "requests": [], "count": 1}
    return json.dumps(line | changes)


def test_an_answer_of_both_kinds() -> None:
    request = ["GET", "/a", None, "id", 0.5]
    text = "\n".join(
        [THREADS, said(requests=[request]), said(acme="waiting"), said(acme="end", left_out=3), ""]
    )
    found = parse(text)
    assert found.threads == THREADS and found.whole and found.left_out == 3
    assert found.doing is not None and str(found.doing) == "GET /a"
    assert found.frames == (("a.py", 1, "f"),)
    assert found.handler() == 'GET /a, request id, 0.5 s:\n  File "a.py", line 1 in f'
    assert list(found.others()) == [
        'a greenlet without a request:\n  File "a.py", line 1 in f',
        "... and 3 other places",
        THREADS.split("\n\n")[0],
    ]


def test_without_python_code_the_thread_that_runs_is_the_answer() -> None:
    found = parse(THREADS + "\n")
    assert not found.whole and found.doing is None
    assert found.frames[0] == ("/srv/my shop/views.py", 42, "<listcomp>")
    assert found.handler().startswith("Current thread") and "threading.py" not in found.handler()


def test_nothing() -> None:
    assert parse("") == Answer() and Answer().handler() == "" and place(Answer().frames) == ""


@pytest.mark.parametrize(
    "line",
    [
        said()[:-9],
        said(acme=[]),
        said(frames=None),
        said(frames=[["a.py", "x", "f"]]),
        said(frames=[[1]]),
        said(more="inf"),
        said(more=float("inf")),
        said(count={}),
        said(requests=7),
        said(requests=[[1, 2, 3]]),
        said(requests=[["GET", "/", None, "id", "long"]]),
        '{"acme": "running"}',
        '{"acme": ' + "[" * 100_000,
        '{"acme": "end", "left_out": 1e999}',
        '{"acme": "the devil"}',
    ],
)
def test_what_is_not_in_order_leaves_the_threads(line: str) -> None:
    assert parse(f"{THREADS}\n{line}\n") == Answer(THREADS)


def test_what_is_too_much_is_cut() -> None:
    request = ["G" * 300, "/" * 3000, "r" * 3000, "i" * 3000, 1]
    found = parse(said(frames=[["f" * 9000, 1, "n" * 9000]] * 1000, requests=[request] * 1000))
    assert found.running is not None
    assert len(found.running.frames) == 60 and len(found.running.requests) == 10
    assert len(found.running.head()) < 2000 and len(found.handler()) < 100_000


def test_those_at_one_place_are_told_together() -> None:
    doing = stacks.Doing("GET", "/a", None, "x1", 2.0)
    stack = Stack((("a.py", 3, "wait"),), more=2, requests=(doing, doing), count=40)
    assert stack.head() == "40 greenlets (GET /a, request x1, 2.0 s; GET /a, request x1, 2.0 s; 38 more):"
    assert stack.lines() == ['  File "a.py", line 3 in wait', "  ... 2 more"]


# -- where that is


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["/srv/shop.py"], "/srv/shop.py:1 in f1"),
        (["shop.py"], "shop.py:1 in f1"),
        ([f"{STDLIB}/re/__init__.py", "/srv/shop.py"], "/srv/shop.py:2 in f2, now in re/__init__.py:1"),
        (
            ["/venv/lib/python3.11/site-packages/orm/query.py", "/srv/shop.py"],
            "/srv/shop.py:2 in f2, now in orm/query.py:1",
        ),
        # The application itself is installed.
        (
            [f"{STDLIB}/json/decoder.py", "/usr/lib/python3/dist-packages/shop/views.py", f"{OURS}/x.py"],
            "shop/views.py:2 in f2, now in json/decoder.py:1",
        ),
        (
            ["/v/site-packages/gevent/hub.py", f"{STDLIB}/socket.py", "/v/site-packages/orm/query.py"],
            "orm/query.py:3 in f3, now in gevent/hub.py:1",
        ),
        (["/v/site-packages/gevent/hub.py"], "gevent/hub.py:1 in f1"),
        ([f"{OURS}/handlers/function.py", f"{STDLIB}/x.py"], "acme_wsgi/handlers/function.py:1 in f1"),
        (["<frozen importlib._bootstrap>", "/srv/shop.py"], None),
        ([f"{Path.cwd()}/shop/a.py"], "shop/a.py:1 in f1"),
        ([], ""),
    ],
)
def test_the_applications_own_line_comes_first(files: list[str], told: str | None) -> None:
    frames = [(file, number, f"f{number}") for number, file in enumerate(files, 1)]
    told = "/srv/shop.py:2 in f2, now in <frozen importlib._bootstrap>:1" if told is None else told
    assert place(frames) == told


def test_frames_of_a_thread() -> None:
    text = '  File "/a "b".py", line 12 in <module>\n  ...\n  File "c.py", line ??? in ???\nx'
    assert frames_of(text) == (('/a "b".py', 12, "<module>"),)


# -- the worker's side, with a real engine and real greenlets


class Asked:
    """A reporter in this process, and the file that it writes to."""

    def __init__(self, rig: Rig, route_of: Callable[[Any], str | None], timeout: float = 60.0) -> None:
        self.file = Stacks("test")
        self.reporter = Reporter(self.file.file, rig.slot, timeout)
        self.reporter.install()
        self.reporter.know(rig.engine, route_of)

    def here(self) -> Answer:
        """Ask for where this line stands."""
        self.file.ask(os.getpid())
        return self.file.read()


def handle(rig: Rig, work: Callable[[Any], Any]) -> Any:
    """What a handler's `work` returned."""
    kept: list[Any] = []

    def dispatch(request: Any) -> Response:
        kept.append(work(request))
        return Response(OK, [], b"")

    rig.dispatch = dispatch
    with rig.connect() as wire:
        assert wire.request("/find?q=%41").status == 200
    return kept[0]


@in_engine()
def test_a_handler_is_told_with_its_request_and_its_line(rig: Rig) -> None:
    asked = Asked(rig, lambda request: "route of " + request.path)
    seen: list[str] = []

    def search(request: Any) -> Answer:
        seen.append(request.request_id)
        return asked.here()

    found = handle(rig, search)
    assert found.whole and found.waiting == () and found.left_out == 0
    doing = found.doing
    assert doing is not None and 0 <= doing.seconds < 30
    assert (doing.method, doing.target, doing.route) == ("GET", "/find?q=%41", "route of /find")
    assert doing.request_id == seen[0]
    names = [name for _, _, name in found.frames]
    assert names[names.index("here") :][:3] == ["here", "search", "dispatch"]
    assert "test_stacks.py" in found.threads and "Current thread" in found.threads


@in_engine()
def test_past_the_timeout_all_greenlets_are_told(rig: Rig) -> None:
    import gevent
    from gevent.event import Event

    asked = Asked(rig, lambda request: None, timeout=0.0)
    go = Event()

    def wait_for_it() -> None:
        go.wait()

    def dispatch(request: Any) -> Response:
        wait_for_it()
        return Response(OK, [], b"")

    rig.dispatch = dispatch
    clients = [rig.connect().send(b"GET /w%d HTTP/1.1\r\nHost: a\r\n\r\n" % number) for number in range(12)]
    own = gevent.spawn(wait_for_it)
    rig.until(lambda: len(rig.engine.running()) == 12 and own.started, "all wait")
    found = asked.here()
    assert found.whole and found.running is not None and found.doing is None
    places = {stack.count: stack for stack in found.waiting if "wait_for_it" in str(stack.frames)}
    assert set(places) == {1, 12}
    assert [doing.target for doing in places[12].requests] == [f"/w{number}" for number in range(10)]
    assert places[1].requests == ()
    assert "2 more" in places[12].head()
    go.set()
    for wire in clients:
        assert wire.reply().status == 200
        wire.close()
    own.join()


@in_engine()
def test_a_report_is_bounded(rig: Rig) -> None:
    from greenlet import greenlet

    asked = Asked(rig, lambda request: None, timeout=0.0)
    hub = greenlet.getcurrent()

    def sink(levels: int) -> Any:
        return sink(levels - 1) if levels else hub.switch()

    waiting = [greenlet(sink) for _ in range(300)]
    for number, one in enumerate(waiting):
        one.switch(number)

    def deep(levels: int) -> Answer:
        return deep(levels - 1) if levels else asked.here()

    found = deep(100)
    assert found.running is not None and len(found.running.frames) == 60 and found.running.more > 40
    assert found.whole and 0 < len(found.waiting) <= 200
    assert len(found.waiting) + found.left_out >= 300
    assert os.fstat(asked.file.file.fileno()).st_size < 400 * 1024
    for one in waiting:
        one.switch()


@in_engine()
def test_a_report_that_fails_harms_nobody(rig: Rig) -> None:
    def broken(request: Any) -> str:
        raise LookupError("no route")

    asked = Asked(rig, broken)
    found = handle(rig, lambda request: asked.here())
    assert "the report failed: LookupError('no route')" in found.threads
    assert not found.whole and place(found.frames)


@in_engine()
def test_a_standstill_in_the_routes_expressions_is_not_walked_into_again(rig: Rig) -> None:
    asked = Asked(rig, lambda request: "asked")

    def report(file: str) -> Any:
        code = SimpleNamespace(co_filename=file, co_name="_regex_matches")
        frame = SimpleNamespace(f_code=code, f_lineno=9, f_back=None)
        return parse("".join(asked.reporter._report(cast(Any, frame)))).doing

    assert handle(rig, lambda request: report(f"{OURS}/routing.py")).route is None
    assert handle(rig, lambda request: report("/srv/shop.py")).route == "asked"


@in_engine()
def test_before_there_is_an_engine_the_line_is_told(rig: Rig) -> None:
    asked = Asked(rig, lambda request: None)
    asked.reporter._engine = None
    found = asked.here()
    assert found.whole and found.doing is None and found.frames


def test_a_line_number_that_is_none_is_no_reason_to_fail() -> None:
    assert frames_of(f'  File "x", line {"1" * 5000} in f\n  File "y", line 2 in g') == (("y", 2, "g"),)
