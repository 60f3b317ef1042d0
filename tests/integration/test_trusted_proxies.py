"""Who the client is, as the application and the access log hear it, behind trusted and untrusted peers.

Knows the wire; the grammar of the headers themselves is tested with the module that reads them.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.server import Launcher, Server

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.frameworks.wsgi_cases:app"
GET = b"GET /facts HTTP/1.1\r\nHost: inner.example\r\nConnection: close\r\n"
CLIENT = "203.0.113.9"
NEW_ID = re.compile(r"[0-9a-f]{32}")


def server_on(acme: Launcher, where: str, trusted: list[str], tmp_path: Path) -> Server:
    server: dict[str, Any] = {"trusted_proxies": trusted}
    if where == "unix":
        server["host"] = f"unix:{tmp_path}/s"
    return acme({"server": server}, app=APP)


def ask(server: Server, before: bytes = b"", *lines: str) -> dict[str, Any]:
    """The environ's facts; `before` goes in front of the request."""
    with server.connect() as wire:
        wire.send(before, GET, *(f"{line}\r\n".encode() for line in lines), b"\r\n")
        reply = wire.reply()
    assert reply.status == 200
    told = dict(json.loads(reply.text))
    told["answered id"] = reply.header("X-Request-ID")
    return told


def proxy_v2(source: str, destination: str = "192.0.2.1", *, command: int = 0x21) -> bytes:
    """The binary header (HAProxy's proxy-protocol.txt, 2.2)."""
    six = ":" in source
    family = socket.AF_INET6 if six else socket.AF_INET
    there = "2001:db8::1" if six else destination
    body = socket.inet_pton(family, source) + socket.inet_pton(family, there) + struct.pack("!HH", 4321, 443)
    head = b"\r\n\r\n\0\r\nQUIT\n" + bytes([command, 0x21 if six else 0x11])
    return head + struct.pack("!H", len(body)) + body


V1 = f"PROXY TCP4 {CLIENT} 192.0.2.1 4321 443\r\n".encode()
V1_SIX = b"PROXY TCP6 2001:db8::9 2001:db8::1 4321 443\r\n"

# What is sent in front, header lines, and the address that must be seen.
SAID = [
    (b"", [f"X-Forwarded-For: {CLIENT}"], CLIENT),
    (b"", [f"Forwarded: for={CLIENT}"], CLIENT),
    (b"", ['Forwarded: for="[2001:db8::9]:4711";proto=https'], "2001:db8::9"),
    (b"", [f"X-Forwarded-For: 198.51.100.1, {CLIENT}"], CLIENT),
    (V1, [], CLIENT),
    (V1_SIX, [], "2001:db8::9"),
    (proxy_v2(CLIENT), [], CLIENT),
    (proxy_v2("2001:db8::9"), [], "2001:db8::9"),
]
NAMES = ["xff", "forwarded", "forwarded-six", "xff-two", "v1", "v1-six", "v2", "v2-six"]


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_a_trusted_peers_word_counts(acme: Launcher, tmp_path: Path, where: str) -> None:
    server = server_on(acme, where, ["127.0.0.0/8"] if where == "tcp" else ["unix:"], tmp_path)
    for (before, lines, seen), name in zip(SAID, NAMES, strict=True):
        told = ask(server, before, *lines)
        assert told["REMOTE_ADDR"] == seen, name
        server.wait_for_log(rf"^{re.escape(seen)} - - .*GET /facts")


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_an_untrusted_peers_word_does_not(acme: Launcher, tmp_path: Path, where: str) -> None:
    """Trust in the one kind of peer is no trust in the other."""
    server = server_on(
        acme, where, ["10.0.0.0/8", "unix:"] if where == "tcp" else ["0.0.0.0/0", "::/0"], tmp_path
    )
    own = "127.0.0.1" if where == "tcp" else ""
    lines = [
        f"X-Forwarded-For: {CLIENT}", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example",
        "X-Forwarded-Prefix: /evil", "X-Forwarded-Port: 1",
        f"Forwarded: for={CLIENT};proto=https;host=evil.example",
        "X-Request-ID: chosen-by-me",
    ]  # fmt: skip
    told = ask(server, b"", *lines)
    assert (told["REMOTE_ADDR"], told["wsgi.url_scheme"], told["HTTP_HOST"], told["SCRIPT_NAME"]) == (
        own, "http", "inner.example", "",
    )  # fmt: skip
    assert NEW_ID.fullmatch(told["acme.request_id"])
    assert told["answered id"] == told["acme.request_id"]
    for before in (V1, proxy_v2(CLIENT)):
        with server.connect() as wire:
            assert wire.send(before, GET, b"\r\n").reply().status == 400
    assert CLIENT not in server.stdout


