"""Runs code with a GpuReader over simulated GPUs in a process of its own, since NVML is process-wide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_scripts import answer, gpu_spec

from kvwatt_sim.nvml.build import NvmlLibs, build

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import Fault
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
{body}

print(json.dumps(asyncio.run(main())))
"""


@pytest.fixture(scope="session")
def reader_libs() -> NvmlLibs:
    return build()


@pytest.fixture
def reader(reader_libs: NvmlLibs, tmp_path: Path) -> Callable[..., Any]:
    """Runs the body of an async function over two GPUs (the second has MIG on); gives what it returns."""

    def run(body: str, manual_time: bool = False) -> Any:
        specs = [gpu_spec(0), gpu_spec(1, mig=True)]
        return answer(SCRIPT, body, specs, reader_libs, tmp_path / "gpus", manual_time)

    return run
