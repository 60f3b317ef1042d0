"""Manual pages and reference are those that the declarations give, and are well-formed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acme_wsgi.config.keys import walk
from acme_wsgi.config.schema import Config

ROOT = Path(__file__).parents[3]
PAGES = ["acme.conf.5", "acme-wsgi.1", "acme-server.1"]


def test_they_are_current() -> None:
    script = ROOT / "scripts/generate-docs"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["man/acme.conf.5", "docs/configuration.md"])
def test_every_key_is_in_them(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\-", "-")
    missing = [dotted for dotted, _ in walk(Config) if dotted not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(shutil.which("man") is None, reason="needs man(1)")
def test_man_has_nothing_to_warn_about(page: str) -> None:
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", ROOT / "man" / page],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
