"""The process tree with real servers: start, replacement, stop, and what it says about each."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.server import Launcher, Server, wait_until
from tests.wire import DEADLINE

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.basic:app"


def state_of(pid: int) -> str:
    """The kernel's letter for a process's state; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def answering_worker(server: Server) -> int:
    return int(server.get("/pid").text)


# -- start


def test_a_callable_without_any_configuration(acme: Launcher) -> None:
    server = acme(app=APP)
    assert server.get("/").text == "hello\n"
    assert server.get("/anything/else/is/not/routed/elsewhere", method="HEAD").status in (200, 500)
    server.errors_expected = True


def test_every_worker_is_named_and_gets_requests(acme: Launcher) -> None:
    server = acme(app=APP, workers=3)
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in server.worker_pids()}
    assert names == {"acme: worker 1", "acme: worker 2", "acme: worker 3"}
    assert Path(f"/proc/{server.pid}/comm").read_text().strip() == "acme: arbiter"
    with server.connect() as one:
        assert int(one.request("/pid").text) in server.worker_pids()


def test_as_many_workers_as_processors_by_default(acme: Launcher) -> None:
    server = acme(app=APP, workers=None, wrap=("taskset", "-c", str(min(os.sched_getaffinity(0)))))
    assert len(server.worker_pids()) == 1


def test_modules_come_from_the_current_directory(acme: Launcher) -> None:
    source = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'shop']\n"
    assert acme(app="shop:app", files={"shop.py": source}).get("/").text == "shop"


def test_gevent_patched_before_anything_else_and_not_in_the_arbiter(acme: Launcher) -> None:
    source = (
        "import socket, threading, ssl, logging\nfrom gevent import monkey, socket as green\n"
        "assert monkey.is_module_patched('threading') and socket.socket is green.socket\n"
        "from tests.apps.basic import app\n"
    )
    server = acme(app="patched:app", files={"patched.py": source})
    assert "gevent" not in Path(f"/proc/{server.pid}/maps").read_text()
    assert "gevent" in Path(f"/proc/{server.worker_pids()[0]}/maps").read_text()
    assert "Warning" not in server.stderr


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def app(:\n", "SyntaxError"),
        ("raise RuntimeError('database is away')\n", "RuntimeError: database is away"),
        ("import sys\nsys.exit('no licence')\n", "SystemExit: no licence"),
        ("app = 1\n", "shop:app"),
        ("", "has no attribute 'app'"),
    ],
)
def test_an_application_that_cannot_be_loaded_ends_the_start(acme: Launcher, source: str, told: str) -> None:
    ended = acme.fails(app="shop:app", workers=2, files={"shop.py": source})
    assert ended.status == 3
    assert "shop:app" in ended.stderr and told in ended.stderr
    assert ended.stderr.count("cannot start") == 1, "said once, not once a worker"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os\nos._exit(7)\n", "exited with status 7 while starting"),
        ("import ctypes\nctypes.string_at(0)\n", "was ended by SIGSEGV while starting"),
    ],
)
def test_a_worker_that_dies_while_starting_is_told_too(acme: Launcher, source: str, told: str) -> None:
    ended = acme.fails(app="shop:app", files={"shop.py": source})
    assert ended.status == 3 and told in ended.stderr
    if "SIGSEGV" in told:
        assert "shop.py" in ended.stderr, "the stack says where it crashed"


def test_a_wrong_configuration(acme: Launcher) -> None:
    ended = acme.fails({"server": {"wrkers": 2, "timeout": "soon"}}, app=APP)
    assert ended.status == 78
    assert "server.wrkers" in ended.stderr and "server.timeout" in ended.stderr
    assert "50-test.yaml:" in ended.stderr and "Traceback" not in ended.stderr


# -- replacement


