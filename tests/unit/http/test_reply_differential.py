"""Property test: h11's client reads generated and mutated replies as we do, but for the listed differences.

Knows the parser through tests/unit/http/replies.py and h11 through tests/unit/http/reply_opinion.py, where
the list of justified differences stands.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.http import mangling, reply_opinion
from tests.unit.http.differences import Difference
from tests.unit.http.mangling import mutated, some
from tests.unit.http.replies import Accept, Reject, accepts, exchange, rejects

pytestmark = pytest.mark.slow  # long searches

STATUS_LINES = (b"HTTP/1.1 200 OK",) * 6 + (
    b"HTTP/1.0 200 OK",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 200",
    b"HTTP/1.1 200 ",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 404 Not  Found\t",
    b"HTTP/1.1 599 \xe9",
    b"HTTP/1.1 600 X",
    b"HTTP/1.1 001 X",
    b"HTTP/1.1 20 X",
    b"HTTP/1.1 2000 X",
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1\t200 OK",
    b"HTTP/1.1 200 O\x00K",
    b"HTTP/1.1 200 O\x7fK",
    b"HTTP/1.2 200 OK",
    b"HTTP/2.0 200 OK",
    b"HTTP/1.10 200 OK",
    b"http/1.1 200 OK",
    b"ICY 200 OK",
    b"",
)
INTERIM = (b"",) * 6 + (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 102 X\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 100 Continue\r\n\r\n",
)
FIELDS = (
    *mangling.FIELDS,
    b"Content-Length: 5",
    b"transfer-encoding:CHUNKED ",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Upgrade:",
    b"Server: x",
)
BODIES = (
    *mangling.BODIES,
    b"5\r\nhello\r\n0\r\n\r\nmore",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
)
PIECES = (b"HTTP/1.1 200 OK\r\n",)

CASES: tuple[Accept | Reject, ...] = (*accepts(), *rejects())

METHODS = some(("GET",) * 4 + ("HEAD",))


def asked(case: Accept | Reject) -> str:
    return case.asked if isinstance(case, Accept) else "GET"


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """A reply whose every part may be good or bad."""
    fields = draw(st.lists(some(FIELDS), max_size=3))
    end: bytes = draw(some((b"\r\n",) * 12 + (b"\n", b"\r")))
    start: bytes = draw(some((b"",) * 12 + (b"\r\n", b"\n", b" ")))
    interim: bytes = draw(some(INTERIM))
    head = end.join((draw(some(STATUS_LINES)), *fields, b"", b""))
    return start + interim + head + draw(some(BODIES))


CORPUS = tuple(case.raw for case in CASES if len(case.raw) < 2000)
streams = st.one_of(mutated(replies(), *PIECES), mutated(some(CORPUS), *PIECES))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_h11_agrees_on_the_corpus(case: Accept | Reject) -> None:
    method = asked(case)
    assert reply_opinion.disagreement(case.raw, exchange([case.raw], method), method) is None


@given(streams, METHODS)
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_h11_agrees(raw: bytes, method: str) -> None:
    assert reply_opinion.disagreement(raw, exchange([raw], method), method) is None


@given(streams, METHODS)
@settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_h11_agrees_at_length(raw: bytes, method: str) -> None:
    assert reply_opinion.disagreement(raw, exchange([raw], method), method) is None


LISTS = {"stricter": reply_opinion.STRICTER, "looser": reply_opinion.LOOSER}


@pytest.mark.parametrize(
    ("name", "difference"),
    [(name, difference) for name, differences in LISTS.items() for difference in differences],
    ids=lambda value: value.reason if isinstance(value, Difference) else value,
)
def test_every_listed_difference_is_real(name: str, difference: Difference[reply_opinion.Text]) -> None:
    """Each entry is about some message of the corpus, where our verdict is the one that the entry says."""
    verdict = "refused" if name == "stricter" else "taken"
    cases = [case for case in CASES if difference.applies(reply_opinion.read(case.raw, asked(case)))]
    assert any(reply_opinion.our_verdict(exchange([case.raw], asked(case))) == verdict for case in cases)


@pytest.mark.parametrize("case", accepts(), ids=lambda case: case.name)
def test_no_difference_excuses_refusing_what_must_be_taken(case: Accept) -> None:
    """The predicates of the stricter list are true of no good reply; they would hide its refusal."""
    text = reply_opinion.read(case.raw, case.asked)
    assert [d.reason for d in reply_opinion.STRICTER if d.applies(text)] == []
