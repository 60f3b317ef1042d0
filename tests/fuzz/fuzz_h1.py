"""Coverage-guided fuzzing of the request parser and the chunked decoder: an input is what a client sends.

Started by `tests/fuzz/run`, which compiles acme_wsgi.http.h1 with sanitizers and coverage. Besides memory
errors and undefined behaviour (which end the process at once) it holds every input to these laws:

- the verdict does not depend on how the stream was cut;
- no byte outside of the input is read (exact.pyx);
- no error but ParseError, with a status that the server answers with;
- a request that was taken, written out again from its parsed parts, parses to the same parts;
- another parser does not see other boundaries in what was taken (tests/unit/http/second_opinion.py).
"""

from __future__ import annotations

from dataclasses import replace

import exact
from cutting import cuts
from harness import fuzz, written

from acme_wsgi.http import h1
from tests.unit.http import second_opinion
from tests.unit.http.corpus import MAX_SIZE
from tests.unit.http.receiver import Message, Outcome, receive

STATUSES = {400, 411, 414, 417, 431, 501, 505}


def serialise(message: Message) -> bytes:
    """The request as a client would send these parts."""
    line = b"%s %s HTTP/1.%d" % (message.method.encode("latin-1"), message.target, message.minor)
    return written(line, message.headers, message.framing, message.body)


def check(data: bytes) -> None:
    """Hold one stream to the laws."""
    exact.walk(data, MAX_SIZE)
    whole = receive([data])
    for pieces in cuts(data):
        outcome = receive(pieces)
        if outcome.refusal is not None and whole.refusal is not None:
            # How much is left unread behind a refusal depends on the cut, and matters to nobody.
            outcome = replace(outcome, waiting=whole.waiting)
        assert outcome == whole, f"cut otherwise: {outcome} != {whole}"
    assert whole.refusal is None or whole.refusal.status in STATUSES, whole.refusal
    for message in whole.messages:
        raw = serialise(message)
        if len(raw) - len(message.body) > MAX_SIZE:
            continue  # `name:value` written with a space may pass the limit that the original kept
        assert receive([raw]) == Outcome((message,), (len(raw),), None, 0), f"changed by writing it: {raw!r}"
    disagreement = second_opinion.disagreement(data, whole)
    assert disagreement is None, disagreement


if __name__ == "__main__":
    fuzz(check, h1)
