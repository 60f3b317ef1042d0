"""Fixtures for tests of files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def told() -> Iterator[Path]:
    """An empty directory whose changes the kernel tells, wherever the tests run: on tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)
