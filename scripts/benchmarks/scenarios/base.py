"""What a scenario is: options of its own, and a run over some peers that gives tables."""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..load import Load
from ..machine import Cores
from ..peers import Peer
from ..report import Table
from ..server import Server


class ScenarioFailed(Exception):
    """What was measured is not what the scenario promises; the text says what went wrong."""


@dataclass(frozen=True)
class Context:
    """What every scenario is given."""

    peers: list[Peer]
    cores: Cores
    base: Path  # a directory for everything that is written
    options: argparse.Namespace


class Scenario(ABC):
    """One subcommand. `peers` are those it visits when none are named."""

    name: ClassVar[str]
    summary: ClassVar[str]
    peers: ClassVar[tuple[str, ...]] = ("nginx", "acme", "bjoern", "granian", "gunicorn", "waitress")

    @abstractmethod
    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the scenario's own options."""

    @abstractmethod
    def run(self, context: Context) -> list[Table]:
        """Measure. Raises ScenarioFailed, LoadFailed, ServerFailed: a failed measurement has no figures."""


def progress(text: str) -> None:
    """A line about what is going on, on stderr: stdout holds the results."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Cost:
    """A load and what it cost the server: CPU microseconds per request, user and system, the whole tree."""

    load: Load
    cpu_us: float


class Meter:
    """Reads the server's CPU clock around a load."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._before = server.tree.cpu_seconds()

    def cost(self, load: Load) -> Cost:
        """The cost of `load`, which ran since the meter was made."""
        return Cost(load, (self.server.tree.cpu_seconds() - self._before) * 1e6 / load.requests)
