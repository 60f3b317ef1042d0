"""The `root` fixture: a directory of files, and what serves them without a loop."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from static_site import LARGE, OLD, TEXT

from acme_wsgi import iothreads
from acme_wsgi.files.cache import FileTable
from acme_wsgi.files.changes import Changes
from acme_wsgi.handlers import static
from acme_wsgi.handlers._encoding import Encodings


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a loop: the threads' work is done at once, nobody tells of changes, what is known doesn't end
    by itself, and no test finds what another had made.
    """
    for name in ("run", "run_long"):
        monkeypatch.setattr(iothreads, name, lambda function, *args, **named: function(*args, **named))
    monkeypatch.setattr(static, "_ENCODINGS", Encodings())
    monkeypatch.setattr(Changes, "watch", lambda *args: None)
    monkeypatch.setattr(static, "FileTable", partial(FileTable, interval=1000.0))


@pytest.fixture
def root(tmp_path: Path, in_place: None) -> Path:
    files: dict[str, str | bytes] = {
        "index.html": "<p>home",
        "page.html": TEXT,
        "app.js": "x = 1;\n" * 300,
        "large.bin": LARGE,
        "docs/index.html": "<p>docs",
        "plain/note.txt": "a note",
        "plain/<b>&.txt": "odd",
        "plain/sub/deep.txt": "deep",
        ".secret": "no",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (OLD, OLD))
    return tmp_path
