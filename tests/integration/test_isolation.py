"""What one request may not see of another: contexts, framework locals, handlers that block and take turns.

Knows the clients' side; pooled greenlets are what makes this worth proving. One worker,
many requests at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.test_frameworks import prepare_django, serves
from tests.server import Launcher, Server

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

CLIENTS = 20
REQUESTS = 15

FLASK = """
import time
from contextvars import ContextVar
from flask import Flask, g, request, session
from werkzeug.local import Local, LocalStack

app = Flask(__name__)
app.secret_key = "for tests"
kept, stack, variable = Local(), LocalStack(), ContextVar("variable", default=None)

@app.get("/<value>")
def page(value):
    before = [getattr(g, "value", None), getattr(kept, "value", None), stack.top,
              variable.get(), session.get("value")]
    g.value = kept.value = session["value"] = value
    stack.push(value)
    variable.set(value)
    seen = set()
    for _ in range(3):
        time.sleep(0.003)
        seen |= {g.value, kept.value, stack.top, variable.get(), session["value"],
                 request.path[1:], request.args["again"]}
    return {"before": before, "seen": sorted(seen)}
"""

LEAK = """
import threading
from contextvars import ContextVar

variable, seen_by_thread = ContextVar("variable", default="clean"), threading.local()

def app(environ, start_response):
    before = variable.get()
    variable.set("planted")
    if environ["PATH_INFO"] == "/raise":
        raise RuntimeError("after planting")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [before.encode()]
"""


def at_once(server: Server, check: Callable[[str, str], None], target: Callable[[str], str]) -> None:
    """Many clients, each with a connection of its own and values nobody else uses."""
    failures: list[BaseException] = []
    done: list[str] = []

    def client(number: int) -> None:
        try:
            with server.connect(timeout=60) as wire:
                for index in range(REQUESTS):
                    value = f"v{number}x{index}"
                    reply = wire.request(target(value))
                    assert reply.status == 200, reply.text
                    check(value, reply.text)
                    done.append(value)
        except BaseException as error:  # noqa: BLE001 - raised again by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert len(done) == CLIENTS * REQUESTS


def test_flask_and_werkzeug_locals(acme: Launcher) -> None:
    server = acme(app="locals_app:app", files={"locals_app.py": FLASK})

    def check(value: str, text: str) -> None:
        assert json.loads(text) == {"before": [None] * 5, "seen": [value]}

    at_once(server, check, lambda value: f"/{value}?again={value}")


def test_asgiref_locals_in_django(acme: Launcher, tmp_path: Path) -> None:
    env = {"SITE_DATA": str(tmp_path), "DJANGO_SETTINGS_MODULE": "tests.apps.frameworks.django_site.settings"}
    prepare_django(env)
    server = acme(serves("tests.apps.frameworks.django_site.wsgi:application"), env=env)

    def check(value: str, text: str) -> None:
        assert text == f"None {value}"

    at_once(server, check, lambda value: f"/local/{value}")


def test_one_context_from_the_call_to_close(acme: Launcher) -> None:
    """Handler, streamed body and close() share the request's context, and nobody else has it."""
    server = acme(app="tests.apps.frameworks.wsgi_cases:app")

    def check(value: str, text: str) -> None:
        assert text == f"nothing {value} {value}"

    at_once(server, check, lambda value: f"/context?key={value}")
    notes = json.loads(server.get("/notes").text)
    assert len(notes) == CLIENTS * REQUESTS
    assert all(seen == [key] for key, seen in notes.items())


@pytest.mark.parametrize("plant", ["/", "/raise"])
def test_what_one_request_plants_the_next_does_not_find(acme: Launcher, plant: str) -> None:
    """On one connection, on others, pipelined, after an exception."""
    server = acme(app="leak:app", files={"leak.py": LEAK})
    server.errors_expected = plant == "/raise"
    with server.connect() as wire:
        for _ in range(50):
            wire.request(plant)
            assert wire.request("/").text == "clean"
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
        assert [wire.reply().text for _ in range(20)] == ["clean"] * 20
    assert server.get("/").text == "clean"


def test_the_leak_would_be_seen(acme: Launcher) -> None:
    """A module's plain variable does leak: the requests run in one process and the tests above can fail."""
    planted = LEAK.replace("variable.get()", "kept[0]").replace(
        'variable.set("planted")', "kept[0] = 'planted'"
    )
    server = acme(app="leak:app", files={"leak.py": planted + "\nkept = ['clean']\n"})
    assert [server.get("/").text, server.get("/").text] == ["clean", "planted"]


FORK = """
import multiprocessing, time

context = multiprocessing.get_context("fork")
children = []

def nap():
    for _ in range(200):
        time.sleep(0.05)        # gevent's: the child's hub turns

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fork":
        child = context.Process(target=nap, daemon=True)
        child.start()
        children.append(child)
    if environ["PATH_INFO"] == "/end":
        for child in children:
            child.kill()
            child.join()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(sum(child.is_alive() for child in children)).encode()]
"""


def test_a_child_that_a_handler_forks_takes_no_events_and_holds_no_clients(acme: Launcher) -> None:
    server = acme(app="forking:app", files={"forking.py": FORK})
    with server.connect() as early, server.connect() as late:
        assert early.request("/").status == 200
        assert late.request("/fork").text == "1"
        for _ in range(100):
            assert early.request("/").text == "1", "the child is alive, and the parent answers"
            with server.connect() as fresh:
                assert fresh.request("/").text == "1"
        early.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert early.reply().text == "1"
        assert early.closed(), "nobody else holds the client's connection open"
        assert late.request("/end").text == "0"
