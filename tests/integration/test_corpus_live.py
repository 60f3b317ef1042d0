"""The corpus of messages against a running server: nothing behind a refused one is ever a request.

Knows the corpus, the wire and tests/apps/protocol.py. One server answers all messages; each has a connection
of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server import Launcher, Server
from tests.unit.http.corpus import Accept, Reject, accepts, rejects
from tests.unit.http.receiver import Message, receive
from tests.wire import Reply, Wire

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: smuggled.test\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: next.test\r\nConnection: close\r\n\r\n"
TRICKLE = 400  # bytes of a message that are sent one by one; each is a segment

each_accept = pytest.mark.parametrize("case", accepts(), ids=lambda case: case.name)
each_reject = pytest.mark.parametrize("case", rejects(), ids=lambda case: case.name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    launcher = Launcher(tmp_path_factory.mktemp("corpus"))
    try:
        server = launcher(app="tests.apps.protocol:app")
        yield server
        # However often it was tried, no smuggled request ever reached the application.
        seen = server.get("/events").text
        assert "smuggled" not in seen
        assert "/next" in seen
        launcher.finish()
    finally:
        launcher.kill()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for damaged messages, where damage may turn what was to be smuggled into an honest request."""
    launcher = Launcher(tmp_path_factory.mktemp("streams"))
    try:
        yield launcher(app="tests.apps.protocol:app")
        launcher.finish()
    finally:
        launcher.kill()


def trickle(wire: Wire, data: bytes) -> None:
    """Send byte by byte; a server that has refused and closed already may let a later one fail."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.trickle(data)


def final_reply(wire: Wire, case: Accept) -> Reply:
    """The reply to the message, after the interim one that an expectation may bring."""
    reply = wire.reply(head=case.method == "HEAD")
    return wire.reply() if case.expect_continue and reply.status == 100 else reply


def check_accepted(wire: Wire, case: Accept) -> None:
    """The application was told what the sidecar says; then the connection goes on or ends."""
    reply = final_reply(wire, case)
    assert reply.version == "HTTP/1.1"
    if case.target == b"*":
        assert reply.status == 204
    elif case.method == "HEAD":
        assert reply.status == 200
    else:
        told = json.loads(reply.body)
        environ = told["environ"]
        assert environ["REQUEST_METHOD"] == case.method
        assert environ["PATH_INFO"] == case.path
        assert environ["QUERY_STRING"] == case.query
        assert environ["REQUEST_URI"].encode("latin-1") == case.target
        assert environ["SERVER_PROTOCOL"] == ("HTTP/1.0" if case.minor == 0 else "HTTP/1.1")
        assert without_port(environ.get("HTTP_HOST", "")) == case.host
        assert told["body"].encode("latin-1") == case.body
        assert not any("_" in name for name in smuggled_names(case, environ))
    if case.keep_alive:
        follow = wire.reply()
        assert json.loads(follow.body)["environ"]["PATH_INFO"] == "/next"
    assert wire.closed()


def without_port(host: str) -> str:
    """A Host in lower case, without its port."""
    return re.sub(r":\d*$", "", host.lower()) if not host.endswith("]") else host.lower()


def smuggled_names(case: Accept, environ: dict[str, str]) -> set[str]:
    """Fields of the message whose names have an underscore and reached the environ all the same."""
    found = set()
    for name, value in case.headers:
        text = name.decode("latin-1")
        key = "HTTP_" + text.upper().replace("-", "_")
        if "_" in text and environ.get(key) == value.decode("latin-1"):
            found.add(text)
    return found


@each_accept
def test_accept_followed_by_another_request(server: Server, case: Accept) -> None:
    with server.connect() as wire:
        wire.send(case.raw + NEXT)
        check_accepted(wire, case)


@pytest.mark.parametrize("case", [c for c in accepts() if len(c.raw) <= TRICKLE], ids=lambda case: case.name)
def test_accept_byte_by_byte(server: Server, case: Accept) -> None:
    with server.connect() as wire:
        trickle(wire, case.raw + NEXT)
        check_accepted(wire, case)


def check_refused(data: bytes, case: Reject) -> None:
    """Exactly one response, the right one, which says that the connection closes; and it did."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % case.status), data[:300]
    assert re.search(rb"^connection: close\r?$", head, re.I | re.M)
    length = re.search(rb"^content-length: (\d+)\r?$", head, re.I | re.M)
    assert length is not None
    # Nothing follows the one response: no second status line, no stray byte.
    expected = 0 if case.raw.startswith(b"HEAD ") else int(length[1])
    assert len(body) == expected
    if expected:
        assert json.loads(body)["error"]["status"] == case.status


