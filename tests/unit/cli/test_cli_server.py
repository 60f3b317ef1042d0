"""Finding the server and talking to it, also when what answers is no server of ours."""

from __future__ import annotations

import argparse
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from acme_wsgi.cli import client, server
from acme_wsgi.cli.server import ControlError, NotRunning, Refused

Start = Callable[..., object]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    server.add_server_arguments(parser)
    server.add_json_argument(parser)
    return parser.parse_args(arguments)


# -- finding it


def test_the_option_wins_over_the_configuration(run_dir: Path) -> None:
    assert server.find_directory(options("--runtime-dir", "/run/x/../other"), os.environ) == "/run/other"
    assert server.find_directory(options("--runtime-dir", "rel"), os.environ) == str(Path.cwd() / "rel")
    assert server.find_directory(options(), os.environ) == str(run_dir)


def test_the_configuration_names_it(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text("server: {runtime_dir: /run/shop}\n")
    given = options("-c", str(tmp_path / "acme.yaml"))
    assert server.find_directory(given, {}) == "/run/shop"
    assert server.find_directory(given, {"ACME_SERVER_RUNTIME_DIR": "/run/env"}) == "/run/env"
    assert server.find_directory(options("--set", "server.runtime_dir=/run/set"), {}) == "/run/set"


def test_a_broken_configuration_keeps_nobody_from_the_server(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arbiter: Start
) -> None:
    arbiter(status={"state": "serving"})
    Path("acme.yaml").write_text("server: {prot: 1, runtime_dir: /run/shop}\n")
    answer = server.ask(options("-c", "acme.yaml"), os.environ, "status")
    assert answer == {"acme": 1, "ok": True, "state": "serving"}
    told = capsys.readouterr().err
    assert "acme.yaml:1:10: server.prot: unknown key" in told and f"in {run_dir} (--runtime-dir" in told
    assert "server.prot" not in (capsys.readouterr().out)


def test_without_anything_the_default_directory(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    monkeypatch.setattr(server, "default_directory", lambda environ: f"/default/{environ['HERE']}")
    assert server.find_directory(options(), {"HERE": "x"}) == "/default/x"
    assert server.find_directory(options("--set", "nope"), {"HERE": "x"}) == "/default/x"


# -- asking it


def test_progress_and_the_last_word(run_dir: Path, arbiter: Start) -> None:
    arbiter(reload={"progress": ["one", "two"], "generation": 2})
    heard: list[str] = []
    assert server.ask(options(), os.environ, "reload", on_progress=heard.append)["generation"] == 2
    assert heard == ["one", "two"]


def test_a_refusal_has_its_answer_and_drives_no_terminal(run_dir: Path, arbiter: Start) -> None:
    arbiter(reload={"error": "no\x1b[2J\nway", "problems": ["a"]})
    with pytest.raises(Refused) as caught:
        client.call(str(run_dir), "reload")
    assert str(caught.value) == "no\\x1b[2J\nway"
    assert caught.value.answer["problems"] == ["a"]


@pytest.mark.parametrize("left", ["no directory", "nothing", "a stale socket", "a file for a directory"])
def test_nobody_there(run_dir: Path, left: str) -> None:
    directory = run_dir
    if left == "no directory":
        directory = run_dir / "none"
    elif left == "a file for a directory":
        directory = run_dir / "file"
        directory.touch()
    elif left == "a stale socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(run_dir / "control.sock"))
    with pytest.raises(NotRunning, match="no server runs with the runtime directory"):
        client.call(str(directory), "status")


def test_a_server_that_does_not_answer(run_dir: Path, arbiter: Start) -> None:
    arbiter(status={"silent": True})
    with pytest.raises(ControlError, match=r"did not answer within 0\.1 s"):
        client.call(str(run_dir), "status", timeout=0.1)


def test_a_server_that_takes_no_connection(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(run_dir / "control.sock"))
        busy.listen(0)
        first.connect(str(run_dir / "control.sock"))
        with pytest.raises(ControlError, match="takes no connection"):
            client.call(str(run_dir), "status", timeout=0.1)


@pytest.fixture
def impostor(run_dir: Path) -> Iterator[Callable[[bytes], None]]:
    """Something that answers these bytes to whoever connects, and closes."""
    threads = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:

        def answer(data: bytes) -> None:
            sock, _ = listener.accept()
            with sock:
                try:
                    sock.sendall(data)
                except OSError:
                    return  # the client has seen enough

        def start(data: bytes) -> None:
            listener.bind(str(run_dir / "control.sock"))
            listener.listen()
            threads.append(threading.Thread(target=answer, args=(data,)))
            threads[0].start()

        yield start
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "went away before it answered"),
        (b'{"acme": 1, "progress": "half"}\n', "went away before it answered"),
        (b'{"acme": 1, "ok": tr', "went away before it answered"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak our protocol"),
        (b"[]\n", "does not speak our protocol"),
        (b'{"acme": 1}\n', "does not speak our protocol"),
        (b'{"acme": 1, "ok": "yes"}\n', "does not speak our protocol"),
        (b"\xff\n", "does not speak our protocol"),
        (b"[" * 100_000 + b"\n", "does not speak our protocol"),
        (b'{"acme": 2, "ok": true}\n', "speaks version 2 of the protocol, not 1"),
        (b"x" * (5 << 20), "no server of ours"),
    ],
)
def test_what_answers_is_no_server_of_ours(
    run_dir: Path, impostor: Callable[[bytes], None], said: bytes, told: str
) -> None:
    impostor(said)
    with pytest.raises(ControlError, match=told):
        client.call(str(run_dir), "reload")


@pytest.mark.parametrize(("verb", "asked"), [("status", 2), ("reload", 1)])
def test_only_a_question_left_without_a_word_is_put_to_the_successor(
    run_dir: Path, verb: str, asked: int
) -> None:
    said: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "control.sock"))
        listener.listen()

        def serve() -> None:
            for answer in (b"", b'{"acme": 1, "ok": true, "pid": 7}\n')[:asked]:
                with listener.accept()[0] as sock:
                    said.append(sock.recv(1000))
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        if asked == 1:
            with pytest.raises(ControlError, match="went away before it answered"):
                client.call(str(run_dir), verb)
        else:
            assert client.call(str(run_dir), verb)["pid"] == 7
        thread.join()
    assert len(said) == asked


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_another_user_runs_there_is_not_asked(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "peer", lambda sock: (1, 4242, 4242))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "control.sock"))
        listener.listen()
        with pytest.raises(ControlError, match="run by user 4242: not asked"):
            client.call(str(run_dir), "status")
        with listener.accept()[0] as sock:
            assert sock.recv(100) == b"", "no order has reached it"


def test_a_refusal_before_the_request_was_sent_is_read(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "control.sock"))
        listener.listen()
        answers = client.converse(str(run_dir), "status", {"x": "y" * (4 << 20)})

        def refuse() -> None:
            with listener.accept()[0] as sock:
                sock.sendall(b'{"acme": 1, "ok": false, "error": "too many"}\n')

        thread = threading.Thread(target=refuse)
        thread.start()
        assert next(answers)["error"] == "too many"
        thread.join()


# -- showing it


def test_waiting_shows_itself_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((Terminal(), "\rwaiting (61 s)\r\033[K"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        with server.Waiting("waiting") as waiting:
            waiting.show()  # within the first second: nothing yet
            waiting._began -= 61
            waiting.show()
        assert stream.getvalue() == expected
