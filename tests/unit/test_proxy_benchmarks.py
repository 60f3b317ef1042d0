"""What `scripts/bench proxy` trusts: an origin that counts its connections, a sink and a client that see a
wrong byte, configurations that say what was asked for, tables that compare like with like.

No proxy is measured; the sink is the real one.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from acme_wsgi.config import load
from scripts.benchmarks.apps import HELLO
from scripts.benchmarks.load import Load, LoadFailed
from scripts.benchmarks.machine import Cores, MachineError, free_port
from scripts.benchmarks.origin import Counts, Origin, Watch, _ask, _await, _process, read_status, write_sparse
from scripts.benchmarks.peers import PEERS, Launch, PeerUnavailable, Upstream
from scripts.benchmarks.processes import ProcessTree
from scripts.benchmarks.scenarios import ScenarioFailed, proxy, proxy_body, proxy_queue
from scripts.benchmarks.scenarios.base import Context, Cost, Turn, in_turn
from scripts.benchmarks.server import ServerFailed, running
from scripts.benchmarks.sizes import parse_size, parse_sizes, write_size
from scripts.benchmarks.upload import fill, verify

MB = 1 << 20
PROXIES = [peer for peer in PEERS.values() if peer.can_proxy]


# -- sizes


@pytest.mark.parametrize(
    ("text", "size", "written"),
    [
        ("13", 13, "13 bytes"),
        ("4KB", 4 << 10, "4 KB"),
        ("100k", 100 << 10, "100 KB"),
        ("1536", 1536, "1536 bytes"),
        ("1GB", 1 << 30, "1 GB"),
        ("10GB", 10 << 30, "10 GB"),
    ],
)
def test_sizes_are_read_and_written(text: str, size: int, written: str) -> None:
    assert parse_size(text) == size
    assert write_size(size) == written
    assert parse_size(written.removesuffix(" bytes").replace(" ", "")) == size


@pytest.mark.parametrize("text", ["", "0", "4 TB", "-1", "1.5GB", "KB", "4KB,", "1" * 13])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_sizes(text)


def test_each_size_is_measured_once() -> None:
    assert parse_sizes("13,4KB,4096,13B") == (13, 4096)


# -- what the origin counts

_STATUS = """\
Active connections: 34 
server accepts handled requests
 1041 1041 991122 
Reading: 0 Writing: 12 Waiting: 22 
"""  # noqa: W291 - nginx writes them so


def test_the_connection_that_asks_is_not_counted() -> None:
    assert read_status(_STATUS, own=1) == Counts(accepted=1040, active=33)


def test_what_is_no_status_is_refused() -> None:
    with pytest.raises(ValueError, match="stub_status"):
        read_status("<html>404", own=1)


def test_a_watch_keeps_the_most_and_counts_what_was_opened() -> None:
    watch = Watch(Counts(accepted=100, active=5))
    for accepted, active in ((110, 15), (140, 32), (141, 3)):
        watch.look(Counts(accepted, active))
    assert (watch.most, watch.opened) == (32, 41)


def test_a_dead_origin_is_an_error_not_a_figure(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="connections"), Origin(1, 1, free_port(), tmp_path).watch():
        pytest.fail("nothing to watch")


def test_a_sparse_file_has_its_size_and_no_two_blocks_alike(tmp_path: Path) -> None:
    file = tmp_path / "large"
    write_sparse(file, 12 * MB + 5)
    content = file.read_bytes()
    assert len(content) == 12 * MB + 5
    starts = [content[start : start + 4096] for start in range(0, len(content), 4 * MB)]
    assert len(set(starts)) == len(starts) == 4
    assert file.stat().st_blocks * 512 < MB


# -- uploads


@pytest.fixture(scope="module")
def sink() -> Iterator[tuple[str, int]]:
    """The program itself."""
    port = free_port()
    with _process([sys.executable, "-m", "benchmarks.sink", str(port)], None):
        _await(lambda: _ask(port), "the sink")
        yield ("127.0.0.1", port)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("upload") / "large"
    write_sparse(file, 9 * MB)
    return file


def test_each_upload_arrives_whole(sink: tuple[str, int], large: Path) -> None:
    verify(sink, large)
    done = fill(sink, large, connections=3, seconds=0.2)
    assert done.requests >= 3
    assert done.received == done.requests * 9 * MB
    assert 0 < done.p50_us <= done.max_us <= done.seconds * 1e6


@contextmanager
def raw(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=10) as client:
        yield client


def until(client: socket.socket, end: bytes) -> bytes:
    came = b""
    while not came.endswith(end):
        chunk = client.recv(4096)
        assert chunk, came
        came += chunk
    return came


def test_the_sink_takes_bodies_in_pieces_one_after_the_other(sink: tuple[str, int]) -> None:
    head = b"POST /checked HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\n\r\n"
    with raw(sink) as client:
        for _ in range(2):
            for byte in head + b"hello":
                client.sendall(bytes([byte]))
            assert until(client, b"%08x" % zlib.crc32(b"hello")).endswith(
                b"\r\n\r\n5 %08x" % zlib.crc32(b"hello")
            )
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until(client, HELLO).startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_sink_says_go_on(sink: tuple[str, int]) -> None:
    with raw(sink) as client:
        client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"ab")
        assert until(client, b"\r\n\r\n2").startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nab", b"400"),
        (b"POST / HTTP/1.1\r\n" + b"a" * 70_000, b"431"),
    ],
)
def test_what_the_sink_cannot_account_for_it_refuses(
    sink: tuple[str, int], request_: bytes, status: bytes
) -> None:
    with raw(sink) as client:
        client.sendall(request_)
        assert client.recv(4096).startswith(b"HTTP/1.1 %b " % status)


@contextmanager
def answering(answer: bytes, size: int) -> Iterator[tuple[str, int]]:
    """A server that reads `size` bytes of one request's body, gives this answer, and ends."""

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            came = b""
            while b"\r\n\r\n" not in came or len(came.partition(b"\r\n\r\n")[2]) < size:
                came += client.recv(1 << 20)
            client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve)
        serving.start()
        yield listener.getsockname()
        serving.join()


