"""Simulated GPUs for the tests of the simulated NVML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvwatt_sim.nvml.build import NvmlLibs, build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import GpuSpec, PowerLaw, demo_uuid

LAW = PowerLaw(f_ref_mhz=2520, idle_w=36, idle_slope_w=12, compute_w=150, memory_clock_w=60, memory_w=50)


def gpu_spec(index: int = 0, **changes: Any) -> GpuSpec:
    settings: dict[str, Any] = {
        "name": "NVIDIA L20",
        "uuid": demo_uuid(index),
        "arch": "ada",
        "memory_total_bytes": 48 << 30,
        "memory_clock_mhz": 9001,
        "supported_mhz": tuple(range(210, 2521, 15)),
        "boost_mhz": 2520,
        "idle_mhz": 210,
        "power_law": LAW,
        "default_cap_w": 275.0,
        "min_cap_w": 100.0,
        "max_cap_w": 275.0,
        "switch_latency_s": 0.1,
    }
    return GpuSpec(**(settings | changes))


@pytest.fixture(scope="session")
def libs() -> NvmlLibs:
    return build()


@pytest.fixture
def gpus(libs: NvmlLibs, tmp_path: Path) -> Iterator[SimGpus]:
    """Two GPUs whose time passes only when a test says so."""
    specs = [gpu_spec(0), gpu_spec(1)]
    with SimGpus.create(tmp_path / "gpus", specs, manual_time=True, libs=libs) as made:
        yield made


@pytest.fixture
def live_gpus(libs: NvmlLibs, tmp_path: Path) -> Iterator[SimGpus]:
    """Two GPUs on the machine's monotonic clock."""
    with SimGpus.create(tmp_path / "gpus", [gpu_spec(0), gpu_spec(1)], libs=libs) as made:
        yield made


@pytest.fixture(scope="session")
def stage(libs: NvmlLibs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimGpus]:
    """One GPU with its own time that keeps its history over all examples of a property test."""
    path = tmp_path_factory.mktemp("stage") / "gpus"
    with SimGpus.create(path, [gpu_spec()], manual_time=True, libs=libs) as made:
        yield made


PRELUDE = """
import json, sys, time
import pynvml as n

def answer(call, *args):
    try:
        return call(*args)
    except n.NVMLError as error:
        return type(error).__name__

n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
"""


@pytest.fixture
def nvml(libs: NvmlLibs, tmp_path: Path) -> Callable[[str], Any]:
    """Runs code with unmodified nvidia-ml-py in a process of its own and gives the value of `result`."""

    def run(code: str) -> Any:
        script = PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(result))\n"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **env_for(libs, tmp_path / "gpus")},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
