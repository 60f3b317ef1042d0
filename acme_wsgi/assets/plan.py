"""What the configuration asks of the asset pipeline.

Law: settings, read once; no file is looked at.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from acme_wsgi.assets import bundle, minify
from acme_wsgi.assets.names import Versioning
from acme_wsgi.assets.records import FORMAT
from acme_wsgi.assets.sites import Sites
from acme_wsgi.config.schema.content import Minification, Static
from acme_wsgi.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built.

    :ivar configuration: names these settings among others in the same directory
    """

    sites: Sites
    bundles: tuple[bundle.Bundle, ...]
    minification: Minification
    versioning: Versioning | None
    configuration: str


def wanted(static: Static) -> bool:
    """Whether the configuration asks for any of it."""
    return static.concatenation.enabled or static.minification.enabled or static.versioning.enabled


def make(static: Static, sites: Sites) -> Plan:
    """The plan of a configuration.

    :raises ConfigError: patterns that can't work
    """
    problems: list[Problem] = []
    versioning, bundles = None, []
    if static.versioning.enabled:
        try:
            versioning = Versioning.of(static.versioning.pattern)
        except ValueError as error:
            problems.append(Problem(None, None, None, "static.versioning.pattern", str(error)))
    if static.concatenation.enabled:
        pairs = [(arrow.source, arrow.target) for arrow in static.concatenation.patterns]
        try:
            bundles = bundle.of(pairs)
        except ValueError as error:
            problems.append(Problem(None, None, None, "static.concatenation.patterns", str(error)))
    if problems:
        raise ConfigError(problems)
    minification = static.minification
    if not minification.enabled:
        minification = replace(minification, css=False, js=False, html=False)
    return Plan(sites, tuple(bundles), minification, versioning, _name(static, sites))


def _name(static: Static, sites: Sites) -> str:
    """A name for all that decides what is built, besides the files themselves."""
    asked = [asdict(static.concatenation), asdict(static.minification), asdict(static.versioning)]
    mounts = [[asdict(place), str(place.expression)] for place in sites.places]
    text = json.dumps([FORMAT, minify.tools(), asked, mounts], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