def test_a_killed_worker_is_replaced_and_the_listener_never_refuses(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    server.errors_expected = True
    for _ in range(4):
        victim = answering_worker(server)
        wait_until(lambda pid=victim: _in_flight(server, pid) == 0, "the victim has seen its answer off")
        os.kill(victim, signal.SIGKILL)
        for _ in range(5):
            assert answering_worker(server) != victim
    server.wait_for_log(r"worker \d \(pid \d+\) was ended by SIGKILL after [\d.]+ s, with 0 requests")
    wait_until(lambda: len(server.worker_pids()) == 2, "two workers again")
    assert all(state_of(pid) not in ("Z", "") for pid in server.worker_pids())


def test_connections_waiting_in_the_queue_survive_a_killed_worker(acme: Launcher) -> None:
    server = acme(app=APP)
    server.errors_expected = True
    [victim] = server.worker_pids()
    os.kill(victim, signal.SIGSTOP)
    with server.connect() as waiting:
        waiting.send(b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n")
        os.kill(victim, signal.SIGKILL)
        assert int(waiting.reply().text) != victim


def test_only_requests_in_the_killed_workers_hands_fail(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    server.errors_expected = True
    with server.connect() as one:
        victim = int(one.request("/pid").text)
        one.send(b"GET /sleep/30 HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: _in_flight(server, victim) == 1, "the request is in the victim's hands")
        with server.connect() as other:
            survivor = int(wait_until(lambda: _other_pid(server, victim), "an answer of the other worker"))
            while int(other.request("/pid").text) != survivor:
                other.close()
                other.sock = server.connect().sock
            # A client may have its answer before the worker, if it is short of time, has counted it as given.
            wait_until(lambda: _in_flight(server, victim) == 1, "nothing but that is in the victim's hands")
            os.kill(victim, signal.SIGKILL)
            assert one.rest() == b""
            assert int(other.request("/pid").text) == survivor
    server.wait_for_log("with 1 requests in its hands")


def _in_flight(server: Server, pid: int) -> int:
    return sum(worker["in_flight"] for worker in server.status()["workers"] if worker["pid"] == pid)


def _other_pid(server: Server, pid: int) -> int:
    found = answering_worker(server)
    return found if found != pid else 0


def test_a_crash_is_logged_with_the_stack(acme: Launcher) -> None:
    source = (
        "import ctypes\ndef app(environ, start_response):\n    if 'crash' in environ['PATH_INFO']:\n"
        "        ctypes.string_at(0)\n    start_response('200 OK', [])\n    return [b'fine']\n"
    )
    server = acme(app="shop:app", files={"shop.py": source})
    server.errors_expected = True
    assert server.raw(b"GET /crash HTTP/1.1\r\nHost: a\r\n\r\n") == b""
    server.wait_for_log(r"ended by SIGSEGV[^\n]*\n(    \|[^\n]*\n)*    \|[^\n]*shop\.py\", line 4 in app")
    assert server.get("/").text == "fine"


def test_an_application_that_breaks_while_running_is_tried_again_with_growing_pauses(acme: Launcher) -> None:
    source = "import pathlib\nassert not pathlib.Path('broken').exists()\nfrom tests.apps.basic import app\n"
    server = acme(app="shop:app", files={"shop.py": source})
    server.errors_expected = True
    (server.cwd / "broken").touch()
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    for pause in ("0.2", "0.4"):
        server.wait_for_log(rf"AssertionError\); a new one starts in {pause} s")
    (server.cwd / "broken").unlink()
    assert server.get("/").text == "hello\n", "the client waited in the queue and is served"


def test_a_computing_worker_is_reported_with_its_stack_and_replaced(acme: Launcher) -> None:
    server = acme({"server": {"timeout": "1s"}}, app=APP)
    server.errors_expected = True
    [victim] = server.worker_pids()
    started = time.monotonic()
    assert server.raw(b"GET /spin/30 HTTP/1.1\r\nHost: a\r\n\r\n") == b""
    assert time.monotonic() - started < 6
    where = r"\n(    \|.*\n)*.*basic\.py\", line \d+ in _spin"
    server.wait_for_log(
        r"warning .*has stood still for [\d.]+ s in GET /spin/30 \(route /\*\), at .*" + where
    )
    server.wait_for_log(r"error .*has stood still for [\d.]+ s in GET .*; it is replaced" + where)
    assert answering_worker(server) != victim


def test_a_stopped_worker_is_replaced_though_it_cannot_say_where_it_is(acme: Launcher) -> None:
    server = acme({"server": {"timeout": "1s"}}, app=APP)
    server.errors_expected = True
    [victim] = server.worker_pids()
    os.kill(victim, signal.SIGSTOP)
    server.wait_for_log("did not answer: stopped")
    assert answering_worker(server) != victim


def test_waiting_requests_do_not_make_a_worker_look_hung(acme: Launcher) -> None:
    route = {"path": "/*", "type": "wsgi", "app": APP, "timeout": "5s"}
    server = acme({"server": {"timeout": "1s"}, "routes": [route]})
    [pid] = server.worker_pids()
    assert server.get("/sleep/2.5").text == "slept\n"
    assert server.worker_pids() == [pid]


def test_a_stop_of_the_whole_tree_kills_nobody_afterwards(acme: Launcher) -> None:
    server = acme({"server": {"timeout": "1s"}}, app=APP, workers=2)
    before = server.worker_pids()
    for pid in (*before, server.pid):
        os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: time.monotonic() - stopped > 3.5, "longer than timeout and margin")
    # The arbiter first: it is to judge workers that really stood still all the time.
    for pid in (server.pid, *before):
        os.kill(pid, signal.SIGCONT)
    server.wait_for_log(r"the arbiter was stopped for [3-9]\.")
    assert server.get("/").text == "hello\n"
    assert sorted(server.worker_pids()) == sorted(before)


# -- stop


def in_background(server: Server, target: str) -> tuple[threading.Thread, list[bytes]]:
    """Ask for something that takes a while; what came is in the list after the thread's end."""
    came: list[bytes] = []
    request = f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    thread = threading.Thread(target=lambda: came.append(server.raw(request)), daemon=True)
    thread.start()
    return thread, came


def in_progress(server: Server, target: str) -> tuple[threading.Thread, list[bytes]]:
    """The same, once the handler has really begun."""
    marker = server.cwd / "begun"
    marker.unlink(missing_ok=True)
    thread, came = in_background(server, target)
    wait_until(marker.exists, "the handler has begun")
    return thread, came


SLOW = """
import pathlib, time
def app(environ, start_response):
    if environ["PATH_INFO"] != "/":
        pathlib.Path("begun").touch()
        time.sleep(float(environ["PATH_INFO"][1:]))
    start_response("200 OK", [])
    return [b"finished"]
"""


def test_a_graceful_stop_lets_an_open_request_finish(acme: Launcher) -> None:
    server = acme(app="slow:app", files={"slow.py": SLOW})
    thread, came = in_progress(server, "/1.5")
    server.stop(signal.SIGTERM)
    thread.join(DEADLINE)
    assert came[0].endswith(b"finished") and b"connection: close" in came[0].lower()


def test_during_a_graceful_stop_new_connections_are_refused(acme: Launcher) -> None:
    server = acme(app="slow:app", files={"slow.py": SLOW}, workers=2)
    thread, came = in_progress(server, "/2")
    server.tell(signal.SIGTERM)

    def refused() -> bool:
        try:
            server.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, "connections are refused", seconds=1.5)
    thread.join(DEADLINE)
    assert came[0].endswith(b"finished")


def test_idle_connections_do_not_hold_a_graceful_stop_up(acme: Launcher) -> None:
    server = acme(app=APP)
    with server.connect() as idle, server.connect() as silent:
        assert idle.request("/").status == 200
        started = time.monotonic()
        server.stop(signal.SIGTERM)
        assert time.monotonic() - started < 5
        assert idle.closed() and silent.closed()


def test_a_graceful_stop_ends_after_shutdown_timeout(acme: Launcher) -> None:
    server = acme({"server": {"shutdown_timeout": "1s"}}, app="slow:app", files={"slow.py": SLOW})
    thread, came = in_progress(server, "/20")
    started = time.monotonic()
    ended = server.stop(signal.SIGTERM)
    assert 0.9 < time.monotonic() - started < 5
    assert "1 requests still open after shutdown_timeout" in ended.stderr
    thread.join(DEADLINE)
    assert came == [b""]


def test_a_stuck_worker_does_not_hold_a_graceful_stop_up_for_ever(acme: Launcher) -> None:
    server = acme({"server": {"shutdown_timeout": "0.5s"}}, app=APP)
    thread, _ = in_background(server, "/spin/60")
    [pid] = server.worker_pids()
    before = _cpu_seconds(pid)
    wait_until(lambda: _cpu_seconds(pid) > before + 0.3, "it computes")
    ended = server.stop(signal.SIGTERM)
    assert "with 1 requests in its hands" in ended.stderr
    thread.join(DEADLINE)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_waits_for_nothing(acme: Launcher, number: int) -> None:
    server = acme(app="slow:app", files={"slow.py": SLOW}, workers=2)
    thread, came = in_progress(server, "/20")
    started = time.monotonic()
    server.stop(number)
    assert time.monotonic() - started < 3
    thread.join(DEADLINE)
    assert came == [b""]


def test_ctrl_c_reaches_all_processes_at_once(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    os.killpg(server.pid, signal.SIGINT)
    assert server.wait().status == 0
    assert "a new one starts" not in server.stderr


def test_a_quick_stop_overtakes_a_graceful_one(acme: Launcher) -> None:
    server = acme(app="slow:app", files={"slow.py": SLOW})
    in_progress(server, "/20")
    server.tell(signal.SIGTERM)
    server.wait_for_log("stopping gracefully")
    started = time.monotonic()
    server.stop(signal.SIGINT)
    assert time.monotonic() - started < 3


def test_signals_while_starting(acme: Launcher) -> None:
    source = "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n"
    server, notices = acme._spawn(None, {"app": "slow:app", "files": {"slow.py": source}, "workers": 2})
    with notices:
        wait_until((server.cwd / "begun").exists, "the application is being imported")
        server.stop(signal.SIGTERM)


def test_signals_without_effect_are_harmless(acme: Launcher) -> None:
    server = acme(app=APP, workers=2)
    before = server.worker_pids()
    for number in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE):
        server.tell(number)
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE):
        for pid in before:
            os.kill(pid, number)
    server.tell(signal.SIGUSR1)
    server.wait_for_log("logs reopened")
    assert server.get("/").text == "hello\n"
    assert server.worker_pids() == before and state_of(server.pid) == "S"


def test_logs_are_reopened(acme: Launcher, tmp_path: Path) -> None:
    access, error = tmp_path / "access.log", tmp_path / "error.log"
    server = acme({"logging": {"output": str(error), "access": {"output": str(access)}}}, app=APP)
    server.get("/before")
    wait_until(lambda: "/before" in access.read_text(), "the access log is written")
    access.rename(tmp_path / "access.1")
    error.rename(tmp_path / "error.1")
    server.tell(signal.SIGUSR1)
    wait_until(lambda: error.exists() and "logs reopened" in error.read_text(), "a new error log")
    server.get("/after")
    wait_until(lambda: access.exists() and "/after" in access.read_text(), "a new access log")
    assert "/after" not in (tmp_path / "access.1").read_text()
    server.errors_expected = True


def test_workers_go_when_the_arbiter_is_killed(acme: Launcher) -> None:
    server = acme(app="slow:app", files={"slow.py": SLOW}, workers=2)
    server.errors_expected = True
    thread, came = in_progress(server, "/1")
    server.tell(signal.SIGKILL)
    thread.join(DEADLINE)
    assert came[0].endswith(b"finished"), "they go gracefully"
    wait_until(lambda: not server.group(), "no worker is left")


def test_workers_stuck_in_a_handler_go_when_the_arbiter_is_killed(acme: Launcher) -> None:
    server = acme({"server": {"shutdown_timeout": "0.5s"}}, app=APP)
    server.errors_expected = True
    in_background(server, "/spin/60")
    [pid] = server.worker_pids()
    before = _cpu_seconds(pid)
    wait_until(lambda: _cpu_seconds(pid) > before + 0.3, "it computes")
    server.tell(signal.SIGKILL)
    wait_until(lambda: not server.group(), "no worker is left")


def test_what_an_application_registered_runs_at_the_end(acme: Launcher) -> None:
    source = "import atexit, pathlib\natexit.register(pathlib.Path('done').touch)\n"
    server = acme(app="shop:app", files={"shop.py": source + "from tests.apps.basic import app\n"})
    server.stop()
    assert (server.cwd / "done").exists()


def test_no_descriptor_of_the_servers_reaches_a_program_that_a_handler_starts(acme: Launcher) -> None:
    source = (
        "import os, subprocess\ndef app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    command = ['ls', '/proc/self/fd']\n"
        "    done = subprocess.run(command, close_fds=False, capture_output=True, text=True)\n"
        "    return [(done.stdout + os.environ.get('LISTEN_FDS', '')).encode()]\n"
    )
    server = acme(app="shop:app", files={"shop.py": source})
    # 0 to 2, and the directory that ls itself has open.
    assert len(server.get("/").text.split()) == 4


@pytest.mark.slow
def test_killing_a_worker_again_and_again_under_load(acme: Launcher) -> None:
    """Only what a killed worker has in its hands fails; nothing is refused, new requests are answered."""
    server = acme(app=APP, workers=2)
    server.errors_expected = True
    stop = threading.Event()
    answered: list[int] = []
    cut: list[str] = []
    other: list[BaseException] = []

    def client() -> None:
        while not stop.is_set():
            try:
                with server.connect() as wire:
                    for _ in range(20):
                        wire.request("/sleep/0.005")
                        answered.append(1)
            except AssertionError as error:  # the connection ended inside of a request, or between two
                cut.append(str(error))
            except ConnectionResetError as error:
                cut.append(str(error))
            except BaseException as error:
                other.append(error)
                raise

    clients = [threading.Thread(target=client, daemon=True) for _ in range(8)]
    for thread in clients:
        thread.start()
    kills = 8
    for _ in range(kills):
        before = len(answered)
        os.kill(wait_until(server.worker_pids, "a worker")[0], signal.SIGKILL)
        wait_until(lambda: len(answered) > before + 50, "answers go on")  # noqa: B023
    stop.set()
    for thread in clients:
        thread.join(DEADLINE)
    assert other == [], "nothing was refused and nothing timed out"
    # A worker has at most all eight connections when it dies, and each can be cut once by it.
    assert len(cut) <= kills * len(clients) and len(answered) > 50 * kills
