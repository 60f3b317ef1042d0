"""One connection to a backend: connecting, deadlines, framing at every cut, what may follow, its end."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acme_wsgi.errors import BackendError
from acme_wsgi.upstream.link import Link
from tests.rogue import Unreachable, reserve
from tests.unit.descriptors import descriptors, left_open
from tests.unit.engine_harness import body_of
from tests.unit.files.in_loop import until
from tests.unit.upstream.far import (
    MOMENT,
    accepted,
    exactly,
    fill,
    linked,
    listening,
    reset,
    soon,
    to_end,
    was_read,
    with_reactor,
)

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets

OK = b"HTTP/1.1 200 OK\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MB = 1 << 20


def counted(body: bytes, *fields: bytes) -> bytes:
    return (
        b"".join([OK, b"Content-Length: %d\r\n" % len(body), *(b"%b\r\n" % each for each in fields), b"\r\n"])
        + body
    )


def in_chunks(*pieces: bytes) -> bytes:
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return b"".join([OK, b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"])


def body(link: Link, deadline: int = 0) -> bytes:
    return b"".join(iter(lambda: link.read_piece(deadline or soon()), b""))


def answer(link: Link, *, head_only: bool = False) -> tuple[str, bytes]:
    """The whole next answer."""
    text, _ = link.read_head(head_only, soon())
    return text, body(link)


def failure(step: Callable[[], object]) -> BackendError:
    with pytest.raises(BackendError) as caught:
        step()
    return caught.value


@contextlib.contextmanager
def waiting(step: Callable[[], object]) -> Iterator[list[object]]:
    """A greenlet that has begun to wait; afterwards what it returned or raised is in the list."""
    import gevent

    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(step())
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    greenlet = gevent.spawn(run)
    gevent.sleep(0)
    gevent.sleep(0)
    assert not outcome, outcome
    yield outcome
    greenlet.join(5)
    assert greenlet.dead, "it waits still"


# -- connecting -------------------------------------------------------------------------------------------


@with_reactor
def test_a_refused_connection_has_reached_nobody() -> None:
    holder, port = reserve()
    error = failure(lambda: Link().connect(socket.AF_INET, ("127.0.0.1", port), soon()))
    assert (error.status, error.connecting, error.retriable, error.answered) == (502, True, True, False)
    assert str(error) == "Connection refused"
    holder.close()


@with_reactor
def test_connecting_ends_at_its_deadline() -> None:
    with Unreachable() as unreachable:
        began = time.monotonic()
        address = ("127.0.0.1", unreachable.port)
        error = failure(lambda: Link().connect(socket.AF_INET, address, soon(MOMENT)))
    assert (error.status, error.connecting, error.retriable) == (504, True, True)
    assert MOMENT <= time.monotonic() - began < 50 * MOMENT


@with_reactor
def test_a_deadline_that_has_passed_is_one() -> None:
    with listening() as listener:
        error = failure(lambda: Link().connect(socket.AF_INET, listener.getsockname(), soon(-1)))
    assert (error.status, error.connecting) == (504, True)


@with_reactor
def test_a_unix_socket_that_isnt_there_is_refused() -> None:
    error = failure(lambda: Link().connect(socket.AF_UNIX, "/nonexistent/acme.sock", soon()))
    assert (error.status, error.connecting, str(error)) == (502, True, "No such file or directory")


@with_reactor
def test_a_full_listen_queue_of_a_unix_socket_is_waited_for() -> None:
    with listening(0, family=socket.AF_UNIX) as listener:
        first, second = socket.socket(socket.AF_UNIX), Link()
        first.connect(listener.getsockname())
        with waiting(lambda: second.connect(socket.AF_UNIX, listener.getsockname(), soon())) as outcome:
            accepted(listener).close()
            until(lambda: outcome)
        assert outcome == [None]
        second.begin()
        second.send(REQUEST, soon())
        assert accepted(listener).recv(100) == REQUEST


@with_reactor
def test_but_not_for_ever() -> None:
    with listening(0, family=socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(listener.getsockname())
        began = time.monotonic()
        error = failure(lambda: Link().connect(socket.AF_UNIX, listener.getsockname(), soon(MOMENT)))
        assert (error.status, error.connecting, error.retriable) == (504, True, True)
        assert MOMENT <= time.monotonic() - began < 50 * MOMENT


@with_reactor
def test_a_failed_connect_holds_no_descriptor() -> None:
    holder, port = reserve()
    failure(lambda: Link().connect(socket.AF_INET, ("127.0.0.1", port), soon()))
    before = descriptors()
    for _ in range(20):
        failure(lambda: Link().connect(socket.AF_INET, ("127.0.0.1", port), soon()))
    assert left_open(before) == {}
    holder.close()


# -- deadlines --------------------------------------------------------------------------------------------


def late(step: Callable[[int], object]) -> BackendError:
    """The error of a wait that lasts until its deadline, and not much longer."""
    began = time.monotonic()
    error = failure(lambda: step(soon(MOMENT)))
    assert MOMENT <= time.monotonic() - began < 50 * MOMENT
    assert (error.status, error.connecting, error.retriable) == (504, False, False)
    return error


@with_reactor
def test_a_backend_that_says_nothing_is_waited_for_until_the_deadline() -> None:
    link, far = linked()
    assert not late(lambda deadline: link.read_head(False, deadline)).answered
    far.sendall(OK)
    assert late(lambda deadline: link.read_head(False, deadline)).answered
    far.close()


@with_reactor
@pytest.mark.parametrize("begun", [counted(b"12345")[:-1], in_chunks(b"12345")[:-5], OK + b"\r\n1234"])
def test_so_is_one_that_stops_amid_a_body(begun: bytes) -> None:
    link, far = linked()
    far.sendall(begun)
    link.read_head(False, soon())
    assert link.read_piece(soon()).startswith(b"1234")
    assert late(link.read_piece).answered
    assert not link.complete and not link.reusable
    far.close()


@with_reactor
def test_a_backend_that_reads_nothing_is_waited_for_until_the_deadline() -> None:
    link, far = linked(buffers=8192)
    late(lambda deadline: link.send(bytes(20 * MB), deadline))
    far.close()


@with_reactor
def test_a_late_answer_is_read_in_a_later_wait() -> None:
    link, far = linked()
    late(lambda deadline: link.read_head(False, deadline))
    far.sendall(counted(b"late"))
    assert answer(link) == ("200 OK", b"late")
    far.close()


# -- sending ----------------------------------------------------------------------------------------------


@with_reactor
def test_much_is_sent_as_the_backend_takes_it() -> None:
    link, far = linked(buffers=8192)
    data = body_of(5 * MB)
    with waiting(lambda: link.send(data, soon())) as outcome:
        assert exactly(far, len(data)) == data
    assert outcome == [None]


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
def test_a_backend_that_leaves_while_it_is_sent_to(away: Callable[[socket.socket], None]) -> None:
    link, far = linked(buffers=8192)
    with waiting(lambda: link.send(bytes(20 * MB), soon())) as outcome:
        far.recv(1000)
        away(far)
    error = outcome[0]
    assert isinstance(error, BackendError)
    assert (error.status, error.retriable, error.connecting, error.answered) == (502, True, False, False)


# -- framing, at every cut --------------------------------------------------------------------------------

HEADS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Name: value\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Done\r\n\r\n",
    b"HTTP/1.0 404\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
]


@with_reactor
@pytest.mark.parametrize("heads", HEADS)
def test_heads_may_be_cut_anywhere(heads: bytes) -> None:
    link, far = linked(family=socket.AF_UNIX)

    def final() -> tuple[list[str], object]:
        texts: list[str] = []
        while not texts or link.status < 200:
            text, fields = link.read_head(False, soon())
            texts.append(text)
        return texts, fields

    far.sendall(heads)
    expected = final()
    for cut in range(1, len(heads)):
        link.begin()
        with waiting(final) as outcome:
            far.sendall(heads[:cut])
            was_read(far)
            far.sendall(heads[cut:])
        assert outcome == [expected] and link.reusable


@with_reactor
@pytest.mark.parametrize(
    "whole",
    [
        counted(b"a body\r\n\r\n"),
        in_chunks(b"a bo", b"dy", b"\r\n\r\n"),
        in_chunks(b"a body\r\n\r\n")
        .replace(b"0\r\n\r\n", b"0\r\nX-Trailer: t\r\n\r\n")
        .replace(b"a\r\n", b"00a;x=y\r\n", 1),
    ],
)
def test_bodies_may_be_cut_anywhere(whole: bytes) -> None:
    link, far = linked(family=socket.AF_UNIX)
    for cut in range(1, len(whole)):
        link.begin()
        with waiting(lambda: answer(link)) as outcome:
            far.sendall(whole[:cut])
            was_read(far)
            far.sendall(whole[cut:])
        assert outcome == [("200 OK", b"a body\r\n\r\n")], cut
        assert link.complete and link.reusable and link.rest()


@with_reactor
def test_a_body_until_the_end_may_be_cut_anywhere() -> None:
    whole = OK + b"\r\na body"
    for cut in range(1, len(whole)):
        link, far = linked(family=socket.AF_UNIX)
        with waiting(lambda link=link: answer(link)) as outcome:  # type: ignore[misc]
            far.sendall(whole[:cut])
            was_read(far)
            far.sendall(whole[cut:])
            far.close()
        assert outcome == [("200 OK", b"a body")], cut
        assert link.complete and not link.reusable
        link.close()


@with_reactor
@pytest.mark.parametrize("whole", [counted(b"a body"), in_chunks(b"a b", b"ody")])
@pytest.mark.parametrize("away", [reset, socket.socket.close])
def test_an_answer_that_ends_early_is_never_whole(
    whole: bytes, away: Callable[[socket.socket], None]
) -> None:
    for cut in range(len(whole)):
        link, far = linked()
        far.sendall(whole[:cut])
        away(far)
        error = failure(lambda link=link: answer(link))  # type: ignore[misc]
        assert (error.status, error.retriable, error.connecting) == (502, True, False), cut
        assert error.answered == (cut > 0)
        assert not link.complete and not link.reusable
        link.close()


@with_reactor
def test_a_reset_does_not_end_a_body() -> None:
    link, far = linked(family=socket.AF_INET)
    far.sendall(OK + b"\r\na bo")
    link.read_head(False, soon())
    assert link.read_piece(soon()) == b"a bo"
    reset(far)
    assert failure(lambda: body(link)).status == 502
    assert not link.complete


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), size=st.integers(0, 300_000))
def test_any_body_in_any_framing_with_any_cuts_is_the_same(seed: int, size: int) -> None:
    @with_reactor
    def run() -> None:
        import gevent

        rng = random.Random(seed)
        data = body_of(size)
        edges = sorted(rng.sample(range(1, size), min(rng.randrange(1, 20), size - 1))) if size > 1 else []
        pieces = [data[low:high] for low, high in itertools.pairwise([0, *edges, size]) if high > low]
        forms = [counted(data), in_chunks(*pieces), counted(data), in_chunks(*pieces), OK + b"\r\n" + data]
        link, far = linked(family=rng.choice([socket.AF_UNIX, socket.AF_INET]))

        def speak() -> None:
            for form in forms:
                assert far.recv(100) == REQUEST
                cuts = sorted(rng.sample(range(len(form) + 1), min(len(form), rng.randrange(12))))
                for low, high in itertools.pairwise([0, *cuts, len(form)]):
                    far.sendall(form[low:high])
                    gevent.sleep(rng.choice([0, 0, 0.001]))
            far.close()

        speaker = gevent.spawn(speak)
        for number in range(len(forms)):
            link.begin()
            link.send(REQUEST, soon())
            assert answer(link) == ("200 OK", data)
            assert link.reusable == (number < len(forms) - 1)
        assert link.uses == len(forms) + 1
        speaker.get()

    run()


@with_reactor
@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP/1 status line"),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "no HTTP/1 status line"),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "CR LF"),
        (OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "together"),
        (OK + b"Content-Length: 1, 1\r\n\r\n", "not one plain number"),
        (OK + b"Content-Length: 1000000000000000000\r\n\r\n", "no body can have"),
        (OK + b"X: " + b"x" * 70000, "too large"),
    ],
)
def test_what_is_no_answer_is_refused_and_not_asked_again(said: bytes, complaint: str) -> None:
    link, far = linked()
    far.sendall(said)
    error = failure(lambda: link.read_head(False, soon()))
    assert (error.status, error.retriable, error.answered) == (502, False, True)
    assert complaint in str(error)


@with_reactor
def test_malformed_chunks_end_a_body_where_they_come() -> None:
    for bad in (b"x\r\n", b"5\r\nhelloX", b"0\r\nbad trailer\r\n\r\n", b"5\nhello"):
        link, far = linked()
        far.sendall(in_chunks(b"good")[:-5] + bad)
        link.read_head(False, soon())
        error = failure(lambda link=link: body(link))  # type: ignore[misc]
        assert (error.status, error.retriable, error.answered) == (502, False, True)
        assert not link.complete and not link.reusable


@with_reactor
def test_how_long_a_body_will_be() -> None:
    for said, head_only, expected in (
        (counted(b"12345") + b"more", False, b"12345"),
        (counted(b"12345"), True, b""),
        (in_chunks(b"12345") + b"more", False, b"12345"),
        (OK + b"\r\n12345", False, b"12345"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", False, b""),
    ):
        link, far = linked()
        far.sendall(said)
        if said.startswith(OK + b"\r\n"):
            far.close()
        link.read_head(head_only, soon())
        assert (body(link), link.complete) == (expected, True)
        far.close()


@with_reactor
def test_what_follows_a_101_is_the_other_protocols() -> None:
    link, far = linked()
    far.sendall(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo/2\r\n\r\nits first bytes")
    link.read_head(False, soon())
    assert (link.status, link.protocol, link.take_rest()) == (101, "echo/2", b"its first bytes")
    assert link.take_rest() == b"" and not link.reusable


# -- what may follow --------------------------------------------------------------------------------------


@with_reactor
@pytest.mark.parametrize(
    ("said", "head_only", "reusable"),
    [
        (counted(b"body"), False, True),
        (counted(b""), False, True),
        (in_chunks(b"body"), False, True),
        (counted(b"body").partition(b"body")[0], True, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", False, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False, False),
        (counted(b"body", b"Connection: close"), False, False),
        (counted(b"body", b"Connection: x, Close"), False, False),
        (counted(b"body") + b"H", False, False),
        (counted(b"body") + b"\r\n", False, False),
        (in_chunks(b"body") + b"\r\n", False, False),
        (counted(b"body"), True, False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1\r\n\r\n!", False, False),
    ],
)
def test_another_request_may_follow_exactly_one_message(said: bytes, head_only: bool, reusable: bool) -> None:
    link, far = linked()
    far.sendall(said)
    answer(link, head_only=head_only)
    assert link.complete and link.reusable == reusable
    far.close()


@with_reactor
def test_none_follows_a_request_that_was_not_sent_to_its_end() -> None:
    link, far = linked()
    far.sendall(counted(b"no"))
    link.read_head(False, soon())
    link.spoil()
    assert body(link) == b"no" and not link.reusable
    far.close()


@with_reactor
def test_none_follows_an_end_that_came_with_the_answer() -> None:
    link, far = linked()
    far.sendall(counted(b"bye"))
    far.close()
    until(lambda: not link.usable())
    assert answer(link) == ("200 OK", b"bye")
    assert not (link.reusable and link.rest())


class Noting:
    """A shelf that counts."""

    def __init__(self) -> None:
        self.ends: list[bool] = []

    def closed(self, link: Link, rested: bool) -> None:
        self.ends.append(bool(rested))


@with_reactor
@pytest.mark.parametrize(
    "away", [reset, socket.socket.close, lambda far: far.sendall(b"HTTP/1.1 408 Late\r\n\r\n")]
)
def test_whatever_happens_on_a_resting_connection_ends_it(away: Callable[[socket.socket], None]) -> None:
    shelf = Noting()
    link, far = linked(shelf=shelf)
    far.sendall(counted(b"body"))
    answer(link)
    assert link.reusable and link.rest() and link.usable()
    away(far)
    until(lambda: shelf.ends)
    assert shelf.ends == [True]
    assert not link.usable()
    link.close()
    assert shelf.ends == [True]


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close, lambda far: far.sendall(b"!")])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_the_kernel_knows_before_the_loop_does(
    away: Callable[[socket.socket], None], family: socket.AddressFamily
) -> None:
    link, far = linked(family=family)
    far.sendall(counted(b"body"))
    answer(link)
    assert link.rest()
    away(far)  # and nothing of the loop runs before the question
    assert not link.usable()


@with_reactor
def test_a_connection_does_not_rest_on_bytes_that_nobody_asked_for() -> None:
    link, far = linked()
    far.sendall(counted(b"body"))
    answer(link)
    with waiting(lambda: until(lambda: not link.usable())):
        far.sendall(b"more")
    assert not link.rest()
    far.close()


@with_reactor
def test_a_large_head_does_not_stay_in_memory_and_a_new_request_begins_afresh() -> None:
    link, far = linked()
    for _ in range(3):
        link.begin()
        far.sendall(counted(b"b" * 40000, b"X: " + b"x" * 60000))
        assert len(answer(link)[1]) == 40000
        assert link.rest()
    assert link.uses == 4


# -- being closed -----------------------------------------------------------------------------------------


@with_reactor
@pytest.mark.parametrize("said", [b"", OK, counted(b"12")[:-1], in_chunks(b"1")[:-5], OK + b"\r\n1"])
def test_who_waits_for_a_connection_that_is_closed_hears_of_it(said: bytes) -> None:
    shelf = Noting()
    link, far = linked(family=socket.AF_UNIX, shelf=shelf)
    with waiting(lambda: answer(link)) as outcome:
        far.sendall(said)
        was_read(far)
        link.abort()
    error = outcome[0]
    assert isinstance(error, BackendError) and (error.status, error.retriable) == (502, True)
    assert shelf.ends == [False] and not link.reusable
    assert to_end(far) == b""


@with_reactor
def test_who_sends_on_a_connection_that_is_closed_hears_of_it() -> None:
    link, far = linked(buffers=8192)
    with waiting(lambda: link.send(bytes(20 * MB), soon())) as outcome:
        link.abort()
    assert isinstance(outcome[0], BackendError) and outcome[0].status == 502
    assert failure(lambda: link.send(REQUEST, soon())).status == 502
    far.close()


@with_reactor
@pytest.mark.parametrize("said", [b"", counted(b"12")[:-1], in_chunks(b"1")[:-5], OK + b"\r\n1"])
def test_who_comes_to_a_connection_that_was_closed_meanwhile_does_not_wait(said: bytes) -> None:
    import gevent

    link, far = linked()
    if said:
        far.sendall(said)
        link.read_head(False, soon())
        assert link.read_piece(soon()) == b"1"
    link.abort()
    with gevent.Timeout(5):
        error = failure(lambda: link.read_piece(soon(60)) if said else link.read_head(False, soon(60)))
    assert error.status == 502
    far.close()


@with_reactor
def test_a_connection_is_closed_once_and_before_it_was_made() -> None:
    Link().close()
    shelf = Noting()
    link, far = linked(shelf=shelf)
    link.close()
    link.close()
    link.abort()
    assert shelf.ends == [False] and to_end(far) == b""
    assert not link.usable()


@with_reactor
def test_a_greenlet_that_is_killed_while_it_waits_leaves_the_connection_usable_by_nobody_else() -> None:
    import gevent

    link, far = linked()
    greenlet = gevent.spawn(link.read_head, False, soon())
    gevent.sleep(0)
    greenlet.kill()
    far.sendall(counted(b"next"))
    assert answer(link) == ("200 OK", b"next")  # nothing of the wait was left behind
    far.close()


@with_reactor
def test_two_cannot_wait_for_one_connection() -> None:
    link, far = linked()
    with waiting(lambda: link.read_head(False, soon())) as outcome:
        with pytest.raises(RuntimeError, match="can't wait"):
            link.read_head(False, soon())
        far.sendall(OK + b"\r\n")
    assert outcome == [("200 OK", [])]


@with_reactor
def test_zeros_are_no_answer_however_many() -> None:
    link, far = linked()
    assert fill(far) > 0
    assert failure(lambda: link.read_head(False, soon())).status == 502
    link.close()
    far.close()
