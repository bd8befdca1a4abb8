"""A program of a Debian package: from PATH, or the package unpacked into the cache folder without root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kvwatt"


def program(package: str, name: str) -> str:
    """Path of `name`. Skips the test where it is neither installed nor to be had."""
    installed = shutil.which(name)
    if installed:
        return installed
    root = CACHE / f"debian-{package}"
    if not root.exists():
        _fetch(package, root)
    return str(root / "usr" / "bin" / name)


def _fetch(package: str, root: Path) -> None:
    """`apt-get download` and `dpkg -x`: neither needs root, nothing is installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip(f"{package} is not installed, and there is no apt-get to fetch it")
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f"{root.name}.{os.getpid()}")
    partial.mkdir()
    try:
        got = subprocess.run(
            ["apt-get", "download", package], cwd=partial, capture_output=True, text=True, check=False
        )
        if got.returncode != 0:
            pytest.skip(f"{package} is not installed and cannot be fetched: {got.stderr.strip()[-300:]}")
        archive = next(partial.glob("*.deb"))
        subprocess.run(["dpkg", "-x", archive, partial], check=True, capture_output=True)
        archive.unlink()
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
