"""h11's client as a second opinion on what a backend sends for one request.

The law: whoever reads the same bytes must see the same replies with the same ends, or refuse them. Each way
in which h11 may differ stands in a list here, with its reason, and is recognised from the bytes themselves
by other means than our parser's. A difference that no entry explains is a bug, in the parser or in the
list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import h11

from tests.unit.http.corpus import MAX_FIELDS, MAX_SIZE
from tests.unit.http.replies import Final, Outcome
from tests.unit.http.second_opinion import BARE_LINE_END, CONTROL, TOKEN, is_chunked, is_length

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Opinion:
    """What h11 says: "taken", "refused" or "waiting", and the final reply that it took."""

    verdict: str
    interim: tuple[int, ...] = ()
    status: int = 0
    reason: bytes = b""
    version: bytes = b""
    headers: Headers = ()
    body: bytes = b""
    end: int = 0


def _client(asked: str) -> h11.Connection:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    fields = [("Host", "h"), ("Connection", "upgrade"), ("Upgrade", "websocket, h2c")]
    connection.send(h11.Request(method=asked, target="/", headers=fields))
    connection.send(h11.EndOfMessage())
    return connection


def h11_opinion(raw: bytes, asked: str = "GET") -> Opinion:
    """What h11 makes of the replies to one request, when the connection ends behind them."""
    connection = _client(asked)
    interim: list[int] = []
    body = b""
    try:
        connection.receive_data(raw)
        connection.receive_data(b"")
        while True:
            reply = connection.next_event()
            if isinstance(reply, h11.Response) or _is_switch(reply):
                break
            if not isinstance(reply, h11.InformationalResponse):
                return Opinion("waiting")
            interim.append(reply.status_code)
        while isinstance(reply, h11.Response):
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return Opinion("waiting")
    except h11.RemoteProtocolError as error:
        # The end of the connection within a message is an error to it; to us the message isn't there yet.
        return Opinion("waiting" if re.search("closed connection|without sending", str(error)) else "refused")
    assert isinstance(reply, h11.Response | h11.InformationalResponse)
    return Opinion(
        "taken",
        tuple(interim),
        reply.status_code,
        reply.reason,
        reply.http_version,
        _lower_codings(tuple(reply.headers.raw_items())),
        body,
        len(raw) - len(connection.trailing_data[0]),
    )


def _is_switch(event: object) -> bool:
    return isinstance(event, h11.InformationalResponse) and event.status_code == 101


def _lower_codings(headers: Headers) -> Headers:
    """The fields with Transfer-Encoding in lower case: h11 reports it normalised, we report it as sent."""
    return tuple(
        (name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in headers
    )


# ------------------------------------------------------------------- the bytes, read by other means


@dataclass(frozen=True)
class Text:
    """The first head that isn't a good interim reply's, split naively, for the predicates below."""

    raw: bytes
    head: bytes
    line: bytes
    status: int  # -1: none
    lines: tuple[bytes, ...]
    fields: Headers
    rest: bytes
    bodiless: bool

    def values(self, name: bytes) -> list[bytes]:
        """The values of all lines of that name."""
        return [value for key, value in self.fields if key.lower() == name]


STATUS_LINE = re.compile(rb"HTTP/1\.[01] (?P<status>[1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")


def read(raw: bytes, asked: str = "GET") -> Text:
    """Split what a backend sent at its line ends; what is malformed lands anywhere."""
    while True:
        head, end, rest = raw.partition(b"\r\n\r\n")
        lines = tuple(head.split(b"\r\n"))
        match = STATUS_LINE.fullmatch(lines[0])
        fields = tuple(
            (name, value.strip(b" \t"))
            for name, colon, value in (line.partition(b":") for line in lines[1:])
            if colon
        )
        status = int(match["status"]) if match else -1
        bodiless = asked == "HEAD" or status in (204, 304)
        text = Text(raw, head + end, lines[0], status, lines, fields, rest, bodiless)
        if not end or not 100 <= text.status < 200 or text.status == 101 or explained(STRICTER, text):
            return text
        raw = rest


def is_switch(text: Text) -> bool:
    """Whether the head has what a 101 needs."""
    options = [
        option.strip(b" \t").lower() for value in text.values(b"connection") for option in value.split(b",")
    ]
    return b"upgrade" in options and len(text.values(b"upgrade")) == 1 and text.values(b"upgrade") != [b""]


def many_options(text: Text) -> bool:
    """Whether Connection names more than a hundred."""
    return (
        sum(bool(option.strip()) for value in text.values(b"connection") for option in value.split(b","))
        > MAX_FIELDS
    )


# ------------------------------------------------------------------- the lists


@dataclass(frozen=True)
class Difference:
    """One justified difference: why, and how the bytes that it is about are recognised."""

    reason: str
    applies: Callable[[Text], bool]


STRICTER: Sequence[Difference] = (
    Difference(
        "only CR LF ends a line (RFC 9112 2.2 lets a recipient take LF)",
        lambda t: bool(BARE_LINE_END.search(t.head)),
    ),
    Difference(
        "HTTP/1.0 or HTTP/1.1, one space, a status of 100 to 599, printable text",
        lambda t: not STATUS_LINE.fullmatch(t.line),
    ),
    Difference(
        "no interim replies in HTTP/1.0 (RFC 9110 15.2)",
        lambda t: t.line.startswith(b"HTTP/1.0") and 100 <= t.status < 200,
    ),
    Difference(
        "a 101 says to which protocol (RFC 9110 15.2.2)", lambda t: t.status == 101 and not is_switch(t)
    ),
    Difference(
        "1xx and 204 speak of no body (RFC 9110 8.6, RFC 9112 6.1)",
        lambda t: (
            (100 <= t.status < 200 or t.status == 204)
            and bool(
                t.values(b"transfer-encoding") or any(v.strip(b"0") for v in t.values(b"content-length"))
            )
        ),
    ),
    Difference(
        "one Content-Length, one plain number",
        lambda t: [is_length(v) for v in t.values(b"content-length")] not in ([], [True]),
    ),
    Difference(
        "no Content-Length with Transfer-Encoding (RFC 9112 6.3 rule 3)",
        lambda t: bool(t.values(b"content-length") and t.values(b"transfer-encoding")),
    ),
    Difference(
        "Transfer-Encoding is one single chunked",
        lambda t: [v.lower() for v in t.values(b"transfer-encoding")] not in ([], [b"chunked"]),
    ),
    Difference(
        "no Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1)",
        lambda t: t.line.startswith(b"HTTP/1.0") and bool(t.values(b"transfer-encoding")),
    ),
    Difference(
        "no folded lines (RFC 9112 5.2)", lambda t: any(line[:1] in (b" ", b"\t") for line in t.lines[1:])
    ),
    Difference(
        "every line is a field",
        lambda t: any(
            not TOKEN.fullmatch(line.partition(b":")[0]) or b":" not in line for line in t.lines[1:]
        ),
    ),
    Difference(
        "no control characters in a value (RFC 9110 5.5)",
        lambda t: any(CONTROL.search(value) for _, value in t.fields),
    ),
    Difference("a head of at most 8192 bytes", lambda t: len(t.head) > MAX_SIZE),
    Difference("at most 100 fields", lambda t: len(t.lines) - 1 > MAX_FIELDS),
    Difference("at most 100 options in Connection", many_options),
    Difference(
        "a chunked body to the letter, within bounds",
        lambda t: bool(t.values(b"transfer-encoding")) and not t.bodiless and not is_chunked(t.rest),
    ),
)

LOOSER: Sequence[Difference] = (
    Difference(
        "it takes no white space before an extension (RFC 9112 7.1.1 asks for it)",
        lambda t: bool(re.search(rb"^[0-9A-Fa-f]+[ \t]+;", t.rest, re.M)),
    ),
    Difference(
        "it judges trailers as if they could frame the message (RFC 9112 7.1.2: they are dropped)",
        lambda t: bool(
            re.search(rb"^(content-length|transfer-encoding|connection|upgrade)[ \t]*:", t.rest, re.I | re.M)
        ),
    ),
    Difference(
        "it takes a Content-Length of at most 20 digits; 1*DIGIT allows any number of zeros before them",
        lambda t: any(len(value) > 20 and is_length(value) for value in t.values(b"content-length")),
    ),
)


def explained(differences: Sequence[Difference], text: Text) -> bool:
    """Whether an entry of the list is about these bytes."""
    return any(difference.applies(text) for difference in differences)


def our_verdict(outcome: Outcome) -> str:
    """Our parser's verdict on what a backend sent."""
    if outcome.final is not None:
        return "taken"
    return "waiting" if outcome.refusal is None else "refused"


