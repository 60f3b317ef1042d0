"""Which route answers: the documented order, hosts, methods, parameters, and what costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeRequest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.errors import HTTPError
from acme_wsgi.http.writer import Response
from acme_wsgi.routing import Kind, Router, Rule, compile_host, compile_pattern

Dispatch = Callable[[Any], Response]


def answering(name: str) -> Callable[[Any], Response]:
    return lambda request: Response("200 OK", [("Route", name)], b"")


def rule(path: str, *methods: str, host: str | tuple[str, ...] = (), name: str = "") -> Rule:
    hosts = (host,) if isinstance(host, str) else host
    name = name or " ".join((path, *methods, *hosts))
    hosts = tuple(compile_host(one) for one in hosts)
    return Rule(compile_pattern(path), answering(name), frozenset(methods), hosts)


def routes(*rules: Rule | str) -> Dispatch:
    return Router([one if isinstance(one, Rule) else rule(one) for one in rules]).dispatcher()


def ask(dispatch: Dispatch, path: str, method: str = "GET", host: str = "example.test") -> str:
    return dispatch(FakeRequest(path, method, host)).headers[0][1]


def refused(dispatch: Dispatch, path: str, method: str = "GET", host: str = "example.test") -> HTTPError:
    with pytest.raises(HTTPError) as caught:
        ask(dispatch, path, method, host)
    return caught.value


def params(dispatch: Dispatch, path: str) -> dict[str, str]:
    request = FakeRequest(path)
    dispatch(request)
    return request.params


# The documented order, one path per kind taken away after the other.
ORDER = ["/a/b", "/a/*", "/a/:x", "~ ^/a/", "/*"]


@pytest.mark.parametrize("first", range(len(ORDER)))
@pytest.mark.parametrize("backwards", [False, True])
def test_order_of_precedence(first: int, backwards: bool) -> None:
    paths = ORDER[first:]
    dispatch = routes(*(reversed(paths) if backwards else paths))
    assert ask(dispatch, "/a/b") == ORDER[first]


def test_the_longest_prefix_wins() -> None:
    dispatch = routes("/a/*", "/a/b/c/*", "/a/b/*")
    assert ask(dispatch, "/a/b/c/d") == "/a/b/c/*"
    assert ask(dispatch, "/a/b/cc") == "/a/b/*"
    assert ask(dispatch, "/a/x") == "/a/*"


@pytest.mark.parametrize(
    ("path", "found"),
    [("/a", True), ("/a/", True), ("/a/b/c", True), ("/ab", False), ("/", False), ("/b/a/x", False)],
)
def test_what_a_prefix_matches(path: str, found: bool) -> None:
    dispatch = routes("/a/*")
    if found:
        assert ask(dispatch, path) == "/a/*"
    else:
        assert refused(dispatch, path).status == 404


def test_an_exact_route_beats_the_prefix_of_the_same_name() -> None:
    dispatch = routes("/a/*", "/a", "/a/")
    assert [ask(dispatch, path) for path in ("/a", "/a/", "/a/b")] == ["/a", "/a/", "/a/*"]


def test_exact_is_exact() -> None:
    dispatch = routes("/a")
    assert ask(dispatch, "/a") == "/a"
    for path in ("/a/", "/A", "/a/b", "/", "", "*"):
        assert refused(dispatch, path).status == 404


def test_no_routes_answer_404() -> None:
    assert refused(routes(), "/").status == 404


# -- parameters


def test_parameters_are_captured_by_name() -> None:
    dispatch = routes("/users/:id/posts/:post")
    assert params(dispatch, "/users/7/posts/x.y") == {"id": "7", "post": "x.y"}
    for path in ("/users/7/posts/", "/users//posts/1", "/users/7/posts/1/2", "/users/7"):
        assert refused(dispatch, path).status == 404


def test_a_parameter_may_be_followed_by_anything() -> None:
    dispatch = routes("/t/:tenant/*")
    assert [params(dispatch, path)["tenant"] for path in ("/t/a", "/t/a/", "/t/a/b/c\n")] == ["a", "a", "a"]
    assert refused(dispatch, "/t/").status == 404


def test_among_parameter_patterns_the_more_literal_wins() -> None:
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        paths = ["/:x/:y", "/a/:y", "/:x/b", "/:x/*"]
        dispatch = routes(*(paths[index] for index in order))
        assert ask(dispatch, "/a/b") == "/a/:y"
        assert ask(dispatch, "/c/b") == "/:x/b"
        assert ask(dispatch, "/c/d") == "/:x/:y"
        assert ask(dispatch, "/c/d/e") == "/:x/*"


def test_what_looks_like_a_regular_expression_in_a_path_is_literal() -> None:
    dispatch = routes("/a.b/:x")
    assert ask(dispatch, "/a.b/1") == "/a.b/:x"
    assert refused(dispatch, "/acb/1").status == 404


def test_captured_parts_are_real_text() -> None:
    assert params(routes("/u/:name"), "/u/" + "grüß €".encode().decode("latin-1")) == {"name": "grüß €"}


@pytest.mark.parametrize("path", ["/u/\xff", "/u/\xc3", "/u/\xed\xa0\x80"])
@pytest.mark.parametrize("pattern", ["/u/:name", "~ ^/u/(.+)$"])
def test_a_captured_part_that_is_not_utf8_is_a_bad_request(pattern: str, path: str) -> None:
    assert refused(routes(pattern), path).status == 400


def test_other_bytes_pass_where_nothing_is_captured() -> None:
    assert ask(routes("/u/*"), "/u/\xff") == "/u/*"
    assert ask(routes("~ ^/u/"), "/u/\xff") == "~ ^/u/"


def test_patterns_beyond_ascii_match_the_bytes_they_mean() -> None:
    wire = "/grüße".encode().decode("latin-1")
    assert ask(routes("/grüße"), wire) == "/grüße"
    assert ask(routes("/grüße/*"), wire + "/x") == "/grüße/*"
    assert params(routes("/grüße/:x"), wire + "/1") == {"x": "1"}
    assert ask(routes("~ ^/gr[üu](.)e$"), wire) == "~ ^/gr[üu](.)e$"


# -- regular expressions


def test_groups_become_parameters_by_number_and_name() -> None:
    dispatch = routes(r"~ ^/u/(\d+)/(?P<what>\w+)(/x)?$")
    assert params(dispatch, "/u/7/edit") == {"1": "7", "2": "edit", "what": "edit"}
    assert params(dispatch, "/u/7/edit/x") == {"1": "7", "2": "edit", "what": "edit", "3": "/x"}


def test_regular_expressions_are_tried_in_the_order_of_the_file() -> None:
    assert ask(routes("~ ^/a", "~ ^/ab"), "/abc") == "~ ^/a"
    assert ask(routes("~ ^/ab", "~ ^/a"), "/abc") == "~ ^/ab"


def test_an_unanchored_expression_searches() -> None:
    assert ask(routes(r"~ \.php$"), "/x/y.php") == r"~ \.php$"


@pytest.mark.parametrize("path", ["/u/7\n", "/u/٣", "/u/7/"])
def test_the_end_is_the_end_and_digits_are_digits(path: str) -> None:
    dispatch = routes(r"~ ^/u/(\d+)$")
    assert refused(dispatch, path.encode().decode("latin-1")).status == 404


def test_an_escaped_dollar_stays_one() -> None:
    assert ask(routes(r"~ ^/a\$"), "/a$b") == r"~ ^/a\$"
    assert refused(routes(r"~ ^/a\\$"), "/a$b").status == 404
    assert ask(routes(r"~ ^/a\\$"), "/a\\") == r"~ ^/a\\$"


# -- methods


def test_get_includes_head_and_nothing_else_is_implied() -> None:
    dispatch = routes(rule("/a", "GET"), rule("/b", "POST"))
    assert ask(dispatch, "/a", "HEAD") == "/a GET"
    assert refused(dispatch, "/a", "OPTIONS").status == 405
    assert refused(dispatch, "/b", "HEAD").status == 405
    assert refused(dispatch, "/b", "post").status == 405


def test_405_names_what_is_allowed_over_all_routes_that_match() -> None:
    dispatch = routes(
        rule("/a/b", "PUT"), rule("/a/*", "POST", "GET"), rule("/a/:x", "DELETE"), rule("/z", "PATCH")
    )
    error = refused(dispatch, "/a/b", "OPTIONS")
    assert (error.status, error.headers) == (405, (("Allow", "DELETE, GET, HEAD, POST, PUT"),))


def test_a_method_may_fall_through_to_a_wider_route() -> None:
    dispatch = routes(rule("/a", "GET"), "/*")
    assert ask(dispatch, "/a", "GET") == "/a GET"
    assert ask(dispatch, "/a", "POST") == "/*"


def test_a_route_with_methods_goes_before_one_without() -> None:
    for rules in ([rule("/a"), rule("/a", "GET")], [rule("/a", "GET"), rule("/a")]):
        dispatch = routes(*rules)
        assert ask(dispatch, "/a", "GET") == "/a GET"
        assert ask(dispatch, "/a", "POST") == "/a"


# -- hosts


def test_the_most_specific_host_wins() -> None:
    dispatch = routes(
        rule("/*"),
        rule("/*", host="*.example.com"),
        rule("/*", host="*.a.example.com"),
        rule("/*", host="www.example.com"),
    )
    expected = {
        "www.example.com": "/* www.example.com",
        "x.example.com": "/* *.example.com",
        "x.y.example.com": "/* *.example.com",
        "a.example.com": "/* *.example.com",
        "b.a.example.com": "/* *.a.example.com",
        "example.com": "/*",
        "evilexample.com": "/*",
        "": "/*",
        "[::1]": "/*",
    }
    assert {host: ask(dispatch, "/", host=host) for host in expected} == expected


def test_a_path_on_another_host_is_not_found_and_allows_nothing() -> None:
    dispatch = routes(rule("/a", "POST", host="one.test"), rule("/a", "PUT", host="two.test"))
    assert refused(dispatch, "/a", host="three.test").status == 404
    assert refused(dispatch, "/a", host="one.test").headers == (("Allow", "POST"),)


def test_a_route_may_name_several_hosts() -> None:
    dispatch = routes(rule("/a", host=("one.test", "*.two.test"), name="both"))
    assert ask(dispatch, "/a", host="one.test") == ask(dispatch, "/a", host="x.two.test") == "both"


def test_a_more_precise_path_wins_over_a_more_precise_host() -> None:
    dispatch = routes(rule("/api/*"), rule("/*", host="admin.test"))
    assert ask(dispatch, "/api/x", host="admin.test") == "/api/*"
    assert ask(dispatch, "/x", host="admin.test") == "/* admin.test"


def test_hosts_are_compared_as_they_arrive() -> None:
    assert compile_host("WWW.Example.COM") == "www.example.com"
    assert compile_host("*.Bücher.test") == "*.xn--bcher-kva.test"
    assert compile_host("[::1]") == "[::1]"


@pytest.mark.parametrize("host", ["", "*", "*.", "a.*.b", "**.b", "x" * 64 + "ü.test"])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match="host"):
        compile_host(host)


# -- what costs nothing


def test_a_lone_unconditional_fallback_is_the_dispatch_itself() -> None:
    only = rule("/*")
    assert routes(only) is only.handler


def test_an_exact_path_is_one_lookup() -> None:
    class OnlyPath:
        path = "/a"

    dispatch = routes("/a", "/b/*", "~ ^/c", "/*")
    assert dispatch(OnlyPath()).headers == [("Route", "/a")]  # neither host nor method were asked for


# -- patterns


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "starts with"),
        ("a", "starts with"),
        ("*", "starts with"),
        ("/a*", "only be the last part"),
        ("/*/a", "only be the last part"),
        ("/a/*/*", "only be the last part"),
        ("/a//b", "never match"),
        ("//*", "never match"),
        ("/a/../b", "never match"),
        ("/./*", "never match"),
        ("/:", "not a parameter"),
        ("/:1", "not a parameter"),
        ("/:a-b", "not a parameter"),
        ("/:a/:a", "twice"),
        ("~ (", "bad regular expression"),
        ("~ (?u)x", "bad regular expression"),
        ("~* /x", "bad regular expression"),
        ("~", "empty"),
        ("~ " + "(a)" * 65, "more than 64 groups"),
    ],
)
def test_bad_patterns_say_what_is_wrong(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_pattern(path)


@pytest.mark.parametrize(
    ("path", "kind", "names"),
    [
        ("/", Kind.EXACT, set()),
        ("/a:b", Kind.EXACT, set()),
        ("/a/", Kind.EXACT, set()),
        ("/a/*", Kind.PREFIX, set()),
        ("/*", Kind.FALLBACK, set()),
        ("/:a/x/:b", Kind.PARAMETER, {"a", "b"}),
        (r"~ ^/(\d+)/(?P<n>x)$", Kind.REGEX, {"1", "2", "n"}),
    ],
)
def test_kinds_and_names(path: str, kind: Kind, names: set[str]) -> None:
    pattern = compile_pattern(path)
    assert (pattern.kind, pattern.parameters) == (kind, names)


SEGMENT = st.sampled_from(["a", "b", "é", ":x", ":y", "c.d"])
PATHS = st.lists(SEGMENT, max_size=3, unique=True).map(lambda parts: "/" + "/".join(parts))
PATTERNS = st.one_of(PATHS, PATHS.map(lambda path: path.rstrip("/") + "/*"))


def reference(pattern: str, path: str) -> bool:
    """What a pattern matches, said in the simplest way."""
    wanted, given_ = pattern.split("/")[1:], path.split("/")[1:]
    if wanted[-1] == "*":
        wanted = wanted[:-1]
        if len(given_) < len(wanted):
            return False
        given_ = given_[: len(wanted)]
    if len(wanted) != len(given_):
        return False
    return all(
        part != "" if want.startswith(":") else want == part
        for want, part in zip(wanted, given_, strict=True)
    )


@given(st.lists(PATTERNS, max_size=6), PATHS.map(lambda path: path.replace(":", "v")), st.booleans())
def test_the_tables_agree_with_trying_every_pattern(patterns: list[str], path: str, slash: bool) -> None:
    path += "/" if slash and path != "/" else ""
    matching = [pattern for pattern in patterns if reference(pattern, path)]
    dispatch = routes(*patterns)
    wire = path.encode().decode("latin-1")
    if not matching:
        assert refused(dispatch, wire).status == 404
        return
    best = min(compile_pattern(pattern).kind for pattern in matching)
    found = ask(dispatch, wire)
    assert found in matching
    assert compile_pattern(found).kind is best
    if best is Kind.PREFIX:
        assert len(found) == max(len(one) for one in matching if compile_pattern(one).kind is best)


@pytest.mark.parametrize(
    ("path", "method", "host", "found"),
    [
        ("/a/b", "GET", "example.test", "/a/b"),
        ("/a/c", "GET", "example.test", "/a/*"),
        ("/a/b", "POST", "example.test", "/a/*"),
        ("/u/7", "GET", "www.example.org", "/u/:id"),
        ("/u/7", "GET", "example.test", "~ ^/u/\\d+$"),
        ("/u/x", "GET", "example.test", None),
    ],
)
def test_the_route_of_a_request_can_be_asked_for(
    path: str, method: str, host: str, found: str | None
) -> None:
    router = Router(
        [rule("/a/b", "GET"), rule("/a/*"), rule("/u/:id", host="*.example.org"), rule("~ ^/u/\\d+$")]
    )
    assert router.route_of(FakeRequest(path, method, host)) == found
