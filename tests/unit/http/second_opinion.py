"""h11 and llhttp (through httptools) as second opinions on a stream's first request.

The law: whoever reads the same bytes must see the same request with the same end, or refuse it. Each way in
which another parser may differ from ours stands in a list here, with its reason, and is recognised from the
bytes themselves by other means than our parser's. A difference that no entry explains is a bug, in the parser
or in the list.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import h11
import httptools

from tests.unit.http import differences
from tests.unit.http.corpus import MAX_FIELDS, MAX_SIZE
from tests.unit.http.differences import (
    BODY_LENGTH,
    FIELD_LINES,
    JUDGED_TRAILERS,
    NO_SPACE_BEFORE_EXTENSIONS,
    ONLY_CR_LF,
    TOKEN,
    TWENTY_DIGITS,
    Difference,
    Headers,
    contradiction,
    first_unlike,
    h11_body,
    is_chunked,
    lower_codings,
    split,
)
from tests.unit.http.receiver import Message, Outcome


@dataclass(frozen=True)
class Opinion:
    """What another parser says: "taken", "refused", "waiting" or "silent", and the request that it took."""

    verdict: str
    method: bytes = b""
    target: bytes = b""
    version: bytes = b""
    headers: Headers = ()
    body: bytes = b""
    end: int | None = None  # offset of the request's end; None where the parser doesn't tell


# ------------------------------------------------------------------- the others


def h11_opinion(raw: bytes) -> Opinion:
    """What h11 makes of the first request in the stream."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        connection.receive_data(raw)
        request = connection.next_event()
        if not isinstance(request, h11.Request):
            return Opinion("waiting")
        body = h11_body(connection)
        if body is None:
            return Opinion("waiting")
    except h11.RemoteProtocolError:
        return Opinion("refused")
    return Opinion(
        "taken",
        request.method,
        request.target,
        request.http_version,
        lower_codings(tuple(request.headers.raw_items())),
        body,
        len(raw) - len(connection.trailing_data[0]),
    )


