"""Runs code with a GpuReader over simulated GPUs in a process of its own, since NVML is process-wide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvwatt_sim.nvml.build import NvmlLibs, build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import GpuSpec, PowerLaw, demo_uuid

LAW = PowerLaw(f_ref_mhz=2520, idle_w=36, idle_slope_w=12, compute_w=150, memory_clock_w=60, memory_w=50)

PRELUDE = """
import asyncio, json, sys
from pathlib import Path
from kvwatt_sim.nvml.control import Fault, SimGpus
from kvwattd.telemetry.gpu import GpuReader, GpuUnavailable

gpus = SimGpus.open(Path(sys.argv[1]))
UUIDS = [gpus.spec(i).uuid for i in range(gpus.count)]

async def readable(reader, wanted, tries=600):
    for _ in range(tries):
        try:
            samples = await reader.read()
        except GpuUnavailable:
            samples = {}
        if wanted <= samples.keys():
            return samples
        await asyncio.sleep(0.05)
    raise AssertionError("never readable")

async def unavailable(awaitable):
    try:
        await awaitable
    except GpuUnavailable as error:
        return str(error)
    raise AssertionError("was available")

async def main():
"""


def gpu_spec(index: int) -> GpuSpec:
    return GpuSpec(
        name="NVIDIA L20",
        uuid=demo_uuid(index),
        arch="ada",
        memory_total_bytes=48 << 30,
        memory_clock_mhz=9001,
        supported_mhz=tuple(range(210, 2521, 15)),
        boost_mhz=2520,
        idle_mhz=210,
        power_law=LAW,
        default_cap_w=275.0,
        min_cap_w=100.0,
        max_cap_w=275.0,
        mig=index == 1,
    )


@pytest.fixture(scope="session")
def reader_libs() -> NvmlLibs:
    return build()


@pytest.fixture
def reader(reader_libs: NvmlLibs, tmp_path: Path) -> Callable[..., Any]:
    """Runs the body of an async function over two GPUs (the second has MIG on); gives what it returns."""

    def run(body: str, manual_time: bool = False) -> Any:
        path = tmp_path / "gpus"
        with SimGpus.create(path, [gpu_spec(0), gpu_spec(1)], manual_time=manual_time, libs=reader_libs):
            script = PRELUDE + textwrap.indent(textwrap.dedent(body), "    ")
            script += "\nprint(json.dumps(asyncio.run(main())))\n"
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", script, str(path)],
                env={**os.environ, **env_for(reader_libs, path)},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
