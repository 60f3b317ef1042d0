"""The shipped conf.d: every line of it true, every key in it known, whether switched on or not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acme_wsgi.config import load
from acme_wsgi.config.keys import specs
from acme_wsgi.config.schema import ENVIRONMENTS, Config

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "conf.d").glob("*.yaml"))

# A "#" right before a key, or before an item's dash, can be taken away.
SWITCHED_OFF = re.compile(r"(?m)^( *)#(?=[a-z_.0-9]+:|- )")


def test_it_loads_without_a_warning() -> None:
    assert load([str(ROOT / "conf.d")]).warnings == ()


def test_it_serves_the_sample_site() -> None:
    (route,) = load([str(ROOT / "conf.d")]).routes
    assert (route.path, route.type, route.app) == ("/*", "wsgi", "sample.site:application")


def test_what_it_writes_out_is_what_would_hold_anyway() -> None:
    config = load([str(ROOT / "conf.d")])
    assert config.server == Config().server
    assert config.logging == Config().logging


def test_it_has_one_file_for_each_section() -> None:
    sections = set()
    for file in FILES:
        text = SWITCHED_OFF.sub(r"\1", file.read_text(encoding="utf-8"))
        sections |= set(re.findall(r"(?m)^([a-z_]+):", text))
    assert sections == {spec.name for spec in specs(Config)} | {ENVIRONMENTS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_all_its_keys_can_be_switched_on(file: Path, tmp_path: Path) -> None:
    text = SWITCHED_OFF.sub(r"\1", file.read_text(encoding="utf-8"))
    (tmp_path / file.name).write_text(text, encoding="utf-8")
    config = load([str(tmp_path)], {"ACME_ENV": "production"} if ENVIRONMENTS in text else {})
    assert config.origins


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_comment_is_either_prose_or_a_key(file: Path) -> None:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            assert SWITCHED_OFF.match(line) or re.match(r" *#($| \S)", line), line