def test_all_that_a_trusted_proxy_can_say(acme: Launcher, tmp_path: Path) -> None:
    server = server_on(acme, "tcp", ["127.0.0.1"], tmp_path)
    told = ask(
        server, b"", f"X-Forwarded-For: {CLIENT}", "X-Forwarded-Proto: https",
        "X-Forwarded-Host: shop.example", "X-Forwarded-Port: 8443", "X-Forwarded-Prefix: /shop",
    )  # fmt: skip
    expected = {
        "REMOTE_ADDR": CLIENT, "wsgi.url_scheme": "https", "HTTP_HOST": "shop.example:8443",
        "SERVER_PORT": "8443", "SCRIPT_NAME": "/shop",
    }  # fmt: skip
    assert {key: told[key] for key in expected} == expected


def test_the_client_is_the_first_address_that_is_not_trusted(acme: Launcher, tmp_path: Path) -> None:
    server = server_on(acme, "tcp", ["127.0.0.1", "10.0.0.0/8"], tmp_path)
    told = ask(server, b"", f"X-Forwarded-For: 1.1.1.1, {CLIENT}, 10.0.0.7")
    assert told["REMOTE_ADDR"] == CLIENT, "what stands left of it, anybody may have written"


def test_proxy_is_for_the_connection_and_headers_for_the_request(acme: Launcher, tmp_path: Path) -> None:
    """Behind PROXY, every request on the connection has that address; its headers count for nothing."""
    server = server_on(acme, "tcp", ["127.0.0.1"], tmp_path)
    with server.connect() as wire:
        wire.send(V1)
        for lines in ([], ["X-Forwarded-For: 1.1.1.1"], ["X-Request-ID: mine"]):
            told = json.loads(wire.request("/facts", headers=lines).text)
            assert (told["REMOTE_ADDR"], told["REMOTE_PORT"]) == (CLIENT, "4321")
            assert NEW_ID.fullmatch(told["acme.request_id"])


def test_a_proxy_header_that_comes_in_pieces(acme: Launcher, tmp_path: Path) -> None:
    server = server_on(acme, "tcp", ["127.0.0.1"], tmp_path)
    for before in (V1, proxy_v2(CLIENT)):
        with server.connect() as wire:
            wire.trickle(before + GET + b"\r\n")
            assert json.loads(wire.reply().text)["REMOTE_ADDR"] == CLIENT


@pytest.mark.parametrize(
    "bad", [b"PROXY TCP4 1.2.3 x y z\r\n", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c" + b"\0" * 12]
)
def test_a_malformed_proxy_header_ends_the_connection(acme: Launcher, tmp_path: Path, bad: bytes) -> None:
    server = server_on(acme, "tcp", ["127.0.0.1"], tmp_path)
    assert server.raw(bad + GET + b"\r\n") == b""
    assert ask(server)["REMOTE_ADDR"] == "127.0.0.1"


def test_local_and_unknown_say_nothing(acme: Launcher, tmp_path: Path) -> None:
    server = server_on(acme, "tcp", ["127.0.0.1"], tmp_path)
    for before in (b"PROXY UNKNOWN\r\n", proxy_v2(CLIENT, command=0x20)):
        assert ask(server, before)["REMOTE_ADDR"] == "127.0.0.1"


def test_a_trusted_request_id_is_taken(acme: Launcher, tmp_path: Path) -> None:
    """In the environ, in the response and in the log; one that isn't an id is replaced."""
    server = acme(
        {"server": {"trusted_proxies": ["127.0.0.1"]}, "logging": {"access": {"format": "json"}}}, app=APP
    )
    told = ask(server, b"", "X-Request-ID: abc-123:4/5")
    assert (told["acme.request_id"], told["answered id"]) == ("abc-123:4/5", "abc-123:4/5")
    server.wait_for_log('"request_id": "abc-123:4/5"')
    for bad in ("a b", "x" * 129, "a\x80", '"', ""):
        with server.connect() as wire:
            reply = wire.request("/facts", headers=[f"X-Request-ID: {bad}"])
        assert NEW_ID.fullmatch(reply.header("X-Request-ID") or ""), bad


def test_request_ids_are_all_different(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    ids = {server.get("/facts").header("X-Request-ID") for _ in range(200)}
    assert len(ids) == 200
