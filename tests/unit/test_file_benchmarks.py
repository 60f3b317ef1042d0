"""What `scripts/bench static` trusts: documents of a known size, checks that see a wrong answer, a client
that reads every byte, configurations that say what was asked for.

No server is measured; the client is tested against a scripted one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import brotli
import pytest

from acme_wsgi.config import load
from scripts.benchmarks import apps
from scripts.benchmarks.documents import (
    DOCUMENT_SIZE,
    DOCUMENTS,
    READY,
    Directory,
    around_serial,
    page,
    records,
    unnumbered,
    write_directory,
)
from scripts.benchmarks.drain import compare, drain
from scripts.benchmarks.load import Load, LoadFailed
from scripts.benchmarks.machine import Cores
from scripts.benchmarks.peers import PEERS, Coding, Launch, Peer, Site
from scripts.benchmarks.processes import ProcessTree
from scripts.benchmarks.scenarios import ScenarioFailed
from scripts.benchmarks.scenarios.base import Context, Cost, medians
from scripts.benchmarks.scenarios.compress import DYNAMIC, at_same_size, entries
from scripts.benchmarks.scenarios.entries import Entry, Sample, await_rest, in_full, what_is_wrong
from scripts.benchmarks.scenarios.static import WAYS, _large_table, _small_table, some_of
from scripts.benchmarks.server import Reply

SIZE = 3 << 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Directory:
    return write_directory(tmp_path_factory.mktemp("bench") / "files", SIZE)


# -- what is served


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_a_document_has_its_size_and_compresses_as_real_ones_do(name: str) -> None:
    document = DOCUMENTS[name].make()
    assert len(document) == DOCUMENT_SIZE
    assert 2.5 < len(document) / len(gzip.compress(document, 6)) < 7


def test_records_are_json() -> None:
    assert len(json.loads(records())["products"]) > 50


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_an_application_makes_its_document_anew_with_a_number_of_its_own(name: str) -> None:
    application = getattr(apps, name)
    told: list[tuple[str, str]] = []
    first, second = (
        b"".join(application({}, lambda status, headers: told.extend(headers))) for _ in range(2)
    )
    assert first != second
    assert unnumbered(first) == unnumbered(second) == DOCUMENTS[name].make()
    assert told.count(("Content-Length", str(len(first)))) == 2


def test_there_is_no_application_of_another_name() -> None:
    with pytest.raises(AttributeError):
        _ = apps.pages  # type: ignore[attr-defined]


def test_a_document_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="serial"):
        around_serial(b"<html>")


def test_the_directory_holds_what_it_says(directory: Directory) -> None:
    for name, size in directory.sizes.items():
        content = (directory.root / name).read_bytes()
        assert len(content) == size
        assert len(gzip.compress(content)) >= size
    assert gzip.decompress((directory.root / f"{READY}.gz").read_bytes()) == page()


def test_no_block_of_a_large_file_can_stand_for_another(tmp_path: Path) -> None:
    made = write_directory(tmp_path / "files", (8 << 20) + 5)
    content = (made.root / "large.mp4").read_bytes()
    assert len(content) == (8 << 20) + 5
    assert content[: 4 << 20] != content[4 << 20 : 8 << 20]


# -- the checks before a measurement


def reply(body: bytes, coding: str | None = None, status: int = 200, vary: str | None = None) -> Reply:
    fields = {"content-encoding": coding, "vary": vary}
    return Reply(status, {name: value for name, value in fields.items() if value is not None}, body)


NUMBERED = b"%b0000000071%b" % around_serial(page())


@pytest.mark.parametrize(
    ("answer", "coding"),
    [
        (reply(page()), "identity"),
        (reply(gzip.compress(NUMBERED), "gzip", vary="Accept-Encoding"), "gzip"),
        (reply(brotli.compress(NUMBERED), "br", vary="Cookie, Accept-Encoding"), "br"),
    ],
)
def test_a_right_answer_is_right(answer: Reply, coding: str) -> None:
    assert what_is_wrong(answer, coding, page()) is None


@pytest.mark.parametrize(
    ("answer", "coding", "complaint"),
    [
        (reply(page(), status=206), "identity", "status 206"),
        (reply(page()), "gzip", "content-coding identity, not gzip"),
        (reply(gzip.compress(page()), "gzip", vary="Accept-Encoding"), "br", "content-coding gzip, not br"),
        (reply(gzip.compress(page()), "gzip"), "gzip", "no Vary"),
        (reply(page(), "gzip", vary="Accept-Encoding"), "gzip", "not gzip"),
        (reply(gzip.compress(page())[:-9], "gzip", vary="Accept-Encoding"), "gzip", "not gzip"),
        (reply(brotli.compress(page())[:-9], "br", vary="Accept-Encoding"), "br", "not br"),
        (reply(gzip.compress(page()[:-1]), "gzip", vary="Accept-Encoding"), "gzip", "another body"),
        (reply(page().replace(b"Products", b"Produkte")), "identity", "another body"),
    ],
)
def test_a_wrong_answer_is_seen(answer: Reply, coding: str, complaint: str) -> None:
    assert complaint in str(what_is_wrong(answer, coding, page()))


def test_answers_that_did_not_come_in_full_are_seen() -> None:
    in_full(Load(10, 1, 1, 1, 1, 1, received=10_500), 1000)
    with pytest.raises(ScenarioFailed):
        in_full(Load(10, 1, 1, 1, 1, 1, received=9_000), 1000)


# -- the client of large files


@contextmanager
def sending(*answers: bytes, pieces: int = 70_001) -> Iterator[tuple[str, int]]:
    """A server whose connections get these answers in turn, in pieces, the last one again and again.

    An empty one ends the connection.
    """

    def serve(client: socket.socket) -> None:
        with client:
            number = 0
            try:
                while client.recv(4096):
                    answer = answers[min(number, len(answers) - 1)]
                    number += 1
                    if not answer:
                        return
                    for start in range(0, len(answer), pieces):
                        client.sendall(answer[start : start + pieces])
            except ConnectionError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def answer(body: bytes, length: int | None = None, status: int = 200) -> bytes:
    announced = len(body) if length is None else length
    return b"HTTP/1.1 %d OK\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        announced,
        body,
    )


def test_each_file_is_read_to_its_end(directory: Directory) -> None:
    whole = answer((directory.root / "large.mp4").read_bytes())
    with sending(whole) as address:
        load = drain(address, "/large.mp4", size=SIZE, connections=3, seconds=0.2)
    assert load.requests >= 3
    assert load.received == load.requests * len(whole)
    assert 0 < load.p50_us <= load.max_us <= load.seconds * 1e6


def test_a_head_may_come_byte_by_byte() -> None:
    with sending(answer(b"12345"), pieces=1) as address:
        assert drain(address, "/5", size=5, connections=1, seconds=0).requests == 1


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ([answer(b"x" * 99, 100), b""], "no byte for"),
        ([answer(b"x" * 101, 100)], "1 bytes behind the answer"),
        ([answer(b"x" * 99)], "not 200 with 100 bytes"),
        ([answer(b"x" * 100, status=206)], "not 200 with 100 bytes"),
        ([answer(b"x" * 100), b""], "closed after 1 files"),
        ([b"x" * 20_000], "no head"),
    ],
)
def test_what_is_not_the_whole_file_fails_the_run(
    answers: list[bytes], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.benchmarks.drain._PATIENCE", 0.3)
    with sending(*answers) as address, pytest.raises(LoadFailed, match=complaint):
        drain(address, "/large.mp4", size=100, connections=1, seconds=5)


def test_a_file_is_compared_byte_by_byte(directory: Directory) -> None:
    file = directory.root / "large.mp4"
    right = file.read_bytes()
    with sending(answer(right)) as address:
        compare(address, "/large.mp4", file)
    wrong = bytearray(right)
    wrong[2_000_000] ^= 1
    with sending(answer(bytes(wrong))) as address, pytest.raises(LoadFailed, match="not the file's bytes"):
        compare(address, "/large.mp4", file)


_BURN = """
import sys, time
print("begun", flush=True)
while time.process_time() < float(sys.argv[1]):
    pass
