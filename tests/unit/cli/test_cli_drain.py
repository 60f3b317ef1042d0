"""`acme-server drain`, and the backends that `status` and `stats` show, against a stand-in for the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi.cli import backends, manage
from tests.server import wait_until

Start = Callable[..., subprocess.Popen[bytes]]
Orders = Callable[[], list[Any]]
Output = pytest.CaptureFixture[str]

URL = "http://app1:8000"
DONE = {
    "backends": [URL], "groups": ["backends"], "draining": True, "changed": True, "in_flight": 0,
    "patience": 30.0, "warnings": [],
}  # fmt: skip


# -- drain


def test_a_backend_is_taken_out(arbiter: Start, orders: Orders, capsys: Output) -> None:
    arbiter(drain={**DONE, "in_flight": 3, "warnings": ["the last\x1b[2J one"]})
    assert manage.main(["drain", URL]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{URL} gets no new requests",
        "3 in flight may take 30 s; --wait follows them",
        "warning: the last\\x1b[2J one",
    ]
    assert orders() == [["drain", {"url": URL, "undo": False, "wait": False}]]


@pytest.mark.parametrize(
    ("options", "facts", "line"),
    [
        ([], {"changed": False}, f"{URL} gets no new requests already"),
        (["--undo"], {"draining": False}, f"{URL} takes requests again"),
        (["--undo"], {"draining": False, "changed": False}, f"{URL} was not drained"),
        (["--wait"], {}, f"{URL} is empty: it gets no new requests, and none is in flight"),
    ],
)
def test_how_it_ends(
    arbiter: Start, capsys: Output, options: list[str], facts: dict[str, Any], line: str
) -> None:
    arbiter(drain={**DONE, **facts})
    assert manage.main(["drain", URL, *options]) == 0
    assert capsys.readouterr().out.splitlines() == [line]


def test_who_waits_sees_how_far_it_is(arbiter: Start, orders: Orders, capsys: Output) -> None:
    arbiter(drain={**DONE, "progress": ["2 requests left", "1 request left"]})
    assert manage.main(["drain", "--wait", "--json", URL]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"ok": True, **DONE}
    assert captured.err.splitlines() == ["2 requests left", "1 request left"]
    assert orders() == [["drain", {"url": URL, "undo": False, "wait": True}]]


def test_the_time_is_over(arbiter: Start, capsys: Output) -> None:
    arbiter(drain={**DONE, "in_flight": 1, "error": "1 request still in flight after 30 s"})
    assert manage.main(["drain", URL, "--wait"]) == 1
    assert capsys.readouterr().err == "drained, but 1 request still in flight after 30 s\n"
    assert manage.main(["drain", URL, "--wait", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["in_flight"]) == (False, 1)


def test_one_that_is_not_there(arbiter: Start, capsys: Output) -> None:
    arbiter(drain={"error": "no backend 'http://app2'; did you mean http://app1?"})
    assert manage.main(["drain", "http://app2"]) == 1
    assert capsys.readouterr().err == "no backend 'http://app2'; did you mean http://app1?\n"


def test_no_server(run_dir: Path, capsys: Output) -> None:
    assert manage.main(["drain", URL]) == 1
    assert "no server runs" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], [URL, "--undo", "--wait"], [URL, URL]])
def test_wrong_usage(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        manage.main(["drain", *arguments])
    assert caught.value.code == 2


def test_ctrl_c_ends_the_waiting(arbiter: Start, run_dir: Path) -> None:
    arbiter(drain={"progress": ["1 request left"], "silent": True})
    command = [sys.executable, "-m", "acme_wsgi.cli.manage", "drain", URL, "--wait"]
    root = str(Path(manage.__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "1 request left\n"
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == 130
    wait_until((run_dir / "orders").exists, "the order")


# -- status and stats

MEMBER = {
    "url": URL, "state": "up", "since": 7500.0, "weight": 5, "active": 3, "requests": 1234567, "failures": 2,
    "connections": 4, "connect_errors": 1, "retries": 0, "latency": 0.0042, "last_check": "200",
    "checked": 3.2, "checked_actively": True,
}  # fmt: skip
GROUP = {
    "group": "backends", "algorithm": "least_conn", "sticky": True, "routes": ["/api/*", "/v2/*"],
    "members": [
        MEMBER,
        {**MEMBER, "url": "http://u:***@app2:8000", "state": "down", "since": None, "latency": None,
         "last_check": None, "checked": None, "failures": 0},
        {**MEMBER, "checked_actively": False},
    ],
    "leaving": [{**MEMBER, "weight": None, "state": "leaving", "seconds_left": 12.3}],
}  # fmt: skip


def test_the_table() -> None:
    empty, title, *rows = backends.lines([GROUP], None)
    assert (empty, title) == ("", "backends: least_conn, sticky, for /api/*, /v2/*")
    assert [row.split("  ")[0] for row in rows] == ["backend", URL, "http://u:***@app2:8000", URL, URL]
    assert rows[0].split() == [
        "backend", "state", "since", "weight", "active", "requests", "failures", "latency", "last", "check",
    ]  # fmt: skip
    assert rows[1].split() == [
        URL, "up", "2", "h", "5", "min", "5", "3", "1,234,567", "2", "4.2", "ms", "200,", "3", "s", "ago",
    ]  # fmt: skip
    assert rows[2].split()[1:] == ["down", "-", "5", "3", "1,234,567", "0", "-", "-"]
    assert rows[3].endswith("  off")
    assert "leaving, 12 s left" in rows[4]


def test_a_route_of_its_own_is_named_once() -> None:
    group = {**GROUP, "group": "route /x", "routes": ["/x"], "sticky": False, "leaving": []}
    assert list(backends.lines([group], None))[1] == "route /x: least_conn"


def test_a_narrow_terminal() -> None:
    assert all(len(line) <= 60 for line in backends.lines([GROUP], 60))


@pytest.mark.parametrize(
    "groups",
    [
        None, 5, [], [None], [{}], [{"members": 5, "routes": 7}],
        [{"members": [{"url": "\x1b[2J", "state": ["x"], "weight": True, "latency": "\x1b", "since": "y"}]}],
        [{"leaving": [{"seconds_left": "\x1b[2J"}], "group": 3, "algorithm": None, "sticky": "\x1b"}],
    ],
)  # fmt: skip
def test_whatever_the_server_says_is_shown_without_controls(groups: object) -> None:
    assert all(line.isprintable() for line in backends.lines(groups, 80))


def test_status_and_stats_show_them(arbiter: Start, capsys: Output) -> None:
    status = {"pid": 0, "state": "serving", "workers": [{"state": "ready"}], "backends": [GROUP]}
    arbiter(status=status, stats={"requests_per_second": 1.0})
    for verb in ("status", "stats"):
        assert manage.main([verb]) == 0
        assert "backends: least_conn, sticky, for /api/*, /v2/*" in capsys.readouterr().out.splitlines()
        assert manage.main([verb, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["backends"] == [GROUP]
