"""PEP 3333 as applications meet it: validate is silent, input reads like a file, close() is called once.

Knows the wire and tests/apps/frameworks/wsgi_cases.py.
"""

from __future__ import annotations

import io
import json
import os
import re
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_frameworks import traced
from tests.server import Launcher, Server, wait_until

APP = "tests.apps.frameworks.wsgi_cases"
MB = 1 << 20


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(2 * MB)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Iterator[Server]:
    """The application as it is; it fails on purpose, so errors are expected."""
    where = tmp_path_factory.mktemp("wsgi")
    (where / "file").write_bytes(content)
    launcher = Launcher(where)
    try:
        started = launcher(app=f"{APP}:app", env={"FILE": str(where / "file")})
        started.errors_expected = True
        yield started
        launcher.finish()
    finally:
        launcher.kill()


def noted(server: Server, key: str) -> list[str]:
    return list(json.loads(server.get("/notes").text).get(key, []))


def fresh() -> str:
    return uuid.uuid4().hex


# ------------------------------------------------------------------------------------------- validate


def post(path: str, body: bytes, chunked: bool) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n".encode()
    if chunked:
        middle = len(body) // 2
        pieces = [piece for piece in (body[:middle], body[middle:]) if piece]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_validate_is_silent(acme: Launcher, tmp_path: Path) -> None:
    """Every page behind wsgiref.validate; the fixture fails on an error in the log; no warning."""
    (tmp_path / "file").write_bytes(b"0123456789" * 10_000)
    env = {"FILE": str(tmp_path / "file"), "PYTHONWARNINGS": "always"}
    server = acme(app=f"{APP}:validated", env=env)
    with server.connect() as wire:
        assert wire.request("/normal").text == "abcdef"
        assert wire.request("/normal", method="HEAD").status == 200
        assert wire.request("/generated").text == "one two"
        assert wire.request("/generated", method="HEAD").body == b""
        assert wire.request("/writes").text == "one two three"
        assert len(wire.request("/wrapped").body) == 100_000
        assert wire.request("/facts").status == 200
        assert wire.request("/nothing").body == b""
        for body in (b"", b"x", b"abc\n" * 5000):
            for chunked in (False, True):
                assert wire.send(post("/echo", body, chunked)).reply().body == body
                assert wire.send(post("/normal", body, chunked)).reply().text == "abcdef"
        changed = wire.request("/again")
        assert (changed.status, changed.header("X-First"), changed.header("X-Second")) == (503, None, "1")
    assert "WSGIWarning" not in server.stderr


def test_validate_would_be_heard(acme: Launcher) -> None:
    """What validate finds does reach the log: the silence above means something."""
    server = acme(app=f"{APP}:validated")
    server.errors_expected = True
    server.raw(b"GET /not-bytes HTTP/1.1\r\nHost: a\r\n\r\n")
    server.wait_for_log("AssertionError")


