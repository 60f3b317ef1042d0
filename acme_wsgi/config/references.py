"""``${NAME}`` and ``${NAME:-default}`` in texts, taken from the environment.

Its law: one text in, one text out; what a variable holds is not looked into again. ``$${`` stands for ``${``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(\$)\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}|\$\{([^}]{0,40})")


class Missing(ValueError):
    """A variable that a text refers to isn't set."""


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """`text` with its references replaced.

    An empty variable counts as not set where the reference has a default, as in a shell. Raises Missing for a
    variable that isn't set, ValueError for a ``${`` that begins no reference.
    """
    if "${" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        escaped, name, default, malformed = match.groups()
        if escaped:
            return "${"
        if malformed is not None:
            raise ValueError(
                f"${{{malformed} is no reference; "
                "allowed: ${NAME}, ${NAME:-default}, and $${ for a ${ that is none"
            )
        found = environ.get(name)
        if default is not None:
            return found or default
        if found is None:
            raise Missing(f"environment variable {name} is not set")
        return found

    return _REFERENCE.sub(value, text)


def escape(text: str) -> str:
    """`text` such that ``interpolate`` gives it back unchanged."""
    return text.replace("${", "$${")
