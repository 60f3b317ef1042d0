"""The declarations themselves: complete, sound, cheap to import, and as documented."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from acme_wsgi.config import Config, load
from acme_wsgi.config.keys import Items, Spec, Table, short_key, spec_by_name, walk
from acme_wsgi.config.kinds import Scalar
from acme_wsgi.config.render import scalar

ALL = list(walk(Config))

#: The documented defaults, in the form they are documented in.
DOCUMENTED = {
    "server.host": "0.0.0.0",
    "server.port": "8080",
    "server.workers": "0",
    "server.worker_stack_size": "2MB",
    "server.io_threads": "4",
    "server.max_connections": "10000",
    "server.timeout": "30s",
    "server.keep_alive_timeout": "120s",
    "server.shutdown_timeout": "30s",
    "server.max_body_size": "10MB",
    "server.max_header_size": "8KB",
    "server.connection_pool.min_idle": "0",
    "server.connection_pool.max_per_worker": "1000",
    "server.connection_pool.reuse_connections": "true",
    "server.connection_pool.idle_timeout": "60s",
    "server.backlog": "65535",
    "server.tcp_fastopen": "true",
    "server.max_requests": "0",
    "server.max_requests_jitter": "0",
    "server.preload_app": "false",
    "server.trusted_proxies": "[]",
    "cache.enabled": "true",
    "cache.size": "256MB",
    "cache.ttl": "3600",
    "cache.eviction_policy": "lru",
    "cache.vary": "[Accept-Encoding]",
    "cache.preload.enabled": "false",
    "cache.preload.paths": "[]",
    "cache.l1.size": "256MB",
    "cache.l1.ttl": "300",
    "cache.l2.enabled": "false",
    "cache.l2.type": "redis",
    "cache.l2.host": "localhost",
    "cache.l2.port": "6379",
    "cache.l2.ttl": "3600",
    "cache.cdn.enabled": "false",
    "cache.cdn.provider": "cloudflare",
    "cache.cdn.ttl": "86400",
    "cache.warming.enabled": "false",
    "cache.warming.predictive.enabled": "false",
    "cache.warming.predictive.threshold": "10",
    "compression.enabled": "true",
    "compression.algorithms": "[brotli, gzip]",
    "compression.level": "6",
    "compression.min_size": "1KB",
    "compression.max_size": "10MB",
    "compression.types": "[text/html, text/css, text/javascript, application/javascript, application/json,"
    " application/xml, image/svg+xml]",
    "compression.precompressed.enabled": "true",
    "compression.precompressed.extensions": "[.gz, .br]",
    "static.zero_copy": "true",
    "static.direct_io": "false",
    "static.direct_io_threshold": "4MB",
    "static.mmap.enabled": "false",
    "static.mmap.threshold": "1MB",
    "static.mmap.max_size": "100MB",
    "static.etag.enabled": "true",
    "static.etag.algorithm": "md5",
    "static.last_modified": "true",
    "static.conditional_requests": "true",
    "static.concatenation.enabled": "false",
    "static.concatenation.patterns": "[]",
    "static.minification.enabled": "false",
    "static.minification.css": "true",
    "static.minification.js": "true",
    "static.minification.html": "true",
    "static.versioning.enabled": "false",
    "static.versioning.pattern": "/static/{file}-{hash}.{ext}",
    "load_balancing.algorithm": "round_robin",
    "load_balancing.health_check.enabled": "true",
    "load_balancing.health_check.path": "/health",
    "load_balancing.health_check.interval": "10s",
    "load_balancing.health_check.timeout": "5s",
    "load_balancing.health_check.healthy_threshold": "2",
    "load_balancing.health_check.unhealthy_threshold": "3",
    "load_balancing.connection_draining.enabled": "true",
    "load_balancing.connection_draining.timeout": "30s",
    "load_balancing.sticky_sessions.enabled": "false",
    "load_balancing.sticky_sessions.cookie_name": "ACME_BACKEND",
    "load_balancing.sticky_sessions.ttl": "3600",
    "database.pool_size": "10",
    "database.min_idle": "1",
    "database.max_lifetime": "30m",
    "database.connect_timeout": "5s",
    "database.query_timeout": "10s",
    "database.query_cache.enabled": "false",
    "database.query_cache.size": "64MB",
    "database.query_cache.cache_selects": "true",
    "database.query_cache.ttl": "60",
    "monitoring.metrics.path": "/metrics",
    "monitoring.metrics.format": "prometheus",
    "monitoring.dashboard.enabled": "true",
    "monitoring.dashboard.path": "/dashboard",
    "monitoring.dashboard.allow": "[127.0.0.0/8, '::1']",
    "monitoring.health.path": "/health",
}


def value_of(config: Config, dotted: str) -> Any:
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(("dotted", "written"), DOCUMENTED.items())
def test_the_defaults_are_the_documented_ones(dotted: str, written: str) -> None:
    assert value_of(load([], {}, [f"{dotted}={written}"]), dotted) == value_of(Config(), dotted)


def test_nothing_configured_is_the_defaults() -> None:
    assert load([]) == Config()


def test_weight_defaults_to_one() -> None:
    assert load([], {}, ["backends=[{url: 'http://a'}]"]).backends[0].weight == 1


@pytest.mark.parametrize(("dotted", "spec"), ALL, ids=[dotted for dotted, _ in ALL])
def test_every_declaration_is_sound(dotted: str, spec: Spec) -> None:
    assert spec.key.text
    assert not spec.key.text.endswith(".")
    if isinstance(spec.kind, Scalar) and not spec.required and spec.default is not None:
        shown = scalar(spec.kind, spec.default).strip('"')
        value = spec.kind.read(shown, True)
        assert value == spec.default
        low, high = spec.kind.limits(spec.key.minimum, spec.key.maximum)
        assert low is None or value >= low
        assert high is None or value <= high
        if spec.key.check:
            spec.key.check(shown)
    if isinstance(spec.kind, Table | Items):
        short = short_key(spec.kind.cls)
        assert not short or short in spec_by_name(spec.kind.cls)


@pytest.mark.parametrize(
    ("dotted", "spec"),
    [(dotted, spec) for dotted, spec in ALL if any(word in dotted for word in ("password", "token", "url"))],
)
def test_what_can_hold_a_secret_is_one(dotted: str, spec: Spec) -> None:
    assert spec.key.secret or dotted.endswith("_file")


def test_every_section_is_frozen_and_has_slots() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server.port = 1  # type: ignore[misc]
    for _, spec in ALL:
        if isinstance(spec.kind, Table | Items):
            assert "__slots__" in vars(spec.kind.cls)
    assert hash(config.server) == hash(load([]).server)


def test_a_repr_shows_no_secret() -> None:
    config = load([], {}, ["cache.l2.password=hush", "database.url=postgresql://u:hush@h/d", "server.port=1"])
    assert "hush" not in repr(config)
    assert "port=1" in repr(config)


def test_importing_and_loading_takes_nothing_heavy() -> None:
    script = (
        "import sys, json; before = set(sys.modules); from acme_wsgi.config import load; load([]);"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    loaded = json.loads(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    )
    assert not {"gevent", "greenlet", "werkzeug", "ssl", "asyncio", "email", "logging"} & set(loaded)
