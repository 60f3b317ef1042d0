"""Coverage-guided fuzzing of the parser of replies: an input is what a backend sends for one request.

Started by `tests/fuzz/run replies`, which compiles acme_wsgi.http.reply with sanitizers and coverage. Besides
memory errors and undefined behaviour (which end the process at once) it holds every input to these laws:

- the verdict does not depend on how the stream was cut;
- no byte outside of the input is read (exact.pyx);
- no error but ReplyError, and always 502;
- a reply that was taken, written out again from its parsed parts, parses to the same parts;
- what goes further has no field of one connection, none that Connection names, and at most one length;
- h11 does not see other boundaries in what was taken (tests/unit/http/reply_opinion.py).
"""

from __future__ import annotations

import zlib

import exact
from cutting import cuts
from harness import fuzz, written

from acme_wsgi.http import reply
from tests.unit.http import reply_opinion
from tests.unit.http.corpus import MAX_SIZE
from tests.unit.http.replies import Final, Outcome, exchange

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info te trailer "
    b"transfer-encoding upgrade".split()
)


def serialise(final: Final) -> bytes:
    """The reply as a backend would send these parts."""
    line = b"HTTP/1.%d %d %s" % (final.minor, final.status, final.reason)
    return written(line, final.headers, final.framing, final.body)


def check_forwarded(data: bytes) -> None:
    """Hold the first head of the stream to what may go further of it."""
    try:
        head = reply.parse_reply(data, MAX_SIZE)
    except reply.ReplyError as error:
        assert error.status == 502, error
        return
    if head is None:
        return
    values = [value for name, value in head.headers if name.lower() == b"connection"]
    named = {option.strip(b" \t").lower() for value in values for option in value.split(b",")}
    kept = [name.encode("latin-1").lower() for name, _ in head.forwarded]
    assert not HOP_BY_HOP.union(named).intersection(kept), head
    assert kept.count(b"content-length") <= 1, head
    lost = [name.lower() for (name, _), drop in zip(head.headers, head.dropped, strict=True) if drop]
    may_go = HOP_BY_HOP | named | ({b"content-length"} if head.status < 200 or head.status == 204 else set())
    assert may_go.issuperset(lost), head


def check(data: bytes) -> None:
    """Hold one stream to the laws."""
    exact.walk_reply(data, MAX_SIZE)
    check_forwarded(data)
    asked = "HEAD" if zlib.crc32(data) % 4 == 0 else "GET"
    whole = exchange([data], asked)
    for pieces in cuts(data):
        outcome = exchange(pieces, asked)
        assert outcome == whole, f"cut otherwise: {outcome} != {whole}"
    if whole.final is not None:
        raw = serialise(whole.final)
        # `name:value` written with a space may pass the limit that the original kept.
        if len(raw) - len(whole.final.body) <= MAX_SIZE:
            again = exchange([raw], asked)
            assert again == Outcome((), whole.final, len(raw), None), f"changed by writing it: {raw!r}"
    disagreement = reply_opinion.disagreement(data, whole, asked)
    assert disagreement is None, disagreement


if __name__ == "__main__":
    fuzz(check, reply)
