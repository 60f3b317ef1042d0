"""What every test can use: `acme` starts real servers (tests/server.py), `backends` what they proxy to
(tests/backends.py).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends import Backends, closing_all
from tests.server import Launcher

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Run in the background of a shell, we would hand that on to every command that a test ends with Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def acme(tmp_path: Path) -> Iterator[Launcher]:
    """Starts servers; after the test each must have stopped cleanly, logged no error and left nothing."""
    launcher = Launcher(tmp_path)
    try:
        yield launcher
        launcher.finish()
    finally:
        launcher.kill()


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[Backends]:
    """Makes servers for the proxy to speak to; after the test all are ended, and each rogue is content."""
    with closing_all(Backends(tmp_path)) as made:
        yield made
