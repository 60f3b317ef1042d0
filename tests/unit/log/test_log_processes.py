"""The logs in processes of their own: with gevent and without, over a fork, on a blocked standard output.

Each script is run as `python -c`; what it must show is in what it writes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

PATIENCE = 30.0

PRELUDE = """
import json, logging, os, sys, threading, time
from types import SimpleNamespace as N

def section(access="stdout", errors="stderr", form="combined"):
    return N(level="info", format="text", output=errors, mask_headers=(), fields=(), error=N(output=None),
             access=N(format=form, output=access, headers=(), sample=1.0))

def entry(target="/", agent="curl/8"):
    return (
        time.time(), 1000, "127.0.0.1", "GET", target, "HTTP/1.1", 200, 13, None, agent, "host", "1", None
    )
"""

# Four ways to come to a process that logs. In each, the code that follows runs as in that process.
WAYS = {
    "without gevent": "from acme_wsgi import log",
    "patched, then imported": "from gevent import monkey; monkey.patch_all()\nfrom acme_wsgi import log",
    "imported, then patched": "from acme_wsgi import log\nfrom gevent import monkey; monkey.patch_all()",
    "a worker: used, forked, patched": """
from acme_wsgi import log
log.setup(section(errors=sys.argv[1] + "/arbiter.log"), process="arbiter")
logging.getLogger("acme.arbiter").info("forking")
assert "gevent" not in sys.modules
pid = os.fork()
if pid:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    log.close(10)
    sys.exit(status)
from gevent import monkey; monkey.patch_all()
""",
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def run(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    script = PRELUDE + code
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": PATIENCE} | options
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (done.stderr or b"").decode()
    return done


@ways
def test_everything_is_written_at_exit(way, tmp_path):
    code = """
log.setup(section(errors="stderr"), process="worker 1")
access = log.AccessLog(section(access="stdout"))
before = len(os.listdir("/proc/self/task"))
for i in range(1000):
    access.entries.append(entry("/%d" % i))
    if len(access.entries) >= 128:
        access.flush()
assert len(os.listdir("/proc/self/task")) == before + 1, "the writer is a thread of the operating system"
logging.getLogger("acme.worker").warning("last words")
access.close(10)
log.close(10)
os._exit(0)
"""
    done = run(way + code, str(tmp_path))
    assert re.findall(rb'"GET /(\d+) HTTP/1.1" 200', done.stdout) == [b"%d" % i for i in range(1000)]
    assert re.fullmatch(rb"\S+ warning acme\.worker worker 1\[\d+\]: last words\n", done.stderr)


@ways
def test_without_an_explicit_close_the_interpreters_end_writes_the_error_log(way, tmp_path):
    code = """
log.setup(section(errors="stderr"), process="worker 1")
for i in range(200):
    logging.getLogger("acme.worker").warning("line %d", i)
"""
    done = run(way + code, str(tmp_path))
    assert re.findall(rb": line (\d+)\n", done.stderr) == [b"%d" % i for i in range(200)]


@ways
def test_a_blocked_standard_output_blocks_nobody(way, tmp_path):
    """Nobody reads stdout: the loop goes on ticking, lines are dropped and told, and the process can end."""
    code = """
log.setup(section(errors=sys.argv[1] + "/error.log"), process="worker 1")
access = log.AccessLog(section(access="stdout"))
ticks, slowest = 0, 0.0
while True:
    began = time.monotonic()
    for _ in range(128):
        access.entries.append(entry("/" + "x" * 900))
    access.flush()
    time.sleep(0)  # under gevent: lets the loop turn
    slowest = max(slowest, time.monotonic() - began)
    ticks += 1
    if access._sink.dropped > 5000:
        break
access.flush()
began = time.monotonic()
access.close(0.2)
log.close(10)
closing = time.monotonic() - began
with open(sys.argv[1] + "/report", "w") as report:
    json.dump({"ticks": ticks, "slowest": slowest, "closing": closing}, report)
"""
    reader, writer = os.pipe()
    try:
        run(way + code, str(tmp_path), stdout=writer)
    finally:
        os.close(reader)
        os.close(writer)
    report = json.loads((tmp_path / "report").read_text())
    assert report["ticks"] > 50
    assert report["slowest"] < 2.0
    assert report["closing"] < 5.0
    assert re.search(r"access log: \d+ lines for stdout were lost", (tmp_path / "error.log").read_text())


@ways
def test_an_output_in_non_blocking_mode_gets_every_line(way, tmp_path):
    """Another process may have put the pipe we share into that mode; the writer then waits."""
    code = """
log.setup(section(errors=sys.argv[1] + "/error.log"), process="worker 1")
os.set_blocking(1, False)
access = log.AccessLog(section(access="stdout"))
for i in range(40):
    for j in range(100):
        access.entries.append(entry("/%d-%s" % (i * 100 + j, "x" * 900)))
    access.flush()
