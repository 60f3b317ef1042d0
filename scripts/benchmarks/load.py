"""The load generators, wrk and h2load: run, checked, read.

A run with a socket error or an answer other than 2xx/3xx raises, unless the caller wants to count them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import Failed
from .machine import pin

# wrk reports through its own script hook: exact numbers instead of a rounded text. Nothing of it runs per
# request.
_WRK_REPORT = """\
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format(
        '\\n#report {"requests": %d, "duration_us": %d, "bytes": %d, "connect": %d, "read": %d, ' ..
        '"write": %d, "status": %d, "timeout": %d, "p50": %d, "p90": %d, "p99": %d, "max": %d}\\n',
        summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout,
        latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
"""

# What Firefox sends with a first click on a link: twelve fields with the Host that wrk adds.
BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Connection": "keep-alive",
    "Cookie": "sessionid=7hj2k1l0q9w8e7r6t5y4u3i2o1p0asdf; csrftoken=ZxCvBnM1234567890qWeRtYuIoP; theme=dark",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-User": "?1",
}
HEADERS: dict[str, dict[str, str]] = {"lean": {}, "browser": BROWSER_HEADERS}


class LoadFailed(Failed):
    """The generator failed, or the server didn't answer every request well."""


@dataclass(frozen=True)
class Load:
    """What one run did. Times in microseconds; `errors` by kind, zeros left out; `received`: all bytes
    that were read, heads and answers that were still under way at the end included."""

    requests: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    errors: dict[str, int] = field(default_factory=dict)
    received: int = 0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def _run(command: list[str], cores: frozenset[int] | None, limit: float) -> str:
    """Run a generator on its cores; returns its output. Raises LoadFailed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            preexec_fn=lambda: pin(cores),
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"{command[0]} didn't end within {limit:.0f} s") from None
    if done.returncode != 0:
        raise LoadFailed(f"{command[0]} failed ({done.returncode}): {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def wrk(
    url: str,
    cores: frozenset[int] | None,
    *,
    seconds: float,
    connections: int = 64,
    headers: dict[str, str] | None = None,
    timeout: float = 10.0,
    count_errors: bool = False,
) -> Load:
    """A closed loop of `connections` keep-alive clients on one thread. Raises LoadFailed."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK_REPORT)
        script.flush()
        command = _wrk_command(script.name, max(1, round(seconds)), connections, headers, timeout)
        output = _run([*command, url], cores, seconds + timeout + 60)
    return read_wrk(output, count_errors=count_errors)


def _wrk_command(
    script: str, seconds: int, connections: int, headers: dict[str, str] | None, timeout: float
) -> list[str]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["--timeout", f"{timeout:.0f}s", "-s", script]
    for name, value in (headers or {}).items():
        command += ["-H", f"{name}: {value}"]
    return command


class GoingWrk:
    """A wrk that goes on until it is told to end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def finish(self) -> Load:
        """End it; its errors are counted. Raises LoadFailed when it ended by itself or says nothing."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            output, errors = self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            raise LoadFailed("wrk didn't end when it was told to") from None
        if self._process.returncode != 0:
            raise LoadFailed(f"wrk failed ({self._process.returncode}): {(errors or output)[-500:]}")
        return read_wrk(output, count_errors=True)


@contextmanager
def wrk_going(
    url: str,
    cores: frozenset[int] | None,
    *,
    connections: int,
    headers: dict[str, str] | None = None,
    timeout: float = 10.0,
) -> Iterator[GoingWrk]:
    """A closed loop meanwhile, until `finish` or the end. With `Connection: close` each is a new one."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK_REPORT)
        script.flush()
        process = subprocess.Popen(
            [*_wrk_command(script.name, 86400, connections, headers, timeout), url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: pin(cores),
        )
        try:
            yield GoingWrk(process)
        finally:
            process.kill()
            process.communicate()


def read_wrk(output: str, *, count_errors: bool = False) -> Load:
    """The Load in what wrk wrote. Raises LoadFailed when there is none, or errors that aren't wanted."""
    lines = [line for line in output.splitlines() if line.startswith("#report ")]
    if not lines:
        raise LoadFailed(f"wrk wrote no report: {output[-500:]}")
    told = json.loads(lines[-1].removeprefix("#report "))
    kinds = ("connect", "read", "write", "status", "timeout")
    errors = {kind: told[kind] for kind in kinds if told[kind]}
    if told["requests"] == 0 or (errors and not count_errors):
        raise LoadFailed(f"wrk: {told['requests']} requests, errors: {errors or 'none'}")
    p50, p90, p99, most = (float(told[name]) for name in ("p50", "p90", "p99", "max"))
    return Load(told["requests"], told["duration_us"] / 1e6, p50, p90, p99, most, errors, told["bytes"])


def h2load_paced(
    url: str, cores: frozenset[int] | None, *, rate: float, connections: int, seconds: float, base: Path
) -> Load:
    """HTTP/1.1 at a fixed rate over `connections` clients, each at its own pace and phase. Raises LoadFailed.

    Connections open over two seconds, so that the clients' phases spread evenly over a period; requests that
    started before all were open, and half a second more, aren't counted.
    """
    period_ms, opening = 10, 2.0
    per_client = rate / connections
    each = max(1, round(per_client * (seconds + opening)))
    with tempfile.TemporaryDirectory(dir=base) as directory:
        log = Path(directory) / "requests.tsv"
        command = [
            "h2load",
            "--h1",
            "-t1",
            f"-c{connections}",
            f"-n{each * connections}",
            f"--rps={per_client:.6f}",
            f"-r{max(1, round(connections * period_ms / 1000 / opening))}",
            f"--rate-period={period_ms}ms",
            f"--log-file={log}",
            url,
        ]
        _run(command, cores, seconds + opening + 120)
        return read_h2load_log(log, skip=opening + 0.5, expected=each * connections, tail=opening)


def read_h2load_log(path: Path, *, skip: float, expected: int, tail: float = 0.0) -> Load:
    """The Load in h2load's --log-file, its first `skip` and its last `tail` seconds left out of the times.

    Raises LoadFailed when requests are missing from it or one failed anywhere.
    """
    rows: list[tuple[int, int]] = []
    failed: dict[str, int] = {}
    with open(path, encoding="ascii") as lines:
        for line in lines:
            start, status, micros = line.split("\t")[:3]
            if not 200 <= int(status) < 400:
                failed[status] = failed.get(status, 0) + 1
            rows.append((int(start), int(micros)))
    if failed or len(rows) != expected:
        raise LoadFailed(f"h2load: {len(rows)} of {expected} requests, failed: {failed or 'none'}")
    first = min(start for start, _ in rows) + skip * 1e6
    last = max(start for start, _ in rows) - tail * 1e6
    times = sorted(micros for start, micros in rows if first <= start <= last)
    if not times:
        raise LoadFailed(f"h2load: the run is shorter than the {skip + tail} s that aren't counted")
    p50, p90, p99 = (float(times[min(len(times) - 1, int(len(times) * share))]) for share in (0.5, 0.9, 0.99))
    return Load(len(times), (last - first) / 1e6, p50, p90, p99, float(times[-1]))
