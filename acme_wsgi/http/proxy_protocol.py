"""The PROXY protocol, versions 1 and 2: what a load balancer says about the client, ahead of its bytes.

Law: a pure function of the bytes received so far. Whether the peer is trusted to say anything is decided by
the caller, before it calls. Reference: HAProxy's doc/proxy-protocol.txt (sections named below are its).
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import NamedTuple

MAX_V1 = 107
"""Bytes of the longest version 1 line with its CRLF (section 2.1)."""

MAX_V2 = 536
"""Bytes of the longest version 2 header that is accepted: 16, the longest addresses (216), some TLVs."""

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD = 16

# No leading zeros: what one side reads as octal and the other as decimal is two different addresses.
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

# Family and protocol byte -> length of the addresses (section 2.2); datagrams don't arrive on a stream.
_V2_LENGTHS = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}


class Parsed(NamedTuple):
    """A complete PROXY header.

    :ivar consumed: its length in bytes; the client's own bytes begin behind it
    :ivar source: the client's address and port, None when not told (UNKNOWN, LOCAL, UNIX sockets)
    :ivar destination: the address and port that the client connected to, None likewise
    :ivar local: the connection is the load balancer's own (a health check)
    """

    consumed: int
    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    local: bool


def looks_like_proxy(prefix: bytes) -> bool | None:
    """Whether a connection that begins with these bytes begins with a PROXY header; None: too few to tell."""
    for signature in (_V1, _V2):
        if prefix.startswith(signature):
            return True
        if signature.startswith(prefix):
            return None
    return False


def parse(data: bytes) -> Parsed | None:
    """Parse the PROXY header at the beginning of ``data``.

    :returns: the header, or None while it is incomplete
    :raises ValueError: this isn't one, or it is malformed; the connection must be closed unanswered
    """
    kind = looks_like_proxy(data)
    if kind is None:
        return None
    if not kind:
        raise ValueError("no PROXY header")
    return _parse_v1(data) if data.startswith(_V1) else _parse_v2(data)


def _parse_v1(data: bytes) -> Parsed | None:
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise ValueError(f"PROXY line longer than {MAX_V1} bytes")
        return None
    line = data[len(_V1) : end]
    fields = line.split(b" ")
    if fields[0] == b"UNKNOWN":  # whatever else the line says is to be ignored
        return Parsed(end + 2, None, None, False)
    if not line.isascii():
        raise ValueError("non-ASCII characters in a PROXY line")
    if fields[0] not in (b"TCP4", b"TCP6") or len(fields) != 5:
        raise ValueError("malformed PROXY line")
    version = 4 if fields[0] == b"TCP4" else 6
    source = (_address(fields[1], version), _port(fields[3]))
    return Parsed(end + 2, source, (_address(fields[2], version), _port(fields[4])), False)


def _address(text: bytes, version: int) -> str:
    if b"%" in text:
        raise ValueError("a zone in a PROXY address")
    address = ipaddress.ip_address(text.decode("ascii"))
    if address.version != version:
        raise ValueError("PROXY address of the other family")
    return _canonical(address)


def _port(text: bytes) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ValueError("bad port in a PROXY line")
    return int(text)


def _canonical(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """One spelling for each client: an IPv4 client behind a dual-stack proxy is that IPv4 client."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _parse_v2(data: bytes) -> Parsed | None:
    # Each byte is judged as soon as it is there: no connection is held open by a hopeless header.
    if len(data) > 12 and data[12] not in (0x20, 0x21):
        raise ValueError("unknown version or command of a PROXY header")
    local = len(data) > 12 and data[12] == 0x20
    if len(data) > 13 and not local and data[13] not in _V2_LENGTHS:
        raise ValueError("unsupported address family or transport in a PROXY header")
    if len(data) < _V2_HEAD:
        return None
    total = _V2_HEAD + int.from_bytes(data[14:16], "big")
    if total > MAX_V2:
        raise ValueError(f"PROXY header longer than {MAX_V2} bytes")
    if not local and total - _V2_HEAD < _V2_LENGTHS[data[13]]:
        raise ValueError("PROXY header too short for its addresses")
    if len(data) < total:
        return None
    if local:
        return Parsed(total, None, None, True)
    if data[13] == 0x11:
        return _addresses(total, data, "!4s4sHH")
    if data[13] == 0x21:
        return _addresses(total, data, "!16s16sHH")
    return Parsed(total, None, None, False)


def _addresses(total: int, data: bytes, layout: str) -> Parsed:
    source, destination, source_port, destination_port = struct.unpack_from(layout, data, _V2_HEAD)
    return Parsed(
        total,
        (_canonical(ipaddress.ip_address(source)), source_port),
        (_canonical(ipaddress.ip_address(destination)), destination_port),
        False,
    )
