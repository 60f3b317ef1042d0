"""Routes of a real configuration, asked over the wire: what matches, what handlers return, a route's limits.

Knows configuration and wire; the matching itself is tested with the module that does it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.server import Launcher, Server, wait_until

HANDLERS = """
import io, tempfile, time
from pathlib import Path
from werkzeug import Response
from werkzeug.exceptions import Conflict

ended = []

def where(name):
    def page(request):
        return {"route": name, "params": dict(request.path_params), "path": request.path,
                "method": request.method}
    return page

exact, prefix, parameter, regex, fallback, posted, hosted = map(
    where, ["exact", "prefix", "parameter", "regex", "fallback", "posted", "hosted"])

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr((environ["SCRIPT_NAME"], environ["PATH_INFO"])).encode()]

def returns(request):
    kind = request.path_params["kind"]
    if kind == "file":
        file = tempfile.NamedTemporaryFile(suffix=".css")
        file.write(b"body {}" * 1000)
        file.flush()
        file.seek(7)
        return file
    return {
        "response": lambda: Response("r", 201, {"X-A": "1"}),
        "str": lambda: "<p>\\u00e4",
        "bytes": lambda: b"\\0\\1",
        "dict": lambda: {"a": "\\u00e4"},
        "list": lambda: [1, 2],
        "pair": lambda: ("made", 201),
        "triple": lambda: ({"a": 1}, 202, {"X-A": ["1", "2"]}),
        "iterator": lambda: (piece for piece in ["a", "b", "c"]),
        "bytesio": lambda: io.BytesIO(b"in memory"),
        "conflict": lambda: Conflict("not now"),
        "none": lambda: None,
        "number": lambda: 7,
    }[kind]()

def forever(request):
    try:
        time.sleep(3600)
    finally:
        ended.append(request.path)

def swallows(request):
    while True:
        try:
            time.sleep(3600)
        except BaseException as error:
            ended.append(type(error).__name__)
            if len(ended) > 2:
                raise

def finished(request):
    return ended

def length(request):
    return str(len(request.get_data()))
