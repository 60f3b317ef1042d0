"""What the configuration asks of the asset pipeline.

Law: settings, read once; no file is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from acme_wsgi.assets import bundle, minify
from acme_wsgi.assets.names import Versioning
from acme_wsgi.assets.records import FORMAT
from acme_wsgi.assets.sites import Sites
from acme_wsgi.config.schema.content import Minification, Static


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


def faults(static: Static) -> Iterator[tuple[str, str]]:
    """What is wrong with the patterns: dotted key, message."""
    try:
        _versioning(static)
    except ValueError as error:
        yield "static.versioning.pattern", str(error)
    try:
        _bundles(static)
    except ValueError as error:
        yield "static.concatenation.patterns", str(error)


def _versioning(static: Static) -> Versioning | None:
    return Versioning.of(static.versioning.pattern) if static.versioning.enabled else None


def _bundles(static: Static) -> list[bundle.Bundle]:
    if not static.concatenation.enabled:
        return []
    return bundle.of([(arrow.source, arrow.target) for arrow in static.concatenation.patterns])


def make(static: Static, sites: Sites) -> Plan:
    """The plan of a configuration that has no `faults`; ValueError for one that has."""
    versioning, bundles = _versioning(static), _bundles(static)
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
