"""h11's client as a second opinion on what a backend sends for one request.

The law: whoever reads the same bytes must see the same replies with the same ends, or refuse them. Each way
in which h11 may differ stands in a list here, with its reason, and is recognised from the bytes themselves
by other means than our parser's. A difference that no entry explains is a bug, in the parser or in the
list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import h11

from tests.unit.http import differences
from tests.unit.http.corpus import MAX_FIELDS, MAX_SIZE
from tests.unit.http.differences import (
    BODY_LENGTH,
    FIELD_LINES,
    JUDGED_TRAILERS,
    NO_SPACE_BEFORE_EXTENSIONS,
    ONLY_CR_LF,
    TWENTY_DIGITS,
    Difference,
    Headers,
    contradiction,
    explained,
    first_unlike,
    h11_body,
    is_chunked,
    lower_codings,
    split,
)
from tests.unit.http.replies import Final, Outcome


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
        body = h11_body(connection) if isinstance(reply, h11.Response) else b""
        if body is None:
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
        lower_codings(tuple(reply.headers.raw_items())),
        body,
        len(raw) - len(connection.trailing_data[0]),
    )


def _is_switch(event: object) -> bool:
    return isinstance(event, h11.InformationalResponse) and event.status_code == 101


# ------------------------------------------------------------------- the bytes, read by other means


@dataclass(frozen=True)
class Text(differences.Text):
    """The first head that isn't a good interim reply's, split naively, for the predicates below."""

    status: int  # -1: none
    bodiless: bool


STATUS_LINE = re.compile(rb"HTTP/1\.[01] (?P<status>[1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")


def read(raw: bytes, asked: str = "GET") -> Text:
    """Split what a backend sent at its line ends; what is malformed lands anywhere."""
    while True:
        parts = split(raw)
        match = STATUS_LINE.fullmatch(parts.line)
        status = int(match["status"]) if match else -1
        text = Text(**vars(parts), status=status, bodiless=asked == "HEAD" or status in (204, 304))
        ended = text.head.endswith(b"\r\n\r\n")
        if not ended or not 100 <= status < 200 or status == 101 or explained(STRICTER, text):
            return text
        raw = text.rest


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


STRICTER: Sequence[Difference[Text]] = (
    ONLY_CR_LF,
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
    *BODY_LENGTH,
    Difference(
        "no Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1)",
        lambda t: t.line.startswith(b"HTTP/1.0") and bool(t.values(b"transfer-encoding")),
    ),
    *FIELD_LINES,
    Difference("a head of at most 8192 bytes", lambda t: len(t.head) > MAX_SIZE),
    Difference("at most 100 fields", lambda t: len(t.lines) - 1 > MAX_FIELDS),
    Difference("at most 100 options in Connection", many_options),
    Difference(
        "a chunked body to the letter, within bounds",
        lambda t: bool(t.values(b"transfer-encoding")) and not t.bodiless and not is_chunked(t.rest),
    ),
)

LOOSER: Sequence[Difference[Text]] = (NO_SPACE_BEFORE_EXTENSIONS, JUDGED_TRAILERS, TWENTY_DIGITS)


def our_verdict(outcome: Outcome) -> str:
    """Our parser's verdict on what a backend sent."""
    if outcome.final is not None:
        return "taken"
    return "waiting" if outcome.refusal is None else "refused"


def disagreement(raw: bytes, outcome: Outcome, asked: str = "GET") -> str | None:
    """What h11 says against our outcome for these bytes, beyond the lists; None if nothing."""
    opinion = h11_opinion(raw, asked)
    ours = our_verdict(outcome)
    if ours == "taken" and opinion.verdict == "taken":
        assert outcome.final is not None
        found = _different(outcome, outcome.final, opinion)
    else:
        found = contradiction(ours, opinion.verdict, read(raw, asked), stricter=STRICTER, looser=LOOSER)
    return f"{found}: {raw!r}" if found is not None else None


def _different(outcome: Outcome, final: Final, opinion: Opinion) -> str | None:
    ours = {
        "interim": outcome.interim,
        "status": final.status,
        "reason": final.reason,
        "version": b"1.%d" % final.minor,
        "headers": lower_codings(final.headers),
        "body": final.body,
        "end": outcome.end,
    }
    return first_unlike(ours, opinion)
