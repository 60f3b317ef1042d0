"""asset_url(): from an asset's path to the URL that its content has now.

Law: knows the assets of this process, which the pipeline has put here, and nothing else.
"""

from __future__ import annotations

from acme_wsgi.assets.service import Assets

_current: Assets | None = None


def use(assets: Assets | None) -> None:
    """Make these the process's assets."""
    global _current
    _current = assets


def asset_url(path: str) -> str:
    """The versioned URL of an asset, by its plain path: ``asset_url("/static/app.css")``.

    A query or a fragment stays. A path that has none comes back as it is; with versioning on, the log says so
    once.
    """
    return path if _current is None else _current.url(path)
