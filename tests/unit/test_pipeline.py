"""From a configuration to the callable that answers: what is loaded, wrapped, refused, and what costs
nothing.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from fakes import FakeRequest, receive

from acme_wsgi import pipeline
from acme_wsgi.config import Config, Route, load
from acme_wsgi.errors import BootError, ConfigError, HTTPError
from acme_wsgi.handlers import HANDLERS, Context
from acme_wsgi.upstream import plan


def application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"application"]


def user(request: Any) -> str:
    return f"user {request.path_params['id']}"


class Objects:
    """Stands in for the loader: names to objects, and which were asked for."""

    def __init__(self, **objects: object) -> None:
        self.objects = objects
        self.asked: list[tuple[str, str]] = []

    def load(self, spec: str, where: str = "") -> object:
        self.asked.append((spec, where))
        return self.objects[spec.partition(":")[2]]


@pytest.fixture
def configured(tmp_path: Path) -> Any:
    def configure(routes: str, rest: str = "") -> Config:
        (tmp_path / "routes.yaml").write_text(f"{rest}\nroutes:\n{routes}")
        return load([str(tmp_path / "routes.yaml")], {})

    return configure


def compiled(config: Config, *, loader: Any = None) -> Any:
    return pipeline.compile(config, loader or Objects(application=application, user=user)).dispatch


def test_every_type_of_route_answers(configured: Any) -> None:
    dispatch = compiled(
        configured(
            "  - {path: /users/:id, type: handler, handler: 'm:user'}\n"
            "  - {path: /old/*, type: redirect, redirect_to: /new$rest, status_code: 301}\n"
            "  - {path: /*, type: wsgi, app: 'm:application'}\n"
        )
    )
    assert receive(dispatch(FakeRequest("/users/7"))).body == b"user 7"
    assert receive(dispatch(FakeRequest("/old/x"))).header("Location") == "/new/x"
    assert receive(dispatch(FakeRequest("/"))).body == b"application"


def test_the_route_of_a_request_can_be_asked_for(configured: Any) -> None:
    route = "  - {path: /*, type: wsgi, app: 'm:application'}\n"
    made = pipeline.compile(configured(route), cast(Any, Objects(application=application)))
    assert made.route_of(cast(Any, FakeRequest("/x"))) == "/*"


def test_methods_and_hosts_of_the_configuration_count(configured: Any) -> None:
    dispatch = compiled(
        configured("  - {path: /a, method: post, host: '*.Example.org', type: wsgi, app: 'm:application'}\n")
    )
    assert receive(dispatch(FakeRequest("/a", "POST", "www.example.org"))).body == b"application"
    with pytest.raises(HTTPError, match="405"):
        dispatch(FakeRequest("/a", "GET", "www.example.org"))
    with pytest.raises(HTTPError, match="404"):
        dispatch(FakeRequest("/a", "POST", "example.org"))


def test_the_loader_hears_which_route_asks(configured: Any) -> None:
    loader = Objects(application=application)
    compiled(configured("  - {path: /a/*, type: wsgi, app: 'm:application'}\n"), loader=loader)
    assert loader.asked == [("m:application", "route /a/*")]


def test_limits_are_set_where_they_are_configured_and_nowhere_else(configured: Any) -> None:
    dispatch = compiled(
        configured(
            "  - {path: /both, type: wsgi, app: 'm:application', timeout: 2m, max_body_size: 1KB}\n"
            "  - {path: /time, type: wsgi, app: 'm:application', timeout: 1s}\n"
            "  - {path: /size, type: wsgi, app: 'm:application', max_body_size: 5}\n"
            "  - {path: /none, type: wsgi, app: 'm:application'}\n"
        )
    )
    seen = {}
    for path in ("/both", "/time", "/size", "/none"):
        request = FakeRequest(path)
        dispatch(request)
        seen[path] = (request.timeout, request.body_limit)
    assert seen == {"/both": (120.0, 1024), "/time": (1.0, None), "/size": (None, 5), "/none": (None, None)}
    with pytest.raises(HTTPError, match="413"):
        dispatch(FakeRequest("/size", "POST", body=b"123456"))


def test_a_lone_application_is_the_dispatch_without_anything_around_it(configured: Any) -> None:
    route = "  - {path: /*, type: wsgi, app: 'm:application'}\n"
    dispatch = compiled(configured(route, "compression: false"))
    assert dispatch.__name__ == "handle"
    assert dispatch.__module__ == "acme_wsgi.handlers._exchange"


def page(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"<p>page</p>" * 500]


def test_each_route_has_its_own_compression_or_that_of_all(configured: Any) -> None:
    routes = (
        "  - {path: /same, type: wsgi, app: 'm:page'}\n"
        "  - {path: /off, type: wsgi, app: 'm:page', compression: false}\n"
        "  - {path: /gzip, type: wsgi, app: 'm:page', compression: {algorithms: gzip}}\n"
        "  - {path: /none, type: wsgi, app: 'm:page', compression: {algorithms: []}}\n"
        "  - {path: /big, type: wsgi, app: 'm:page', compression: {min_size: 1MB}}\n"
        "  - {path: /on, type: wsgi, app: 'm:page', compression: true}\n"
    )

    def codings(rest: str) -> dict[str, str | None]:
        dispatch = compiled(configured(routes, rest), loader=Objects(page=page))
        found = {}
        for path in ("/same", "/off", "/gzip", "/none", "/big", "/on"):
            got = receive(dispatch(FakeRequest(path, HTTP_ACCEPT_ENCODING="gzip, br")))
            found[path] = got.header("Content-Encoding")
        return found

    plain = {"/off": None, "/none": None, "/big": None}
    assert codings("") == {"/same": "br", "/gzip": "gzip", "/on": "br", **plain}
    gzip = codings("compression: {algorithms: [gzip]}")
    assert gzip == {"/same": "gzip", "/gzip": "gzip", "/on": "gzip", **plain}
    assert codings("compression: false") == {"/same": None, "/gzip": None, "/on": "br", **plain}


@pytest.mark.parametrize(("cache_control", "compressed"), [("public", True), ("public, no-transform", False)])
def test_assets_that_must_stay_as_they_are_are_not_compressed(
    configured: Any, tmp_path: Path, cache_control: str, compressed: bool
) -> None:
    route = f"- {{path: /s/*, type: static, root: {tmp_path}, cache_control: '{cache_control}'}}"
    mount = pipeline._place(configured(route), 0, pipeline.compile_pattern("/s/*")).mount
    assert mount is not None and (mount.compression is not None) is compressed


def test_handlers_and_redirects_are_compressed_too(configured: Any) -> None:
    dispatch = compiled(
        configured(
            "  - {path: /long, type: handler, handler: 'm:long'}\n"
            "  - {path: /old/*, type: redirect, redirect_to: /new$rest}\n"
        ),
        loader=Objects(long=lambda request: "<p>page</p>" * 500),
    )
    got = receive(dispatch(FakeRequest("/long", HTTP_ACCEPT_ENCODING="gzip")))
    assert (got.header("Content-Encoding"), gzip.decompress(got.body)) == ("gzip", b"<p>page</p>" * 500)
    moved = receive(dispatch(FakeRequest("/old/x", HTTP_ACCEPT_ENCODING="gzip, identity;q=0")))
    assert moved.header("Location") == "/new/x"
    assert b'href="/new/x"' in gzip.decompress(moved.body)


def test_routes_without_a_limit_keep_the_servers_where_another_has_a_larger_one(configured: Any) -> None:
    large = "  - {path: /large, type: wsgi, app: 'm:application', max_body_size: 1GB}\n"
    dispatch = compiled(configured(large + "  - {path: /*, type: wsgi, app: 'm:application'}\n"))
    for path, limit in (("/large", 1024**3), ("/", 10 * 1024**2)):
        request = FakeRequest(path)
        dispatch(request)
        assert request.body_limit == limit


ROUTES_TO_BACKENDS = (
    "  - {path: /a, type: proxy}\n  - {path: /b, type: wsgi, app: 'm:application'}\n"
    "  - {path: /c, type: proxy, backend: 'http://c'}\n"
)


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """What routes of type proxy were built with."""
    built: list[Context] = []

    def build(route: Route, context: Context) -> Any:
        built.append(context)
        return lambda request: None

    module = ModuleType("acme_test_proxy")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(HANDLERS, "proxy", module.__name__)
    return built


def test_routes_to_backends_are_given_their_groups(configured: Any, contexts: list[Context]) -> None:
    config = configured(ROUTES_TO_BACKENDS, "backends: [{url: 'http://a'}, {url: 'http://b'}]")
    shared = plan.alone(config)
    loader = cast(Any, Objects(application=application))
    pipeline.compile(config, loader, upstreams=shared)
    first, second = contexts
    assert first.service is not None and first.service is second.service
    assert first.service.upstreams is shared
    assert first.group is not None and second.group is not None
    assert (first.group.name, second.group.name) == ("backends", "route /c")


def test_without_an_arbiter_there_is_a_board_all_the_same(configured: Any, contexts: list[Context]) -> None:
    compiled(configured(ROUTES_TO_BACKENDS, "backends: [{url: 'http://a'}, {url: 'http://b'}]"))
    [first, _] = contexts
    assert first.service is not None and first.group is not None
    assert first.service.board.find(first.group.key).size == 2


def test_all_routes_that_cannot_work_are_named_at_once(configured: Any) -> None:
    config = configured(
        "  - {path: /a/:x, type: redirect, redirect_to: '/$y'}\n"
        "  - {path: /b, type: redirect, redirect_to: '$scheme://$host/fine'}\n"
        "  - {path: /c, type: redirect, redirect_to: '/c$rest'}\n"
    )
    with pytest.raises(ConfigError) as caught:
        compiled(config)
    assert [problem.key for problem in caught.value.problems] == ["routes[0]", "routes[2]"]
    # Each with the line that it is written in.
    lines = [problem.line for problem in caught.value.problems]
    assert lines[0] is not None and lines[1] == lines[0] + 2


def test_bad_patterns_are_found_before_anything_is_loaded(configured: Any) -> None:
    loader = Objects(application=application)
    config = configured(
        "  - {path: /fine, type: wsgi, app: 'm:application'}\n"
        "  - {path: /a/../b, type: wsgi, app: 'm:application'}\n"
    )
    with pytest.raises(ConfigError, match=r"routes\[1\].path: '/a/../b' can never match"):
        compiled(config, loader=loader)
    assert loader.asked == []


def test_what_cannot_be_loaded_is_a_boot_error_with_its_route(configured: Any) -> None:
    config = configured("  - {path: /x, type: handler, handler: 'nowhere_to_be_found:page'}\n")
    with pytest.raises(BootError, match="route /x: nowhere_to_be_found:page: there is no module"):
        pipeline.compile(config)
