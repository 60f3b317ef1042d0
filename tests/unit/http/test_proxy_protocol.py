"""The PROXY protocol parser: what HAProxy's proxy-protocol.txt allows, nothing else, in any fragments."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.http.proxy_protocol import MAX_V1, MAX_V2, Parsed, looks_like_proxy, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

ports = st.integers(0, 65535)
tails = st.binary(max_size=64)


def v2(command: int, family: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", size) + payload


def fed(data: bytes) -> Parsed | type[ValueError] | None:
    """What the parser says when the bytes come one by one: the first thing that isn't "incomplete"."""
    for end in range(len(data) + 1):
        try:
            result = parse(data[:end])
        except ValueError:
            return ValueError
        if result is not None:
            return result
    return None


def whole(data: bytes) -> Parsed | type[ValueError] | None:
    try:
        return parse(data)
    except ValueError:
        return ValueError


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), ports, ports, tails)
def test_v1_tcp4_is_read_and_what_follows_is_left(source, destination, sport, dport, tail):
    line = f"PROXY TCP4 {source} {destination} {sport} {dport}\r\n".encode()
    expected = Parsed(len(line), (str(source), sport), (str(destination), dport), False)
    assert parse(line + tail) == expected
    assert fed(line + tail) == expected


@given(st.ip_addresses(v=6), ports, st.booleans())
def test_v1_tcp6_is_read_in_any_spelling(source, port, long_form):
    text = source.exploded if long_form else str(source)
    line = f"PROXY TCP6 {text} {text.upper()} {port} 443\r\n".encode()
    result = parse(line)
    assert result is not None
    address = str(source.ipv4_mapped or source)
    assert result == (len(line), (address, port), (address, 443), False)


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), ports, ports, st.binary(max_size=MAX_V2 - 28), tails)
def test_v2_tcp4_skips_type_length_values(source, destination, sport, dport, extra, tail):
    data = v2(1, 0x11, source.packed + destination.packed + struct.pack("!HH", sport, dport) + extra)
    expected = Parsed(len(data), (str(source), sport), (str(destination), dport), False)
    assert parse(data + tail) == expected
    assert fed(data + tail) == expected


@given(st.ip_addresses(v=6), ports)
def test_v2_tcp6(source, port):
    data = v2(1, 0x21, source.packed * 2 + struct.pack("!HH", port, 80))
    address = str(source.ipv4_mapped or source)
    assert fed(data) == Parsed(len(data), (address, port), (address, 80), False)


def test_an_ipv4_client_mapped_into_ipv6_has_one_spelling():
    packed = ipaddress.IPv6Address("::ffff:192.0.2.1").packed
    for data in (v2(1, 0x21, packed * 2 + bytes(4)), b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:201 0 0\r\n"):
        assert fed(data) == Parsed(len(data), ("192.0.2.1", 0), ("192.0.2.1", 0), False)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
        b"PROXY UNKNOWN " + b"\xff" * (MAX_V1 - 16) + b"\r\n",
        v2(1, 0x00, b""),
        v2(1, 0x00, b"anything"),
        v2(1, 0x31, bytes(216)),
    ],
)
def test_addresses_that_are_not_told(data):
    assert fed(data + b"GET /") == Parsed(len(data), None, None, False)


@pytest.mark.parametrize("payload", [b"", bytes(12), bytes(520)])
@pytest.mark.parametrize("family", [0x00, 0x11, 0x21, 0xFF])
def test_a_local_connection_has_no_addresses_whatever_it_carries(family, payload):
    data = v2(0, family, payload)
    assert fed(data) == Parsed(len(data), None, None, True)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY\r\n",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY \r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.04 1 2\r\n",
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r \r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \xb2\r\n",
        b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 15) + b"\r\n",
        SIGNATURE[:-1] + b"\r",
        SIGNATURE + b"\x10",
        SIGNATURE + b"\x31",
        SIGNATURE + b"\x22",
        v2(1, 0x12, bytes(12)),
        v2(1, 0x22, bytes(36)),
        v2(1, 0x41, bytes(36)),
        v2(1, 0x11, bytes(11)),
        v2(1, 0x21, bytes(35)),
        v2(1, 0x31, bytes(215)),
        v2(1, 0x11, b"", length=MAX_V2 - 15),
        v2(0, 0x00, b"", length=0xFFFF),
    ],
)
def test_malformed_headers_are_refused_whole_and_byte_by_byte(data):
    assert whole(data) is ValueError
    assert fed(data) is ValueError


fields = st.sampled_from(
    [
        b"PROXY",
        b"TCP4",
        b"TCP6",
        b"UNKNOWN",
        b" ",
        b"\r\n",
        b"\r",
        b"1.2.3.4",
        b"::1",
        b"80",
        b"x",
        SIGNATURE,
        b"\x21\x11",
    ]
)


@given(
    st.lists(fields, max_size=12).map(b"".join)
    | st.builds(v2, st.integers(0, 15), st.integers(0, 255), tails)
)
def test_fragmentation_never_changes_the_answer(data):
    assert fed(data) == whole(data)


@given(st.binary(max_size=600))
def test_any_bytes_get_an_answer_within_the_bounds(data):
    result = whole(SIGNATURE + data)
    if isinstance(result, Parsed):
        assert 16 <= result.consumed <= min(MAX_V2, len(SIGNATURE + data))
    elif result is None:
        assert len(SIGNATURE + data) < MAX_V2
    if isinstance(result, Parsed) and result.source is not None:
        family = socket.AF_INET6 if ":" in result.source[0] else socket.AF_INET
        socket.inet_pton(family, result.source[0])


@pytest.mark.parametrize("length", range(1, 30))
def test_recognition(length):
    for header in (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", v2(1, 0x11, bytes(12))):
        signature = 6 if header.startswith(b"PROXY") else 12
        assert looks_like_proxy(header[:length]) is (True if length >= signature else None)
    assert looks_like_proxy(b"PROPFIND /calendar HTTP/1.1\r\n"[:length]) is (None if length <= 3 else False)


def test_nothing_yet_is_not_an_answer():
    assert looks_like_proxy(b"") is None
    assert parse(b"") is None
