"""The URL of a backend, taken apart: where to connect, what to call the server, what to show to people.

Law: a pure function of one text; nothing is opened or looked up. What may be written is the configuration's
grammar (`backends[].url`), plus host names in their own script. Imports no gevent.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import spec_by_name
from acme_wsgi.config.render import masked
from acme_wsgi.config.schema.upstream import Backend

PORTS = {"http": 80, "https": 443}
"""The ports that need not be written, RFC 9110 section 4.2."""

WANTED = "an http:// or https:// URL without query and fragment, or unix:/path"

_URL = re.compile(r"(?P<scheme>https?)://(?P<netloc>[^/?#]*)(?P<path>/[^?#]*)?", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*)(?::(?P<port>[0-9]{0,5}))?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# What a path may hold as it is (RFC 3986 section 3.3) and the percent signs of what is encoded already.
_PATH_SAFE = "/%!$&'()*+,;=:@-._~"
# IDNA 2003, which Python has, and IDNA 2008 take these for different names: a guess could reach a stranger.
_AMBIGUOUS = frozenset("\u00df\u03c2\u200c\u200d")
_SHOWN = spec_by_name(Backend)["url"]


@dataclass(frozen=True, slots=True)
class Target:
    """A backend's address.

    :ivar scheme: "http", "https" (TLS) or "unix" (plain HTTP over a UNIX socket)
    :ivar host: a name in ASCII and lower case, or a literal address without brackets; "" for a UNIX socket
    :ivar port: 1 to 65535; 0 for a UNIX socket
    :ivar prefix: what goes before a request's path: "" or "/base", percent-encoded, no slash at its end
    :ivar socket: absolute path of the UNIX socket, else ""
    :ivar authority: what the Host field says (RFC 9110 section 7.2): no port that goes without saying, an
        IPv6 address in brackets and without its zone (RFC 6874 section 4); "localhost" for a UNIX socket
    :ivar authorization: value of the Authorization field (RFC 7617) if the URL has an account, else None
    :ivar shown: the URL for people, its password masked
    """

    scheme: Literal["http", "https", "unix"]
    host: str
    port: int
    prefix: str
    socket: str
    authority: str
    authorization: str | None = field(repr=False)
    shown: str

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "https"

    @property
    def server_name(self) -> str:
        """The name that the server's certificate is checked for, and that SNI tells.

        No dot at its end (RFC 6066 section 3), no zone. :mod:`ssl` compares a literal address with the
        certificate's addresses, and doesn't send it.
        """
        return self.host.partition("%")[0].removesuffix(".")

    @staticmethod
    def parse(url: str) -> Target:
        """Take a backend's URL apart.

        :raises ValueError: it isn't one; the message says what is allowed, and never repeats a password
        """
        if url.startswith("unix:"):
            return _unix(url)
        match = _URL.fullmatch(url)
        if match is None or _UNSAFE.search(url):
            raise ValueError(WANTED)
        scheme: Literal["http", "https"] = "https" if match["scheme"].lower() == "https" else "http"
        account, at, place = match["netloc"].rpartition("@")
        host, port = _host_and_port(place, PORTS[scheme])
        return Target(
            scheme=scheme,
            host=host,
            port=port,
            prefix=quote(match["path"] or "", safe=_PATH_SAFE).rstrip("/"),
            socket="",
            authority=_authority(host, port, PORTS[scheme]),
            authorization=_basic(account) if at else None,
            shown=masked(_SHOWN, url),
        )


def _unix(url: str) -> Target:
    path = url.removeprefix("unix:")
    grammar.socket_path(path)
    if "\0" in path:
        raise ValueError("a socket path without NUL")
    # unix:///run/app.sock is the same file: a customary spelling.
    path = "/" + path.lstrip("/")
    return Target("unix", "", 0, "", path, "localhost", None, url)


def _host_and_port(place: str, default: int) -> tuple[str, int]:
    match = _HOST_AND_PORT.fullmatch(place)
    if match is None:
        raise ValueError(WANTED)
    port = int(match["port"] or default)
    if not 0 < port < 65536:
        raise ValueError("a port from 1 to 65535")
    host = match["host"]
    return (_literal(host[1:-1]) if host.startswith("[") else _name(host)), port


def _literal(text: str) -> str:
    """An IPv6 address in its one spelling; a zone may be written as in a URL (%25eth0) or as everywhere."""
    address, percent, zone = text.partition("%")
    zone = zone[2:] if zone.startswith("25") and len(zone) > 2 else zone
    try:
        return str(ipaddress.IPv6Address(address + percent + zone))
    except ValueError:
        raise ValueError("an IPv6 address between the brackets") from None


def _name(text: str) -> str:
    """A host name as it is looked up, RFC 5891 section 4: in ASCII ("xn--..."), in lower case."""
    if not text.isascii():
        if _AMBIGUOUS & set(text.lower()):
            raise ValueError("a host name whose encoding is unambiguous: write its xn-- form")
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("a host name") from None
    grammar.peer_host(text)
    return text.lower()


def _authority(host: str, port: int, default: int) -> str:
    name = f"[{host.partition('%')[0]}]" if ":" in host else host
    return name if port == default else f"{name}:{port}"


def _basic(account: str) -> str:
    """Credentials of the Basic scheme, in UTF-8, RFC 7617 section 2; a URL has them percent-encoded."""
    user, _, password = (unquote_to_bytes(part) for part in account.partition(":"))
    if b":" in user:
        raise ValueError("a user name without a colon")
    if _CONTROL.search(user + password):
        raise ValueError("an account without control characters")
    return "Basic " + base64.b64encode(user + b":" + password).decode("ascii")
