"""What the second opinions on requests and on replies share: the grammar, read naively, and those differences
from other parsers that are the same in both directions.

The law: bytes are recognised by other means than our parser's; what a request or a reply alone has is for
second_opinion.py and reply_opinion.py to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import h11

from tests.unit.http.corpus import MAX_FIELDS

Headers = tuple[tuple[bytes, bytes], ...]


# ------------------------------------------------------------------- what another parser took


def h11_body(connection: h11.Connection) -> bytes | None:
    """The body of the message whose head h11 has just told; None: its end isn't there."""
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.EndOfMessage):
            return body
        if not isinstance(event, h11.Data):
            return None
        body += bytes(event.data)


def lower_codings(headers: Headers) -> Headers:
    """The fields with Transfer-Encoding in lower case: h11 reports it normalised, we report it as sent."""
    return tuple(
        (name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in headers
    )


def first_unlike(ours: Mapping[str, object], opinion: object) -> str | None:
    """The first of our values that the opinion has otherwise, with both; None if they are the same."""
    for key, value in ours.items():
        theirs = getattr(opinion, key)
        if value != theirs:
            return f"{key} {value!r}, theirs {theirs!r}"
    return None


# ------------------------------------------------------------------- the bytes, read by other means


@dataclass(frozen=True)
class Text:
    """A head and what follows it, split naively, for the predicates below."""

    raw: bytes
    head: bytes
    line: bytes
    fields: Headers
    lines: tuple[bytes, ...]
    rest: bytes

    def values(self, name: bytes) -> list[bytes]:
        """The values of all lines of that name."""
        return [value for key, value in self.fields if key.lower() == name]


def split(raw: bytes, start: int = 0) -> Text:
    """The head that begins at `start`, split at line ends and colons; what is malformed lands anywhere."""
    head, end, rest = raw[start:].partition(b"\r\n\r\n")
    lines = tuple(head.split(b"\r\n"))
    fields = tuple(
        (name, value.strip(b" \t"))
        for name, colon, value in (line.partition(b":") for line in lines[1:])
        if colon
    )
    return Text(raw, head + end, lines[0], fields, lines, rest)


BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
MAX_LENGTH = 2**63 - 1


def is_length(value: bytes) -> bool:
    """Whether it is one Content-Length that a signed 64-bit integer holds."""
    return re.fullmatch(rb"[0-9]+", value) is not None and int(value) <= MAX_LENGTH


# chunk-ext with the bad whitespace that RFC 9112 7.1.1 asks to tolerate; its bounds are checked apart.
CHUNK_LINE = re.compile(rb"(?P<size>[0-9A-Fa-f]{1,16})(?P<ext>[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")


def is_chunked(rest: bytes) -> bool:
    """Whether the bytes begin with a whole chunked body, by the grammar and within our bounds."""
    position = extensions = 0
    while True:
        match = CHUNK_LINE.match(rest, position)
        if match is None or int(match["size"], 16) > MAX_LENGTH:
            return False
        extensions += len(match["ext"] or b"")
        if extensions > 1024:  # the smallest sum that any bound of ours refuses
            return False
        position = match.end()
        size = int(match["size"], 16)
        if size == 0:
            break
        if rest[position + size : position + size + 2] != b"\r\n":
            return False
        position += size + 2
    start = position
    while rest[position : position + 2] != b"\r\n":
        match = TRAILER.match(rest, position)
        if match is None:
            return False
        position = match.end()
    return position - start < 8000 and rest.count(b"\r\n", start, position) <= MAX_FIELDS


# ------------------------------------------------------------------- the lists

SomeText = TypeVar("SomeText", bound=Text, contravariant=True)


@dataclass(frozen=True)
class Difference(Generic[SomeText]):
    """One justified difference: why, and how the bytes that it is about are recognised."""

    reason: str
    applies: Callable[[SomeText], bool]


def explained(differences: Sequence[Difference[SomeText]], text: SomeText) -> bool:
    """Whether an entry of the list is about these bytes."""
    return any(difference.applies(text) for difference in differences)


def contradiction(
    ours: str,
    theirs: str,
    text: SomeText,
    *,
    stricter: Sequence[Difference[SomeText]],
    looser: Sequence[Difference[SomeText]],
) -> str | None:
    """What is wrong with two verdicts that aren't both "taken", beyond the lists; None if nothing."""
    if ours == "taken":
        return None if theirs == "refused" and explained(looser, text) else f"taken, theirs {theirs}"
    if ours == "refused":
        return None if theirs == "refused" or explained(stricter, text) else f"refused, theirs {theirs}"
    # We judge whole lines only: others may refuse a line that has no end yet, but nobody may take it.
    return "waiting, theirs taken" if theirs == "taken" else None


# Where we are stricter.
ONLY_CR_LF: Difference[Text] = Difference(
    "only CR LF ends a line (RFC 9112 2.2 lets a recipient take LF)",
    lambda t: bool(BARE_LINE_END.search(t.head)),
)
BODY_LENGTH: Sequence[Difference[Text]] = (
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
)
FIELD_LINES: Sequence[Difference[Text]] = (
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
)

# Where others are.
NO_SPACE_BEFORE_EXTENSIONS: Difference[Text] = Difference(
    "it takes no white space before an extension (RFC 9112 7.1.1 asks for it)",
    lambda t: bool(re.search(rb"^[0-9A-Fa-f]+[ \t]+;", t.rest, re.M)),
)
JUDGED_TRAILERS: Difference[Text] = Difference(
    "it judges trailers as if they could frame the message (RFC 9112 7.1.2: they are dropped)",
    lambda t: bool(
        re.search(rb"^(content-length|transfer-encoding|connection|upgrade)[ \t]*:", t.rest, re.I | re.M)
    ),
)
TWENTY_DIGITS: Difference[Text] = Difference(
    "it takes a Content-Length of at most 20 digits; 1*DIGIT allows any number of zeros before them",
    lambda t: any(len(value) > 20 and is_length(value) for value in t.values(b"content-length")),
)
