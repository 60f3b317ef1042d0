"""What the texts in a configuration may look like: addresses, URLs, paths, header names, patterns.

Its law: each function takes one text, returns nothing and raises ValueError saying what is allowed. Nothing
is opened, looked up or imported here.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from acme_wsgi.config import templates
from acme_wsgi.config.kinds import Hinted

_HOSTNAME = re.compile(
    r"(?=.{1,253}\.?$)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?"
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_ATTRIBUTE = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)(\(.*\))?")
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?|[0-9]{1,10}")
_MIME = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/(?:[A-Za-z0-9!#$&^_.+-]+|\*)")
_PARAMETER = re.compile(r":[A-Za-z_][A-Za-z0-9_]*")
_LOG_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_ERROR_STATUS = re.compile(r"=[45][0-9]{2}")
#: What log lines call their own fields.
LOG_FIELDS = frozenset(
    (
        "timestamp", "level", "logger", "process", "pid", "message", "traceback",
        "remote_addr", "method", "target", "protocol", "status", "bytes", "duration_ms", "referer",
        "user_agent", "host", "request_id", "headers", "sample",
    )
)  # fmt: skip
# What a proxy must not pass on, RFC 9110 section 7.6.1, and what it writes itself.
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings", "expect")
)
_FRAMING = frozenset(("content-length", "transfer-encoding", "trailer"))
# What no request to a backend has anyway; the other two of a single connection are passed on at times.
_NEVER_PASSED = _HOP_BY_HOP - {"upgrade", "expect"} | {"proxy-authenticate", "proxy-authorization"}
# What the variables of a header's value may stand for.
_SOME_REQUEST = {"remote_addr": "192.0.2.1", "scheme": "http", "host": "example.org", "request_id": "0f"}
#: The longest path that fits a UNIX socket's address (sun_path holds 108 bytes with its NUL).
MAX_SOCKET_PATH = 107


def bind_host(text: str) -> None:
    """An address to bind: IPv4, IPv6 (with or without brackets), a host name, or ``unix:/absolute/path``."""
    if text.startswith("unix:"):
        socket_path(text.removeprefix("unix:"))
    elif not _is_host(text):
        raise ValueError("an IPv4 or IPv6 address, a host name, or unix:/absolute/path")


def socket_path(text: str) -> None:
    """The absolute path of a UNIX socket."""
    absolute(text)
    if len(text.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"a socket path of at most {MAX_SOCKET_PATH} bytes")


def network(text: str) -> None:
    """An address or a network in CIDR form."""
    try:
        ipaddress.ip_network(text, strict=True)
    except ValueError:
        try:
            meant = str(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise ValueError("an address or a network (10.0.0.0/8, fd00::/8)") from None
        raise Hinted("a network without host bits", f"did you mean {meant}?") from None


def peer(text: str) -> None:
    """A network, or ``unix:`` for whoever connects to a UNIX socket of ours."""
    if text != "unix:":
        try:
            network(text)
        except Hinted:
            raise
        except ValueError as error:
            raise ValueError(f"{error}, or unix:") from None


def account(text: str) -> None:
    """The name or number of a user or group."""
    if not _ACCOUNT.fullmatch(text):
        raise ValueError("the name or the number of an account")


def absolute(text: str) -> None:
    """An absolute path of the file system."""
    if not text.startswith("/"):
        raise ValueError("an absolute path")


def output(text: str) -> None:
    """Where log lines go."""
    if text not in ("stdout", "stderr") and not text.startswith("/"):
        raise ValueError("stdout, stderr or an absolute path")


def log_field(text: str) -> None:
    """The name of a field that is added to log lines."""
    if not _LOG_FIELD.fullmatch(text):
        raise ValueError("a name of letters, digits, _, . and -, which begins with a letter or _")
    if text in LOG_FIELDS:
        raise ValueError("a name that lines don't have already")


def probe(text: str) -> None:
    """What a new worker is asked."""
    if text != "*" and not (
        text.startswith("/") and text.isascii() and text.isprintable() and " " not in text
    ):
        raise ValueError("* or a path, percent-encoded, with a query if need be")


def url_path(text: str) -> None:
    """The path of a URL of ours, as a client asks for it."""
    if not text.startswith("/") or any(char in text for char in " ?#"):
        raise ValueError("a path that starts with / and has no space, ? or #")


def sent_path(text: str) -> None:
    """The path of a URL that we ask another server for, as it is sent."""
    url_path(text)
    if not text.isascii() or not text.isprintable():
        raise ValueError("a path of ASCII characters, others percent-encoded")


def route_path(text: str) -> None:
    """The path of a route: ``/a``, ``/a/*``, ``/users/:id``, ``~ ^/u/(\\d+)$`` or ``/*``."""
    if text.startswith("~"):
        regexp(text[1:].strip())
        return
    try:
        url_path(text)
    except ValueError:
        raise ValueError("a path (/a, /a/*, /users/:id, /*) or a regular expression after ~") from None
    if "*" in text and (text.count("*") > 1 or not text.endswith("/*")):
        raise ValueError("a path with * only as its end, after a /")
    names = [part for part in text.split("/") if part.startswith(":")]
    for name in names:
        if not _PARAMETER.fullmatch(name):
            raise ValueError("a path whose parameters are :name")
    if len(set(names)) != len(names):
        raise ValueError("a path that names each parameter once")


def regexp(text: str) -> None:
    """A regular expression."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a regular expression ({error})") from None


def statement_pattern(text: str) -> None:
    """A regular expression over normalised SQL; a ? after a space, comma, = or ( is a placeholder."""
    try:
        regexp(text)
    except ValueError:
        regexp(re.sub(r"(?<=[\s(,=])\?", r"\\?", text))


def header_name(text: str) -> None:
    """The name of a header field, RFC 9110 section 5.1."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("the name of a header field")


def added_header(text: str) -> None:
    """The name of a header field that may be set on a request to a backend."""
    header_name(text)
    if text.lower() in _HOP_BY_HOP:
        raise ValueError("a header field that doesn't belong to a single connection (RFC 9110 section 7.6.1)")
    if text.lower() in _FRAMING:
        raise ValueError("a header field that doesn't say where the request's body ends (RFC 9112 section 6)")


def removed_header(text: str) -> None:
    """The name of a header field that a request to a backend can do without."""
    header_name(text)
    if text.lower() in _FRAMING:
        raise ValueError("a header field that doesn't say where the request's body ends (RFC 9112 section 6)")
    if text.lower() == "host":
        raise ValueError("a header field that a request can do without (RFC 9112 section 3.2)")
    if text.lower() in _NEVER_PASSED:
        raise ValueError("a header field that is passed on: this one never is (RFC 9110 section 7.6.1)")


def header_value(text: str) -> None:
    """The value of a header field that we send, RFC 9110 section 5.5."""
    if any(char > "\xff" or char < " " or char == "\x7f" for char in text):
        raise ValueError("the value of a header field: Latin-1, without control characters")


def header_template(text: str) -> None:
    """The value of a header field, with variables."""
    templates.header(text)


def host_template(text: str) -> None:
    """The value of a Host field, with variables: one that some request makes a host."""
    parts = templates.header(text)
    host = "".join(part if isinstance(part, str) else _SOME_REQUEST[part.name] for part in parts)
    name, port = _split_port(host)
    # An address's zone means something on one machine only, RFC 6874 section 4.
    if not _is_host(name) or not _is_port(port) or "%" in name:
        raise ValueError("a host name or an address, with or without a port (RFC 9112 section 3.2)")


def cookie_name(text: str) -> None:
    """The name of a cookie, RFC 6265 section 4.1.1."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("the name of a cookie")


def method(text: str) -> None:
    """A request method, RFC 9110 section 9.1; it is compared as it stands in capitals."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("a request method")


def route_host(text: str) -> None:
    """A host that a route answers to: a name, ``*.example.org`` or an address; no port."""
    if not _is_host(text.removeprefix("*.")):
        raise ValueError("a host name, *.name or an address, without a port")


def peer_host(text: str) -> None:
    """The host of a server that we talk to."""
    if not _is_host(text):
        raise ValueError("a host name or an address")


def host_and_port(text: str) -> None:
    """``host:port``, ``[v6]:port`` or ``host`` alone."""
    host, port = _split_port(text)
    if not _is_host(host) or not _is_port(port):
        raise ValueError("host:port")


def http_url(text: str) -> None:
    """``http://host[:port][/path]`` or the same with ``https``."""
    _url(text, ("http", "https"), "an http:// or https:// URL")


def backend_url(text: str) -> None:
    """The URL of a backend: ``http://``, ``https://`` or ``unix:/path``."""
    if text.startswith("unix:"):
        socket_path(text.removeprefix("unix:"))
        return
    _url(text, ("http", "https"), "an http:// or https:// URL, or unix:/path")
    if "?" in text or "#" in text:
        raise ValueError("a URL without a query: that is the request's")


def rewritten_path(text: str) -> None:
    """A path with references to groups; which groups there are is checked with the expression."""
    if any(char in text for char in " ?#"):
        raise ValueError("a path without a space, ? or #")


def redis_url(text: str) -> None:
    """``redis://``, ``rediss://`` (TLS) or ``unix://`` with a path."""
    if text.startswith("unix://"):
        absolute(text.removeprefix("unix://").partition("?")[0])
    else:
        _url(text, ("redis", "rediss"), "a redis://, rediss:// or unix:// URL")


def database_url(text: str) -> None:
    """``postgresql://...`` or ``sqlite:///path``."""
    if text.startswith("sqlite:///"):
        if not text.removeprefix("sqlite:///"):
            raise ValueError("sqlite:/// and a path")
    else:
        _url(text, ("postgresql", "postgres"), "a postgresql:// or sqlite:/// URL", host_needed=False)


def callable_name(text: str) -> None:
    """``module:callable``, ``module:factory()`` with or without literal arguments, or ``module`` alone."""
    module, colon, attribute = text.partition(":")
    if not _MODULE.fullmatch(module) or (colon and not _ATTRIBUTE.fullmatch(attribute)):
        raise ValueError("module:callable or module:factory()")


def function_name(text: str) -> None:
    """``module:function``."""
    module, _, attribute = text.partition(":")
    match = _ATTRIBUTE.fullmatch(attribute)
    if not _MODULE.fullmatch(module) or match is None or match[2]:
        raise ValueError("module:function")


def mime_type(text: str) -> None:
    """A media type, RFC 9110 section 8.3.1, or ``text/*``."""
    if not _MIME.fullmatch(text):
        raise ValueError("a media type (text/html, text/*)")


def file_extension(text: str) -> None:
    """The end of a file's name, dot included."""
    if not re.fullmatch(r"\.[A-Za-z0-9_+.-]+", text):
        raise ValueError("a file extension with its dot (.css)")


def file_name(text: str) -> None:
    """The name of a file, without a directory."""
    if "/" in text or text in (".", ".."):
        raise ValueError("a file name without a directory")


def tried(text: str) -> None:
    """What a static route tries: a name below its root, with ``$uri`` for the path, or an error status."""
    if text.startswith("="):
        if not _ERROR_STATUS.fullmatch(text):
            raise ValueError("an error status from =400 to =599")
        return
    if not text.startswith(("/", "$uri")) or "$" in text.replace("$uri", ""):
        raise ValueError("a name that starts with / or $uri, without another variable, or a status (=404)")
    if ".." in text.split("/"):
        raise ValueError("a name below the root")


def redirect_target(text: str) -> None:
    """Where a redirect leads: a path or a URL, which a Location field can carry."""
    if not text.startswith(("/", "http://", "https://", "$scheme://")) or any(
        ord(char) <= 0x20 for char in text
    ):
        raise ValueError("a path or an http:// or https:// URL, without spaces")


def versioned_pattern(text: str) -> None:
    """A URL path with ``{file}``, ``{hash}`` and ``{ext}``, each once, and in its last part.

    Were the hash a directory, relative references in a file would point elsewhere.
    """
    url_path(text)
    if any(text.count(part) != 1 for part in ("{file}", "{hash}", "{ext}")):
        raise ValueError("a path with {file}, {hash} and {ext}, each once")
    if "/" in text[text.index("{") :]:
        raise ValueError("a path with {file}, {hash} and {ext} in its last part")


def cron(text: str) -> None:
    """Five cron fields: minute, hour, day of month, month, day of week."""
    fields = text.split()
    ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    if len(fields) != 5 or not all(
        _cron_field(field, *limit) for field, limit in zip(fields, ranges, strict=True)
    ):
        raise ValueError('five cron fields: minute hour day month weekday ("0 6 * * *")')


_CRON_NAMES = (
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    "sun", "mon", "tue", "wed", "thu", "fri", "sat",
)  # fmt: skip


def _cron_field(field: str, low: int, high: int) -> bool:
    return all(_cron_part(part, low, high) for part in field.split(","))


def _cron_part(part: str, low: int, high: int) -> bool:
    span, slash, step = part.partition("/")
    if slash and not (re.fullmatch(r"[0-9]{1,2}", step) and 0 < int(step) <= high):
        return False
    if span == "*":
        return True
    ends = span.split("-")
    if high in (7, 12) and len(ends) <= 2 and all(end.lower() in _CRON_NAMES for end in ends):
        names = _CRON_NAMES[12:] if high == 7 else _CRON_NAMES[:12]
        return all(end.lower() in names for end in ends)
    if len(ends) > 2 or not all(re.fullmatch(r"[0-9]{1,2}", end) for end in ends):
        return False
    numbers = [int(end) for end in ends]
    return all(low <= number <= high for number in numbers) and numbers == sorted(numbers)


def _split_port(text: str) -> tuple[str, str]:
    """Host and port (empty for none) of ``host:port``; an IPv6 address needs its brackets."""
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        return (host + bracket, rest[1:]) if rest[:1] in ("", ":") else (text, "")
    host, _, port = text.partition(":")
    return host, port


def _is_port(text: str) -> bool:
    """Whether that is a port, or none at all."""
    return not text or (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536)


def _is_host(text: str) -> bool:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return bool(_HOSTNAME.fullmatch(text)) and not text.replace(".", "").isdigit()
    return bare == text or ":" in bare


def _url(text: str, schemes: tuple[str, ...], wanted: str, *, host_needed: bool = True) -> None:
    # What the parser says of a wrong one repeats parts of it, which may be a password's.
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        raise ValueError(wanted) from None
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{wanted}; a port is a number from 1 to 65535") from None
    if parts.scheme not in schemes or "://" not in text or any(ord(char) <= 0x20 for char in text):
        raise ValueError(wanted)
    if (host_needed and not host) or (host and not _is_host(host)) or port == 0:
        raise ValueError(wanted)
