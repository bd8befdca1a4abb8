"""A real guard process over simulated GPUs, and real clients."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_scripts import gpu_spec
from guard_stage import HANG_S, PATIENCE_S, GuardStage

from kvwatt_sim.nvml.build import NvmlLibs, build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwattd.guard.client import GuardClient


@pytest.fixture(scope="session")
def guard_libs() -> NvmlLibs:
    return build()


@pytest.fixture
def gpus(guard_libs: NvmlLibs, tmp_path: Path) -> Iterator[SimGpus]:
    """Four GPUs; MIG is on on the last."""
    specs = [replace(gpu_spec(i, mig=i == 3), switch_latency_s=0.0) for i in range(4)]
    with SimGpus.create(tmp_path / "gpus", specs, libs=guard_libs) as made:
        yield made


@pytest.fixture
def stage(gpus: SimGpus, guard_libs: NvmlLibs, tmp_path: Path) -> Iterator[GuardStage]:
    made = GuardStage(tmp_path, gpus, env_for(guard_libs, gpus.path))
    yield made
    for index in range(gpus.count):
        gpus.clear_faults(index)
    made.end()


@pytest.fixture
def hang(stage: GuardStage) -> None:
    """For `usefixtures`: a call of the driver that does not come back is given up soon."""
    stage.nvml_deadline_s = HANG_S


@pytest.fixture
async def client(stage: GuardStage) -> AsyncIterator[GuardClient]:
    """A controller of a running guard."""
    await stage.start()
    made = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await made.connect()
    yield made
    await made.close()


CONTROLLER = """
import asyncio, sys
from pathlib import Path
from kvwattd.guard.client import GuardClient

async def main():
    client = GuardClient(Path(sys.argv[1]), timeout_s=60.0)
    await client.connect()
    await client.set_clocks(sys.argv[2:], 300, 1200)
    print("SET", flush=True)
    while True:
        await client.renew()
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


@pytest.fixture
def controller(stage: GuardStage) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a separate process that sets clocks on GPUs 0 and 1 and renews until it is stopped."""
    running: list[subprocess.Popen[str]] = []

    def start(*uuids: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", CONTROLLER, str(stage.socket), *(uuids or stage.uuids[:2])]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "SET\n"
        return process

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait(90)
        assert process.stdout is not None
        process.stdout.close()
