"""Who the client is, behind proxies: Forwarded (RFC 7239) and X-Forwarded-*, believed of trusted peers.

Law: pure functions of strings; changes an environ and nothing else, and raises for nothing that a request
says. Each proxy adds what it saw on the RIGHT of these lists, so they are read from the right: an entry is
believed when the address that added it is trusted, and reading ends at the first address that isn't. What
stands further left is the client's own invention. A malformed entry ends the reading too; the last believed
address stays.

A trusted proxy must set, or remove, the headers it doesn't want believed: it is its word that counts. Since
most proxies write X-Forwarded-For alone and hand a client's Forwarded through, Forwarded counts only where
there is no X-Forwarded-For or where both name the same last hop; else X-Forwarded-For is taken.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

MAX_HOPS = 32
"""Entries of a list that are looked at, from the right; nobody has a longer chain of proxies."""

MAX_LENGTH = 4096
"""Characters of a list that are looked at, from the right."""

UNIX = "unix:"
"""The word in ``server.trusted_proxies`` for peers on a UNIX socket."""

_CACHE_SIZE = 4096

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a grammar's token, not a secret
_QUOTED = r'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_PAIR = re.compile(rf"({_TOKEN})=(?:({_TOKEN})|({_QUOTED}))")
_ELEMENT = re.compile(rf"{_PAIR.pattern}(?:;(?:{_PAIR.pattern})?)*")
_UNQUOTE = re.compile(r"\\(.)")

_PORT = re.compile(r"[0-9]{1,5}")
# A registered name, looser than DNS (underscores are common in container names), tighter than a URI's.
_NAME = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_.-]{0,253}[0-9A-Za-z_.])?")
# Segments of unreserved characters and sub-delimiters: nothing here needs escaping in any markup or header.
_PREFIX = re.compile(r"(?:/[0-9A-Za-z._~!$()*+,;=:@-]+)+/?")

T = TypeVar("T")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Hop(NamedTuple):
    """One entry of the chain: an address in its one canonical spelling, and a port ("" if not told)."""

    address: str
    port: str


class TrustedProxies:
    """The peers whose word about the client counts (``server.trusted_proxies``).

    :param cidrs: networks ("10.0.0.0/8"), single addresses, and the word ``unix:`` for UNIX-socket peers
    :raises ValueError: an item is neither
    """

    def __init__(self, cidrs: Sequence[str]) -> None:
        self._unix = UNIX in cidrs
        self._networks = tuple(_network(cidr) for cidr in cidrs if cidr != UNIX)
        self._cache: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether a peer is trusted.

        :param address: an IP address, or "" or "unix:..." for the peer of a UNIX socket
        """
        known = self._cache.get(address)
        if known is None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            known = self._cache[address] = self._look_up(address)
        return known

    def _look_up(self, address: str) -> bool:
        if not address or address.startswith(UNIX):
            return self._unix
        ip = parse_address(address.partition("%")[0])
        return ip is not None and any(ip.version == net.version and ip in net for net in self._networks)

    def apply(self, environ: dict[str, Any], peer: str) -> None:
        """Put what trusted proxies say about the client into a WSGI environ.

        Sets, where told: REMOTE_ADDR and REMOTE_PORT ("0" when only the address is told), wsgi.url_scheme,
        HTTP_HOST, SERVER_NAME, SERVER_PORT, SCRIPT_NAME (X-Forwarded-Prefix), with the meaning that
        werkzeug's ProxyFix gives them. The headers themselves stay. Does nothing for an untrusted peer.

        :param peer: the address of the connection's other end, as for :meth:`trusts`
        """
        if not self.trusts(peer):
            return
        elements: list[dict[str, str]] = []
        if "HTTP_FORWARDED" in environ and _forwarded_counts(environ):
            elements = self._believed_elements(environ["HTTP_FORWARDED"])
        if elements:
            _apply_client(environ, _last_hop(_hop(element.get("for", "")) for element in elements))
            # Nearest to the client wins: that proxy saw what the client really asked for.
            scheme = next((e["proto"] for e in reversed(elements) if "proto" in e), "")
            host = next((e["host"] for e in reversed(elements) if "host" in e), "")
            _apply_origin(environ, scheme, host, "")
            return
        hops, count = self._believed_hops(environ.get("HTTP_X_FORWARDED_FOR", ""))
        _apply_client(environ, hops[-1] if hops else None)

        def told(name: str) -> str:
            return _nth_from_right(environ.get("HTTP_X_FORWARDED_" + name, ""), count)

        _apply_origin(environ, told("PROTO"), told("HOST"), told("PORT"))
        _apply_prefix(environ, told("PREFIX"))

    def _believed_elements(self, header: str) -> list[dict[str, str]]:
        """The elements of Forwarded that trusted proxies added, from the right."""
        elements = (element for _, element in _elements(header))
        return self._believed(elements, lambda element: _hop(element.get("for", "")))

    def _believed_hops(self, header: str) -> tuple[list[Hop], int]:
        """The addresses in X-Forwarded-For that trusted proxies added, from the right; the proxies passed."""
        entries = self._believed(_items(header), _hop)
        hops = [hop for hop in map(_hop, entries) if hop is not None]
        return hops, max(1, len(entries))

    def _believed(self, entries: Iterator[T], hop_of: Callable[[T], Hop | None]) -> list[T]:
        believed: list[T] = []
        for entry in entries:
            believed.append(entry)
            hop = hop_of(entry)
            if hop is None or not self.trusts(hop.address):
                break
        return believed


def continued(environ: dict[str, Any]) -> str:
    """What of a trusted peer's Forwarded goes on to the next server, before our own element; "" for nothing.

    All of it that is well-formed, read from the right: behind half a quoted string our own element would be a
    part of that. Nothing where it doesn't count.
    """
    header: str = environ.get("HTTP_FORWARDED", "")
    begin = len(header)
    if header and _forwarded_counts(environ):
        for at, _ in _elements(header):
            begin = at
    return header[begin:].strip(" \t,")


