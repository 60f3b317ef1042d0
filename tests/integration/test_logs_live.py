"""Logs of a running server: their formats, rotation, what clients inject, how an error's lines match.

Knows configuration, wire and files; the formatters themselves are tested with the modules that have them.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.server import Launcher, Server, wait_until

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.basic:app"
STAMP = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
ASKED = [
    "Referer: http://from.example/",
    "User-Agent: agent/1.0",
    "X-Tenant: t1",
    "Authorization: Basic c2VjcmV0",
]


def logging(**keys: Any) -> dict[str, Any]:
    return {"logging": keys}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def wait_lines(path: Path, count: int) -> list[str]:
    found: list[str] = wait_until(
        lambda: len(lines(path)) >= count and lines(path), f"{count} lines in {path.name}"
    )
    return found


@pytest.mark.parametrize(
    ("format", "pattern"),
    [
        ("common", rf'127\.0\.0\.1 - - {STAMP} "GET /hello\?a=b HTTP/1\.1" 200 6'),
        (
            "combined",
            rf'127\.0\.0\.1 - - {STAMP} "GET /hello\?a=b HTTP/1\.1" 200 6 '
            r'"http://from\.example/" "agent/1\.0"',
        ),
    ],
)
def test_access_lines(acme: Launcher, tmp_path: Path, format: str, pattern: str) -> None:
    log = tmp_path / "access"
    server = acme(logging(access={"format": format, "output": str(log)}), app=APP)
    server.get("/hello?a=b", headers=ASKED)
    assert re.fullmatch(pattern, wait_lines(log, 1)[0])


def test_access_lines_as_json(acme: Launcher, tmp_path: Path) -> None:
    log = tmp_path / "access"
    access = {"format": "json", "output": str(log), "headers": ["X-Tenant", "Authorization", "X-Absent"]}
    server = acme(logging(access=access), app=APP)
    reply = server.get("/hello?a=b", headers=ASKED)
    line = json.loads(wait_lines(log, 1)[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert 0 < line.pop("duration_ms") < 10_000
    assert line == {
        "remote_addr": "127.0.0.1", "method": "GET", "target": "/hello?a=b", "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 6, "referer": "http://from.example/", "user_agent": "agent/1.0", "host": "test",
        "request_id": reply.header("X-Request-ID"), "headers": {"X-Tenant": "t1", "Authorization": "***"},
    }  # fmt: skip
    assert "c2VjcmV0" not in log.read_text()


def test_masks_are_the_configured_ones(acme: Launcher, tmp_path: Path) -> None:
    log = tmp_path / "access"
    access = {"format": "json", "output": str(log), "headers": ["X-Tenant", "Authorization"]}
    server = acme(logging(access=access, mask_headers=["x-tenant", "User-Agent"]), app=APP)
    server.get("/", headers=ASKED)
    line = json.loads(wait_lines(log, 1)[0])
    assert line["headers"] == {"X-Tenant": "***", "Authorization": "Basic c2VjcmV0"}
    assert line["user_agent"] == "***"


def test_every_request_has_one_line(acme: Launcher, tmp_path: Path) -> None:
    """Kept-alive, pipelined, refused, cut: each leaves exactly one, with its own status."""
    log = tmp_path / "access"
    server = acme(logging(access={"format": "json", "output": str(log)}), app=APP)
    server.errors_expected = True
    with server.connect() as wire:
        wire.send(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        for _ in range(50):
            wire.reply()
    server.get("/stream/3")
    server.get("/raise")
    server.raw(b"GET / HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n")
    server.get("/hello", method="HEAD")
    written = [json.loads(line) for line in wait_lines(log, 54)]
    assert sorted(line["status"] for line in written) == [200] * 52 + [400, 500]
    assert [line["bytes"] for line in written if line["method"] == "HEAD"] == [0]
    server.stop()
    assert len(lines(log)) == 54


def test_the_access_log_can_be_off(acme: Launcher) -> None:
    server = acme(logging(access={"enabled": False}), app=APP)
    server.get("/hello")
    assert server.stop().stdout == ""


# ----------------------------------------------------------------------------------------- error log


def text(line: str) -> dict[str, str]:
    match = re.match(r"(?P<timestamp>\S+) (?P<level>\w+) (?P<logger>\S+) (?P<rest>.*)", line)
    assert match is not None, line
    return {**match.groupdict(), "message": match["rest"]}


def logfmt(line: str) -> dict[str, str]:
    found = re.findall(r'([\w.]+)=("(?:[^"\\]|\\.)*"|[^ "]*)(?: |$)', line)
    assert "".join(f"{key}={value} " for key, value in found).strip() == line.strip(), f"not logfmt: {line}"
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found}


@pytest.mark.parametrize(("format", "parse"), [("text", text), ("json", json.loads), ("logfmt", logfmt)])
def test_a_500_and_its_traceback_share_an_id(
    acme: Launcher, tmp_path: Path, format: str, parse: Callable[[str], dict[str, Any]]
) -> None:
    """The id that the client was told leads to the access line and to the line with the traceback."""
    log, access = tmp_path / "error", tmp_path / "access"
    config = logging(format=format, output=str(log), access={"format": "json", "output": str(access)})
    server = acme(config, app=APP)
    server.errors_expected = True
    reply = server.get("/raise")
    told = json.loads(reply.text)["error"]["request_id"]
    assert told == reply.header("X-Request-ID")
    assert json.loads(wait_lines(access, 1)[0])["request_id"] == told
    wait_until(lambda: told in log.read_text(), "the id in the error log")
    line = next(line for line in lines(log) if told in line)
    seen = parse(line)
    assert (seen["level"], seen["logger"]) == ("error", "acme.connection")
    assert f"GET /raise failed (request {told})" in seen["message"]
    whole = log.read_text() if format == "text" else str(seen["traceback"])
    assert "RuntimeError: asked for" in whole
    assert "in _raise" in whole
    assert "asked for" not in reply.text
    if format != "text":
        for each in lines(log):
            parse(each)


def test_the_level_is_obeyed(acme: Launcher) -> None:
    server = acme(logging(level="error"), app=APP)
    server.get("/hello")
    assert server.stop().stderr == ""


# ------------------------------------------------------------------------------------------- rotation


def test_logs_are_reopened(acme: Launcher, tmp_path: Path) -> None:
    """Renamed as logrotate does it, then SIGUSR1: no line is lost, none is written twice."""
    access, error = tmp_path / "access", tmp_path / "error"
    config = logging(output=str(error), access={"format": "common", "output": str(access)})
    server = acme(config, app=APP, workers=2)
    asked = 0

    def ask(count: int) -> None:
        nonlocal asked
        for _ in range(count):
            asked += 1
            server.get(f"/hello?{asked}")

    ask(20)
    for turn in range(3):
        access.rename(tmp_path / f"access.{turn}")
        error.rename(tmp_path / f"error.{turn}")
        ask(10)
        server.tell(signal.SIGUSR1)
        wait_until(lambda: "logs reopened" in "\n".join(lines(error)), "the new error log")
        wait_until(access.exists, "the new access log")
        ask(10)
    server.stop()
    written = "\n".join(path.read_text() for path in tmp_path.glob("access*"))
    numbers = sorted(int(number) for number in re.findall(r"/hello\?(\d+) ", written))
    assert numbers == list(range(1, asked + 1))
    assert access.read_text(), "the new file is in use"


def rotated(path: Path) -> list[Path]:
    """The files of a log, the youngest first."""
    numbers = {int(each.name.split(".")[1]): each for each in path.parent.glob(f"{path.name}.[0-9]*")}
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), "no gap, and none twice"
    return [path, *(numbers[number] for number in sorted(numbers))]


def read(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


def ask_numbers(server: Server, numbers: Iterable[int], status: int = 200) -> None:
    with server.connect() as wire:
        for number in numbers:
            assert wire.request(f"/hello?{number}").status == status


@pytest.mark.parametrize("compress", [False, True])
def test_the_server_rotates_its_logs(acme: Launcher, tmp_path: Path, compress: bool) -> None:
    """Under load from several clients, two workers: every request exactly once over all files."""
    directory = tmp_path / "logs"
    directory.mkdir()
    access, error = directory / "access", directory / "error"
    config = logging(
        output=str(error),
        access={"format": "combined", "output": str(access)},
        rotation={"size": "64KB", "count": 1000, "compress": compress},
    )
    server = acme(config, app=APP, workers=2)
    asked, lock = 0, threading.Lock()

    def client() -> None:
        nonlocal asked
        while len(list(directory.glob("access.*"))) < 6:
            with lock:
                numbers = range(asked, asked + 100)
                asked += 100
            ask_numbers(server, numbers)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(client) for _ in range(4)]:
            done.result(60)
    if compress:
        wait_until(
            lambda: [each.suffix for each in rotated(access)[1:]] == [".gz"] * (len(rotated(access)) - 1),
            "all rotated files compressed",
            30,
        )
    server.stop()
    assert not list(directory.glob("*.tmp"))
    found = re.findall(r"/hello\?(\d+) ", "".join(map(read, rotated(access))))
    assert sorted(map(int, found)) == list(range(asked))
    for each in rotated(access)[1:]:
        assert len(read(each)) >= 64 << 10, "due when it was rotated"
        assert each.stat().st_mode & 0o777 == 0o640
    assert len(re.findall(rf"rotated {access} \(", "".join(map(read, rotated(error))))) == (
        len(rotated(access)) - 1
    )


def test_a_worker_that_boots_during_a_rotation_finds_the_new_file(acme: Launcher, tmp_path: Path) -> None:
    """Its error log is open while the application loads; SIGUSR1 then isn't lost, and ends nobody."""
    error = tmp_path / "error"
    source = (
        "import os, pathlib, time\n"
        "pathlib.Path('loading').write_text(str(os.getpid()))\n"
        "while os.path.exists('wait'):\n"
        "    time.sleep(0.01)\n"
        "from tests.apps.basic import app\n"
    )
    server = acme(logging(output=str(error)), app="slow:app", files={"slow.py": source})
    (server.cwd / "wait").touch()
    (old,) = server.worker_pids()
    os.kill(old, signal.SIGKILL)

    loading = server.cwd / "loading"
    new = int(
        wait_until(lambda: loading.read_text() not in ("", str(old)) and loading.read_text(), "a new worker")
    )
    error.rename(tmp_path / "error.1")
    server.tell(signal.SIGUSR1)
    wait_until(lambda: "logs reopened" in "\n".join(lines(error)), "the new error log")
    (server.cwd / "wait").unlink()
    assert server.get("/raise").status == 500
    wait_until(lambda: "RuntimeError: asked for" in error.read_text(), "its error in the new file")
    assert server.worker_pids() == [new]


