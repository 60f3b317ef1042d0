"""The systemd units: right in systemd's own eyes, and narrow enough."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from acme_wsgi import units, worker
from acme_wsgi.config.schema.server import Server
from acme_wsgi.errors import EX_BOOT, EX_CONFIG

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "debian" / "acme.service"
SOCKET = ROOT / "debian" / "acme.socket"
WIDEST = 3.0
"""Highest exposure that `systemd-analyze security` may find, of 10."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


class Settings(dict[str, list[str]]):
    """The lines of all sections of a unit; a key may stand there several times."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "[")):
                key, _, value = line.partition("=")
                self.setdefault(key, []).append(value)

    def one(self, key: str) -> str:
        [value] = self[key]
        return value


@pytest.fixture
def service() -> Settings:
    return Settings(SERVICE)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Path]:
    """A root directory with our units, systemd's own, and something at the commands' paths."""
    root = tmp_path / "root"
    target = root / "etc/systemd/system"
    target.mkdir(parents=True)
    commands = root / "usr/bin"
    commands.mkdir(parents=True)
    for name in ("acme-wsgi", "acme-server"):
        (commands / name).write_text("#!/bin/sh\n")
        (commands / name).chmod(0o755)
    for pattern in ("*.target", "*.slice", "*.mount"):
        for unit in Path("/usr/lib/systemd/system").glob(pattern):
            shutil.copy(unit, target, follow_symlinks=True)
    for unit in (SERVICE, SOCKET):
        shutil.copy(unit, target)
    yield root


def analyze(system: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", f"--root={system}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@needs_systemd
def test_systemd_has_nothing_to_say_against_the_units(system: Path) -> None:
    # The manual pages of these units are not installed here.
    ended = analyze(system, "verify", "--man=no", "acme.service", "acme.socket")
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


@pytest.mark.slow
@needs_systemd
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[Service]\nNoSuchKey=1", "NoSuchKey"),
        ("[Service]\nWatchdogSec=soon", "soon"),
        ("[Service]\nSystemCallFilter=@no-such-group", "no-such-group"),
        ("[Service]\nExecStart=\nExecStart=/usr/bin/no-such-command", "no-such-command"),
    ],
)
def test_the_verification_finds_mistakes(system: Path, line: str, complaint: str) -> None:
    with open(system / "etc/systemd/system/acme.service", "a") as unit:
        unit.write(f"\n{line}\n")
    assert complaint in analyze(system, "verify", "--man=no", "acme.service").stderr


def exposure(system: Path) -> float:
    ended = analyze(system, "security", "--offline=true", "acme.service")
    found = re.search(r"exposure level for acme\.service: ([0-9.]+)", ended.stdout)
    assert found is not None, ended.stdout + ended.stderr
    return float(found[1])


@needs_systemd
def test_a_worker_that_is_broken_into_reaches_little(system: Path) -> None:
    assert exposure(system) < WIDEST
    unit = system / "etc/systemd/system/acme.service"
    # What the figure is worth: the same without the hardening.
    unit.write_text(unit.read_text().partition("# Of root's powers")[0] + "\n[Service]\nUser=root\n")
    assert exposure(system) > 2 * WIDEST


def test_no_power_of_roots_but_the_low_ports(service: Settings) -> None:
    assert (
        service.one("AmbientCapabilities") == service.one("CapabilityBoundingSet") == "CAP_NET_BIND_SERVICE"
    )
    assert service.one("User") == service.one("Group") == "acme"
    assert service.one("NoNewPrivileges") == "yes"


def test_the_stop_may_take_as_long_as_the_server_takes(service: Settings) -> None:
    patience = units.parse_duration(service.one("TimeoutStopSec"))
    assert patience > Server().shutdown_timeout + 2 * worker.STOP_MARGIN


def test_what_no_new_start_can_heal_is_not_started_again(service: Settings) -> None:
    assert service.one("Restart") == "on-failure"
    assert set(service.one("RestartPreventExitStatus").split()) == {str(EX_CONFIG), str(EX_BOOT)}


def test_the_server_speaks_for_itself(service: Settings) -> None:
    """What the upgrade and the reload rest on; Type=notify-reload is unknown to Debian 12's systemd 252."""
    assert service.one("Type") == "notify"
    assert service.one("NotifyAccess") == "all"
    assert service.one("KillMode") == "mixed"
    assert service.one("ExecReload").endswith("acme-server reload --wait")
    assert units.parse_duration(service.one("WatchdogSec")) >= 5, "the arbiter looks round twice a second"


def test_the_directories_are_nobody_elses_to_read(service: Settings) -> None:
    for kind in ("Runtime", "State", "Cache", "Logs"):
        assert service.one(f"{kind}Directory") == "acme"
        assert service.one(f"{kind}DirectoryMode") == "0750"
    assert service.one("UMask") == "0027"


def test_the_sections_are_where_systemd_looks_for_them() -> None:
    for path, sections in (
        (SERVICE, ["Unit", "Service", "Install"]),
        (SOCKET, ["Unit", "Socket", "Install"]),
    ):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read(path)
        assert parser.sections() == sections
