"""What a reload takes over, and what it leaves for a restart."""

from __future__ import annotations

from typing import Any

import pytest
from config_strategies import configs
from hypothesis import HealthCheck, given, settings

from acme_wsgi.config import Config, load
from acme_wsgi.config.compare import settle
from acme_wsgi.config.keys import walk


def config(*sets: str, **options: Any) -> Config:
    return load([], {}, sets, **options)


def test_the_same_configuration_changes_nothing() -> None:
    found = settle(config("server.port=1"), config("server.port=1"))
    assert (found.changed, found.left) == ((), ())


def test_what_may_change_holds_and_what_needs_a_restart_stays() -> None:
    old = config("server.timeout=5s", "server.user=acme", "logging.level=info")
    new = config("server.timeout=7s", "server.user=www", "logging.level=debug", "server.backlog=7")
    found = settle(old, new)
    assert found.changed == ("server.timeout", "logging.level")
    assert found.left == ("server.backlog", "server.user")
    server = found.config.server
    assert (server.timeout, server.user, server.backlog) == (7.0, "acme", old.server.backlog)


def test_lists_of_sections_are_one_change() -> None:
    found = settle(config(app="a:b"), config(app="a:c"))
    assert found.changed == ("routes",) and found.config.routes[0].app == "a:c"


@pytest.mark.parametrize(
    "key", ["server.host", "server.port", "server.workers", "server.max_requests", "routes"]
)
def test_these_need_no_restart(key: str) -> None:
    assert dict(walk(Config))[key].key.live


@pytest.mark.parametrize(
    "key", ["server.user", "server.group", "server.runtime_dir", "server.worker_stack_size"]
)
def test_these_do(key: str) -> None:
    assert not dict(walk(Config))[key].key.live


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs(), configs())
def test_what_was_left_is_exactly_what_is_not_live(old: Config, new: Config) -> None:
    found = settle(old, new)
    declared = dict(walk(Config))
    assert all(declared[dotted].key.live for dotted in found.changed)
    again = settle(found.config, new)
    assert again.changed == () and again.left == found.left, "settling is final"
