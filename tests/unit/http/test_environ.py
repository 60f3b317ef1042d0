"""Request fields in the environ: names, joined lines, what never gets in."""

from __future__ import annotations

import json
from typing import Any

from acme_wsgi.http.writer import Response
from tests.unit.engine_harness import OK, Rig, in_engine


def fields(request: Any) -> Response:
    environ = request.environ
    told = {name: environ[name] for name in environ if name.startswith(("HTTP_", "CONTENT_"))}
    return Response(OK, [], json.dumps(told).encode())


def told(rig: Rig, *lines: str) -> dict[str, str]:
    rig.dispatch = fields
    with rig.connect() as wire:
        found: dict[str, str] = json.loads(wire.request("/", headers=lines).body)
    assert found.pop("HTTP_HOST") == "test"
    return found


@in_engine()
def test_names_become_keys_whatever_their_case(rig: Rig) -> None:
    for name in ("Accept-Language", "accept-language", "ACCEPT-LANGUAGE", "aCCEPT-lANGUAGE"):
        assert told(rig, f"{name}: de") == {"HTTP_ACCEPT_LANGUAGE": "de"}
    found = told(rig, "content-type: a/b", "Content-Length: 0")
    assert found == {"CONTENT_TYPE": "a/b", "CONTENT_LENGTH": "0"}


@in_engine()
def test_lines_of_one_name_are_joined_in_their_order(rig: Rig) -> None:
    assert told(rig, "X-A: 1", "X-B: b", "x-a: 2", "X-A: 1") == {"HTTP_X_A": "1, 2, 1", "HTTP_X_B": "b"}
    assert told(rig, "Cookie: a=1", "Cookie: b=2") == {"HTTP_COOKIE": "a=1; b=2"}


@in_engine()
def test_equal_lines_count_each(rig: Rig) -> None:
    for value, joint in (("", ", "), ("1", "1, 1"), ("same", "same, same"), ("\xe9", "\xe9, \xe9")):
        assert told(rig, f"X-A: {value}", f"X-A: {value}") == {"HTTP_X_A": joint}


@in_engine()
def test_underscores_and_proxy_never_get_in(rig: Rig) -> None:
    assert told(rig, "X_A: 1", "X-A: 2", "Proxy: evil", "_: 3") == {"HTTP_X_A": "2"}


@in_engine()
def test_more_names_than_are_remembered(rig: Rig) -> None:
    for first in range(0, 3000, 60):
        numbers = range(first, first + 60)
        found = told(rig, *(f"X-Name-{number}: {number}" for number in numbers))
        assert found == {f"HTTP_X_NAME_{number}": str(number) for number in numbers}
    long = "X" * 100
    assert told(rig, f"{long}: 1") == {f"HTTP_{long}": "1"}


@in_engine()
def test_a_name_that_is_only_seen_again_after_others_keeps_its_meaning(rig: Rig) -> None:
    for _ in range(3):
        assert told(rig, "Accept: a", "Range: r") == {"HTTP_ACCEPT": "a", "HTTP_RANGE": "r"}
