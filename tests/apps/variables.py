"""Tells which variables are in the environment of a worker, and so in that of what it starts."""

from __future__ import annotations

import os


def names(_request: object) -> str:
    """Their names, one a line."""
    return "\n".join(sorted(os.environ)) + "\n"
