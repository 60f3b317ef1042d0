"""ACME: a web server for Python web applications. This file knows the version, and where the rest is."""

import importlib

__version__ = "0.1.0"


def asset_url(path: str) -> str:
    """The URL under which an asset's content is served for good: ``asset_url("/static/app.css")``.

    For handlers and templates. A query or a fragment stays; a path that has no versioned URL comes back as it
    is, and the log says so once.
    """
    found: str = importlib.import_module("acme_wsgi.assets").asset_url(path)
    return found
