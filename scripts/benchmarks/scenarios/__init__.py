"""The scenarios by name. A new one: its own file, and a line here."""

from __future__ import annotations

from .base import Context, Scenario, ScenarioFailed
from .connections import Connections
from .hello import Hello
from .idle import Idle
from .kill import Kill
from .memory import MemoryOverTime
from .overload import Overload
from .proxy import Proxy
from .reload import Reload
from .static import Static
from .stop import Stop

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Hello(),
        Static(),
        Proxy(),
        Connections(),
        Idle(),
        MemoryOverTime(),
        Kill(),
        Reload(),
        Overload(),
        Stop(),
    )
}

__all__ = ["SCENARIOS", "Context", "Scenario", "ScenarioFailed"]
