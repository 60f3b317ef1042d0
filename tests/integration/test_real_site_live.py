"""A real site, taken by real clients: wget mirrors it whole, curl and wget resume, random ranges are right.

Knows the documented configuration and the programs' command lines. A user's own settings of curl and wget are
no part of the tests.
"""

from __future__ import annotations

import filecmp
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests import documentation
from tests.byteranges import apart, one_range, pieces
from tests.server import ROOT, Launcher, Server, wait_until

pytestmark = pytest.mark.slow

MB = 1 << 20
WAYS: dict[str, dict[str, Any]] = {
    "sendfile": {"zero_copy": True},
    "copying": {"zero_copy": False},
    "mapping": {"mmap": {"enabled": True, "threshold": "16KB"}},
    "direct": {"direct_io": True, "direct_io_threshold": "16KB"},
}
"""The ways in which a file's bytes can be sent: the settings of `static`."""

RANGES = ROOT / "tests" / "ranges.lua"

every_way = pytest.mark.parametrize("way", WAYS)

PIPELINE = {"minification": {"enabled": True}, "versioning": {"enabled": True}}


def site_of(root: Path, static: dict[str, Any] | None = None) -> dict[str, Any]:
    """A configuration: what lies below `root` is served below /static/."""
    routes = [{"path": "/static/*", "type": "static", "root": str(root)}]
    return {"routes": routes, "static": static or {}}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that must be there; its output is for the message of a failed test."""
    assert shutil.which(command[0]), f"there is no {command[0]}: scripts/test installs it"
    environ = {**os.environ, "HOME": str(cwd), "LC_ALL": "C"}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------- the whole site


def mirror(url: str, directory: Path, *options: str) -> Path:
    """wget --mirror, which must find nothing wrong; where the copy of /static lies."""
    directory.mkdir(exist_ok=True)
    done = run(
        "wget",
        "--no-config",
        "--mirror",
        "--no-host-directories",
        "--no-parent",
        "--tries=1",
        "--execute=robots=off",
        "--no-verbose",
        *options,
        url,
        cwd=directory,
    )
    errors = re.findall(r"^(http\S+):\n\S+ \S+ (ERROR .*)$", done.stderr, re.MULTILINE)
    assert done.returncode == 0, f"wget: exit status {done.returncode}: {errors[:20] or done.stderr[-2000:]}"
    return directory / "static"


def differing(names: Iterable[str], one: Path, other: Path) -> list[str]:
    return sorted(name for name in names if not filecmp.cmp(one / name, other / name, shallow=False))


def test_a_mirrored_site_is_the_site_byte_for_byte(acme: Launcher, tmp_path: Path) -> None:
    site = documentation.lay_out(tmp_path / "site")
    server = acme(site_of(site), workers=2)
    copy = mirror(f"{server.url}/static/", tmp_path / "mirror")
    names = documentation.files_of(copy)
    assert names == documentation.files_of(site) - documentation.NOT_LINKED
    assert len(names) > 3000
    assert differing(names, site, copy) == []


def test_a_site_that_is_mirrored_again_is_not_sent_again(acme: Launcher, tmp_path: Path) -> None:
    site = documentation.lay_out(tmp_path / "site")
    server = acme(site_of(site))
    start = f"{server.url}/static/manual/cmake.1.html"
    copy = mirror(start, tmp_path / "mirror")
    names = documentation.files_of(copy)
    assert len(names) > 20
    changed = site / "manual" / "cmake.1.html"
    changed.write_bytes(changed.read_bytes().replace(b"CMake", b"KMake"))
    mirror(start, tmp_path / "mirror", "--user-agent=again")
    assert differing(names, site, copy) == []
    server.stop()  # then its log is whole
    # What has not changed wget does not read again for its links, so it gets to the changed page's only.
    again = requests(server, "again")
    assert [target for target, status in again if status != 304] == ["/static/manual/cmake.1.html"]
    assert len(again) > 10


def requests(server: Server, agent: str) -> list[tuple[str, int]]:
    """The access log: target and status of each request of a client."""
    found = re.findall(rf'"(?:GET|HEAD) (\S+) HTTP/1\.1" (\d{{3}}) .*"{agent}"', server.stdout)
    return [(target, int(status)) for target, status in found]


def test_a_site_whose_assets_are_minified_and_versioned_is_mirrored_without_an_error(
    acme: Launcher, tmp_path: Path
) -> None:
    site = documentation.lay_out(tmp_path / "site")
    server = acme(site_of(site, PIPELINE), workers=2)
    copy = mirror(f"{server.url}/static/", tmp_path / "mirror")
    have, got = documentation.files_of(site), documentation.files_of(copy)
    pages = {name for name in have if name.endswith(".html")}
    assert {name for name in got if name.endswith(".html")} == pages
    sources = {name for name in have if name.startswith("_sources/")}
    assert sources <= got
    assert differing(sources, site, copy) == []
    # Each style sheet, script and picture came; pages that were prepared before it ask for its version.
    for kind in ("css", "js", "png"):
        plain = {name for name in have - documentation.NOT_LINKED if name.endswith("." + kind)}
        versions = {name: unversioned(name) for name in got if name.endswith("." + kind)}
        assert set(versions.values()) == plain
    assert {"_static/jquery.js", "_static/cmake.css", "_static/basic.css"} <= {
        unversioned(name) for name in got if name != unversioned(name)
    }
    small = sum((copy / page).stat().st_size for page in pages)
    assert small < sum((site / page).stat().st_size for page in pages)


def unversioned(name: str) -> str:
    """`a/b-1a2b3c4d.css` as `a/b.css`; what has no version as it is."""
    return re.sub(r"-[0-9a-f]{6,}(\.\w+)$", r"\1", name)


# ------------------------------------------------------------------- interrupted downloads


@every_way
def test_curl_goes_on_with_an_interrupted_download(acme: Launcher, tmp_path: Path, way: str) -> None:
    server, original = one_file(acme, tmp_path, way, 24 * MB)
    url, got = f"{server.url}/static/{original.name}", tmp_path / "got"
    begun = interrupted(url, got, 1 * MB)
    assert 1 * MB <= begun < original.stat().st_size
    assert got.read_bytes() == original.read_bytes()[:begun]
    told = ("--write-out", "%{http_code} %{size_download}")
    resume = ("curl", "--disable", "--silent", "-C", "-", "-o", str(got), *told, url)
    done = run(*resume, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"206 {original.stat().st_size - begun}")
    assert filecmp.cmp(got, original, shallow=False)
    # Once it is whole there is nothing more to get, and curl takes the 416 for that.
    done = run(*resume, cwd=tmp_path)
    assert (done.returncode, done.stdout[:3]) == (0, "416")
    assert filecmp.cmp(got, original, shallow=False)


def test_wget_goes_on_with_an_interrupted_download(acme: Launcher, tmp_path: Path) -> None:
    server, original = one_file(acme, tmp_path, "sendfile", 24 * MB)
    got = tmp_path / "got" / original.name
    got.parent.mkdir()
    begun = interrupted(f"{server.url}/static/{original.name}", got, 1 * MB)
    resume = ("wget", "--no-config", "--continue", "--server-response")
    done = run(*resume, f"{server.url}/static/{original.name}", cwd=got.parent)
    assert done.returncode == 0, done.stderr
    size = original.stat().st_size
    assert f"Content-Range: bytes {begun}-{size - 1}/{size}\n" in done.stderr
    assert filecmp.cmp(got, original, shallow=False)


@every_way
def test_a_download_goes_on_beyond_four_gigabytes(acme: Launcher, tmp_path: Path, way: str) -> None:
    root, got = tmp_path / "root", tmp_path / "got"
    root.mkdir()
    end = random.Random(4).randbytes(2 * MB + 5)
    with (root / "data.bin").open("wb") as original, got.open("wb") as begun:
        original.seek(1 << 32)  # nothing but holes before
        original.write(end)
        begun.truncate((1 << 32) + 1001)
    server = acme(site_of(root, WAYS[way]))
    resume = ("curl", "--disable", "--silent", "-C", "-", "-o", str(got), "--write-out", "%{http_code}")
    done = run(*resume, f"{server.url}/static/data.bin", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "206")
    with got.open("rb") as file:
        file.seek((1 << 32) + 1001)
        assert file.read() == end[1001:]


def one_file(acme: Launcher, tmp_path: Path, way: str, size: int) -> tuple[Server, Path]:
    """A server of one file with `size` random bytes, and the file."""
    root = tmp_path / "root"
    root.mkdir()
    original = root / "data.bin"
    original.write_bytes(random.Random(size).randbytes(size))
    return acme(site_of(root, WAYS[way])), original


def interrupted(url: str, got: Path, least: int) -> int:
    """Download at a moderate pace, and kill curl once `least` bytes have come; how many came in all."""
    command = ["curl", "--disable", "--silent", "--limit-rate", "8M", "-o", str(got), url]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as curl:
        wait_until(lambda: got.exists() and got.stat().st_size >= least, "the beginning of the download")
        curl.kill()
    return got.stat().st_size


# ------------------------------------------------------------------- random ranges

# Below and above what is kept in memory, one byte, and just off the sizes of pages and pieces.
SIZES = (1, 4095, 16 * 1024, 16 * 1024 + 1, 3 * MB + 7)


@every_way
def test_every_byte_of_random_ranges_is_the_files(acme: Launcher, tmp_path: Path, way: str) -> None:
    server, contents = some_files(acme, tmp_path, way)
    chance = random.Random(way)
    with server.connect() as wire:
        for _ in range(400):
            name, content = chance.choice(contents)
            asked, first, last = one_range(chance, len(content))
            (piece,) = pieces(wire.request(f"/static/{name}", headers=[f"Range: bytes={asked}"]))
            told = f"{asked} of {len(content)} bytes"
            assert (piece.first, piece.last, piece.size) == (first, last, len(content)), told
            assert piece.data == content[first : last + 1], told


@every_way
def test_every_byte_of_several_ranges_at_once_is_the_files(acme: Launcher, tmp_path: Path, way: str) -> None:
    server, contents = some_files(acme, tmp_path, way)
    chance = random.Random(way)
    with server.connect() as wire:
        for _ in range(200):
            name, content = chance.choice(contents[1:])
            wanted = apart(chance, len(content), chance.randint(2, 8))
            asked = ",".join(f"{first}-{last}" for first, last in wanted)
            got = pieces(wire.request(f"/static/{name}", headers=[f"Range: bytes={asked}"]))
            for piece in got:
                assert piece.size == len(content)
                assert piece.data == content[piece.first : piece.last + 1], asked
            # Ranges with a small gap may come as one part (RFC 9110, 15.3.7.2); no part is something else.
            assert {piece.first for piece in got} <= {first for first, _ in wanted}, asked
            assert {piece.last for piece in got} <= {last for _, last in wanted}, asked
            assert all(any(p.first <= first and last <= p.last for p in got) for first, last in wanted), asked


def some_files(acme: Launcher, tmp_path: Path, way: str) -> tuple[Server, list[tuple[str, bytes]]]:
    """A server of files of random bytes of all SIZES, and their names and contents, in ascending order."""
    root = tmp_path / "root"
    root.mkdir()
    contents = [(f"{size}.bin", random.Random(size).randbytes(size)) for size in SIZES]
    for name, content in contents:
        (root / name).write_bytes(content)
    return acme(site_of(root, WAYS[way])), contents


@every_way
def test_ranges_are_right_under_load(acme: Launcher, tmp_path: Path, way: str) -> None:
    server, original = one_file(acme, tmp_path, way, 8 * MB + 93)
    checked, wrong, errors, said = load_of_ranges(f"{server.url}/static/{original.name}", original, seconds=2)
    assert (wrong, errors) == (0, 0), said
    assert checked > 100


def test_a_wrong_byte_is_noticed_under_load(acme: Launcher, tmp_path: Path) -> None:
    """What the test above is worth: compared with a file that differs in one byte, some answers are wrong."""
    server, original = one_file(acme, tmp_path, "sendfile", 100_000)
    other = tmp_path / "other"
    content = bytearray(original.read_bytes())
    content[50_000] ^= 1
    other.write_bytes(content)
    checked, wrong, errors, _ = load_of_ranges(f"{server.url}/static/{original.name}", other, seconds=1)
    assert 0 < wrong < checked
    assert errors == 0


def load_of_ranges(url: str, original: Path, *, seconds: int) -> tuple[int, int, int, str]:
    """wrk asks for random ranges: how many answers it compared, how many were wrong, failures, its output."""
    command = ("wrk", "-t2", "-c32", f"-d{seconds}s", "--timeout", "10s", "-s", str(RANGES))
    done = run(*command, url, "--", str(original), cwd=original.parent)
    told = re.search(r"^checked (\d+) wrong (\d+) errors (\d+)$", done.stdout, re.MULTILINE)
    assert told is not None, done.stdout + done.stderr
    return int(told[1]), int(told[2]), int(told[3]), done.stdout
