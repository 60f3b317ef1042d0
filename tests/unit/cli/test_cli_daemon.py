"""`acme-server start`: the command line that it makes, and the way of a server into the background."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acme_wsgi.cli import daemon, manage
from acme_wsgi.cli.server import ControlError
from acme_wsgi.config import load
from tests.server import wait_until

Start = Callable[..., object]
Output = pytest.CaptureFixture[str]

# Says that it is ready as a server does, and what it was given.
READY = """
import os, socket, sys, time
def say(text):
    address = os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1)
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(text.encode(), address)
"""
SERVES = (
    READY
    + """
print("on stdout", flush=True)
print("on stderr", file=sys.stderr, flush=True)
say("STATUS=starting")
if os.fork() == 0:
    say("READY=1\\nSTATUS=serving on 6.6.6.6:666")  # not from the process itself: anybody could
    os._exit(0)
os.wait()
say("READY=1\\nMAINPID=1\\nSTATUS=serving on 127.0.0.1:80, [::1]:80")
time.sleep(600)
"""
)


def as_program(script: str, directory: Path) -> daemon.Program:
    return daemon.Program(load(), (sys.executable, "-c", script), str(directory))


@pytest.fixture
def started() -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# -- the command line


def command(*arguments: str) -> tuple[str, ...]:
    options = manage.build_parser().parse_args(["start", *arguments])
    return daemon.program(options, os.environ).command[3:]


def test_the_command_line_is_handed_on(run_dir: Path) -> None:
    Path("a.yaml").write_text("server: {port: 1}")
    assert command("-c", "a.yaml", "--set", "server.port=2", "shop:app") == (
        "-c", "a.yaml", "--set", "server.port=2", "--", "shop:app",
    )  # fmt: skip
    assert command("--runtime-dir", "$x", "shop:app")[:2] == (
        "--set",
        f"server.runtime_dir={Path.cwd()}/$x",
    )


def test_the_default_configuration_is_taken_if_it_is_there(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acme_wsgi.cli.DEFAULT_CONFIG", str(run_dir))
    assert command() == ("-c", str(run_dir))


def test_nothing_to_serve(run_dir: Path, capsys: Output) -> None:
    assert manage.main(["start"]) == 2
    assert "nothing to serve" in capsys.readouterr().err


def test_a_wrong_configuration_starts_nothing(run_dir: Path, capsys: Output) -> None:
    assert manage.main(["start", "--daemon", "shop:app", "--set", "server.prot=1"]) == 78
    assert "server.prot: unknown key" in capsys.readouterr().err
    assert list(run_dir.iterdir()) == []
    assert manage.main(["start", "--json", "shop:app", "--set", "server.prot=1"]) == 78
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and "server.prot: unknown key" in answer["problems"][0]


def test_one_that_runs_already(run_dir: Path, arbiter: Start, capsys: Output) -> None:
    arbiter(status={"pid": 5, "addresses": ["127.0.0.1:80"]})
    for arguments in (["--daemon"], []):
        assert manage.main(["start", "shop:app", *arguments]) == 1
        assert capsys.readouterr().err == "already running: pid 5 on 127.0.0.1:80\n"


def test_in_the_foreground_it_becomes_the_server(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Became(BaseException):
        pass

    def execve(path: str, arguments: tuple[str, ...], environ: dict[str, str]) -> None:
        assert path == arguments[0] == sys.executable and environ == dict(os.environ)
        assert arguments[1:] == ("-m", "acme_wsgi", "--", "shop:app")
        raise Became

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(Became):
        manage.main(["start", "shop:app"])


def test_a_daemons_logs_go_to_files_unless_they_do_already(run_dir: Path) -> None:
    def sets(*given: str) -> list[str]:
        config = load(sets=given)
        made = daemon.with_logs(daemon.Program(config, ("python", "--", "a:b"), "/run/${x}"))
        assert made[0] == "python" and made[-2:] == ["--", "a:b"]
        return [each for each in made[1:-2] if each != "--set"]

    assert sets() == [
        "logging.output=/run/$${x}/acme.log",
        "logging.access.output=/run/$${x}/access.log",
        "logging.rotation.size=100MB",
    ]
    assert sets("logging.output=/a", "logging.access.output=/b") == []
    assert sets("logging.output=/a", "logging.rotation.age=1d") == [
        "logging.access.output=/run/$${x}/access.log"
    ]


# -- into the background


def test_a_daemon(run_dir: Path, started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    (run_dir / "acme.log").write_text("earlier\n")
    server = daemon.launch(as_program(SERVES, run_dir), os.environ)
    started.append(server.pid)
    assert server.addresses == ("127.0.0.1:80", "[::1]:80")
    assert server.log == str(run_dir / "acme.log")
    assert Path(server.log).read_text() == "earlier\non stdout\non stderr\n"
    process = Path(f"/proc/{server.pid}")
    assert os.getsid(server.pid) == server.pid
    assert (process / "fd/0").readlink() == Path("/dev/null")
    environ = (process / "environ").read_bytes()
    assert b"LISTEN_FDS" not in environ and b"NOTIFY_SOCKET=@" in environ
    descriptors = {path.name for path in (process / "fd").iterdir()}
    assert descriptors <= {"0", "1", "2", "3"}, "nothing of ours"


def test_its_log_file_is_not_for_everybody_and_no_link(run_dir: Path, started: list[int]) -> None:
    umask = os.umask(0)
    try:
        started.append(daemon.launch(as_program(SERVES, run_dir), os.environ).pid)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((run_dir / "acme.log").stat().st_mode) == 0o640
    (run_dir / "acme.log").unlink()
    (run_dir / "acme.log").symlink_to(run_dir / "victim")
    with pytest.raises(ControlError, match=r"cannot write .*/acme\.log"):
        daemon.launch(as_program(SERVES, run_dir), os.environ)
    assert not (run_dir / "victim").exists()


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        (
            "import sys; print('x'); print('acme-wsgi: no\\x1b[2J port', file=sys.stderr); sys.exit(1)",
            1,
            None,
        ),
        (
            "import sys; print('acme-wsgi: cannot start: x\\n  a trace\\n0 critical acme: cannot start: x');"
            "sys.exit(3)",
            3,
            "acme-wsgi: cannot start: x\n  a trace",
        ),
        ("import sys; sys.exit(3)", 3, "the server ended without a word"),
        ("import os; os.kill(os.getpid(), 9)", 137, "the server ended without a word"),
        ("import sys; print('a' * 50_000); sys.exit(78)", 78, "a" * 2000 + "..."),
    ],
)
def test_one_that_ends_instead(run_dir: Path, script: str, status: int, said: str | None) -> None:
    (run_dir / "acme.log").write_text("acme-wsgi: from an earlier start\n")
    with pytest.raises(daemon.NotStarted) as caught:
        daemon.launch(as_program(script, run_dir), os.environ)
    assert caught.value.exit_status == status
    told = str(caught.value)
    if said is None:
        assert "acme-wsgi: no\\x1b[2J port" in told and "\x1b" not in told
    else:
        assert told == said


def test_ctrl_c_while_it_starts_leaves_none_behind(run_dir: Path) -> None:
    pid_file = run_dir / "pid"
    script = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    waiting = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys\nfrom acme_wsgi.cli import daemon\nfrom acme_wsgi.config import load\n"
            f"command = (sys.executable, '-c', {script!r})\n"
            f"daemon.launch(daemon.Program(load(), command, {str(run_dir)!r}), os.environ)",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(manage.__file__).parents[2])},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the server's start")
    end = os.pidfd_open(int(pid_file.read_text()))
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(30) != 0
    assert select.select([end], [], [], 30)[0], "it was told to stop"
    os.close(end)


def test_start_as_json(run_dir: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "launch", lambda *_: daemon.Started(7, ("127.0.0.1:80",), "/l"))
    assert manage.main(["start", "--daemon", "--json", "shop:app"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "pid": 7,
        "addresses": ["127.0.0.1:80"],
        "runtime_dir": str(run_dir),
        "log": "/l",
    }