print("done", flush=True)
time.sleep(60)
"""


@contextmanager
def burning(seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process that uses so much CPU time, says that it is done, and then does nothing."""
    command = [sys.executable, "-c", _BURN, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_load_waits_until_the_server_is_at_rest() -> None:
    with burning(0.5) as process:
        await_rest(ProcessTree(process.pid))
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 0)[0]  # it is done


def test_a_server_that_never_rests_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.benchmarks.scenarios.entries._REST_PATIENCE", 0.5)
    with burning(60) as process, pytest.raises(ScenarioFailed, match="busy"):
        await_rest(ProcessTree(process.pid))


# -- what the tables say


def costing(cpu_us: float, size: float) -> list[Sample]:
    return [Sample(Cost(Load(10, 2, 1, 1, 1, 1, received=round(10 * size)), cpu_us, 0.0), size)]


def entry(peer: str, **cells: str) -> Entry:
    return Entry(PEERS[peer], {"peer": peer, **cells}, "/", Path("/"))


def test_a_small_file_is_compared_with_the_same_file_and_request() -> None:
    rows = _small_table(
        argparse.Namespace(connections=64),
        [
            (entry("nginx", file="4k.jpg", headers="lean"), costing(10, 4096)),
            (entry("nginx", file="100k.jpg", headers="lean"), costing(20, 102400)),
            (entry("acme", file="100k.jpg", headers="lean"), costing(25, 102400)),
            (entry("acme", file="100k.jpg", headers="browser"), costing(25, 102400)),
        ],
    ).rows
    assert [row["ratio"] for row in rows] == [1, 1, 1.25, None]