def told(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (told(b"1000 00000000"), "not b'1000 "),  # another checksum
        (told(b"999"), "not b'1000 "),
        (told(b"", 502), "502"),
        (told(b"1000")[:-1], "cut"),
        (b"", "closed"),
        (b"220 ready\r\n", "220 ready"),
    ],
)
def test_a_body_that_did_not_arrive_fails_the_run(tmp_path: Path, answer: bytes, complaint: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    with answering(answer, 1000) as address, pytest.raises(LoadFailed, match=complaint):
        verify(address, file)


def test_nobody_there_fails_the_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(LoadFailed, match="refused"):
        fill(("127.0.0.1", free_port()), file, connections=1, seconds=0)


# -- memory

_SWELL = """
import mmap, sys
print("begun", flush=True)
sys.stdin.readline()
with mmap.mmap(-1, 64 << 20) as space:
    if sys.argv[1] == "large":
        space.write(b"x" * (64 << 20))
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(("kind", "least", "most"), [("large", 64 * MB, 140 * MB), ("small", 0, 2 * MB)])
def test_memory_that_was_needed_for_a_moment_is_seen(kind: str, least: int, most: int) -> None:
    command = [sys.executable, "-c", _SWELL, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        tree = ProcessTree(process.pid)
        before = tree.reset_peak()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        assert least <= tree.peak() - before <= most
        process.communicate("end\n")


# -- rounds and tables


def context(tmp_path: Path) -> Context:
    return Context(PROXIES, Cores(None, None), tmp_path, argparse.Namespace())


def test_rounds_visit_all_in_turn_and_keep_what_was_good(tmp_path: Path) -> None:
    order: list[str] = []

    def measure(context: Context, peer: object, *, name: str) -> int:
        order.append(name)
        if name == "b" and order.count("b") == 2:
            raise ScenarioFailed("cut")
        return len(order)

    turns = [
        Turn(PEERS["nginx"], {"name": name}, partial(measure, name=name), lambda result: str(result))
        for name in ("a", "b")
    ]
    given = context(tmp_path)
    results = in_turn(given, turns, 3)
    assert order == ["a", "b", "a", "b", "a"]
    assert [(turn.name, taken) for turn, taken in results] == [("a", [1, 3, 5]), ("b", [2])]
    assert given.failures == {"b": "cut"}


def costing(
    cpu_us: float, *, requests: int = 100, seconds: float = 2, errors: dict[str, int] | None = None
) -> Cost:
    return Cost(Load(requests, seconds, 1000, 2000, 3000, 4000, errors or {}), cpu_us, 0.0)


def test_a_request_is_compared_with_the_same_request() -> None:
    rows = [
        {"peer": peer, "size": size, "headers": "browser", "cpu_us": cpu}
        for peer, size, cpu in (
            ("nginx", "4 KB", 20),
            ("haproxy", "4 KB", 25),
            ("acme", "4 KB", 30),
            ("acme", "100 KB", 90),
        )
    ]
    proxy.compare(rows)
    assert [(row["to_nginx"], row["to_haproxy"]) for row in rows] == [
        (1, 0.8),
        (1.25, 1),
        (1.5, 1.2),
        (None, None),
    ]


def test_a_proxy_that_was_not_the_slower_side_shows_it() -> None:
    row = proxy.summary([proxy.Sample(costing(10_000), 3), proxy.Sample(costing(10_000), 64)])
    assert (row["core"], row["opened"]) == (0.5, 64)


def test_a_connection_for_each_request_is_no_keep_alive() -> None:
    proxy.kept_alive(64, 64, 100)
    proxy.kept_alive(999, 64, 100_000)
    with pytest.raises(ScenarioFailed, match="30531 connections for 30491"):
        proxy.kept_alive(30_531, 64, 30_491)


def test_refused_requests_are_no_answers() -> None:
    refusing = costing(5, requests=100, errors={"status": 80})
    row = proxy_queue.summary(
        [proxy_queue.Sample(refusing, 32, 40), proxy_queue.Sample(costing(5, errors={"timeout": 2}), 31, 31)]
    )
    assert row["errors"] == "status 80, timeout 2"
    assert (row["answered"], row["rate"], row["most"], row["opened"]) == (120, 30, 32, 40)
    assert row["cpu_us"] == 15  # of 25 for each that was answered and 5


def test_bodies_are_compared_by_bytes_a_cpu_second() -> None:
    rows = [
        {"peer": peer, "direction": direction, **proxy_body.summary([sample], 10**9)}
        for peer, direction, sample in (
            ("nginx", "download", proxy_body.Sample(costing(500_000), 10**7, 0)),
            ("haproxy", "download", proxy_body.Sample(costing(400_000), 10**7, 0)),
            ("acme", "download", proxy_body.Sample(costing(1_000_000), 4 * 10**7, 10**6)),
            ("acme", "upload", proxy_body.Sample(costing(1_000_000), 4 * 10**7, 0)),
        )
    ]
    proxy_body.compare(rows)
    assert [(row["gb_cpu_s"], row["to_nginx"], row["to_haproxy"]) for row in rows] == [
        (2, 1, 0.8),
        (2.5, 1.25, 1),
        (1, 0.5, 0.4),
        (1, None, None),
    ]
    assert (rows[2]["gb_s"], rows[2]["pss_mb"], rows[2]["grown_mb"]) == (50, 40, 1)


# -- the proxies' configurations


def launched(base: Path, peer: str, upstream: Upstream, **more: object) -> str:
    """What the peer was given to read."""
    launch = Launch(base, "127.0.0.1", 40123, "proxy", upstream=upstream, **more)  # type: ignore[arg-type]
    command = PEERS[peer].command(launch)
    return " ".join(command) + "".join(file.read_text() for file in base.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", [peer.name for peer in PROXIES])
def test_every_proxy_knows_where_the_origin_is(tmp_path: Path, name: str) -> None:
    written = launched(tmp_path, name, Upstream(40999))
    assert "40123" in written and "127.0.0.1:40999" in written


@pytest.mark.parametrize(
    ("limit", "keys"), [(0, {}), (32, {}), (0, proxy_body._KEYS), (32, proxy_body._KEYS)]
)
def test_acme_takes_the_configuration(tmp_path: Path, limit: int, keys: dict[str, str]) -> None:
    launched(tmp_path, "acme", Upstream(40999, limit=limit), keys=keys)
    config = load([tmp_path / "conf.d"])
    assert [(route.path, route.type, route.backend) for route in config.routes] == [
        ("/*", "proxy", "http://127.0.0.1:40999")
    ]
    assert config.server.connection_pool.reuse_connections
    assert config.server.connection_pool.max_per_worker == (limit or 1000)
    if keys:
        assert config.server.max_body_size > 10 << 30
        assert config.server.timeout == 3600


def test_nginx_keeps_connections_to_the_origin(tmp_path: Path) -> None:
    written = launched(tmp_path, "nginx", Upstream(40999, keep=100))
    for said in (
        "max_conns=0;",
        "keepalive 100;",
        "proxy_pass http://origin;",
        "proxy_http_version 1.1;",
        'proxy_set_header Connection "";',
    ):
        assert said in written
    assert "X-Forwarded" not in written


def test_nginx_keeps_no_more_than_it_may_have(tmp_path: Path) -> None:
    written = launched(tmp_path, "nginx", Upstream(40999, limit=32))
    assert "max_conns=32;" in written and "keepalive 32;" in written


def test_haproxy_keeps_connections_to_the_origin(tmp_path: Path) -> None:
    written = launched(tmp_path, "haproxy", Upstream(40999), connections=10_000)
    for said in ("mode http", "option http-keep-alive", "http-reuse always", "nbthread 1", "maxconn 10064"):
        assert said in written
    assert "server origin 127.0.0.1:40999\n" in written + "\n"
    assert "forwardfor" not in written


def test_haproxy_lets_requests_wait(tmp_path: Path) -> None:
    assert "server origin 127.0.0.1:40999 maxconn 32" in launched(
        tmp_path, "haproxy", Upstream(40999, limit=32)
    )


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_the_others_say_who_asked_where_that_is_wanted(tmp_path: Path, name: str) -> None:
    written = launched(tmp_path, name, Upstream(40999, forwarded=True)).lower()
    for field in ("proto", "host"):
        assert f"x-forwarded-{field} " in written
    assert "x-forwarded-for " in written or "option forwardfor" in written


def test_haproxy_is_left_out_of_what_it_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="page"):
        PEERS["haproxy"].command(Launch(tmp_path, "127.0.0.1", 40123, "page"))
    server = running(PEERS["haproxy"], Cores(None, None), tmp_path, site="page")
    with pytest.raises(ServerFailed, match="page"), server:
        pytest.fail("it has no such site")
