"""Merging conf.d: what later files add, replace, and may not contradict."""

from __future__ import annotations

from pathlib import Path

import pytest

from acme_wsgi.config import Config, load
from acme_wsgi.errors import ConfigError


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path


def merged(conf: Path, *texts: str, environ: dict[str, str] | None = None) -> Config:
    for number, text in enumerate(texts, 1):
        (conf / f"{number}.yaml").write_text(text)
    return load([str(conf)], environ or {})


def refused(conf: Path, *texts: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        merged(conf, *texts)
    return [str(problem).replace(f"{conf}/", "") for problem in caught.value.problems]


def test_mappings_merge_key_by_key_and_scalars_replace(conf: Path) -> None:
    config = merged(conf, "server: {port: 1, workers: 2}", "server: {port: 3}")
    assert (config.server.port, config.server.workers) == (3, 2)
    assert config.origin("server.port") == f"{conf}/2.yaml:1"
    assert config.origin("server.workers") == f"{conf}/1.yaml:1"
    assert config.origin("server.host") == "default"


def test_lists_of_scalars_replace(conf: Path) -> None:
    config = merged(conf, "cache: {vary: [A, B]}", "cache: {vary: C}")
    assert config.cache.vary == ("C",)


def test_append_adds_to_a_list(conf: Path) -> None:
    config = merged(conf, "cache: {vary: [A, B]}", "cache: {vary: !append [C]}", "cache: {vary: !append D}")
    assert config.cache.vary == ("A", "B", "C", "D")


def test_append_without_anything_before_it_is_the_list_itself(conf: Path) -> None:
    assert merged(conf, "cache: {vary: !append [C]}").cache.vary == ("C",)


def test_append_is_for_lists(conf: Path) -> None:
    assert refused(conf, "server: {port: 1}", "server: {port: !append 2}") == [
        "2.yaml:1:16: server.port: !append is for lists"
    ]


ROUTE = "routes: [{path: /a, type: wsgi, app: 'x:a'}, {path: /b, type: wsgi, app: 'x:b'}]"


def test_lists_of_sections_are_appended_to_and_the_same_identity_replaces_in_place(conf: Path) -> None:
    config = merged(
        conf,
        ROUTE,
        "routes: [{path: /c, type: wsgi, app: 'x:c'}, {path: /a, type: wsgi, app: 'x:new', timeout: 5s}]",
    )
    assert [(route.path, route.app) for route in config.routes] == [
        ("/a", "x:new"),
        ("/b", "x:b"),
        ("/c", "x:c"),
    ]
    assert config.origin("routes[0].app") == f"{conf}/2.yaml:1"


def test_an_item_replaces_as_a_whole(conf: Path) -> None:
    config = merged(conf, "backends: [{url: 'http://a', weight: 5}]", "backends: [{url: 'http://a'}]")
    assert config.backends[0].weight == 1


@pytest.mark.parametrize("other", ["method: [post, GET]", "method: [GET, POST]", "method: ['POST', \"get\"]"])
def test_methods_and_hosts_of_an_identity_are_sets(conf: Path, other: str) -> None:
    config = merged(
        conf,
        "routes: [{path: /, method: [GET, POST], host: [a.b, C.d], type: wsgi, app: x}]",
        f"routes: [{{path: /, {other}, host: [c.d, a.b], type: wsgi, app: y}}]",
    )
    assert [route.app for route in config.routes] == ["y"]


def test_other_methods_are_another_route(conf: Path) -> None:
    config = merged(
        conf,
        "routes: [{path: /, method: GET, type: wsgi, app: x}]",
        "routes: [{path: /, method: POST, type: handler, handler: 'x:y'}]",
    )
    assert [route.method for route in config.routes] == [("GET",), ("POST",)]


def test_replace_on_a_list_a_mapping_and_an_item(conf: Path) -> None:
    assert [
        route.path
        for route in merged(conf, ROUTE, "routes: !replace [{path: /z, type: wsgi, app: x}]").routes
    ] == ["/z"]
    assert merged(conf, "server: {port: 1, workers: 2}", "server: !replace {port: 3}").server.workers == 0
    item = "routes: [!replace {path: /a, type: handler, handler: 'x:y'}]"
    assert [route.type for route in merged(conf, ROUTE, item).routes] == ["handler", "wsgi"]
    assert merged(conf, ROUTE, "routes: !replace []").routes == ()


def test_two_files_that_give_one_path_two_types_contradict_each_other(conf: Path) -> None:
    assert refused(conf, ROUTE, "routes:\n- path: /a\n  type: redirect\n  redirect_to: /b\n") == [
        "2.yaml:3:9: routes[0].type: 'redirect' here and 'wsgi' in 1.yaml:1 for the same path '/a'; "
        "write !replace before the later item if it is meant to win"
    ]


def test_one_file_that_binds_a_path_twice(conf: Path) -> None:
    text = "routes:\n- {path: /a, type: wsgi, app: x}\n- {path: /a, type: wsgi, app: y}\n"
    assert refused(conf, text) == [
        "1.yaml:3:3: routes[1]: has the same path+method+host as the item in 1.yaml:2"
    ]


def test_a_heading_without_content_changes_nothing(conf: Path) -> None:
    config = merged(conf, ROUTE + "\nserver: {port: 1}", "server:\nroutes:\n")
    assert config.server.port == 1
    assert len(config.routes) == 2


def test_health_checks_rules_and_middleware_have_their_identities(conf: Path) -> None:
    config = merged(
        conf,
        "monitoring: {health: {checks: [{name: a, type: disk}]}}\n"
        "database: {query_cache: {rules: [{pattern: x, ttl: 1}]}}\n"
        "middleware: [{type: rateLimit, limit: 1, window: 1s}]\n"
        "cache: {rules: [{path: /a, ttl: 1}]}\n",
        "monitoring: {health: {checks: [{name: a, type: disk, threshold: 50%}, {name: b, type: memory}]}}\n"
        "database: {query_cache: {rules: [{pattern: x, ttl: 2}, {pattern: y, ttl: 3}]}}\n"
        "middleware: [{type: rateLimit, limit: 2, window: 1s}]\n"
        "cache: {rules: [{path: /a, ttl: 2}]}\n",
    )
    assert [(each.name, each.threshold) for each in config.monitoring.health.checks] == [
        ("a", 0.5),
        ("b", 0.9),
    ]
    assert [(each.pattern, each.ttl) for each in config.database.query_cache.rules] == [("x", 2), ("y", 3)]
    assert [each.limit for each in config.middleware] == [2]
    assert [each.ttl for each in config.cache.rules] == [2]


def test_the_older_name_of_l2_merges_with_the_new_one(conf: Path) -> None:
    config = merged(conf, "cache: {redis: {host: a, port: 1}}", "cache: {l2: {port: 2}}")
    assert (config.cache.l2.host, config.cache.l2.port) == ("a", 2)


def test_both_names_of_l2_in_one_file(conf: Path) -> None:
    assert refused(conf, "cache:\n  redis: {}\n  l2: {}\n") == [
        "1.yaml:2:3: cache.redis: is the older name of l2, which 1.yaml:3 sets too; write one of them"
    ]


def test_metrics_are_a_list_or_a_mapping_and_merge_as_one(conf: Path) -> None:
    config = merged(conf, "monitoring: {metrics: {path: /m}}", "monitoring: {metrics: [cpu_usage, disk_io]}")
    assert config.monitoring.metrics.include == ("cpu_usage", "disk_io")
    assert config.monitoring.metrics.path == "/m"
    added = merged(
        conf, "monitoring: {metrics: [cpu_usage]}", "monitoring: {metrics: {include: !append disk_io}}"
    )
    assert added.monitoring.metrics.include == ("cpu_usage", "disk_io")


def test_a_mistake_that_a_later_file_hides_is_still_reported(conf: Path) -> None:
    assert refused(conf, "server: {port: x}", "server: {port: 1}") == [
        "1.yaml:1:16: server.port: found 'x', allowed: a whole number from 0 to 65535"
    ]


def test_an_unset_variable_that_a_later_file_hides_is_not_needed(conf: Path) -> None:
    assert merged(conf, "server: {host: '${NOWHERE}'}", "server: {host: a}").server.host == "a"


def test_a_file_may_set_the_type_and_another_what_goes_with_it(conf: Path) -> None:
    config = merged(conf, "cache: {l2: {servers: ['a:1']}}", "cache: {l2: {type: memcached, enabled: true}}")
    assert config.cache.l2.servers == ("a:1",)


@pytest.mark.parametrize("later", ["5", "[1]", "{a: 1}"])
def test_values_of_the_wrong_shape_meet_without_a_traceback(conf: Path, later: str) -> None:
    for first in ("server: {port: 1}", ROUTE, "cache: {vary: [A]}", "monitoring: {metrics: {path: /m}}"):
        key = first.partition(":")[0]
        assert refused(conf, first, f"{key}: {later}")
