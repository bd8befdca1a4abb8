"""The unit files: accepted by systemd, sandboxed, and true to the programs they start."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvwattd.guard.config import build, parse_flags, with_file

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = ["kvwatt.service", "kvwatt-guard.service"]
PROGRAM = re.compile(r"/opt/kvwatt/bin/(?P<name>[a-z-]+)")
analyze = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(analyze is None, reason="systemd-analyze is not installed")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they would be installed, with programs that exist."""
    program = shutil.which("true") or "/bin/true"
    for name in UNITS:
        (tmp_path / name).write_text(PROGRAM.sub(program, (FOLDER / name).read_text()))
    return tmp_path


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def run(*arguments: str) -> str:
    assert analyze is not None
    done = subprocess.run(
        [analyze, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@needs_systemd
def test_verify(installed: Path) -> None:
    """systemd finds nothing to say about either unit."""
    assert run("verify", *(str(installed / name) for name in UNITS)) == ""


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_exposure(installed: Path, name: str) -> None:
    """Offline exposure is at most 1.5."""
    output = run("security", "--offline=true", "--no-pager", str(installed / name))
    level = re.search(r"Overall exposure level for \S+: (?P<level>[0-9.]+)", output)
    assert level is not None, output
    assert float(level["level"]) <= 1.5


def test_guard_unit_undoes_what_it_started() -> None:
    """The stop hook is the same program with the same configuration, told to reset what is recorded."""
    unit = settings("kvwatt-guard.service")
    (start,), (stop,) = unit["ExecStart"], unit["ExecStopPost"]
    assert stop == f"{start} --reset-recorded"
    assert unit["Type"] == ["notify"]
    assert unit["Restart"] == ["always"]
    assert unit["WatchdogSec"] == ["3s"]
    assert unit["CapabilityBoundingSet"] == ["CAP_SYS_ADMIN"]
    assert unit["PrivateNetwork"] == ["yes"]


def test_daemon_unit_has_no_privilege() -> None:
    """The daemon runs as its own user, without a capability, on loopback only."""
    unit = settings("kvwatt.service")
    assert unit["User"] == ["kvwatt"]
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["IPAddressDeny"] == ["any"]
    assert unit["IPAddressAllow"] == ["localhost"]
    assert "WatchdogSec" in unit


def test_guard_example_is_accepted() -> None:
    """The shipped guard.toml is valid and fits the unit's folders."""
    unit = settings("kvwatt-guard.service")
    options, flags = parse_flags(["--config", str(FOLDER / "guard.toml"), "--reset-recorded"])
    values = with_file(options, {**flags, "state_file": unit["ExecStart"][0].split()[-1]})
    assert values.pop("users") == [unit["Group"][0]]  # no such user here, and none other may ask
    config = build(values)
    assert options.reset_recorded
    assert str(config.socket.parent) == f"/run/{unit['RuntimeDirectory'][0]}"
    assert str(config.state_file.parent) == f"/var/lib/{unit['StateDirectory'][0]}"
    assert config.socket_mode == 0o660
