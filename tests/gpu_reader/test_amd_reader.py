"""AMD GPUs read by the daemon's own reader, over the simulated libamd_smi.so, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvwatt_sim.amd.build import amd_uuid, build, env_for
from kvwatt_sim.cards import load
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.guard.amd_inferred import PowerByEnergy

SCRIPT = """
import asyncio, json, sys
from kvwattd.telemetry.gpu import GpuReader, GpuUnavailable

async def main():
    uuid, absent = sys.argv[1:]
    reader = GpuReader([uuid], 5.0)
    (info,) = await reader.start()
    sample = (await reader.read())[uuid]
    later = (await reader.read())[uuid]
    print(json.dumps({
        "name": info.name, "ends": [info.supported_mhz[0], info.supported_mhz[-1]],
        "default": info.default_mhz, "limit_w": info.power_limit_w, "driver": info.driver_version,
        "power_w": sample.power_w, "busy": sample.utilization, "grows": later.energy_j >= sample.energy_j,
    }))
    try:
        await GpuReader([absent], 5.0).start()
    except GpuUnavailable as error:
        print(error)

asyncio.run(main())
"""


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[SimGpus]:
    with SimGpus.create(tmp_path / "gpus", [load("l20").gpu_spec(demo_uuid(i)) for i in range(2)]) as made:
        yield made


def run(gpus: SimGpus, *uuids: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env_for(build(), gpus.path)}
    command = [sys.executable, "-c", SCRIPT, *uuids]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def test_an_amd_gpu_is_read_and_never_set(gpus: SimGpus) -> None:
    """What it is, what it draws by its energy counter; an unknown one is named with those that are there."""
    gpus.publish(0, 0.6, 0.3)
    uuid = amd_uuid(gpus.spec(0).uuid)
    done = run(gpus, uuid, "AMD-nobody")
    assert done.returncode == 0, done.stderr
    told, absent = done.stdout.splitlines()
    seen = json.loads(told)
    assert (seen["name"], seen["ends"], seen["default"]) == ("NVIDIA L20", [210, 2520], 2520)
    assert seen["limit_w"] == 275.0
    assert seen["power_w"] == pytest.approx(gpus.read(0).power_w, rel=0.6)  # two refreshes of the counter
    assert seen["busy"] > 0 and seen["grows"] and seen["driver"]
    assert "AMD-nobody" in absent and uuid in absent
    assert gpus.setter_log() == []


def test_limits_in_force_hide_the_range(gpus: SimGpus) -> None:
    """The driver lists the limits, not the hardware: such a GPU is not taken for a slower one."""
    gpus.request_lock(0, (600, 900))
    done = run(gpus, amd_uuid(gpus.spec(0).uuid), "AMD-nobody")
    assert "clock limits are set and hide its range" in done.stderr


def test_power_is_the_growth_of_the_counter() -> None:
    """Over about a second; a counter that begins anew starts over, and nothing is made up."""
    meter = PowerByEnergy()
    assert meter.update(0.0, 0.0) is None and meter.update(0.4, 40e6) is None
    assert meter.update(0.5, 50e6) == pytest.approx(100.0)
    assert meter.update(2.0, 350e6) == pytest.approx(200.0, rel=0.2)
    assert meter.update(2.5, 1e6) is None