"""


def handler(path: str, function: str, **more: object) -> dict[str, object]:
    return {"path": path, "type": "handler", "handler": f"pages:{function}", **more}


ROUTES = {
    "routes": [
        handler("/*", "fallback"),
        handler("~ ^/u/(?P<id>\\d+)$", "regex"),
        handler("/users/:id", "parameter"),
        handler("/shop/*", "prefix"),
        handler("/shop/door", "exact"),
        handler("/form", "posted", method=["POST", "PUT"]),
        handler("/hosted", "hosted", host=["a.example", "*.b.example"]),
        handler("/returns/:kind", "returns"),
        {"path": "/old/*", "type": "redirect", "redirect_to": "/new$rest?$query_string", "status_code": 308},
        {"path": "/go/:where", "type": "redirect", "redirect_to": "/went/:where", "status_code": 302},
        {"path": "/app/*", "type": "wsgi", "app": "pages:application"},
        handler("/slow", "forever", timeout="300ms"),
        handler("/stubborn", "swallows", timeout="200ms"),
        handler("/small", "length", method=["POST"], max_body_size=100),
        handler("/large", "length", method=["POST"], max_body_size="2MB"),
        handler("/finished", "finished"),
    ],
    "server": {"max_body_size": "1MB"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    launcher = Launcher(tmp_path_factory.mktemp("routing"))
    try:
        started = launcher(ROUTES, files={"pages.py": HANDLERS})
        started.errors_expected = True  # deadlines and handlers that return nothing
        yield started
        launcher.finish()
    finally:
        launcher.kill()


@pytest.mark.parametrize(
    ("target", "route", "params"),
    [
        ("/shop/door", "exact", {}),
        ("/shop//x/../door", "exact", {}),
        ("/shop%2Fdoor", "exact", {}),
        ("/shop/door/", "prefix", {}),
        ("/shop", "prefix", {}),
        ("/shop/a/b?c", "prefix", {}),
        ("/shopping", "fallback", {}),
        ("/users/7", "parameter", {"id": "7"}),
        ("/users/J%C3%BCrgen", "parameter", {"id": "J\u00fcrgen"}),
        ("/users/7/edit", "fallback", {}),
        ("/u/42", "regex", {"1": "42", "id": "42"}),
        ("/u/x", "fallback", {}),
        ("/u/42%0A", "fallback", {}),
        ("/", "fallback", {}),
    ],
)
def test_the_route_that_fits(server: Server, target: str, route: str, params: dict[str, str]) -> None:
    seen = json.loads(server.get(target).text)
    assert (seen["route"], seen["params"]) == (route, params)


def test_methods(server: Server) -> None:
    for method in ("POST", "PUT"):
        seen = json.loads(server.get("/form", method=method, headers=["Content-Length: 0"]).text)
        assert (seen["route"], seen["method"]) == ("posted", method)
    assert json.loads(server.get("/form").text)["route"] == "fallback", (
        "another route takes the other methods"
    )


def test_405_names_the_methods(acme: Launcher) -> None:
    config = {
        "routes": [
            handler("/form", "posted", method=["POST", "PUT"]),
            handler("/page", "exact", method=["GET"]),
        ]
    }
    server = acme(config, files={"pages.py": HANDLERS})
    refused = server.get("/form", method="DELETE")
    assert refused.status == 405
    assert {"POST", "PUT"} <= set((refused.header("Allow") or "").split(", "))
    assert json.loads(refused.text)["error"]["status"] == 405
    assert server.get("/nowhere").status == 404
    head = server.get("/page", method="HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    ("host", "route"),
    [("a.example", "hosted"), ("A.EXAMPLE:99", "hosted"), ("x.b.example", "hosted"),
     ("b.example", "fallback"), ("a.example.org", "fallback")],
)  # fmt: skip
def test_hosts(server: Server, host: str, route: str) -> None:
    with server.connect() as wire:
        reply = wire.send(f"GET /hosted HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).reply()
    assert json.loads(reply.text)["route"] == route


@pytest.mark.parametrize(
    ("kind", "status", "content_type", "body"),
    [
        ("response", 201, "text/plain; charset=utf-8", b"r"),
        ("str", 200, "text/html; charset=utf-8", "<p>\u00e4".encode()),
        ("bytes", 200, "application/octet-stream", b"\0\1"),
        ("dict", 200, "application/json", {"a": "\u00e4"}),
        ("list", 200, "application/json", [1, 2]),
        ("pair", 201, "text/html; charset=utf-8", b"made"),
        ("triple", 202, "application/json", {"a": 1}),
        ("iterator", 200, "text/html; charset=utf-8", b"abc"),
        ("file", 200, "text/css; charset=utf-8", (b"body {}" * 1000)[7:]),
        ("bytesio", 200, "application/octet-stream", b"in memory"),
    ],
)
def test_what_a_handler_returns(
    server: Server, kind: str, status: int, content_type: str, body: object
) -> None:
    with server.connect() as wire:
        reply = wire.request(f"/returns/{kind}")
        assert (reply.status, reply.header("Content-Type")) == (status, content_type)
        assert (reply.body if isinstance(body, bytes) else json.loads(reply.text)) == body
        head = wire.request(f"/returns/{kind}", method="HEAD")
        assert (head.status, head.body) == (status, b"")
        assert wire.request("/shop/door").status == 200


def test_further_returns(server: Server) -> None:
    assert server.get("/returns/triple").header("X-A") == "1, 2"
    assert server.get("/returns/conflict").status == 409
    for kind in ("none", "number"):
        assert server.get(f"/returns/{kind}").status == 500
    server.wait_for_log("pages:returns")


def test_redirects(server: Server) -> None:
    reply = server.get("/old/a/b%20c?x=1&y=%0d%0aSet-Cookie:a")
    assert (reply.status, reply.header("Location")) == (308, "/new/a/b%20c?x=1&y=%0d%0aSet-Cookie:a")
    for target in ("/go/%0d%0aSet-Cookie:%20a=b", "/go/x%0aSet-Cookie:%20a=b"):
        reply = server.get(target)
        assert reply.header("Set-Cookie") is None
        location = reply.header("Location") or ""
        assert (reply.status, location.startswith("/went/"), "\n" in location) == (302, True, False)


def test_an_application_below_a_prefix(server: Server) -> None:
    """The path reaches it whole; SCRIPT_NAME and PATH_INFO together are the path."""
    reply = server.get("/app/a/b")
    script, path = eval(reply.text)
    assert script + path == "/app/a/b"


def test_a_route_has_a_deadline(server: Server) -> None:
    began = time.monotonic()
    reply = server.get("/slow")
    took = time.monotonic() - began
    assert (reply.status, json.loads(reply.text)["error"]["status"]) == (503, 503)
    assert 0.3 <= took < 3, "the route's 300 ms, not the server's 30 s"
    wait_until(lambda: "/slow" in json.loads(server.get("/finished").text), "its finally ran")
    server.wait_for_log("GET /slow.*the handler stood here")


def test_a_deadline_comes_again_to_who_swallows_it(server: Server) -> None:
    assert server.get("/stubborn").status == 503
    assert json.loads(server.get("/finished").text).count("DeadlineExceeded") >= 2


def test_a_handler_past_its_deadline_holds_nobody_up(server: Server) -> None:
    with server.connect() as slow:
        slow.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.get("/shop/door").status == 200
        assert slow.reply().status == 503


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [("/small", 100, 200), ("/small", 101, 413), ("/large", 1_500_000, 200), ("/large", 2_097_153, 413)],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_route_has_a_body_limit(server: Server, path: str, size: int, status: int, chunked: bool) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".encode()
    body = b"x" * size
    if chunked:
        framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (size, body)
    else:
        framed = b"Content-Length: %d\r\n\r\n%s" % (size, body)
    with server.connect() as wire:
        try:
            wire.send(head, framed)
        except ConnectionError:
            assert status == 413, "only a refused body may be cut short"
        reply = wire.reply()  # the answer arrives although not all was taken
    assert reply.status == status
    if status == 200:
        assert reply.text == str(size)
