"""Environment blocks, variables, --set and references: their order, their forms, their mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_wsgi.config import Config, load, overlay
from acme_wsgi.config.keys import walk
from acme_wsgi.config.references import Missing, escape, interpolate
from acme_wsgi.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "acme.yaml"


def loaded(file: Path, text: str, environ: dict[str, str], *sets: str) -> Config:
    file.write_text(text)
    return load([str(file)], environ, sets)


def refused(text: str, environ: dict[str, str], *sets: str, file: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, environ, *sets)
    return [str(problem).replace(str(file), "FILE") for problem in caught.value.problems]


TEXT = "server: {port: 1}\nenvironments: {production: {server.port: 2}, test: {server: {port: 9}}}\n"


def test_the_order_is_files_environment_block_variables_set(file: Path) -> None:
    env = {"ACME_ENV": "production"}
    assert loaded(file, TEXT, {}).server.port == 1
    assert loaded(file, TEXT, env).server.port == 2
    assert loaded(file, TEXT, env | {"ACME_SERVER_PORT": "3"}).server.port == 3
    config = loaded(file, TEXT, env | {"ACME_SERVER_PORT": "3"}, "server.port=4", "server.port=5")
    assert config.server.port == 5
    assert config.origin("server.port") == "--set"


def test_origins_name_the_variable_and_the_line_of_the_block(file: Path) -> None:
    assert loaded(file, TEXT, {"ACME_ENV": "production"}).origin("server.port") == f"{file}:2"
    assert (
        loaded(file, TEXT, {"ACME_SERVER_PORT": "3"}).origin("server.port") == "environment ACME_SERVER_PORT"
    )


def test_a_block_may_be_nested(file: Path) -> None:
    assert loaded(file, TEXT, {"ACME_ENV": "test"}).server.port == 9


def test_an_unknown_block_names_the_known_ones(file: Path) -> None:
    assert refused(TEXT, {"ACME_ENV": "prodution"}, file=file) == [
        "environment ACME_ENV: environments: found 'prodution', allowed: production, test; "
        "did you mean production?"
    ]


def test_acme_env_without_blocks_is_a_warning(file: Path) -> None:
    config = loaded(file, "server: {port: 1}", {"ACME_ENV": "production"})
    assert [str(warning) for warning in config.warnings] == [
        "environment ACME_ENV: has no effect: there is no environments block"
    ]


def test_blocks_that_are_not_chosen_are_checked_too(file: Path) -> None:
    text = (
        "environments:\n  a:\n    server.prot: 1\n    server.port: x\n    server.host: ${NOWHERE}\n  b: 5\n"
    )
    assert refused(text, {}, file=file) == [
        "FILE:3:5: environments.a.server.prot: unknown key; did you mean server.port?",
        "FILE:4:18: server.port: found 'x', allowed: a whole number from 0 to 65535",
        "FILE:6:6: environments.b: found '5', allowed: a mapping of dotted keys",
    ]


@pytest.mark.parametrize(
    ("name", "value", "dotted", "expected"),
    [
        ("ACME_SERVER_PORT", "9000", "server.port", 9000),
        ("ACME_CACHE_L1_SIZE", "2GB", "cache.l1.size", 2 << 30),
        ("ACME_LOG_LEVEL", "debug", "logging.level", "debug"),
        ("ACME_LOG_FORMAT", "json", "logging.format", "json"),
        ("ACME_WORKERS", "3", "server.workers", 3),
        ("ACME_CACHE_REDIS_HOST", "r", "cache.l2.host", "r"),
        ("ACME_SERVER_CONNECTION_POOL_MIN_IDLE", "5", "server.connection_pool.min_idle", 5),
        (
            "ACME_SERVER_TRUSTED_PROXIES",
            "10.0.0.0/8, unix:",
            "server.trusted_proxies",
            ("10.0.0.0/8", "unix:"),
        ),
        ("ACME_SERVER_TRUSTED_PROXIES", "[10.0.0.0/8]", "server.trusted_proxies", ("10.0.0.0/8",)),
        ("ACME_CACHE_L2_PASSWORD", "a: {b #c", "cache.l2.password", "a: {b #c"),
        ("ACME_CACHE_L2_PASSWORD", "${HOME}", "cache.l2.password", "${HOME}"),
        ("ACME_CACHE_L2_PASSWORD", "'q'", "cache.l2.password", "'q'"),
        ("ACME_SERVER_TCP_FASTOPEN", "off", "server.tcp_fastopen", False),
        ("ACME_SERVER_USER", "null", "server.user", None),
    ],
)
def test_variables(file: Path, name: str, value: str, dotted: str, expected: object) -> None:
    config: object = loaded(file, "server: {user: somebody}", {name: value})
    for attribute in dotted.split("."):
        config = getattr(config, attribute)
    assert config == expected


def test_a_short_variable_wins_over_the_long_one() -> None:
    assert load([], {"ACME_WORKERS": "1", "ACME_SERVER_WORKERS": "2"}).server.workers == 1


def test_lists_of_sections_can_come_from_a_variable() -> None:
    config = load([], {"ACME_ROUTES": "[{path: /*, type: wsgi, app: 'x:y'}]"})
    assert config.routes[0].app == "x:y"


def test_an_empty_variable_is_not_set() -> None:
    assert load([], {"ACME_SERVER_PORT": ""}) == Config()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"ACME_SERVER_PROT": "1"},
            "environment ACME_SERVER_PROT: no such key; did you mean ACME_SERVER_PORT?",
        ),
        (
            {"ACME_SERVER_PORT": "x"},
            "environment ACME_SERVER_PORT: server.port: found 'x', allowed: a whole number from 0 to 65535",
        ),
        ({"ACME_SERVER_HOST": "\udcff"}, "environment ACME_SERVER_HOST: server.host: not UTF-8"),
        ({"ACME_ROUTES": "[{"}, "environment ACME_ROUTES: YAML syntax"),
    ],
)
def test_mistakes_in_variables(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([], environ)
    assert str(caught.value).startswith(message)


def test_somebody_elses_acme_variables_are_left_alone() -> None:
    assert load([], {"ACME_EMAIL": "x@example.org", "ACME_DIRECTORY": "https://ca"}).warnings == ()


def test_a_variable_that_is_nearly_ours_is_a_warning() -> None:
    warnings = load([], {"ACME_WORKER": "3"}).warnings
    assert [str(each) for each in warnings] == [
        "environment ACME_WORKER: is not read; did you mean ACME_WORKERS?"
    ]


def test_no_two_keys_share_a_variable() -> None:
    names = [overlay.variable_of(dotted) for dotted, _ in walk(Config) if "[]" not in dotted]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server.port", "--set: found 'server.port', allowed: key=value (server.port=9000)"),
        ("=1", "--set: found '=1', allowed: key=value (server.port=9000)"),
        ("server.prot=1", "--set: server.prot: unknown key; did you mean server.port?"),
        ("port=1", "--set: port: unknown key"),
        ("workers=1", "--set: workers: unknown key; did you mean server.workers?"),
        ("server.port.x=1", "--set: server.port.x: unknown key"),
        ("server.port=", "--set: server.port: found '', allowed: a whole number from 0 to 65535"),
        ("server=5", "--set: server: found '5'"),
        ("routes=[{path: /a}]", "--set: routes[0].type: missing"),
    ],
)
def test_mistakes_in_set(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([], {}, [text])
    assert str(caught.value).startswith(message)


def test_set_takes_yaml_for_lists_and_mappings() -> None:
    config = load(
        [],
        {},
        [
            "cache.vary=[A, B]",
            "cache.vary=!append [C]",
            "server.connection_pool={min_idle: 2}",
            "cache.redis.port=1",
        ],
    )
    assert config.cache.vary == ("A", "B", "C")
    assert config.server.connection_pool.min_idle == 2
    assert config.cache.l2.port == 1


KEYS = [dotted for dotted, _ in walk(Config) if "[]" not in dotted]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KEYS),
    st.text(st.sampled_from("a1[]{},:-'\"!&*#$\\ \n\0é.%") | st.characters(), max_size=20),
)
def test_no_value_of_any_key_raises_anything_but_a_config_error(dotted: str, text: str) -> None:
    for environ, sets in (({overlay.variable_of(dotted): text}, []), ({}, [f"{dotted}={text}"])):
        try:
            load([], environ, sets)
        except ConfigError as error:
            assert all("\n" not in str(problem) for problem in error.problems)


# -- references -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "1"),
        ("x${A}y${B}", "x1y2"),
        ("${NONE:-d}", "d"),
        ("${NONE:-}", ""),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("$A $$ $", "$A $$ $"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${NONE:-a:-b}", "a:-b"),
    ],
)
def test_references(text: str, expected: str) -> None:
    assert interpolate(text, {"A": "1", "B": "2", "EMPTY": ""}) == expected


def test_what_a_variable_holds_is_not_looked_into() -> None:
    assert interpolate("${A}", {"A": "${B}", "B": "x"}) == "${B}"


@pytest.mark.parametrize("text", ["${", "${}", "${a-b}", "${1}", "${A", "${A:+x}", "${A:-${B}}"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ValueError, match="is no reference"):
        interpolate(text, {"A": "1", "B": "2"})


@pytest.mark.parametrize("text", ["${A}", "$${A}", "$$$${", "a$", "{}"])
def test_escaping_undoes_references(text: str) -> None:
    assert interpolate(escape(text), {}) == text


def test_a_variable_that_is_not_set_is_named(file: Path) -> None:
    with pytest.raises(Missing):
        interpolate("${NONE}", {})
    assert refused("server:\n  host: ${ACME_TEST_HOST}\n", {}, file=file) == [
        "FILE:2:9: server.host: environment variable ACME_TEST_HOST is not set"
    ]


@pytest.mark.parametrize(
    "text", ["server: {port: '${PORT}'}", 'server: {port: "${PORT}"}', "server:\n  port: ${PORT:-1}"]
)
def test_a_reference_stands_for_a_number_with_and_without_quotes(file: Path, text: str) -> None:
    assert loaded(file, text, {"PORT": "81"}).server.port == 81


def test_the_environment_of_the_process_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_SERVER_PORT", "99")
    assert loaded(file, "server: {}", {}).server.port == 8080


# -- the application of the command line ------------------------------------------------------------------


def test_an_application_without_any_configuration() -> None:
    config = load([], {}, app="shop.wsgi:application")
    (route,) = config.routes
    assert (route.path, route.type, route.app) == ("/*", "wsgi", "shop.wsgi:application")
    assert config.origin("routes[0].app") == "command line"


def test_the_command_lines_application_wins_over_the_files(file: Path) -> None:
    file.write_text("routes: [{path: /*, type: redirect, redirect_to: /x}, {path: /a, type: wsgi, app: a}]")
    config = load([str(file)], {}, app="b")
    assert [(route.path, route.app) for route in config.routes] == [("/*", "b"), ("/a", "a")]


def test_a_bad_application_name() -> None:
    with pytest.raises(
        ConfigError, match=r"command line: routes\[0\].app: found 'a b', allowed: module:callable"
    ):
        load([], {}, app="a b")
