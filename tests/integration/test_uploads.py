"""Large uploads: 100 MB through Django and Flask onto the disk, while the worker's memory stays where it was.

Memory is the worker's private memory and its proportional share of the rest (PSS), sampled while the upload
runs, and the highest resident size that the kernel noted: not what is left at the end.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tests.integration.test_frameworks import prepare_django, serves
from tests.server import Launcher, Server
from tests.wire import Wire

MB = 1 << 20
SIZE = 100 * MB
ALLOWED = 40 * MB
PIECE = bytes(range(256)) * 1024  # 256 KB


class Peak(threading.Thread):
    """Samples a process' memory until stopped: `first` and `highest`, bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.rollup = Path(f"/proc/{pid}/smaps_rollup")
        self.status = Path(f"/proc/{pid}/status")
        self.first = self.highest = self.now()
        self.rss_before = self.rss_peak()
        self.samples = 0
        self.ended = threading.Event()

    def now(self) -> int:
        lines = dict(line.split(":") for line in self.rollup.read_text().splitlines()[1:])
        return int(lines["Pss"].split()[0]) * 1024

    def rss_peak(self) -> int:
        """The highest resident size that the process ever had, which no sample can miss."""
        lines = dict(line.split(":", 1) for line in self.status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.highest = max(self.highest, self.now())
            self.samples += 1

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    @property
    def grown(self) -> int:
        """Bytes above where it began, by the sampled share and by the resident peak: the larger."""
        return max(self.highest - self.first, self.rss_peak() - self.rss_before)


def by_length(wire: Wire, head: bytes, before: bytes, after: bytes) -> None:
    wire.send(head, b"Content-Length: %d\r\n\r\n" % (len(before) + SIZE + len(after)), before)
    for _ in range(SIZE // len(PIECE)):
        wire.send(PIECE)
    wire.send(after)


def by_chunks(wire: Wire, head: bytes, before: bytes, after: bytes) -> None:
    wire.send(head, b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (len(before), before))
    for _ in range(SIZE // len(PIECE)):
        wire.send(b"%x\r\n" % len(PIECE), PIECE, b"\r\n")
    wire.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(after), after))


Send = Callable[[Wire, bytes, bytes, bytes], None]


def upload(server: Server, target: str, send: Send) -> object:
    """A form with one file of 100 MB; the answer as JSON."""
    mark = b"----mark7d1b2"
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=%s\r\n" % (
        target.encode(),
        mark,
    )
    before = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n' % mark
    with server.connect(timeout=120) as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send(wire, head, before, b"\r\n--%s--\r\n" % mark)
        reply = wire.reply()
    assert reply.status == 200, reply.text
    return json.loads(reply.text)


def expected() -> str:
    digest = sha256()
    for _ in range(SIZE // len(PIECE)):
        digest.update(PIECE)
    return digest.hexdigest()


def warm_up(server: Server, target: str) -> None:
    """One small upload first: what the framework loads for its first form is not the upload's memory."""
    body = b'--m\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nsmall\r\n--m--\r\n'
    with server.connect() as wire:
        head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=m\r\n"
        wire.send(head.encode(), b"Content-Length: %d\r\n\r\n" % len(body), body)
        assert wire.reply().status == 200


@pytest.mark.slow
def test_django_stores_100_mb(
    acme: Launcher, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    env = {"SITE_DATA": str(tmp_path), "DJANGO_SETTINGS_MODULE": "tests.apps.frameworks.django_site.settings"}
    prepare_django(env)
    server = acme(
        serves("tests.apps.frameworks.django_site.wsgi:application", max_body_size="128MB"), env=env
    )
    warm_up(server, "/upload")
    with Peak(server.worker_pids()[0]) as peak:
        seen = upload(server, "/upload", by_length)
    assert seen == {"size": SIZE, "sha256": expected(), "on_disk": True}
    assert (tmp_path / "stored").stat().st_size == SIZE
    assert peak.samples > 10, "the samples show nothing"
    record_property("grown_mb", round(peak.grown / MB, 1))
    print(f"Django: 100 MB took {peak.grown / MB:.1f} MB of the worker's memory ({peak.samples} samples)")
    assert peak.grown < ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("send", [by_length, by_chunks])
def test_flask_takes_100_mb(acme: Launcher, tmp_path: Path, send: Send) -> None:
    server = acme(
        serves("tests.apps.frameworks.flask_app:app", max_body_size="128MB"), env={"TMPDIR": str(tmp_path)}
    )
    warm_up(server, "/store")
    with Peak(server.worker_pids()[0]) as peak:
        seen = upload(server, "/store", send)
    assert seen == {"size": SIZE, "sha256": expected()}
    assert peak.samples > 10, "the samples show nothing"
    print(f"Flask, {send.__name__}: 100 MB took {peak.grown / MB:.1f} MB ({peak.samples} samples)")
    assert peak.grown < ALLOWED


def test_the_peak_would_see_a_body_in_memory(acme: Launcher) -> None:
    """An application that reads the body whole does grow: the measure measures."""
    server = acme(app="tests.apps.protocol:app", sets=["server.max_body_size=128MB"])
    with Peak(server.worker_pids()[0]) as peak, server.connect(timeout=60) as wire:
        by_length(wire, b"POST /read-or-note HTTP/1.1\r\nHost: a\r\n", b"", b"")
        assert wire.reply().text == str(SIZE)
    assert peak.grown > SIZE


def test_an_upload_over_the_limit_is_refused_before_it_is_sent(acme: Launcher) -> None:
    server = acme(serves("tests.apps.frameworks.flask_app:app", max_body_size="1MB"))
    with server.connect() as wire:
        wire.send(b"POST /store HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE)
        assert wire.reply().status == 413