def test_start_response_after_the_head_raises_the_original(server: Server) -> None:
    key = fresh()
    raw = server.raw(f"GET /again-late?key={key} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert raw.startswith(b"HTTP/1.1 200")
    assert not raw.endswith(b"0\r\n\r\n"), "a cut body must not look whole"
    assert noted(server, key) == ["raised too late"]


def test_the_environ(server: Server) -> None:
    told = json.loads(server.get("/facts?a=%20b", headers=["X-A: 1", "X-A: 2", "Content-Type: a/b"]).text)
    expected = {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/facts", "QUERY_STRING": "a=%20b",
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": str(server.port),
        "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "test", "HTTP_X_A": "1, 2", "CONTENT_TYPE": "a/b",
        "wsgi.url_scheme": "http", "wsgi.run_once": False, "wsgi.input_terminated": True,
    }  # fmt: skip
    assert {key: told.get(key) for key in expected} == expected
    assert told["wsgi.multithread"] is True, "greenlets interleave in one process"
    assert told["wsgi.multiprocess"] is False, "there is one worker"


def test_multiprocess_is_true_to_the_facts(acme: Launcher) -> None:
    server = acme(app=f"{APP}:app", workers=2)
    assert json.loads(server.get("/facts").text)["wsgi.multiprocess"] is True


# ---------------------------------------------------------------------------------------------- input

BODIES = st.lists(
    st.sampled_from([b"\n", b"a", b"bc\n", b"\r\n", b"\0", b"x" * 300, b"\n\n"]), max_size=40
).map(b"".join)
SIZES = st.sampled_from([None, -1, 0, 1, 2, 3, 7, 100, 1000])
READS = st.lists(
    st.one_of(st.tuples(st.sampled_from(["read", "readline", "readlines"]), SIZES), st.just(("next", None))),
    max_size=8,
)


def model(body: bytes, reads: list[tuple[str, int | None]]) -> list[Any]:
    source = io.BytesIO(body)
    seen: list[Any] = []
    for name, size in reads:
        if name == "next":
            seen.append(next(source, b"").decode("latin-1"))
            continue
        value = getattr(source, name)(*([] if size is None else [size]))
        is_list = isinstance(value, list)
        seen.append([one.decode("latin-1") for one in value] if is_list else value.decode("latin-1"))
    return seen


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, reads=READS, chunked=st.booleans(), cut=st.integers(0, 2000))
def test_input_reads_as_a_file_does(
    server: Server, body: bytes, reads: list[tuple[str, int | None]], chunked: bool, cut: int
) -> None:
    """Any sequence of reads over any body gives what io.BytesIO gives, however the bytes arrive."""
    path = "/reads?do=" + urllib.parse.quote(json.dumps(reads))
    data = post(path, body, chunked)
    with server.connect() as wire:
        wire.send(data[:cut])
        if data[cut:]:
            wire.send(data[cut:])
        assert json.loads(wire.reply().text) == model(body, reads)
        assert wire.request("/facts").status == 200