@each_reject
def test_nothing_behind_a_reject_is_answered(server: Server, case: Reject) -> None:
    check_refused(server.raw(case.raw + SMUGGLED + SMUGGLED), case)


@pytest.mark.parametrize("case", [c for c in rejects() if len(c.raw) <= TRICKLE], ids=lambda case: case.name)
def test_reject_byte_by_byte(server: Server, case: Reject) -> None:
    with server.connect() as wire:
        trickle(wire, case.raw + SMUGGLED)
        check_refused(wire.rest(), case)


@each_reject
def test_a_good_request_before_a_reject_is_answered(server: Server, case: Reject) -> None:
    """Pipelined in front of the bad message; then the refusal, then nothing more."""
    with server.connect() as wire:
        wire.send(b"GET /next HTTP/1.1\r\nHost: next.test\r\n\r\n" + case.raw + SMUGGLED)
        assert json.loads(wire.reply().body)["environ"]["PATH_INFO"] == "/next"
        check_refused(wire.rest(), case)


# ------------------------------------------------------------------- streams that nobody thought of

CASES: tuple[Accept | Reject, ...] = (*accepts(), *rejects())
MESSAGES = tuple(case.raw for case in CASES if len(case.raw) < 1000)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Several messages of the corpus in a row, damaged here and there, in pieces."""
    indices = draw(st.lists(st.integers(0, len(MESSAGES) - 1), min_size=1, max_size=5))
    raw = b"".join(MESSAGES[index] for index in indices)
    for _ in range(draw(st.integers(0, 2))):
        position = draw(st.integers(0, len(raw)))
        piece = draw(
            st.one_of(st.binary(max_size=2), st.sampled_from((b"\r\n", b"\r\n\r\n", b"0", b"chunked", b" ")))
        )
        raw = raw[:position] + piece + raw[position + draw(st.integers(0, 2)) :]
    raw += NEXT
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def answered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The requests that are answered: none behind the first after which the connection closes."""
    for index, message in enumerate(messages):
        if not message.keep_alive:
            return messages[: index + 1]
    return messages


def check_answer(wire: Wire, message: Message) -> None:
    """The next reply is the one to this request."""
    reply = wire.reply(head=message.method == "HEAD")
    if reply.status == 100:
        assert message.expect_continue
        reply = wire.reply()
    assert reply.status == (204 if message.target == b"*" else 200)
    if reply.status == 200 and message.method != "HEAD":
        told = json.loads(reply.body)
        assert told["environ"]["REQUEST_METHOD"] == message.method
        assert told["environ"]["PATH_INFO"] == message.path
        assert told["body"].encode("latin-1") == message.body


@given(streams())
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_stream_is_answered_as_the_parser_reads_it(apart: Server, pieces: list[bytes]) -> None:
    """One answer to each request, in order; one refusal; nothing more."""
    read = receive([b"".join(pieces)])
    expected = answered(read.messages)
    with apart.connect() as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have refused a piece ago
            for piece in pieces:
                wire.send(piece)
            wire.end()
        for message in expected:
            check_answer(wire, message)
        rest = wire.rest()
    if expected != read.messages or (expected and not expected[-1].keep_alive):
        assert rest == b""
    elif read.refusal is not None:
        assert final(rest).startswith(b"HTTP/1.1 %d " % read.refusal.status)
        assert statuses(rest) == 1
    else:
        # The stream ended inside a request: silence, or one error.
        assert rest == b"" or re.match(rb"HTTP/1.1 4\d\d ", final(rest))
        assert statuses(rest) <= 1


def final(data: bytes) -> bytes:
    """The data without interim responses in front."""
    return data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")


def statuses(data: bytes) -> int:
    """How many final responses begin in the data."""
    return len(re.findall(rb"HTTP/1\.1 [2-5]\d\d ", data))
