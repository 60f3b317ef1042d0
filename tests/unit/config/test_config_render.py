"""Showing a configuration: masks, origins, quoting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from acme_wsgi.config import Config, load
from acme_wsgi.config.render import quoted, to_json, to_yaml


def test_secrets_are_masked() -> None:
    config = load(
        [],
        {},
        [
            "cache.l2.password=hush",
            "cache.cdn.token=hush",
            "database.url=postgresql://shop:hush@db.internal/shop?sslpassword=hush",
            "backends=[{url: 'http://shop:hush@a.example/'}, {url: 'http://b.example/'}]",
        ],
    )
    for text in (to_yaml(config), to_json(config), to_yaml(config, origins=True)):
        assert "hush" not in text
        assert "postgresql://shop:***@db.internal/shop?***" in text
        assert "http://shop:***@a.example/" in text
        assert "http://b.example/" in text
    assert "hush" in to_yaml(config, mask=False)


def test_a_secret_of_a_file_is_not_written_beside_the_files_name(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    config = load([], {}, [f"cache.l2.password_file={secret}"])
    text = to_yaml(config, mask=False)
    assert "hush" not in text
    (tmp_path / "a.yaml").write_text(text)
    assert load([str(tmp_path / "a.yaml")]) == config


def test_origins_stand_behind_the_values(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("server:\n  port: 81\n")
    config = load([str(tmp_path)], {"ACME_WORKERS": "2"}, ["server.timeout=5s"])
    lines = to_yaml(config, origins=True).splitlines()
    for key, origin in (
        ("  port: 81", f"{tmp_path}/a.yaml:2"),
        ("  workers: 2", "environment ACME_WORKERS"),
        ("  timeout: 5s", "--set"),
        ("  io_threads: 4", "default"),
    ):
        (line,) = [line for line in lines if line.startswith(key)]
        assert line.endswith(f"  # {origin}")


def test_an_origin_cannot_break_out_of_its_comment(tmp_path: Path) -> None:
    (tmp_path / "a\nserver: {port: 1}\n.yaml").write_text("server: {workers: 2}")
    text = to_yaml(load([str(tmp_path)]), origins=True)
    (tmp_path / "b").write_text(text)
    assert load([str(tmp_path / "b")]).server.port == 8080


def test_json_has_numbers() -> None:
    tree = json.loads(to_json(Config()))
    assert tree["server"]["timeout"] == 30.0
    assert tree["server"]["max_body_size"] == 10 << 20
    assert tree["logging"]["access"]["sample"] == 1.0
    assert (
        json.loads(to_json(load([], {}, ["server.port=1"]), origins=True))["origins"]["server.port"]
        == "--set"
    )


def test_other_readers_of_yaml_see_the_same(tmp_path: Path) -> None:
    config = load(
        [], {}, ["cache.l2.password=010", "server.user=on", "routes=[{path: /, type: wsgi, app: x}]"]
    )
    tree = yaml.safe_load(to_yaml(config, mask=False))
    assert tree["cache"]["l2"]["password"] == "010"
    assert tree["server"]["user"] == "on"
    assert tree["routes"][0]["app"] == "x"


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a b",
        "on",
        "1",
        "a: b",
        "a #b",
        "'",
        '"',
        "\\",
        "é",
        "\ufffe",
        "*",
        "- a",
        "a:",
        "~",
        "{",
        "\U0001f600",
    ],
)
def test_quoting(text: str) -> None:
    assert yaml.safe_load(quoted(text)) == text