def test_a_large_file_is_compared_by_bytes_a_cpu_second() -> None:
    rows = _large_table(
        argparse.Namespace(megabytes=1000, large_connections=2),
        [
            (entry("nginx", file="large.mp4"), costing(400_000, 1e9)),
            (entry("acme", file="large.mp4"), costing(500_000, 1e9)),
        ],
    ).rows
    assert [(row["gb_cpu_s"], row["ratio"], row["gb_s"]) for row in rows] == [
        (pytest.approx(2.5), 1, 5.0),
        (pytest.approx(2.0), pytest.approx(0.8), 5.0),
    ]


def level(number: int, size: float, cpu_us: float, coding: str = "gzip") -> dict[str, object]:
    return {"what": DYNAMIC, "coding": coding, "level": number, "size": size, "cpu_us": cpu_us}


def test_levels_are_compared_at_the_same_size() -> None:
    rows = [level(1, 6000, 50), level(4, 5020, 120), level(6, 4900, 100), level(6, 100, 1, "br")]
    floor = {"size": 5000, "cpu_us": 100}
    said = at_same_size(rows, floor, "gzip")
    assert said.startswith("gzip: level 6 ") and "CPU to nginx 1.00." in said
    assert at_same_size(rows[:2], floor, "gzip").startswith("gzip: level 4 ")  # within half a percent
    assert "no measured level" in at_same_size(rows[:1], floor, "gzip")


@pytest.mark.parametrize(
    ("rows", "end"),
    [
        ([level(1, 5400, 80), level(4, 4800, 140)], "Interpolated from level 1: 1.20."),
        ([level(1, 9000, 10), level(2, 5400, 80), level(4, 4800, 140)], "Interpolated from level 2: 1.20."),
        ([level(1, 5400, 150), level(4, 4800, 140)], "CPU to nginx 1.40."),  # the smaller one is cheaper too
        ([level(4, 4800, 140)], "CPU to nginx 1.40."),
        ([level(1, 5400, 80), level(4, 5010, 140)], "CPU to nginx 1.40."),  # nothing to lie between
    ],
)
def test_between_two_levels_the_cost_is_interpolated(rows: list[dict[str, object]], end: str) -> None:
    assert at_same_size(rows, {"size": 5000, "cpu_us": 100}, "gzip").endswith(end)


def test_a_measurement_that_fails_is_named_and_left_out_of_later_rounds(tmp_path: Path) -> None:
    context = Context([PEERS["acme"]], Cores(None, None), tmp_path, argparse.Namespace())
    tried: list[str] = []

    def fail(context: Context, peer: Peer) -> float:
        tried.append(peer.name)
        raise ScenarioFailed("cut")

    for _ in range(2):
        assert context.attempt(PEERS["acme"], fail, "acme 4k.jpg") is None
    assert context.attempt(PEERS["acme"], lambda context, peer: 1.5, "acme 100k.jpg") == 1.5
    assert context.failures == {"acme 4k.jpg": "cut"} and tried == ["acme"]