access.close(20)
log.close(10)
os._exit(access._sink.dropped + access._sink.failed)
"""
    done = run(way + code, str(tmp_path))
    assert re.findall(rb'"GET /(\d+)-x{900} HTTP/1.1" 200', done.stdout) == [b"%d" % i for i in range(4000)]


def test_greenlets_run_while_the_writer_waits():
    """Under gevent a full pipe stops one thread; timers and other greenlets don't notice."""
    code = """
from gevent import monkey; monkey.patch_all()
import gevent
from acme_wsgi import log
access = log.AccessLog(section(access="stdout"))
for _ in range(500):
    access.entries.append(entry("/" + "x" * 900))
access.flush()
ticks = 0
def tick():
    global ticks
    for _ in range(50):
        gevent.sleep(0.001)
        ticks += 1
with gevent.Timeout(20):
    gevent.joinall([gevent.spawn(tick) for _ in range(3)], raise_error=True)
assert ticks == 150
assert not access._sink.drain(0.01), "the pipe was meant to be full"
print("went on", file=sys.stderr)
os._exit(0)
"""
    reader, writer = os.pipe()
    try:
        assert run(code, stdout=writer).stderr == b"went on\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_logging_from_gevents_thread_pool():
    code = """
from gevent import monkey; monkey.patch_all()
import gevent
from acme_wsgi import log
log.setup(section(), process="worker 1")
logger = logging.getLogger("acme.io")
pool = gevent.get_hub().threadpool
def work(name):
    for i in range(100):
        logger.info("job %s %d", name, i)
with gevent.Timeout(20):
    jobs = [pool.spawn(work, n) for n in "abcd"]
    work("main")
    for job in jobs:
        job.get()
log.close(10)
os._exit(0)
"""
    lines = re.findall(rb": job (\w+) (\d+)\n", run(code).stderr)
    assert sorted(lines) == sorted(
        (n, b"%d" % i) for n in (b"a", b"b", b"c", b"d", b"main") for i in range(100)
    )


def test_the_children_of_a_fork_write_once_and_for_themselves(tmp_path):
    """What the parent had queued is written by the parent only; each child starts its own writer."""
    code = """
from acme_wsgi import log
log.setup(section(errors=sys.argv[1]), process="arbiter")
logger = logging.getLogger("acme.fork")
children = []
for i in range(8):
    for j in range(20):
        logger.info("parent %d", i * 20 + j)
    pid = os.fork()
    if pid == 0:
        log.setup(section(errors=sys.argv[1]), process="worker %d" % i)
        logger.info("child %d", i)
        log.close(10)
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
log.close(10)
"""
    path = tmp_path / "log"
    run(code, str(path))
    text = path.read_text()
    assert re.findall(r" arbiter\[\d+\]: parent (\d+)\n", text) == [str(n) for n in range(160)]
    assert sorted(re.findall(r" worker (\d)\[\d+\]: child \1\n", text)) == [str(n) for n in range(8)]
    assert text.count("\n") == 168


def test_a_line_cut_by_a_full_disk_is_not_glued_to_the_next(tmp_path):
    code = """
import resource
from acme_wsgi import log
access = log.AccessLog(section(access=sys.argv[1]))
def write(target):
    access.entries.append(entry(target))
    access.flush()
    assert access._sink.drain(10)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
write("/first")
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1]) + 30, hard))
write("/cut")
write("/refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
write("/again")
access.close(10)
assert access._sink.failed == 2, access._sink.failed
assert access._sink.error == "File too large", access._sink.error
"""
    path = tmp_path / "log"
    run(code, str(path))
    first, cut, again = path.read_text().splitlines()
    assert "GET /first " in first
    assert len(cut) == 30
    assert re.fullmatch(r'127\.0\.0\.1 - - \[[^]]+\] "GET /again HTTP/1\.1" 200 13 "-" "curl/8"', again)


def test_lines_of_several_processes_in_one_pipe_stay_whole():
    code = """
from acme_wsgi import log
access = log.AccessLog(section(access="stdout"))
for _ in range(4):
    if os.fork() == 0:
        me = str(os.getpid())
        for i in range(40):
            for j in range(100):
                access.entries.append(entry("/%s/%d-%s" % (me, j, me * (j % 7))))
            access.flush()
        access.close(20)
        os._exit(0)
for _ in range(4):
    os.wait()
"""
    lines = run(code).stdout.decode().splitlines()
    assert len(lines) == 4 * 40 * 100
    whole = re.compile(r'127\.0\.0\.1 - - \[[^]]+\] "GET /(\d+)/\d+-(?:\1)* HTTP/1\.1" 200 13 "-" "curl/8"')
    assert [line for line in lines if not whole.fullmatch(line)] == []


def test_the_arbiters_process_stays_free_of_gevent():
    code = """
from acme_wsgi import errors, log
log.setup(section(), process="arbiter")
logging.getLogger("acme.arbiter").info("x")
log.close(10)
assert not [name for name in sys.modules if name.partition(".")[0] in ("gevent", "greenlet")]
"""
    assert run(code).stderr.endswith(b": x\n")


def test_a_standard_output_in_the_log_goes_along_to_the_new_file(tmp_path):
    """A server in the background: what an application prints is in its log, also after a rotation."""
    code = """
from acme_wsgi import log
from acme_wsgi.log.sink import open_sink
path = sys.argv[1]
sink = open_sink(path)
def everywhere(word):
    sink.put(b"log %s\\n" % word, 1)
    assert sink.drain(10)
    for number in (1, 2):
        os.write(number, b"%d %s\\n" % (number, word))
everywhere(b"before")
log.reopen_all()
everywhere(b"same file")
os.rename(path, path + ".1")
log.reopen_all()
everywhere(b"after")
assert os.get_inheritable(1) and os.get_inheritable(2)
other = os.open(path + ".other", os.O_WRONLY | os.O_CREAT)
os.dup2(other, 2)
os.close(1)
os.rename(path, path + ".2")
log.reopen_all()
sink.put(b"end\\n", 1)
assert sink.drain(10)
os.write(2, b"not in the log\\n")
"""
    path = tmp_path / "log"
    with path.open("ab") as standard:
        run(code, str(path), stdout=standard, stderr=standard)
    assert path.with_name("log.1").read_text().splitlines() == [
        f"{who} {word}" for word in ("before", "same file") for who in ("log", "1", "2")
    ]
    assert path.with_name("log.2").read_text() == "log after\n1 after\n2 after\n"
    assert path.read_text() == "end\n"
    assert path.with_name("log.other").read_text() == "not in the log\n"
