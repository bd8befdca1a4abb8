"""Programs of Debian packages for tests and benches: from PATH, or unpacked into the cache without root.

The one place that fetches packages. A folder of the cache holds a program's packages with the libraries
that a plain Debian lacks; two processes that fetch the same make a folder each, and the first one stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kvwatt"
FETCH_S = 300.0
SYSTEM = "/usr/sbin:/usr/local/sbin"


class NoProgramError(Exception):
    """Neither installed nor to be had; the message says why."""


def find(name: str, packages: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Path of a program, and what its environment needs beside our own. Raises NoProgramError.

    `packages`: the one that has it comes first, then libraries that it links to.
    """
    installed = shutil.which(name) or shutil.which(name, path=SYSTEM)
    if installed:
        return installed, {}
    root = CACHE / f"debian-{packages[0]}"
    if not root.exists():
        _fetch(packages, root)
    found = [root / folder / name for folder in ("usr/bin", "usr/sbin") if (root / folder / name).exists()]
    if not found:
        raise NoProgramError(f"the package {packages[0]} in {root} has no program {name}")
    libraries = ":".join(str(path) for path in sorted(root.glob("usr/lib/*-linux-gnu")))
    return str(found[0]), {"LD_LIBRARY_PATH": libraries} if libraries else {}


def _fetch(packages: Sequence[str], root: Path) -> None:
    """`apt-get download` and `dpkg -x`: neither needs root, nothing is installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoProgramError(f"{packages[0]} is not installed, and without apt-get it cannot be fetched")
    partial = root.with_name(f"{root.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _download(packages, partial)
        for archive in sorted(partial.glob("*.deb")):
            subprocess.run(["dpkg", "-x", archive, partial], check=True, capture_output=True)
            archive.unlink()
        _place(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _place(partial: Path, root: Path) -> None:
    """Unless another process was first."""
    try:
        partial.rename(root)
    except OSError:
        if not root.exists():
            raise


def _download(packages: Sequence[str], folder: Path) -> None:
    command = ["apt-get", "download", *packages]
    try:
        got = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=FETCH_S
        )
    except subprocess.TimeoutExpired as error:
        raise NoProgramError(f"{packages[0]}: apt-get download took more than {FETCH_S:g} s") from error
    if got.returncode != 0:
        told = got.stderr.strip()[-300:]
        raise NoProgramError(f"{packages[0]} is not installed and cannot be fetched: {told}")
