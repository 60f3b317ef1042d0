# ruff: noqa: E501 - a table of messages reads best with one a line
"""Messages of loading, contradictions, warnings, secrets in files, and the documented examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from acme_wsgi.config import Config, load
from acme_wsgi.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "acme.yaml"


def loaded(file: Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load([str(file)])


def refused(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text)
    return [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cache:\n  evicton_policy: lru", "2:3: cache.evicton_policy: unknown key; did you mean eviction_policy?"),
        ("server:\n  keepAliveTimeout: 5", "2:3: server.keepAliveTimeout: unknown key; did you mean keep_alive_timeout?"),
        ("port: 80", "1:1: port: unknown key"),
        ("max_connections: 80", "1:1: max_connections: unknown key; did you mean server.max_connections?"),
        ("ssl: {}", "1:1: ssl: unknown key; this version doesn't have it yet"),
        ("cache:\n  eviction_policy: lur", "2:20: cache.eviction_policy: found 'lur', allowed: lru, lfu, fifo; did you mean lru?"),
        ("server: 5", "1:9: server: found '5', allowed: a mapping of host, port, workers"),
        ("server: {port: [80, 81]}", "1:16: server.port: found a list, allowed: a whole number from 0 to 65535"),
        ("server: {port: 65536}", "1:16: server.port: found '65536', allowed: a whole number from 0 to 65535"),
        ("server: {port: -1}", "1:16: server.port: found '-1', allowed: a whole number from 0 to 65535"),
        ("server: {port: '80'}", "1:16: server.port: found '80', allowed: a whole number"),
        ("server: {port: 10:30}", "1:16: server.port: found '10:30', allowed: a whole number"),
        ("server: {port: 0x50}", "1:16: server.port: found '0x50', allowed: a whole number"),
        ("server: {port: 080}", "1:16: server.port: found '080', allowed: a whole number from 0 to 65535; a leading zero is ambiguous: write 80"),
        ("server: {port: }", "1:15: server.port: found nothing, allowed: a whole number"),
        ("server: {timeout: 5 minutes}", "1:19: server.timeout: found '5 minutes', allowed: a duration"),
        ("server: {timeout: 0}", "1:19: server.timeout: found '0', allowed: a duration (500ms, 30s, 5m, 2h, 30d or seconds) from 10ms to 1d"),
        ("server: {max_body_size: 5X}", "1:25: server.max_body_size: found '5X', allowed: a size"),
        ("server: {tcp_fastopen: 1}", "1:24: server.tcp_fastopen: found '1', allowed: true or false"),
        ("server: {tcp_fastopen: 'yes'}", "1:24: server.tcp_fastopen: found 'yes', allowed: true or false"),
        ("server: {trusted_proxies: [10.0.0.1/8]}", "1:28: server.trusted_proxies[0]: found '10.0.0.1/8', allowed: a network without host bits; did you mean 10.0.0.0/8?"),
        ("server: {trusted_proxies: [everyone]}", "1:28: server.trusted_proxies[0]: found 'everyone', allowed: an address or a network (10.0.0.0/8, fd00::/8), or unix:"),
        ("server: {host: 'unix:acme.sock'}", "1:16: server.host: found 'unix:acme.sock', allowed: an absolute path"),
        ("server: {host: \"a\\nb\"}", "1:16: server.host: found 'a\\nb', allowed: a text in one line"),
        ("compression: {algorithms: [brotli, zstd]}", "1:36: compression.algorithms[1]: found 'zstd', allowed: brotli, gzip"),
        ("cache: {warming: {scheduled: [{cron: '99 * * * *', paths: [/]}]}}", "1:38: cache.warming.scheduled[0].cron: found '99 * * * *', allowed: five cron fields"),
        ("routes: [{type: wsgi, app: x}]", "1:10: routes[0].path: missing"),
        ("routes: [{path: /a, type: static, root: r, try_files: [$uri, a.html]}]", "1:62: routes[0].try_files[1]: found 'a.html', allowed: a name that starts with / or $uri"),
        ("routes: [{path: /a, type: static, root: r, try_files: [=404, $uri]}]", "1:56: routes[0].try_files[0]: =404 can only be the last"),
        ("routes: [{path: /a, type: static, root: r, cache_control: caf€}]", "1:59: routes[0].cache_control: found 'caf€', allowed: the value of a header field"),
        ("load_balancing: {health_check: {path: /hé}}", "1:39: load_balancing.health_check.path: found '/hé', allowed: a path of ASCII characters"),
        ("routes: [{path: /a, type: wsgi}]", "1:10: routes[0].app: missing; a route of type wsgi needs it"),
        ("routes: [{path: /a, type: wsig, app: x}]", "1:27: routes[0].type: found 'wsig', allowed: static, proxy, redirect, wsgi, handler; did you mean wsgi?"),
        ("routes: [{path: /a/*/b, type: wsgi, app: x}]", "1:17: routes[0].path: found '/a/*/b', allowed: a path with * only as its end"),
        ("routes: [{path: '~ (', type: wsgi, app: x}]", "1:17: routes[0].path: found '~ (', allowed: a regular expression"),
        ("routes: [5]", "1:10: routes[0]: found '5', allowed: a mapping"),
        ("routes: [{path: /, type: proxy, backend: 'ftp://x'}]", "1:42: routes[0].backend: found 'ftp://x', allowed: an http:// or https:// URL"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {'a b': c}}}]", "1:70: routes[0].headers.add.a b: found 'a b', allowed: the name of a header field"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {A: $remote_adr}}}]", "1:73: routes[0].headers.add.A: found '$remote_adr', allowed: a text with the variables $remote_addr, $scheme, $host, $request_id, and $$ for a $; did you mean $remote_addr?"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {A: a $ b}}}]", "1:73: routes[0].headers.add.A: found 'a $ b', allowed: a text with the variables"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {A: \"a\\tb\"}}}]", "1:73: routes[0].headers.add.A: found 'a\\tb', allowed: a text in one line, without control characters"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {connection: close}}}]", "1:70: routes[0].headers.add.connection: found 'connection', allowed: a header field that doesn't belong to a single connection"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {Content-Length: '1'}}}]", "1:70: routes[0].headers.add.Content-Length: found 'Content-Length', allowed: a header field that doesn't say where"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {remove: [Host]}}]", "1:73: routes[0].headers.remove[0]: found 'Host', allowed: a header field that a request can do without"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {host: a b}}}]", "1:70: routes[0].headers.add.host: found 'a b', allowed: a host name or an address, with or without a port"),
        ("routes: [{path: /, type: proxy, backend: 'http://a', headers: {add: {Host: $hos}}}]", "1:76: routes[0].headers.add.Host: found '$hos', allowed: a text with the variables"),
        ("routes: [{path: /, type: wsgi, app: x, fallback: /f}]", "1:40: routes[0].fallback: is for type proxy; the type here is wsgi"),
        ("backends: [{url: 'http://a?secret=b'}]", "1:18: backends[0].url: found 'http://a?***', allowed: a URL without a query"),
        ("backends: [{url: 'http://joe:hush@a b'}]", "1:18: backends[0].url: found 'http://joe:***@a b', allowed: an http:// or https:// URL"),
        ("backends: [{url: 'http://joe:hu/sh@a'}]", "1:18: backends[0].url: found 'http://joe:***@a', allowed: an http:// or https:// URL, or unix:/path; a port is a number from 1 to 65535"),
        ("backends: [{url: 'http://[a'}]", "1:18: backends[0].url: found 'http://[a', allowed: an http:// or https:// URL, or unix:/path"),
        (f"backends: [{', '.join(f'{{url: http://a:{port}}}' for port in range(1, 66))}]", "1:11: backends: 65 backends; allowed: 64"),
        ("load_balancing: {sticky_sessions: {ttl: 0}}", "1:41: load_balancing.sticky_sessions.ttl: found '0', allowed: a duration (500ms, 30s, 5m, 2h, 30d or seconds) from 1s to 3650d"),
        ("static: {concatenation: {patterns: [/a/*.css /b]}}", "1:37: static.concatenation.patterns[0]: found '/a/*.css /b', allowed: a pattern, an arrow and a path"),
        ("monitoring: {metrics: [cpu_usge]}", "1:24: monitoring.metrics.include[0]: found 'cpu_usge', allowed: request_rate"),
        ("monitoring: {metrics: {include: [cpu_usge]}}", "1:34: monitoring.metrics.include[0]: found 'cpu_usge'"),
    ],
)  # fmt: skip
def test_messages(file: Path, text: str, message: str) -> None:
    found = refused(file, text)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_media_types_have_one_spelling(file: Path) -> None:
    file.write_text(
        "compression: {types: [Text/HTML, TEXT/*]}\n"
        "routes: [{path: /, type: static, root: r, compression: {types: [Text/CSS]}}]\n"
    )
    config = load([str(file)], {})
    assert config.compression.types == ("text/html", "text/*")
    own = config.routes[0].compression
    assert own is not None and own.types == ("text/css",)
    config = load([], {}, ["compression.types=IMAGE/SVG+XML"])
    assert config.compression.types == ("image/svg+xml",)


def test_a_secret_is_not_shown_in_a_message(file: Path) -> None:
    (message,) = refused(file, 'cache: {l2: {password: "hush\\x01"}}')
    assert "hush" not in message
    assert "found ***" in message


def test_all_errors_of_all_files_come_in_one_go(tmp_path: Path) -> None:
    (tmp_path / "10-server.yaml").write_text("server:\n  prot: 1\n  workers: many\n")
    (tmp_path / "20-cache.yaml").write_text("cache:\n  size: big\n")
    with pytest.raises(ConfigError) as caught:
        load([str(tmp_path)], {"ACME_SERVER_PORT": "x"}, ["server.timeout=y"])
    places = [(Path(each.file or "").name, each.line) for each in caught.value.problems]
    assert places == [
        ("10-server.yaml", 2),
        ("10-server.yaml", 3),
        ("20-cache.yaml", 2),
        ("environment ACME_SERVER_PORT", None),
        ("--set", None),
    ]
    assert caught.value.exit_status == 78


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cache:\n  size: 1GB\n  l1: {size: 2GB}", "3:14: cache.l1.size: 2GB is above cache.size (FILE:2), which is 1GB"),
        ("database:\n  min_idle: 20", "2:13: database.min_idle: 20 is above database.pool_size (default), which is 10"),
        ("database:\n  pool_size: 1\n  min_idle: 2", "3:13: database.min_idle: 2 is above database.pool_size (FILE:2), which is 1"),
        ("compression:\n  max_size: 10", "2:13: compression.max_size: 10 is below compression.min_size (default), which is 1KB"),
        ("server: {connection_pool: {min_idle: 5000}}", "1:38: server.connection_pool.min_idle: 5000 is above server.connection_pool.max_per_worker (default), which is 1000"),
        ("static: {mmap: {threshold: 1GB}}", "1:28: static.mmap.threshold: 1GB is above static.mmap.max_size"),
        ("load_balancing: {health_check: {interval: 1s}}", "1:43: load_balancing.health_check.interval: 1s is below load_balancing.health_check.timeout (default), which is 5s"),
        ("cache:\n  l2:\n    url: redis://a\n    host: b", "4:11: cache.l2.host: written beside cache.l2.url (FILE:3); the URL says it all"),
        ("cache: {l2: {type: memcached, enabled: true}}", "1:20: cache.l2.servers: missing; type memcached needs its servers"),
        ("cache:\n  l2:\n    servers: [a]", "3:5: cache.l2.servers: is for type memcached; the type here is redis, the default"),
        ("routes:\n- path: /\n  type: wsgi\n  app: x\n  root: /y", "5:3: routes[0].root: is for type static; the type here is wsgi (FILE:3)"),
        ("routes:\n- {path: /, type: proxy, backend: 'http://a', backends: [{url: 'http://b'}]}", "2:35: routes[0].backend: written beside routes[0].backends (FILE:2)"),
        ("routes:\n- {path: /, type: proxy}", "2:3: routes[0].backends: missing; a route of type proxy needs backend or backends"),
        ("backends:\n- url: http://a:80\n- url: HTTP://A/", "3:8: backends[1].url: the same backend as backends[0].url (FILE:2)"),
        ("server: {connection_pool: {min_idle: 5, reuse_connections: false}}", "1:38: server.connection_pool.min_idle: 5 connections kept, but server.connection_pool.reuse_connections (FILE:1) is false"),
        ("routes:\n- {path: /, type: proxy, backend: 'http://a', proxy_timeout: 5s, proxy_read_timeout: 6s}", "2:86: routes[0].proxy_read_timeout: 6s is above routes[0].proxy_timeout (FILE:2), which is 5s"),
        ("routes:\n- {path: /, type: proxy, backend: 'http://a', headers: {add: {X-A: a, x-a: b}}}", "2:71: routes[0].headers.add.x-a: the same header as routes[0].headers.add.X-A (FILE:2)"),
        ("routes:\n- {path: /, type: proxy, backend: 'http://a', rewrite: {from: ^/(.*), to: /\\2}}", "2:75: routes[0].rewrite.to: found '/\\\\2': there is no group 2: the expression has one group; routes[0].rewrite.from (FILE:2)"),
        ("routes:\n- {path: /, type: proxy, backend: 'http://a', rewrite: {from: '^/(?P<page>.*)', to: /\\g<pages>}}", "2:85: routes[0].rewrite.to: found '/\\\\g<pages>': there is no group 'pages'; routes[0].rewrite.from (FILE:2); did you mean page?"),
        ("routes:\n- {path: /, type: proxy, backend: 'http://a', rewrite: {from: ^/, to: x}}", "2:71: routes[0].rewrite.to: found 'x': a path that starts with /, or with a group that does"),
        ("routes:\n- {path: /, type: wsgi, app: x, compression: {min_size: 1GB}}", "2:57: routes[0].compression.min_size: above max_size (from compression)"),
        ("middleware:\n- {type: rateLimit, limit: 1, window: 1s, key_by: header}", "2:51: middleware[0].key_header: missing; key_by: header needs it"),
        ("middleware:\n- {type: rateLimit, limit: 1, window: 1s, key_cookie: a}", "2:55: middleware[0].key_cookie: written, but middleware[0].key_by (default) is ip"),
        ("monitoring: {health: {checks: [{name: a, type: http}]}}", "1:32: monitoring.health.checks[0].url: missing; a check of type http needs it"),
        ("monitoring: {metrics: {path: /health}}", "1:30: monitoring.metrics.path: /health is also the path of monitoring.health.path (default)"),
    ],
)  # fmt: skip
def test_both_halves_of_a_contradiction_are_named(file: Path, text: str, message: str) -> None:
    found = [each.replace(str(file), "FILE") for each in refused(file, text)]
    assert len(found) == 1
    assert found[0].startswith(message)


def test_cache_size_and_l1_size_name_one_tier(file: Path) -> None:
    assert loaded(file, "cache: {l1: {size: 2GB}}").cache.size == 2 << 30
    assert loaded(file, "cache: {size: 2GB}").cache.l1.size == 2 << 30
    both = loaded(file, "cache: {size: 2GB, l1: {size: 1GB}}").cache
    assert (both.size, both.l1.size) == (2 << 30, 1 << 30)


def test_a_route_takes_over_what_its_own_sections_leave_out(file: Path) -> None:
    config = loaded(
        file,
        "compression: {level: 9}\ncache: {ttl: 5}\nload_balancing: {algorithm: ip_hash, health_check: {path: /up}}\n"
        "routes:\n- path: /a\n  type: proxy\n  backend: http://a\n  compression: {min_size: 5KB}\n  cache: false\n"
        "  load_balancing: least_conn\n  health_check: {interval: 20s}\n  method: GET\n"
        "- {path: /b, type: wsgi, app: x, middleware: []}\n",
    )
    first, second = config.routes
    assert first.compression is not None
    assert (first.compression.level, first.compression.min_size) == (9, 5120)
    assert first.cache is not None
    assert (first.cache.enabled, first.cache.ttl) == (False, 5.0)
    assert first.load_balancing is not None
    assert first.load_balancing.algorithm == "least_conn"
    assert first.health_check is not None
    assert (first.health_check.path, first.health_check.interval) == ("/up", 20.0)
    assert first.method == ("GET",)
    assert first.middleware is None
    assert second.middleware == ()
    assert second.compression is None


@pytest.mark.parametrize("arrow", ["->", "→"])
def test_arrows(file: Path, arrow: str) -> None:
    config = loaded(
        file, f"static: {{concatenation: {{patterns: /static/css/*.css {arrow} /static/bundle.css}}}}"
    )
    assert config.static.concatenation.patterns == (("/static/css/*.css", "/static/bundle.css"),)


@pytest.mark.parametrize(
    ("text", "value"),
    [("off", "off"), ("010", "010"), ("10:30", "10:30"), ("2001-01-01", "2001-01-01"), ("1e3", "1e3")],
)
def test_texts_stay_as_written(file: Path, text: str, value: str) -> None:
    assert loaded(file, f"cache: {{l2: {{password: {text}}}}}").cache.l2.password == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("On", True), ("TRUE", True), ("no", False), ("OFF", False), ("!!bool true", True)],
)
def test_booleans(file: Path, text: str, value: bool) -> None:
    assert loaded(file, f"server: {{server_header: {text}}}").server.server_header is value


def test_null_unsets_an_optional_key(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("server: {user: acme}")
    (tmp_path / "2.yaml").write_text("server: {user: ~}")
    assert load([str(tmp_path)]).server.user is None


# -- what isn't there yet ---------------------------------------------------------------------------------


def test_what_has_no_effect_yet_is_warned_about(file: Path) -> None:
    config = loaded(
        file,
        "cache: {size: 1GB, enabled: true}\nserver: {preload_app: true}\n"
        "routes:\n- {path: /, type: proxy, backend: 'http://a:1'}\n- {path: /a, type: wsgi, app: x, cache: false}\n",
    )
    warned = [(each.key, each.line) for each in config.warnings]
    assert warned == [
        ("cache.size", 1),
        ("server.preload_app", 2),
        ("routes[1].cache.enabled", 5),
    ]


def test_a_cookie_that_two_groups_share_is_warned_about(file: Path) -> None:
    config = loaded(
        file,
        "load_balancing: {sticky_sessions: {enabled: true}}\nbackends: [{url: 'http://a'}, {url: 'http://b'}]\n"
        "routes:\n- {path: /a, type: proxy}\n- {path: /b, type: proxy}\n"
        "- {path: /c, type: proxy, backend: 'http://c'}\n"
        "- {path: /d, type: proxy, backend: 'http://d', "
        "load_balancing: {sticky_sessions: {cookie_name: OTHER}}}\n"
        "- {path: /e, type: proxy, backend: 'http://e', load_balancing: {sticky_sessions: {enabled: false}}}\n",
    )
    assert [str(each).removeprefix(f"{file}:") for each in config.warnings] == [
        "6:10: routes[2].load_balancing.sticky_sessions.cookie_name: ACME_BACKEND: routes[0] has other backends and a"
        " cookie of that name, so each loses visitors; give it a name of its own",
    ]


def test_cookies_of_different_hosts_are_not(file: Path) -> None:
    config = loaded(
        file,
        "load_balancing: {sticky_sessions: {enabled: true}}\nroutes:\n"
        "- {path: /, host: a.example, type: proxy, backend: 'http://a'}\n"
        "- {path: /, host: b.example, type: proxy, backend: 'http://b'}\n",
    )
    assert config.warnings == ()


def test_a_route_of_the_servers_backends_inherits_piece_by_piece(file: Path) -> None:
    config = loaded(
        file,
        "load_balancing:\n  sticky_sessions: {cookie_name: WHO, ttl: 1h}\n  connection_draining: {timeout: 9s}\n"
        "backends: [{url: 'http://a'}]\nroutes:\n- path: /\n  type: proxy\n"
        "  load_balancing: {sticky_sessions: {enabled: true}}\n  health_check: false\n",
    )
    (route,) = config.routes
    assert route.load_balancing is not None and route.health_check is not None
    sticky = route.load_balancing.sticky_sessions
    assert (sticky.enabled, sticky.cookie_name, sticky.ttl) == (True, "WHO", 3600.0)
    assert route.load_balancing.connection_draining.timeout == 9.0
    assert (route.health_check.enabled, route.health_check.interval) == (False, 10.0)


def test_what_is_there_is_not_warned_about(file: Path) -> None:
    text = "server: {port: 1, timeout: 5s}\nlogging: {level: debug}\nroutes: [{path: /, type: wsgi, app: x, timeout: 1s}]\n"
    assert loaded(file, text).warnings == ()


# -- secrets in files -------------------------------------------------------------------------------------


def test_a_password_file(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush ${HOME}\n")
    config = loaded(file, f"cache: {{l2: {{password_file: {secret}}}}}")
    assert config.cache.l2.password == "hush ${HOME}"
    assert config.origin("cache.l2.password") == f"file {secret}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "empty"),
        (b"\xff", "not UTF-8"),
        (b"a\nb", "more than one line"),
        (b"x" * 5000, "larger than 4096 bytes"),
    ],
)
def test_a_bad_password_file(file: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    assert refused(file, f"cache:\n  l2:\n    password_file: {secret}\n") == [
        next(each for each in refused(file, file.read_text()) if message in each)
    ]


def test_a_secret_and_its_file(file: Path) -> None:
    (message,) = refused(file, "cache:\n  cdn:\n    token: a\n    token_file: /b\n")
    assert (
        message
        == f"4:17: cache.cdn.token_file: token_file here and token in {file}:3; only one of them can hold"
    )


# -- the examples of the performance guide ----------------------------------------------------------------

GUIDE = (Path(__file__).parent / "performance_guide.yaml").read_text(encoding="utf-8").split("---\n")


@pytest.mark.parametrize("text", GUIDE)
def test_the_examples_of_the_performance_guide_load(file: Path, text: str) -> None:
    assert loaded(file, text).origins


def test_the_examples_of_the_performance_guide_load_together(tmp_path: Path) -> None:
    for number, text in enumerate(GUIDE):
        (tmp_path / f"{number:02}.yaml").write_text(text, encoding="utf-8")
    config = load([str(tmp_path)])
    assert config.server.workers == 16
    assert config.cache.l2.size == 8 << 30
    assert config.middleware[0].window == 60.0
    assert config.database.query_cache.rules[0].pattern == "SELECT .* FROM users WHERE id = ?"
