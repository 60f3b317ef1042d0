"""What the tests of the verbs share: a stand-in for the running arbiter (tests/unit/standin.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standin

from acme_wsgi import cli
from tests.server import ROOT, wait_until

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory that the environment names, and no configuration of this machine."""
    for name in list(os.environ):
        if name.startswith("ACME_"):
            monkeypatch.delenv(name)
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv("ACME_SERVER_RUNTIME_DIR", str(directory))
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    return directory


@pytest.fixture
def arbiter(run_dir: Path) -> Iterator[Start]:
    """Starts a stand-in with canned answers: ``arbiter(status={"pid": 0})``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**answers: dict[str, Any]) -> subprocess.Popen[bytes]:
        command = [sys.executable, standin.__file__, str(run_dir), json.dumps(answers)]
        (run_dir / "control.sock").unlink(missing_ok=True)  # of one that was killed before
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        started.append(process)
        wait_until((run_dir / "control.sock").exists, "the stand-in's socket")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def orders(run_dir: Path) -> Callable[[], list[Any]]:
    """What the stand-in was asked, verb and arguments each."""
    return lambda: [json.loads(line) for line in (run_dir / "orders").read_text().splitlines()]