def test_logs_that_cannot_be_rotated_do_not_stop_the_server(acme: Launcher, tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    access = directory / "access"
    config = logging(access={"format": "common", "output": str(access)}, rotation={"size": "4KB", "count": 3})
    server = acme(config, app=APP)
    ask_numbers(server, range(3))
    wait_lines(access, 3)
    moved = directory.rename(tmp_path / "moved")
    server.wait_for_log(rf"can't rotate {access}: No such file or directory")
    ask_numbers(server, range(3, 100))
    wait_lines(moved / "access", 100)
    directory.mkdir()
    wait_until(access.exists, "the file in the directory that is back", 30)

    def arrives() -> bool:
        ask_numbers(server, [100])
        return bool(lines(access))

    wait_until(arrives, "a line in it")
    assert server.stop().stderr.count("can't rotate") == 1


# ------------------------------------------------------------------- errors apart, fields, a sample


def test_errors_are_apart_and_all_requests_that_failed_are_logged(acme: Launcher, tmp_path: Path) -> None:
    main, errors, access = (tmp_path / name for name in ("main", "errors", "access"))
    config = logging(
        format="json",
        output=str(main),
        error={"output": str(errors)},
        access={"format": "json", "output": str(access), "sample": "0%"},
        fields={"service": "shop", "instance": "${INSTANCE}"},
    )
    server = acme(config, app=APP, env={"INSTANCE": "blue"})
    server.get("/hello")
    server.get("/raise")
    server.stop()
    (failed,) = (json.loads(line) for line in lines(errors))
    assert (failed["level"], failed["logger"]) == ("error", "acme.connection")
    assert {json.loads(line)["level"] for line in lines(main)} == {"info"}
    (request,) = (json.loads(line) for line in lines(access))
    assert (request["target"], request["status"], request["sample"]) == ("/raise", 500, 1)
    for line in [*lines(main), *lines(errors), *lines(access)]:
        assert json.loads(line).items() >= {"service": "shop", "instance": "blue"}.items()


def test_a_field_that_lines_have_already_is_refused(acme: Launcher) -> None:
    ended = acme.fails(logging(fields={"status": "x", "a b": "y"}), app=APP)
    assert ended.status == 78
    assert (
        "logging.fields.status: found 'status', allowed: a name that lines don't have already" in ended.stderr
    )
    assert "logging.fields.a b: found 'a b', allowed: a name of letters" in ended.stderr


def test_signals_alone_do_no_harm(acme: Launcher) -> None:
    server = acme(app=APP)
    server.tell(signal.SIGUSR1)
    server.wait_for_log("logs reopened")
    assert server.get("/hello").status == 200


# ------------------------------------------------------------------------------------------ injection

HOSTILE = [
    b'GET /a%0d%0aevil HTTP/1.1\r\nHost: a\r\nUser-Agent: x"y\\z\x80\xff\r\n'
    b"Referer: \tx\ty\xe2\x80\xa8z\r\n\r\n",
    b'GET /%1b[31mred?"\'\\x HTTP/1.1\r\nHost: a\r\nUser-Agent: " 200 0 "\r\n\r\n',
    b"G\x1bT /\x07\x1b]0;x\x07 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\r\n127.0.0.1 - - forged HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: a\x1b[2Jb\r\n\r\n",
    b"\x00\x1b\r\n\x0b\x0c\x85\r\n\r\n",
    b"GET /" + b"a\x80" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /raise?%0aerror%1b HTTP/1.1\r\nHost: a\r\nX-Request-ID: a\x1bb\r\n\r\n",
]


@pytest.mark.parametrize("format", ["common", "combined", "json"])
def test_nothing_a_client_sends_is_raw_in_a_line(acme: Launcher, tmp_path: Path, format: str) -> None:
    access, error = tmp_path / "access", tmp_path / "error"
    config = logging(level="debug", output=str(error), access={"format": format, "output": str(access)})
    config["server"] = {"trusted_proxies": ["127.0.0.1"]}
    server = acme(config, app=APP)
    server.errors_expected = True
    for hostile in HOSTILE:
        with server.connect() as wire:
            wire.send(hostile).end().rest()
    wait_lines(access, len(HOSTILE))
    server.stop()
    assert len(lines(access)) == len(HOSTILE), "one line each, whatever stands in it"
    for path in (access, error):
        assert set(path.read_bytes()) <= set(range(0x20, 0x7F)) | {0x0A}, path.name
    for line in lines(access):
        check_shape(line, format)


def check_shape(line: str, format: str) -> None:
    """A quote or a backslash of the client's ends no field."""
    if format == "json":
        assert set(json.loads(line)) >= {"target", "status", "user_agent"}
        return
    field = r'"(?:[^"\\]|\\.)*"'
    more = f" {field} {field}" if format == "combined" else ""
    assert re.fullmatch(rf"127\.0\.0\.1 - - {STAMP} {field} \d{{3}} (?:\d+|-){more}", line), line


def test_what_an_application_raises_is_escaped(acme: Launcher, tmp_path: Path) -> None:
    """Clients' bytes get into exceptions' texts as well."""
    source = (
        "def app(environ, start_response):\n"
        "    raise RuntimeError('got ' + environ['PATH_INFO'] + environ['HTTP_USER_AGENT'])\n"
    )
    error = tmp_path / "error"
    server: Server = acme(logging(output=str(error)), app="bad:app", files={"bad.py": source})
    server.errors_expected = True
    with server.connect() as wire:
        wire.send(
            b"GET /x%0a2026-01-01%20error%20forged%1b%5b HTTP/1.1\r\nHost: a\r\n"
            b"User-Agent: \xc2\x9b1m\r\n\r\n"
        )
        assert wire.reply().status == 500
    wait_until(lambda: "RuntimeError" in error.read_text(), "the traceback")
    written = error.read_text()
    assert not re.search(r"^2026-01-01 error forged", written, re.MULTILINE)
    assert not set(written) & {chr(code) for code in (*range(0x0A), *range(0x0B, 0x20), *range(0x7F, 0xA0))}