def disagreement(raw: bytes, outcome: Outcome, asked: str = "GET") -> str | None:
    """What h11 says against our outcome for these bytes, beyond the lists; None if nothing."""
    opinion = h11_opinion(raw, asked)
    ours = our_verdict(outcome)
    found = None
    if ours == "taken" and opinion.verdict == "taken":
        assert outcome.final is not None
        found = _different(outcome, outcome.final, opinion)
    elif ours == "taken":
        if opinion.verdict != "refused" or not explained(LOOSER, read(raw, asked)):
            found = f"taken, theirs {opinion.verdict}"
    elif ours == "refused":
        if opinion.verdict != "refused" and not explained(STRICTER, read(raw, asked)):
            found = f"refused, theirs {opinion.verdict}"
    elif opinion.verdict == "taken":
        # We judge whole lines only: others may refuse a line that has no end yet, but nobody may take it.
        found = "waiting, theirs taken"
    return f"{found}: {raw!r}" if found is not None else None


def _different(outcome: Outcome, final: Final, opinion: Opinion) -> str | None:
    ours = {
        "interim": outcome.interim,
        "status": final.status,
        "reason": final.reason,
        "version": b"1.%d" % final.minor,
        "headers": _lower_codings(final.headers),
        "body": final.body,
        "end": outcome.end,
    }
    for key, value in ours.items():
        theirs = getattr(opinion, key)
        if value != theirs:
            return f"{key} {value!r}, theirs {theirs!r}"
    return None