# ---------------------------------------------------------------------------------------------- close


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "page",
    [
        "normal",
        "overlong",
        "short",
        "nothing",
        "fails-first",
        "fails-later",
        "bad-header",
        "not-bytes",
        "close-fails",
    ],
)
def test_close_is_called_once(server: Server, page: str, method: str) -> None:
    key = fresh()
    server.raw(f"{method} /{page}?key={key} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert wait_until(lambda: noted(server, key), "close() was called") == ["closed"]
    assert server.get("/normal").text == "abcdef", "the server lives"
    assert noted(server, key) == ["closed"], "once only"


def test_never_more_than_promised(server: Server) -> None:
    raw = server.raw(b"GET /overlong HTTP/1.1\r\nHost: a\r\n\r\n")
    assert raw.partition(b"\r\n\r\n")[2] == b"abc"


def test_fewer_than_promised_ends_the_connection(server: Server) -> None:
    raw = server.raw(b"GET /short HTTP/1.1\r\nHost: a\r\n\r\n")
    assert raw.partition(b"\r\n\r\n")[2] == b"ab"


@pytest.mark.parametrize("rudely", [False, True])
def test_a_client_gone_ends_generator_and_close(server: Server, rudely: bool) -> None:
    key = fresh()
    wire = server.connect()
    wire.send(f"GET /many?key={key} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    wire.exactly(100_000)
    wire.reset() if rudely else wire.close()
    seen = wait_until(lambda: "closed" in noted(server, key) and noted(server, key), "the end")
    assert [one.split(" after ")[0] for one in seen] == ["generator closed", "ended", "closed"]


def test_a_slow_reader_stops_the_generator(server: Server) -> None:
    """The generator makes what the kernel's buffers take and no more; the reader goes on, and so does it."""
    key = fresh()

    def made() -> int:
        return int((noted(server, key + "-made") or ["0"])[0])

    with server.connect() as wire:
        wire.send(f"GET /many?key={key} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wire.exactly(1000)
        stopped_at = wait_until(
            lambda: (first := made()) == settled(made, first) and first, "it stands still"
        )
        assert stopped_at * 65536 < 32 * MB, "bounded by the sockets' buffers"
        taken = 0
        while taken < 32 * MB:
            taken += len(wire.sock.recv(MB))
        wait_until(lambda: made() > stopped_at + 200, "it goes on")


def settled(value: Any, first: int) -> int:
    """The value after fifty more looks; each look is a request that the worker answers in between."""
    latest = first
    for _ in range(50):
        latest = value()
    return int(latest)


def test_write_raises_when_the_client_is_gone(server: Server) -> None:
    key = fresh()
    wire = server.connect()
    wire.send(f"GET /write-for-ever?key={key} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    wire.exactly(1000)
    wire.reset()
    seen = wait_until(lambda: len(noted(server, key)) > 1 and noted(server, key), "write() raised")
    assert seen == ["began", "write raised ClientDisconnected, True"]


@pytest.mark.parametrize("chunked", [False, True])
def test_read_raises_when_the_client_is_gone(server: Server, chunked: bool) -> None:
    key = fresh()
    wire = server.connect()
    data = post(f"/read-all?key={key}", b"x" * MB, chunked)
    wire.send(data[: MB // 2])
    wait_until(lambda: noted(server, key) == ["began"], "the application reads")
    wire.reset()
    seen = wait_until(lambda: len(noted(server, key)) > 1 and noted(server, key), "read() raised")
    assert re.fullmatch(r"read raised (ClientDisconnected|BodyError), True", seen[1])
    assert len(seen) == 2


def test_greenlets_end_with_their_clients(server: Server) -> None:
    """Fifty clients that leave amid a stream leave no request in progress."""
    keys = [fresh() for _ in range(50)]
    for key in keys:
        wire = server.connect()
        wire.send(f"GET /many?key={key} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wire.exactly(1000)
        wire.close()

    def all_ended() -> bool:
        notes = json.loads(server.get("/notes").text)
        return all("closed" in notes.get(key, []) for key in keys)

    wait_until(all_ended, "all are closed")


# --------------------------------------------------------------------------------------- file_wrapper


@pytest.mark.parametrize("at", [0, 1, MB, 2 * MB - 1, 2 * MB])
def test_a_wrapped_file_is_sent_from_its_position(server: Server, content: bytes, at: int) -> None:
    reply = server.get(f"/wrapped?at={at}")
    assert reply.body == content[at:]
    assert reply.header("Content-Length") == str(len(content) - at)
    assert wait_until(lambda: file_closed(server), "the file is closed")


def file_closed(server: Server) -> bool:
    descriptor = noted(server, "descriptor")[0]
    link = Path(f"/proc/{server.worker_pids()[0]}/fd/{descriptor}")
    return not link.is_symlink() or link.readlink().name != "file"


def test_a_wrapped_file_is_no_longer_than_its_content_length(server: Server, content: bytes) -> None:
    assert server.get("/wrapped?at=10&length=5000").body == content[10:5010]


def test_a_wrapped_file_goes_through_the_kernel(server: Server, content: bytes, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with traced(server.worker_pids()[0], trace):
        assert server.get("/wrapped?at=1000").body == content[1000:]
    calls = re.findall(r"sendfile\(\d+, \d+, .*\) += (\d+)", trace.read_text())
    assert sum(map(int, calls)) == len(content) - 1000


def test_what_is_no_real_file_is_read(server: Server, content: bytes) -> None:
    key = fresh()
    assert server.get(f"/wrapped?at=7&noted=1&key={key}").body == content[7:]
    assert noted(server, key) == ["closed"]


def test_a_wrapped_file_is_closed_when_the_client_goes(server: Server) -> None:
    wire = server.connect()
    wire.send(b"GET /wrapped HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.exactly(10)
    wire.reset()
    wait_until(lambda: file_closed(server), "the file is closed")
