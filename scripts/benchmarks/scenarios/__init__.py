"""The scenarios by name. A new one: its own file, and a line here."""

from __future__ import annotations

from .base import Context, Scenario, ScenarioFailed
from .connections import Connections
from .hello import Hello
from .idle import Idle
from .kill import Kill
from .memory import MemoryOverTime

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (Hello(), Connections(), Idle(), MemoryOverTime(), Kill())
}

__all__ = ["SCENARIOS", "Context", "Scenario", "ScenarioFailed"]
