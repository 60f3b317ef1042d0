"""The YAML in the documentation is configuration that the server takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acme_wsgi.config import load

ROOT = Path(__file__).parents[3]
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """(page and number, text) of each block."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (f"{page.relative_to(ROOT)}#{number}", text)
        for page in pages
        for number, text in enumerate(_BLOCK.findall(page.read_text()), 1)
    ]


@pytest.mark.parametrize(("name", "text"), blocks(), ids=[name for name, _ in blocks()])
def test_what_is_shown_is_taken(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "10-shown.yaml").write_text(text)
    config = load([str(tmp_path)], {"DATABASE_PASSWORD": "x"}, app="shop:app")
    assert not [str(warning) for warning in config.warnings if "cookie" in str(warning)]


def test_there_are_some() -> None:
    assert len(blocks()) > 10