def test_medians_are_of_the_rounds() -> None:
    costs = [Cost(Load(10, 1, 5, 5, 5, 5), cpu, 0.0) for cpu in (10, 30, 20)]
    row = medians(costs)
    assert (row["cpu_us"], row["spread"]) == (20, 0.5)


def test_options_that_name_several_things_know_them() -> None:
    assert some_of(WAYS)("mmap,read") == ("mmap", "read")
    for wrong in ("", "mmap,x"):
        with pytest.raises(argparse.ArgumentTypeError):
            some_of(WAYS)(wrong)


# -- the servers' configurations


def launched(base: Path, peer: str, directory: Directory, site: Site, **more: object) -> list[str]:
    """The command; what it reads is in `base`."""
    launch = Launch(base, "127.0.0.1", 40123, site, root=directory.root, **more)  # type: ignore[arg-type]
    return PEERS[peer].command(launch)


CODINGS = [None, Coding("identity"), Coding("gzip", 6), Coding("gzip"), Coding("br", 5)]


@pytest.mark.parametrize("coding", CODINGS)
def test_acme_takes_the_configuration(tmp_path: Path, directory: Directory, coding: Coding | None) -> None:
    launched(tmp_path, "acme", directory, "files", coding=coding, sections={"static": {"zero_copy": False}})
    config = load([tmp_path / "conf.d"])
    assert config.routes[0].root == str(directory.root)
    assert not config.static.zero_copy
    compression = config.compression
    offered = compression.algorithms if compression.enabled else ()
    token = coding.token if coding else "any"
    assert offered == {"identity": (), "gzip": ("gzip",), "br": ("brotli",)}.get(token, ("brotli", "gzip"))
    assert compression.level == (coding.level if coding and coding.level else 6)


@pytest.mark.parametrize("way", list(WAYS))
def test_acme_takes_each_way_to_send_a_file(tmp_path: Path, directory: Directory, way: str) -> None:
    launched(tmp_path, "acme", directory, "files", sections={"static": WAYS[way]})
    static = load([tmp_path / "conf.d"]).static
    asked = [name for name, on in (("mmap", static.mmap.enabled), ("direct", static.direct_io)) if on]
    assert (asked or ["sendfile" if static.zero_copy else "read"]) == [way]


@pytest.mark.parametrize(
    ("coding", "words"),
    [
        (None, "gzip off;"),
        (Coding("identity"), "gzip off;"),
        (Coding("gzip", 4), "gzip on; gzip_comp_level 4;"),
        (Coding("gzip"), "gzip_static on;"),
    ],
)
def test_nginx_is_told_what_to_compress(
    tmp_path: Path, directory: Directory, coding: Coding | None, words: str
) -> None:
    launched(tmp_path, "nginx", directory, "files", coding=coding)
    written = (tmp_path / "nginx.conf").read_text()
    known = ("gzip off;", "gzip on; gzip_comp_level 4;", "gzip_static on;")
    assert [said for said in known if said in written] == [words]
    assert f"root {directory.root};" in written


def test_nginx_is_not_asked_for_brotli(tmp_path: Path, directory: Directory) -> None:
    with pytest.raises(ValueError, match="br"):
        launched(tmp_path, "nginx", directory, "files", coding=Coding("br", 5))


def test_entries_ask_for_what_they_expect(directory: Directory) -> None:
    options = argparse.Namespace(
        what=("dynamic", "kept"), document="page", nginx_level=6, gzip_levels=(1, 6), brotli_levels=(4,)
    )
    found = entries([PEERS["nginx"], PEERS["acme"]], directory, options)
    assert [(e.peer.name, e.site, e.expected, e.cells["level"]) for e in found] == [
        ("nginx", "files", "gzip", 6),
        ("nginx", "files", "gzip", None),
        ("acme", "page", "identity", None),
        ("acme", "page", "gzip", 1),
        ("acme", "page", "gzip", 6),
        ("acme", "page", "br", 4),
        ("acme", "files", "gzip", None),
        ("acme", "files", "br", None),
        ("acme", "files", "gzip", None),
    ]
    for one in found:
        assert one.headers["Accept-Encoding"] == one.expected
        assert one.file.is_file()
        assert one.path == ("/" if one.site == "page" else f"/{one.file.name}")
