"""What every test can use: the `acme` fixture, which starts real servers (see tests/server.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Launcher


@pytest.fixture
def acme(tmp_path: Path) -> Iterator[Launcher]:
    """Starts servers; after the test each must have stopped cleanly, logged no error and left nothing."""
    launcher = Launcher(tmp_path)
    try:
        yield launcher
        launcher.finish()
    finally:
        launcher.kill()