def _forwarded_counts(environ: dict[str, Any]) -> bool:
    """Whether the trusted peer wrote Forwarded (see the law above)."""
    other = environ.get("HTTP_X_FORWARDED_FOR")
    if other is None:
        return True
    _, element = next(_elements(environ["HTTP_FORWARDED"]), (0, {}))
    ours = _hop(element.get("for", ""))
    theirs = _hop(next(_items(other), ""))
    return ours is not None and theirs is not None and ours.address == theirs.address


def _network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        raise ValueError(f"{cidr!r} is neither a network in CIDR notation nor the word {UNIX}") from None


def parse_address(text: str) -> Address | None:
    """An IP address without port, brackets or zone; an IPv4 address mapped into IPv6 is that IPv4 address."""
    if len(text) > 45 or "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _hop(text: str) -> Hop | None:
    """An address with or without port: `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]`, `[::1]:80`; else None.

    The node names that tell no address, `unknown` and `_obfuscated` (RFC 7239 sections 6.2, 6.3), are None,
    too; an obfuscated port is as good as no port.
    """
    port = ""
    if text.startswith("["):
        text, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in text or (rest and not rest.startswith(":")):
            return None
        port = rest[1:]
        if rest == ":":
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not port:
            return None
    address = parse_address(text)
    if address is None:
        return None
    if port.startswith("_"):
        return Hop(str(address), "")
    if port and not _is_port(port):
        return None
    return Hop(str(address), port)


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and 0 < int(text) <= 65535


def _last_hop(hops: Iterator[Hop | None]) -> Hop | None:
    last = None
    for hop in hops:
        last = hop or last
    return last


def _items(header: str) -> Iterator[str]:
    """The items of a comma-separated list from the right, empty ones left out."""
    pieces = header[-MAX_LENGTH:].rsplit(",", MAX_HOPS)
    if len(header) > MAX_LENGTH or len(pieces) > MAX_HOPS:
        pieces = pieces[1:]  # the first piece is a cut one, or the unread rest
    for piece in reversed(pieces):
        item = piece.strip(" \t")
        if item:
            yield item


def _elements(header: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The elements of a Forwarded header from the right (RFC 7239 section 4), names in lower case.

    Before each stands where it begins. Ends at the first that is malformed.

    Read backwards, because only the right end is sure to be well-formed: a client may have sent half a quoted
    string in front of it. A comma inside a quoted string doesn't mislead: the part behind it, ending in an
    unmatched quote, is no element.
    """
    rest = header[-MAX_LENGTH:]
    unread = len(header) - len(rest)
    tries = MAX_HOPS * 2
    end = start = len(rest)
    while tries > 0 and end > 0:
        tries -= 1
        start = rest.rfind(",", 0, start)
        if start < 0 and len(header) > MAX_LENGTH:
            return  # a cut element
        piece = rest[start + 1 : end].strip(" \t")
        if piece:
            element = _element(piece)
            if element is not None:
                yield unread + start + 1, element
                end = start
        else:
            end = start
        if start < 0:
            return


def _element(text: str) -> dict[str, str] | None:
    if not _ELEMENT.fullmatch(text):
        return None
    element: dict[str, str] = {}
    for match in _PAIR.finditer(text):
        name, token, quoted = match.groups()
        name = name.lower()
        if name in element:  # each parameter once; a second one is an attempt at something
            return None
        element[name] = token if token is not None else _UNQUOTE.sub(r"\1", quoted[1:-1])
    return element


def _nth_from_right(header: str, count: int) -> str:
    """What the ``count``-th proxy from here said, or the furthest one that said anything."""
    value = ""
    for item in _items(header):
        value = item
        count -= 1
        if count == 0:
            break
    return value


def _apply_client(environ: dict[str, Any], hop: Hop | None) -> None:
    if hop is not None:
        environ["REMOTE_ADDR"] = hop.address
        environ["REMOTE_PORT"] = hop.port or "0"


def _apply_origin(environ: dict[str, Any], scheme: str, host: str, port: str) -> None:
    scheme = scheme.lower()
    if scheme in ("http", "https"):
        environ["wsgi.url_scheme"] = scheme
    parts = _split_host(host)
    if parts is not None:
        environ["HTTP_HOST"] = host
        environ["SERVER_NAME"] = parts[0]
        if parts[1]:
            environ["SERVER_PORT"] = parts[1]
    if _is_port(port):
        name = _split_host(environ.get("HTTP_HOST", ""))
        if name is not None:
            environ["HTTP_HOST"] = f"{name[0]}:{port}"
        environ["SERVER_PORT"] = port


def _split_host(host: str) -> tuple[str, str] | None:
    """Host and port ("" if none) of a valid Host value, else None; an IPv6 address keeps its brackets."""
    if host.startswith("["):
        end = host.find("]") + 1
        name, rest = host[:end], host[end:]
        address = parse_address(name[1:-1])
        valid = ":" in name and address is not None
    else:
        name, colon, port = host.partition(":")
        rest = colon + port
        valid = _NAME.fullmatch(name) is not None and ".." not in name
    if not valid or (rest and not (rest.startswith(":") and _is_port(rest[1:]))):
        return None
    return name, rest[1:]


def _apply_prefix(environ: dict[str, Any], prefix: str) -> None:
    if not _PREFIX.fullmatch(prefix):
        return
    segments = prefix.strip("/").split("/")
    if "." not in segments and ".." not in segments:
        environ["SCRIPT_NAME"] = prefix.rstrip("/") + environ.get("SCRIPT_NAME", "")
