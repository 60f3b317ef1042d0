"""What a reload may change: two configurations -> the one that holds from now on, and what was left.

Its law: decides by the declarations alone (`live`); knows no process. A value that needs a restart stays as
it was, whatever the files say, until the restart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from acme_wsgi.config.keys import Spec, Table, specs
from acme_wsgi.config.schema import Config


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload makes of a new configuration.

    :ivar config: what holds from now on
    :ivar changed: dotted keys that differ from before and hold from now on
    :ivar left: dotted keys that differ and need a restart; `config` has their old values
    """

    config: Config
    changed: tuple[str, ...]
    left: tuple[str, ...]


def settle(old: Config, new: Config) -> Changes:
    """Take over from `new` what may change while the server runs."""
    changed: list[str] = []
    left: list[str] = []
    config = _settle(old, new, "", True, changed, left)
    return Changes(config, tuple(changed), tuple(left))


def _settle(old: Any, new: Any, prefix: str, live: bool, changed: list[str], left: list[str]) -> Any:
    """`new` with the old values of what can't change; both are sections of one class."""
    kept: dict[str, Any] = {}
    for spec, before, after in _differing(old, new):
        dotted = prefix + spec.name
        applies = live and spec.key.live
        if isinstance(spec.kind, Table) and before is not None and after is not None:
            kept[spec.attribute] = _settle(before, after, dotted + ".", applies, changed, left)
        elif applies:
            changed.append(dotted)
        else:
            left.append(dotted)
            kept[spec.attribute] = before
    return dataclasses.replace(new, **kept)


def _differing(old: Any, new: Any) -> Iterator[tuple[Spec, Any, Any]]:
    for spec in specs(type(new)):
        before, after = getattr(old, spec.attribute), getattr(new, spec.attribute)
        if before != after:
            yield spec, before, after