class _Events:
    """Collects what httptools reports of the first request."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.in_trailers = False
        self.complete = 0

    def on_url(self, data: bytes) -> None:
        self.target += data

    def on_headers_complete(self) -> None:
        self.in_trailers = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_trailers:
            return
        # It leaves the white space that ends a line in the value; RFC 9112 5.1 takes it off.
        self.headers.append((name, value.rstrip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete += 1


def httptools_opinion(raw: bytes) -> Opinion:
    """What llhttp, as httptools sets it up, makes of a stream with one request and nothing behind it."""
    events = _Events()
    parser = httptools.HttpRequestParser(events)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        return Opinion("silent")  # it hands the connection over with the body unread
    except httptools.HttpParserError:
        return Opinion("refused")
    if not events.complete:
        return Opinion("waiting")
    return Opinion(
        "taken",
        parser.get_method(),
        events.target,
        parser.get_http_version().encode(),
        lower_codings(tuple(events.headers)),
        events.body,
    )


# ------------------------------------------------------------------- the bytes, read by other means


@dataclass(frozen=True)
class Text(differences.Text):
    """A stream split naively, for the predicates below."""

    method: bytes
    target: bytes
    version: bytes


def read(raw: bytes) -> Text:
    """Split a stream at its line ends and blanks; what is malformed lands anywhere."""
    text = split(raw, 2 if raw.startswith(b"\r\n") else 0)
    method, _, after = text.line.partition(b" ")
    target, _, version = after.rpartition(b" ")
    return Text(**vars(text), method=method, target=target, version=version)


VERSION_1 = re.compile(rb"HTTP/1\.[0-9]")
HOST = re.compile(rb"(?P<name>[A-Za-z0-9\-._~]+|\[(?P<v6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]*))?")
TARGET = re.compile(
    rb"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?://(?P<authority>[^/?]*))?(?P<path>[^?]*)(?:\?(?P<query>.*))?", re.S
)


def is_host(value: bytes) -> bool:
    """Whether it is a host with an optional port."""
    match = HOST.fullmatch(value)
    if match is None or int(match["port"] or b"0") > 65535:
        return False
    if match["v6"] is not None:
        try:
            ipaddress.IPv6Address(match["v6"].decode())
        except ValueError:
            return False
    return True


def climbs(path: bytes) -> bool:
    """Whether the path leaves its root."""
    depth = 0
    for segment in unquote_to_bytes(path).split(b"/"):
        if segment == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif segment not in (b"", b"."):
            depth += 1
    return False


def is_target(method: bytes, target: bytes) -> bool:
    """Whether the target is in one of the forms that the server answers, with a path that it takes."""
    if re.search(rb"[^\x21-\x7e]|#", target):
        return False
    if target == b"*":
        return method == b"OPTIONS"
    match = TARGET.fullmatch(target)
    assert match is not None
    path = match["path"]
    if match["scheme"] is None and not path.startswith(b"/"):
        return False
    if match["scheme"] is not None and not is_host(match["authority"]):
        return False
    return not re.search(rb"%(?![0-9A-Fa-f]{2})|%00", path) and not climbs(path)


# ------------------------------------------------------------------- the lists


STRICTER: Sequence[Difference[Text]] = (
    ONLY_CR_LF,
    Difference("one empty line at most before a request line", lambda t: t.line.strip() == b""),
    Difference("exactly one space separates the parts of a request line", lambda t: t.line.count(b" ") != 2),
    Difference("a method is a token", lambda t: not TOKEN.fullmatch(t.method)),
    Difference("no method is longer than 32 characters (501)", lambda t: len(t.method) > 32),
    Difference("CONNECT is not offered (501)", lambda t: t.method == b"CONNECT"),
    Difference("only major version 1 (505, RFC 9110 15.6.6)", lambda t: not VERSION_1.fullmatch(t.version)),
    Difference(
        "the target has one of the four forms, no fragment, a path within its root",
        lambda t: not is_target(t.method, t.target),
    ),
    Difference(
        "HTTP/1.1 and later have exactly one Host",
        lambda t: len(t.values(b"host")) != 1 and t.version != b"HTTP/1.0",
    ),
    Difference("never more than one Host", lambda t: len(t.values(b"host")) > 1),
    Difference(
        "Host is a host (RFC 9112 3.2)", lambda t: any(not is_host(value) for value in t.values(b"host"))
    ),
    *BODY_LENGTH,
    Difference(
        "no Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1)",
        lambda t: t.version == b"HTTP/1.0" and bool(t.values(b"transfer-encoding")),
    ),
    Difference(
        "a body in HTTP/1.0 has a length (411, RFC 1945 8.3)",
        lambda t: (
            t.version == b"HTTP/1.0" and t.method in (b"POST", b"PUT") and not t.values(b"content-length")
        ),
    ),
    Difference(
        "no expectation but 100-continue (417)",
        lambda t: any(v.lower() != b"100-continue" for v in t.values(b"expect")),
    ),
    *FIELD_LINES,
    Difference("a head of at most 8192 bytes (414, 431)", lambda t: len(t.head) > MAX_SIZE),
    Difference("at most 100 fields (431)", lambda t: len(t.lines) - 1 > MAX_FIELDS),
    Difference(
        "a chunked body to the letter, within bounds",
        lambda t: bool(t.values(b"transfer-encoding")) and not is_chunked(t.rest),
    ),
)

LOOSER_THAN_H11: Sequence[Difference[Text]] = (
    Difference(
        "it takes no empty line before a request line (RFC 9112 2.2 asks for it)",
        lambda t: t.raw.startswith(b"\r\n"),
    ),
    NO_SPACE_BEFORE_EXTENSIONS,
    JUDGED_TRAILERS,
    TWENTY_DIGITS,
)

LLHTTP_METHODS = frozenset(
    b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK "
    b"BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PATCH "
    b"PURGE MKCALENDAR LINK UNLINK SOURCE QUERY".split()
)

LOOSER_THAN_LLHTTP: Sequence[Difference[Text]] = (
    Difference("it knows a fixed set of methods", lambda t: t.method not in LLHTTP_METHODS),
    Difference("it knows no minor version above 1", lambda t: t.version not in (b"HTTP/1.0", b"HTTP/1.1")),
    Difference(
        "it takes white space at the end of a line for part of the coding (RFC 9112 5.1)",
        lambda t: any(re.search(rb":.*chunked[ \t]+$", line, re.I | re.S) for line in t.lines),
    ),
    JUDGED_TRAILERS,
    NO_SPACE_BEFORE_EXTENSIONS,
    Difference(
        "it parses extensions (RFC 9112 7.1.1: unknown ones are ignored; we check bytes and length)",
        lambda t: bool(re.search(rb"^[0-9A-Fa-f]+[ \t]*;", t.rest, re.M)),
    ),
)


def stream_of_first(raw: bytes, outcome: Outcome) -> bytes:
    """The stream cut after the first request, where that is known."""
    return raw[: outcome.ends[0]] if outcome.ends else raw


def our_verdict(outcome: Outcome) -> str:
    """Our parser's verdict on the first request of the stream."""
    if outcome.messages:
        return "taken"
    return "waiting" if outcome.refusal is None else "refused"


def disagreement(raw: bytes, outcome: Outcome) -> str | None:
    """What another parser says against our outcome for this stream, beyond the lists; None if nothing."""
    first = stream_of_first(raw, outcome)
    for name, opinion, looser in (
        ("h11", h11_opinion(raw), LOOSER_THAN_H11),
        ("llhttp", httptools_opinion(first), LOOSER_THAN_LLHTTP),
    ):
        found = _compare(raw, outcome, opinion, looser)
        if found is not None:
            return f"{name}: {found}: {raw!r}"
    return None


def _compare(
    raw: bytes, outcome: Outcome, opinion: Opinion, looser: Sequence[Difference[Text]]
) -> str | None:
    ours = our_verdict(outcome)
    if opinion.verdict == "silent":
        return None
    if ours == "taken" and opinion.verdict == "taken":
        return _different(outcome.messages[0], outcome.ends[0], opinion)
    return contradiction(ours, opinion.verdict, read(raw), stricter=STRICTER, looser=looser)


def _different(message: Message, end: int, opinion: Opinion) -> str | None:
    ours = {
        "method": message.method.encode("latin-1"),
        "target": message.target,
        "version": b"1.%d" % message.minor,
        "headers": lower_codings(message.headers),
        "body": message.body,
        "end": end if opinion.end is not None else None,
    }
    return first_unlike(ours, opinion)
