"""The install script in a staging folder: what it puts where, twice the same, nothing left afterwards."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "deploy" / "install.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything below, by path."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (stat.S_IMODE(path.lstat().st_mode), content)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system that has some of the folders already, and files of others in them."""
    (tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    (tmp_path / "etc" / "systemd" / "system" / "other.service").write_text("[Service]\n")
    (tmp_path / "var" / "lib").mkdir(parents=True)
    (tmp_path / "var" / "lib").chmod(0o711)  # an operator's choice
    return tmp_path


def installed(root: Path) -> dict[str, tuple[int, bytes]]:
    done = run("--root", str(root))
    assert done.returncode == 0, done.stderr
    return tree(root)


def test_what_is_put_where(root: Path) -> None:
    """Units, users, folders and configuration, with modes that keep the daemon from the guard's own."""
    found = installed(root)
    shipped = REPOSITORY / "systemd"
    for name in ("kvwatt-guard.service", "kvwatt.service"):
        assert found[f"etc/systemd/system/{name}"] == (0o644, (shipped / name).read_bytes())
    assert found["etc/kvwatt/guard.toml"] == (0o644, (shipped / "guard.toml").read_bytes())
    assert found["etc/kvwatt/kvwatt.toml"][0] == 0o640
    assert found["usr/lib/sysusers.d/kvwatt.conf"][1] == (shipped / "kvwatt.sysusers").read_bytes()
    assert found["usr/lib/tmpfiles.d/kvwatt.conf"][1] == (shipped / "kvwatt.tmpfiles").read_bytes()
    assert found["var/lib/kvwatt-guard"][0] == 0o700
    for path in root.rglob("*"):
        assert path.lstat().st_uid == os.geteuid()
        assert not path.lstat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_again_keeps_the_configuration(root: Path) -> None:
    """A second run changes nothing, and leaves what the operator wrote."""
    installed(root)
    (root / "etc/kvwatt/guard.toml").write_text('gpus = ["GPU-1"]\n')
    before = tree(root)
    assert installed(root) == before


def test_uninstall_restores_everything(root: Path) -> None:
    """Afterwards the system is as it was, also when both were run twice."""
    before = tree(root)
    installed(root)
    installed(root)
    (root / "etc/systemd/system/kvwatt.service.d").mkdir()
    (root / "etc/systemd/system/kvwatt.service.d/override.conf").write_text("[Service]\n")
    (root / "var/lib/kvwatt").mkdir()
    for _ in range(2):
        done = run("--root", str(root), "--uninstall")
        assert done.returncode == 0, done.stderr
        assert tree(root) == before


def test_instances_are_asked_for(root: Path) -> None:
    """Only with --instances may kvwatt start and stop units; a unit of the operator's own stays."""
    assert not {name for name in installed(root) if "vllm" in name or "polkit" in name}
    own = root / "etc/systemd/system/vllm@.service"
    own.write_text("[Service]\n")
    for _ in range(2):
        done = run("--root", str(root), "--instances")
        assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout and own.read_text() == "[Service]\n"
    rule = root / "etc/polkit-1/rules.d/50-kvwatt.rules"
    assert rule.read_bytes() == (REPOSITORY / "systemd" / "50-kvwatt.rules").read_bytes()
    own.unlink()
    assert run("--root", str(root), "--instances").returncode == 0
    assert own.read_bytes() == (REPOSITORY / "systemd" / "vllm@.service").read_bytes()


def test_uninstall_takes_the_instances_along(root: Path) -> None:
    """Unit, rule and the folders made for them are gone; a unit of the operator's own is not."""
    before = tree(root)
    assert run("--root", str(root), "--instances").returncode == 0
    assert tree(root) != before
    assert run("--root", str(root), "--uninstall").returncode == 0
    assert tree(root) == before
    (root / "etc/systemd/system/vllm@.service").write_text("[Service]\n")
    before = tree(root)
    assert run("--root", str(root), "--instances").returncode == 0
    assert run("--root", str(root), "--uninstall").returncode == 0
    assert tree(root) == before


def test_wrong_arguments_change_nothing(root: Path) -> None:
    """An unknown or incomplete option is named, and nothing happens."""
    before = tree(root)
    for arguments in (
        ("--rot", str(root)),
        ("--root",),
        ("--root", "relative"),
        ("--root", str(root / "no")),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert arguments[0] in done.stderr
    assert tree(root) == before
