"""Properties of loading and rendering that hold for every configuration and for every way to break one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from config_strategies import configs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acme_wsgi.config import Config, load
from acme_wsgi.config.render import to_json, to_yaml
from acme_wsgi.errors import ConfigError

pytestmark = pytest.mark.slow  # long searches

# A run of the whole suite must stay short.
PROPERTY = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.function_scoped_fixture,
    ],
)
_ENTRY = re.compile(r"( *(?:- )?)([a-z][a-z0-9_]*):(?: (.+))?")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "acme.yaml"


def loaded(file: Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load([str(file)])


@PROPERTY
@given(config=configs())
def test_what_is_rendered_loads_back_equal(file: Path, config: Config) -> None:
    assert loaded(file, to_yaml(config, mask=False)) == config
    assert loaded(file, to_yaml(config, mask=False, origins=True)) == config
    assert loaded(file, to_json(config, mask=False)) == config


@PROPERTY
@given(config=configs())
def test_a_masked_rendering_shows_no_secret_and_is_still_yaml(config: Config) -> None:
    text = to_yaml(config)
    for secret in (config.cache.l2.password, config.cache.cdn.token):
        if secret is not None and len(secret) > 8:
            assert secret not in text
    assert ":p@" not in text


CORRUPTIONS = ("misspell", "mapping for value", "list for table", "twice", "tab", "nonsense value", "stray")


def corrupted(lines: list[str], index: int, how: str) -> tuple[list[str], int] | None:
    """`lines` with one thing wrong, and the number of the line to be named; None if it can't be done."""
    match = _ENTRY.fullmatch(lines[index])
    assert match is not None
    pad, name, value = match.groups()
    before, after = lines[:index], lines[index + 1 :]
    match how:
        case "misspell":
            return [*before, f"{pad}{name}zq:{' ' + value if value else ''}", *after], index + 1
        case "mapping for value" if value:
            return [*before, f"{pad}{name}: {{zq: 1}}", *after], index + 1
        case "nonsense value" if value and re.fullmatch(r"[0-9.]+[A-Za-z%]*|true|false", value):
            return [*before, f"{pad}{name}: -zq", *after], index + 1
        case "list for table" if value and not value.startswith(("[", "{")):
            return [*before, f"{pad}{name}: [[zq]]", *after], index + 1
        case "twice" if value:
            return [*before, lines[index], f"{pad.replace('-', ' ')}{name}: {value}", *after], index + 2
        case "tab":
            return [*before, "\t" + lines[index], *after], index + 1
        case "stray":
            return [*before, f"{pad}zq", *after], index + 1
    return None


@PROPERTY
@given(config=configs(), data=st.data())
def test_a_single_corruption_is_an_error_that_names_its_line(
    file: Path, config: Config, data: st.DataObject
) -> None:
    lines = to_yaml(config, mask=False).splitlines()
    # The names in headers.add are free: a misspelt one is another name.
    entries = [index for index, line in enumerate(lines) if _ENTRY.fullmatch(line)]
    index = data.draw(st.sampled_from(entries))
    how = data.draw(st.sampled_from(CORRUPTIONS))
    broken = corrupted(lines, index, how)
    if broken is None:
        return
    text, number = broken
    with pytest.raises(ConfigError) as caught:
        loaded(file, "\n".join(text) + "\n")
    # A parser sees a line without its colon only when the next line comes.
    allowed = {number, number + 1} if how in ("stray", "tab") else {number}
    assert allowed & {problem.line for problem in caught.value.problems}, str(caught.value)


@PROPERTY
@given(config=configs(), data=st.data())
def test_damaged_bytes_are_a_configuration_or_an_error_and_nothing_else(
    file: Path, config: Config, data: st.DataObject
) -> None:
    damaged = bytearray(to_yaml(config, mask=False).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged) - 1))
        damaged[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    file.write_bytes(damaged)
    try:
        load([str(file)])
    except ConfigError as error:
        assert str(error)


@PROPERTY
@given(st.text(st.sampled_from("abz:-[]{}#&*!|>'\"%@`\n\t ,?.~<\\x0u$\u2028é\x85\ufeff"), max_size=60))
def test_no_text_raises_anything_but_a_config_error(file: Path, text: str) -> None:
    try:
        loaded(file, text)
    except ConfigError as error:
        for problem in error.problems:
            assert problem.file
            assert "\n" not in str(problem)
