"""Property test: h11 and llhttp read generated and mutated requests as we do, but for the listed differences.

Knows the parser through tests/unit/http/receiver.py and the others through tests/unit/http/second_opinion.py,
where the list of justified differences stands.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.http import mangling, second_opinion
from tests.unit.http.corpus import Accept, Reject, accepts, rejects
from tests.unit.http.differences import Difference
from tests.unit.http.mangling import mutated, some
from tests.unit.http.receiver import receive

pytestmark = pytest.mark.slow  # long searches

METHODS = (
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"OPTIONS",
    b"CONNECT",
    b"DELETE",
    b"PURGE",
    b"get",
    b"G@T",
    b"",
    b"A" * 33,
)
TARGETS = (
    b"/",
    b"/a/b?c=d",
    b"/a%20b",
    b"/a%2",
    b"/%00",
    b"/../x",
    b"/a/%2e%2E/b",
    b"//h/x",
    b"/a#b",
    b"/a?b#c",
    b"*",
    b"h:80",
    b"http://other.test/x",
    b"https://other.test:8443?q",
    b"http://u@h/",
    b"http://",
    b"ftp://h/",
    b"/caf\xc3\xa9",
    b"",
)
VERSIONS = (b"HTTP/1.1",) * 6 + (
    b"HTTP/1.0",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/1.10",
    b"http/1.1",
    b"HTTP/1",
    b"",
)
HOSTS = (b"Host: example.com",) * 8 + (
    b"host:h:8080 ",
    b"Host: [::1]:80",
    b"Host:",
    b"Host: a,b",
    b"Host: u@h",
    b"Host: h\r\nHost: h",
    b"Host : h",
    b"X: no host",
)
FIELDS = (
    *mangling.FIELDS,
    b"transfer-encoding:chunked ",
    b"Expect: 100-continue",
    b"Expect: x",
    b"Accept: */*",
    b"X_Under: 1",
)
BODIES = (
    *mangling.BODIES,
    b"",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n",
)
PIECES = (b"%", b"#", b"/", b"..", b"Host: x\r\n")

CASES: tuple[Accept | Reject, ...] = (*accepts(), *rejects())


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request whose every part may be good or bad."""
    space: bytes = draw(some((b" ",) * 8 + (b"  ", b"\t")))
    line = space.join((draw(some(METHODS)), draw(some(TARGETS)), draw(some(VERSIONS))))
    fields = [draw(some(HOSTS)), *draw(st.lists(some(FIELDS), max_size=3))]
    end: bytes = draw(some((b"\r\n",) * 12 + (b"\n", b"\r")))
    start: bytes = draw(some((b"",) * 10 + (b"\r\n", b"\n", b" ")))
    return start + end.join((line, *fields, b"", b"")) + draw(some(BODIES))


@st.composite
def good_requests(draw: st.DrawFn) -> bytes:
    """A request that is mostly good, so that what follows its head is reached."""
    method = draw(some((b"GET", b"POST", b"PUT", b"OPTIONS")))
    target = draw(some((b"/", b"/a?b", b"http://other.test/x")))
    framed = draw(
        some(
            (
                b"Content-Length: 5\r\n\r\nhello",
                b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n",
                b"\r\n",
            )
        )
    )
    fields = b"".join(
        field + b"\r\n"
        for field in draw(st.lists(some((b"Accept: */*", b"X-A: b", b"Connection: close")), max_size=2))
    )
    return method + b" " + target + b" HTTP/1.1\r\nHost: example.com\r\n" + fields + framed


CORPUS = tuple(case.raw for case in CASES if len(case.raw) < 2000)
corpus_messages = st.integers(0, len(CORPUS) - 1).map(lambda index: CORPUS[index])
streams = st.one_of(
    mutated(requests(), *PIECES), mutated(good_requests(), *PIECES), mutated(corpus_messages, *PIECES)
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_others_agree_on_the_corpus(case: Accept | Reject) -> None:
    assert second_opinion.disagreement(case.raw, receive([case.raw])) is None


@given(streams)
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_others_agree(raw: bytes) -> None:
    assert second_opinion.disagreement(raw, receive([raw])) is None


@given(streams)
@settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_others_agree_at_length(raw: bytes) -> None:
    assert second_opinion.disagreement(raw, receive([raw])) is None


@given(streams, st.lists(st.integers(1, 80), max_size=8))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_cuts_change_nothing(raw: bytes, sizes: list[int]) -> None:
    whole = receive([raw])
    pieces = []
    position = 0
    for size in sizes:
        pieces.append(raw[position : position + size])
        position += size
    cut = receive([*pieces, raw[position:]])
    assert (cut.messages, cut.ends, cut.refusal) == (whole.messages, whole.ends, whole.refusal)


LISTS = {
    "stricter": second_opinion.STRICTER,
    "looser than h11": second_opinion.LOOSER_THAN_H11,
    "looser than llhttp": second_opinion.LOOSER_THAN_LLHTTP,
}


@pytest.mark.parametrize(
    ("name", "difference"),
    [(name, difference) for name, differences in LISTS.items() for difference in differences],
    ids=lambda value: value.reason if isinstance(value, Difference) else value,
)
def test_every_listed_difference_is_real(name: str, difference: Difference[second_opinion.Text]) -> None:
    """Each entry is about some message of the corpus, where our verdict is the one that the entry says."""
    verdict = "refused" if name == "stricter" else "taken"
    cases = [case for case in CASES if difference.applies(second_opinion.read(case.raw))]
    assert any(second_opinion.our_verdict(receive([case.raw])) == verdict for case in cases)


@pytest.mark.parametrize("case", accepts(), ids=lambda case: case.name)
def test_no_difference_excuses_refusing_what_must_be_taken(case: Accept) -> None:
    """The predicates of the stricter list are true of no good message; they would hide its refusal."""
    text = second_opinion.read(case.raw)
    assert [d.reason for d in second_opinion.STRICTER if d.applies(text)] == []
