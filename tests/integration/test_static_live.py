"""Static files over sockets: what leaves is what is on the disk, by the way that the settings name."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server import Launcher, Server, wait_until

pytestmark = pytest.mark.slow

MB = 1 << 20


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes whose every part tells where it stands, and in which version."""
    return b"".join(b"%03d-%011d\n" % (seed, number) for number in range(size // 16 + 1))[:size]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "www"
    made.mkdir()
    return made


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory in this checkout: a file system with a disk below it, as tmpfs has none."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".disk-") as name:
        yield Path(name)


def serving(acme: Launcher, root: Path, static: dict[str, Any] | None = None, **route: Any) -> Server:
    return acme(
        {
            "static": static or {},
            "routes": [{"path": "/*", "type": "static", "root": str(root), **route}],
        }
    )


def test_a_file_with_and_without_its_body(acme: Launcher, root: Path) -> None:
    (root / "a.html").write_bytes(b"<p>hello")
    (root / "empty.css").touch()
    server = serving(acme, root)
    with server.connect() as wire:
        for _ in range(2):
            reply = wire.request("/a.html")
            assert (reply.status, reply.body) == (200, b"<p>hello")
            head = wire.request("/a.html", method="HEAD")
            assert (head.status, head.body, head.header("Content-Length")) == (200, b"", "8")
            assert wire.request("/a.html", headers=[f"If-None-Match: {reply.header('ETag')}"]).status == 304
            for method in ("GET", "HEAD"):
                reply = wire.request("/empty.css", method=method, headers=["Accept-Encoding: gzip"])
                assert (reply.status, reply.body, reply.header("Content-Length")) == (200, b"", "0")
            assert wire.request("/b.html").status == 404
            assert wire.request("/a.html", method="POST").status == 405


def test_small_files_leave_with_their_head(acme: Launcher, root: Path) -> None:
    (root / "small.bin").write_bytes(pattern(4096))
    server = serving(acme, root)
    server.get("/small.bin")
    with traced(server, "sendto,sendmsg,write,writev,sendfile") as calls, server.connect() as wire:
        wire.request("/small.bin")
        wire.request("/small.bin")
    sent = [line for line in calls() if "HTTP/1.1 200" in line]
    assert len(sent) == 2
    # What was handed over: strace may have left before the result was there.
    assert all(int(line.split(", MSG_")[0].rsplit(", ", 1)[1]) > 4096 for line in sent), sent


def test_large_files_leave_by_sendfile(acme: Launcher, root: Path) -> None:
    (root / "large.bin").write_bytes(pattern(MB))
    server = serving(acme, root)
    server.get("/large.bin")
    with traced(server, "sendfile,read,pread64") as calls:
        assert server.get("/large.bin").body == pattern(MB)
    lines = calls()
    sent = [line for line in lines if "sendfile(" in line and "= -1" not in line]
    assert sum(int(line.rsplit("= ", 1)[1]) for line in sent) == MB
    assert not [line for line in lines if line.endswith("= 1048576") and "read" in line]


def test_without_zero_copy_files_are_read(acme: Launcher, root: Path) -> None:
    (root / "large.bin").write_bytes(pattern(MB))
    server = serving(acme, root, {"zero_copy": False})
    with traced(server, "sendfile") as calls:
        assert server.get("/large.bin").body == pattern(MB)
    assert not [line for line in calls() if "sendfile(" in line]


def test_direct_io_opens_with_o_direct(acme: Launcher, disk: Path) -> None:
    (disk / "large.bin").write_bytes(pattern(5 * MB + 77))
    server = serving(acme, disk, {"direct_io": True})
    with traced(server, "open,openat") as calls:
        assert server.get("/large.bin").body == pattern(5 * MB + 77)
    assert [line for line in calls() if "O_DIRECT" in line]
    reply = server.get("/large.bin", headers=["Range: bytes=4000001-5000003"])
    assert reply.body == pattern(5 * MB + 77)[4000001:5000004]


def test_a_mapping_is_shared_by_all_requests(acme: Launcher, root: Path) -> None:
    (root / "mapped.bin").write_bytes(pattern(3 * MB))
    server = serving(acme, root, {"mmap": {"enabled": True}})
    with server.connect() as one, server.connect() as two:
        assert one.request("/mapped.bin").body == two.request("/mapped.bin").body == pattern(3 * MB)
    (worker,) = server.worker_pids()
    maps = [line for line in Path(f"/proc/{worker}/maps").read_text().splitlines() if "mapped.bin" in line]
    assert len(maps) == 1
    assert maps[0].split()[1] == "r--s"
    os.truncate(root / "mapped.bin", 1000)
    assert server.get("/mapped.bin").body == pattern(1000)
    assert server.worker_pids() == [worker]


def test_curl_resumes(acme: Launcher, root: Path, tmp_path: Path) -> None:
    (root / "film.bin").write_bytes(pattern(2 * MB))
    server = serving(acme, root)
    part = tmp_path / "part"
    part.write_bytes(pattern(2 * MB)[:700_001])
    curl = shutil.which("curl")
    assert curl is not None
    subprocess.run([curl, "-sS", "-C", "-", "-o", part, f"{server.url}/film.bin"], check=True)
    assert part.read_bytes() == pattern(2 * MB)


@pytest.mark.parametrize(
    "static",
    [
        {},
        {"zero_copy": False},
        {"mmap": {"enabled": True, "threshold": "32KB"}},
        {"direct_io": True, "direct_io_threshold": "32KB"},
    ],
    ids=["sendfile", "read", "mapping", "direct"],
)
def test_every_byte_of_random_ranges(acme: Launcher, disk: Path, static: dict[str, Any]) -> None:
    sizes = {"small": 5000, "middle": 100_003, "large": 3 * MB + 1}
    for name, size in sizes.items():
        (disk / name).write_bytes(pattern(size))
    server = serving(acme, disk, static)
    chance = random.Random(20260)
    with server.connect() as wire:
        for _ in range(150):
            name, size = chance.choice(list(sizes.items()))
            spans = [sorted(chance.sample(range(size), 2)) for _ in range(chance.choice([1, 1, 1, 3]))]
            field = ",".join(f"{first}-{last}" for first, last in spans)
            reply = wire.request(f"/{name}", headers=[f"Range: bytes={field}"])
            assert reply.status == 206
            for first, last, body in parts_of(reply):
                assert body == pattern(size)[first : last + 1]


def parts_of(reply: Any) -> Iterator[tuple[int, int, bytes]]:
    """(first, last, bytes) of each part of a 206."""
    media = reply.header("Content-Type")
    if not media.startswith("multipart/byteranges"):
        first, last = reply.header("Content-Range").split()[1].split("/")[0].split("-")
        yield int(first), int(last), reply.body
        return
    boundary = media.partition("boundary=")[2].encode()
    rest = reply.body
    while not rest.endswith(b"--" + boundary + b"--\r\n") or rest.count(b"--" + boundary) > 1:
        head, _, rest = rest.partition(b"\r\n\r\n")
        text = head.decode().partition("Content-Range: bytes ")[2]
        first, last = (int(number) for number in text.split("/")[0].split("-"))
        yield first, last, rest[: last - first + 1]
        rest = rest[last - first + 1 + 2 :]


@pytest.mark.parametrize("size", [4096, 100_000, 3 * MB])
def test_files_replaced_under_load(acme: Launcher, root: Path, size: int) -> None:
    versions = [pattern(size - number * 16, number) for number in range(8)]
    known = set(versions)
    target, fresh = root / "file.txt", root / "next"
    target.write_bytes(versions[0])
    server = serving(acme, root)
    stop = threading.Event()
    wrong: list[str] = []
    seen: set[bytes] = set()

    def load() -> None:
        with server.connect() as wire:
            while not stop.is_set():
                reply = wire.request("/file.txt", headers=["Accept-Encoding: identity"])
                if reply.status != 200 or reply.body not in known:
                    wrong.append(f"{reply.status}, {len(reply.body)} bytes: {reply.body[:40]!r}")
                    return
                seen.add(reply.body[:3])

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    ends = time.monotonic() + 3
    count = 0
    while time.monotonic() < ends and not wrong:
        count += 1
        fresh.write_bytes(versions[count % len(versions)])
        fresh.rename(target)
        stop.wait(0.01)
    stop.set()
    for client in clients:
        client.join()
    assert not wrong, wrong
    assert len(seen) > 1
    # The last version is what is served now.
    assert server.get("/file.txt").body == versions[count % len(versions)]


def test_a_new_version_is_seen_at_once(acme: Launcher, disk: Path) -> None:
    path = disk / "page.txt"
    path.write_text("one")
    os.utime(path, (1e9, 1e9))
    server = serving(acme, disk)
    with server.connect() as wire:
        for number in range(20):
            assert wire.request("/page.txt").text == path.read_text()
            (disk / "next").write_text(f"version {number}")
            (disk / "next").rename(path)
            wait_until(lambda: wire.request("/page.txt").text == path.read_text(), "the new version")


def test_compressed_siblings_and_our_own(acme: Launcher, root: Path) -> None:
    import gzip

    (root / "page.html").write_bytes(pattern(50_000))
    (root / "other.html").write_bytes(pattern(50_000))
    (root / "other.html.gz").write_bytes(gzip.compress(b"packed before"))
    server = serving(acme, root)
    with server.connect() as wire:
        for _ in range(2):
            reply = wire.request("/page.html", headers=["Accept-Encoding: gzip"])
            assert (reply.header("Content-Encoding"), reply.header("Vary")) == ("gzip", "Accept-Encoding")
            assert gzip.decompress(reply.body) == pattern(50_000)
            reply = wire.request("/other.html", headers=["Accept-Encoding: gzip"])
            assert gzip.decompress(reply.body) == b"packed before"
            assert wire.request("/page.html").body == pattern(50_000)


def test_a_file_whose_encoding_takes_longer_than_a_request_may(acme: Launcher, root: Path) -> None:
    """It goes out as it is, is encoded once, and nobody who wants another file waits for that."""
    import brotli

    (root / "big.css").write_bytes(pattern(2 * MB))
    (root / "small.css").write_bytes(pattern(5000))
    server = serving(acme, root, timeout="500ms", compression={"level": 11})
    with server.connect() as wire:
        reply = wire.request("/big.css", headers=["Accept-Encoding: br"])
        assert (reply.status, reply.header("Content-Encoding")) == (200, None)
        assert reply.body == pattern(2 * MB)
        assert wire.request("/small.css", headers=["Accept-Encoding: br"]).status == 200

        def encoded() -> bool:
            reply = wire.request("/big.css", headers=["Accept-Encoding: br"])
            assert reply.status == 200
            return reply.header("Content-Encoding") == "br" and brotli.decompress(reply.body) == pattern(
                2 * MB
            )

        wait_until(encoded, "the encoded file", seconds=120)
        assert encoded()


def test_a_missing_root_keeps_the_server_from_starting(acme: Launcher, tmp_path: Path) -> None:
    ended = acme.fails({"routes": [{"path": "/*", "type": "static", "root": str(tmp_path / "nowhere")}]})
    assert ended.status == 78
    assert "nowhere" in ended.stderr


@contextmanager
def traced(server: Server, calls: str) -> Iterator[Callable[[], list[str]]]:
    """What strace says of a worker meanwhile; the lines are there after the block."""
    strace = shutil.which("strace")
    assert strace is not None, "this test needs strace"
    (worker,) = server.worker_pids()
    output = server.cwd / "trace"
    command = [strace, "-f", "-s", "64", "-e", f"trace={calls}", "-o", str(output), "-p", str(worker)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "attached" in process.stderr.readline()
        try:
            yield lambda: output.read_text().splitlines()
        finally:
            process.terminate()
            process.wait(10)
