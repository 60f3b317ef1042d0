"""`acme-server`: its frame, the verb config, the verb validate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from acme_wsgi import cli
from acme_wsgi.cli import manage

APP = "def application(environ, start_response): ...\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an application, as the working directory, and no configuration of this machine."""
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(tmp_path / "none"))
    for name in list(os.environ):
        if name.startswith("ACME_"):
            monkeypatch.delenv(name)
    return tmp_path


def validated(site: Path, text: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[str]]:
    (site / "acme.yaml").write_text(text)
    status = manage.main(["validate", "--config", "acme.yaml", *more])
    return status, capsys.readouterr().out.splitlines()


GOOD = "server: {host: 127.0.0.1, port: 0}\nroutes: [{path: /*, type: wsgi, app: 'shop:application'}]\n"


def test_a_good_configuration(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = validated(site, GOOD, capsys)
    assert status == 0
    assert lines == [
        "✓ syntax: every key is known and every value allowed",
        "✓ referenced files: all there",
        "✓ certificates: none configured",
        "✓ port free: the kernel chooses",
        "✓ no conflicts: nothing contradicts anything",
    ]


def test_problems_are_all_shown_after_the_five_lines(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = validated(site, "server:\n  prot: 1\ncache: {size: 1MB, l1: {size: 2MB}}\n", capsys)
    assert status == 78
    assert [line[0] for line in lines[:5]] == ["✗", "✗", "✗", "✗", "✗"]
    assert lines[0] == "✗ syntax: 1 problem"
    assert lines[4] == "✗ no conflicts: 1 problem"
    assert lines[5] == "acme.yaml:2:3: server.prot: unknown key; did you mean port?"
    assert lines[6].startswith("acme.yaml:3:31: cache.l1.size: 2MB is above cache.size (acme.yaml:3)")


def test_bundles_that_can_never_be_are_found(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patterns = "['/static/*.html -> /static/x.html']"
    text = f"{GOOD}static:\n  concatenation: {{enabled: true, patterns: {patterns}}}\n"
    status, lines = validated(site, text, capsys)
    assert status == 78
    assert any(
        line.startswith("acme.yaml:4: static.concatenation.patterns: /static/x.html: ") for line in lines
    )


def test_a_file_that_is_not_there(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manage.main(["validate", "-c", "nowhere"]) == 78
    assert "nowhere: can't be read: No such file or directory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("routes: [{path: /, type: wsgi, app: 'nope:app'}]", "routes[0].app: no module 'nope'"),
        ("routes: [{path: /, type: wsgi, app: 'shop.sub:app'}]", "routes[0].app: no module 'shop.sub'"),
        ("routes: [{path: /, type: handler, handler: 'no.pe:x'}]", "routes[0].handler: no module 'no.pe'"),
        ("routes: [{path: /, type: static, root: /no/where}]", "routes[0].root: '/no/where' doesn't exist"),
        ("routes: [{path: /, type: static, root: /dev/null}]", "routes[0].root: '/dev/null' is no directory"),
        (
            "routes: [{path: /, type: proxy, backend: 'http://a', fallback: busy.html}]",
            "routes[0].fallback: 'busy.html' can't be read: No such file or directory",
        ),
        ("logging: {access: {output: /no/where/access.log}}", "logging.access.output: directory '/no/where'"),
        ("server: {runtime_dir: /no/where}", "server.runtime_dir: directory '/no' doesn't exist"),
        ("cache: {l2: {password_file: /no/where}}", "cache.l2.password_file: '/no/where': No such file"),
    ],
)
def test_files_that_are_named_and_not_there(
    site: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    status, lines = validated(site, text, capsys, "--set", "server.port=0")
    assert status == 78
    assert "✗ referenced files: 1 problem" in lines
    assert any(line.startswith("acme.yaml:1") and message in line for line in lines)


def test_applications_are_not_imported(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "shop.py").write_text("raise SystemExit('imported')")
    (site / "package").mkdir()
    (site / "package" / "__init__.py").write_text("raise SystemExit('imported')")
    (site / "package" / "web.py").write_text(APP)
    routes = (
        "routes: [{path: /*, type: wsgi, app: shop}, {path: /a, type: wsgi, app: 'package.web:application'}]"
    )
    status, _ = validated(site, "server: {port: 0}\n" + routes, capsys)
    assert status == 0


def test_a_port_in_use(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines = validated(site, GOOD, capsys, "--set", f"server.port={port}")
    assert status == 78
    assert lines[3].startswith(f"✗ port free: cannot listen on 127.0.0.1:{port}: already in use")
    status, lines = validated(site, GOOD, capsys, "--set", f"server.port={port}")
    assert (status, lines[3]) == (0, f"✓ port free: 127.0.0.1:{port}")


def test_a_unix_socket(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = validated(site, GOOD, capsys, "--set", f"server.host=unix:{site}/s")
    assert (status, lines[3]) == (0, f"✓ port free: unix:{site}/s")
    assert not (site / "s").exists()
    (site / "s").write_text("precious")
    status, lines = validated(site, GOOD, capsys, "--set", f"server.host=unix:{site}/s")
    assert (status, lines[3]) == (78, f"✗ port free: '{site}/s' is there and is no socket")
    status, lines = validated(site, GOOD, capsys, "--set", f"server.host=unix:{site}/no/s")
    assert (status, lines[3]) == (78, f"✗ port free: directory '{site}/no' doesn't exist")


def test_what_is_not_built_yet_is_a_warning_and_no_error(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = validated(site, GOOD + "cache: {size: 1GB}\n", capsys)
    assert status == 0
    assert lines[5:] == [
        "warning: acme.yaml:3:15: cache.size: has no effect: this version doesn't have it yet"
    ]


def test_applications_that_would_be_patched_too_late(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "shop.py").write_text("from gevent import monkey\nmonkey.patch_all()\n" + APP)
    status, lines = validated(site, GOOD, capsys, "--set", "server.preload_app=true")
    assert status == 0
    assert any("would be imported in the arbiter, which is never patched" in line for line in lines)
    assert any(f"{site}/shop.py:2 patches by itself" in line for line in lines)


def test_validate_as_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = validated(site, "server: {prot: 1}", capsys, "--json")
    answer = json.loads("\n".join(lines))
    assert status == 78
    assert answer["ok"] is False
    assert [check["name"] for check in answer["checks"]] == [
        "syntax",
        "referenced files",
        "certificates",
        "port free",
        "no conflicts",
    ]
    assert answer["problems"] == [
        {
            "file": "acme.yaml",
            "line": 1,
            "column": 10,
            "key": "server.prot",
            "message": "unknown key",
            "hint": "did you mean port?",
        }
    ]


# -- config -----------------------------------------------------------------------------------------------


def test_config_with_origins(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "acme.yaml").write_text(GOOD)
    assert manage.main(["config", "-c", "acme.yaml", "--origins", "--set", "cache.l2.password=hush"]) == 0
    out = capsys.readouterr().out
    assert "  host: 127.0.0.1" in out
    assert "# acme.yaml:1" in out
    assert "hush" not in out


def test_config_defaults_ignore_what_is_configured(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manage.main(["config", "--defaults", "--json", "--set", "server.port=1"]) == 0
    assert json.loads(capsys.readouterr().out)["server"]["port"] == 8080


def test_config_of_a_wrong_configuration(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manage.main(["config", "--set", "server.port=x"]) == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "--set: server.port: found 'x', allowed: a whole number from 0 to 65535\n"


def test_the_default_configuration_is_read_if_it_is_there(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(site / "conf.d"))
    (site / "conf.d").mkdir()
    (site / "conf.d" / "a.yaml").write_text("server: {port: 77}")
    assert manage.main(["config"]) == 0
    assert "  port: 77\n" in capsys.readouterr().out


# -- the frame --------------------------------------------------------------------------------------------


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nope"], ["config", "--nope"], ["config", "--defaults", "--origins"]):
        with pytest.raises(SystemExit) as caught:
            manage.main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


def test_the_installed_command_loads_no_gevent_and_survives_a_plain_terminal_and_a_closed_pipe(
    site: Path,
) -> None:
    script = (
        "import sys; from acme_wsgi.cli import manage; status = manage.main(sys.argv[1:]);"
        "assert 'gevent' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", script]
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(Path(cli.__file__).parents[2]),
    }
    (site / "acme.yaml").write_text(GOOD)
    done = subprocess.run(
        [*command, "validate", "-c", "acme.yaml"], env=environ, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\\u2713 syntax")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [*command, "config"], env=environ, stdout=closed, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")
