"""Imports go one way: kvwatt <- kvwattd <- kvwatt_sim; the core does no I/O and reads no clock."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"kvwatt": "predictor", "kvwattd": "daemon", "kvwatt_sim": "simulator"}
ALLOWED = {"kvwatt": {"kvwatt"}, "kvwattd": {"kvwatt", "kvwattd"}, "kvwatt_sim": set(PACKAGES)}
# The library's doors to the disk: artifacts, and compiled tables beside them.
DOORS = {"artifact.py", "table_cache.py"}
# What vLLM itself loads. The scheduler needs PROJ and remaining lengths, which are plain Python.
LOADED_BY_VLLM = {"tap.py", "scheduler.py"}
PROJ = {"inside.py", "lengths.py"}
IO_MODULES = {"os", "socket", "subprocess", "asyncio", "httpx", "pathlib", "time", "random", "datetime"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / PACKAGES[package.split("/")[0]] / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_one_above_it(package: str) -> None:
    """The daemon never needs the simulator, the library never needs the daemon."""
    files = modules(package)
    assert len(files) > 5
    for path in files:
        above = (imported(path) & set(PACKAGES)) - ALLOWED[package]
        assert not above, f"{path} imports {above}"


def test_the_library_does_no_input_or_output() -> None:
    """Only its doors touch files; nothing reads a clock or draws random numbers."""
    for path in modules("kvwatt"):
        if path.name in DOORS:
            continue
        assert not imported(path) & IO_MODULES, path


def test_the_daemon_never_imports_vllm() -> None:
    """vLLM is controlled from outside; only the classes that vLLM itself loads know it."""
    plugin = ROOT / "daemon" / "kvwattd" / "vllm_plugin"
    importing = {path for path in modules("kvwattd") + modules("kvwatt") if "vllm" in imported(path)}
    assert importing == {plugin / name for name in LOADED_BY_VLLM}


def test_the_plugin_inside_vllm_needs_only_what_vllm_brings() -> None:
    """The tap imports the standard library, msgspec and itself: it can be installed without dependencies."""
    allowed = {*sys.stdlib_module_names, "msgspec", "kvwattd", "vllm"}
    files = modules("kvwattd/vllm_plugin")
    assert len(files) > 3
    for path in files:
        assert imported(path) <= (allowed | {"kvwatt"} if path.name in PROJ else allowed), path
        text = path.read_text(encoding="utf-8")
        assert text.count("kvwattd.") == text.count("kvwattd.vllm_plugin"), path


def test_what_vllm_takes_of_scheduling_needs_nothing_else() -> None:
    """The library's modules that the scheduler inside vLLM imports bring only the standard library along."""
    scheduling = ROOT / "predictor" / "kvwatt" / "scheduling"
    for name in ("cap_ladder.py", "remaining.py", "proj.py", "worth.py", "__init__.py"):
        assert imported(scheduling / name) <= {*sys.stdlib_module_names, "kvwatt"}, name
