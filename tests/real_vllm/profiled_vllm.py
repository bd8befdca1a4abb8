"""`kvwatt profile` on real vLLM, `kvwatt train` on its table, and later load that neither has seen.

For test_profiled_vllm.py and bench/profiled.py. vLLM computes on the CPU and is held back to the step times
of the simulated L20 at its clock (slowed_worker.py); its own scatter comes on top.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from later_windows import POLL_S, Steps, by_page, by_step
from load_phases import Phase, requests
from plant_model import free_port
from tap_plugin import plugin_paths
from vllm_server import (
    CARD,
    MAX_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    VllmServer,
    make_model,
    running,
    vllm_python,
)

from kvwatt import artifact
from kvwatt.compiled import compile_model
from kvwatt.profiles import parse_csv
from kvwatt.state import EngineShape, EngineSnapshot
from kvwatt_sim.cards import load
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.traces import TraceRequest
from kvwattd.guard.spawn import spawn_guard
from kvwattd.profiler.lease import ClockLease
from kvwattd.telemetry.poller import Poller, new_client
from kvwattd.telemetry.tap import TapReceiver
from kvwattd.vllm_plugin.wire import Record

GPU = "GPU-5f1c2b7e-0000-4000-8000-000000000021"
UNSEEN_MHZ = (1200, 1890)  # between the clocks of the profile
RATE_PER_S = 1.8
TAP_SOCKET = "tap.sock"


def kvwatt(environment: dict[str, str], *arguments: str) -> str:
    """Run the command line; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "kvwattd", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def profiled(folder: Path, server: VllmServer, environment: dict[str, str], minutes: float) -> Path:
    """A model of this server from at most so many minutes of profiling."""
    table, model = folder / "profile.csv", folder / "model"
    options = {
        "--url": server.url,
        "--gpu": GPU,
        "--minutes": str(minutes),
        "--clocks": "4",
        "--window": "0.8",
        "--max-num-seqs": str(MAX_NUM_SEQS),
        "--max-num-batched-tokens": str(MAX_BATCHED_TOKENS),
        "--output": str(table),
    }
    words = [word for pair in options.items() for word in pair]
    said = kvwatt(environment, "profile", "--spawn-guard", *words)
    print(said[-800:])
    assert not {row.clock_mhz for row in parse_csv(table.read_text())} & set(UNSEEN_MHZ)
    kvwatt(environment, "train", "--profile", str(table), "-o", str(model))
    return model


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server told while it served at one clock."""

    pages: list[EngineSnapshot]
    records: list[Record]


async def later_load(server: VllmServer, folder: Path, clock_mhz: int, items: Sequence[TraceRequest]) -> Seen:
    """Pages of the server in quick succession, and its tap, while it serves `items` at a locked clock."""
    guard_socket = folder / f"guard-{clock_mhz}.sock"
    child = await spawn_guard(guard_socket, folder / "guard-state.json", [GPU])
    poller = Poller(server.url, 5.0, client=new_client())
    seen = Seen([], [])
    receiver = TapReceiver(folder / TAP_SOCKET, seen.records.append)
    await receiver.start()
    try:
        async with ClockLease(guard_socket, [GPU]) as lease:
            await lease.set(clock_mhz)
            generator = LoadGenerator(
                server.url, items, LoadOptions(model="tiny", exact_lengths=True, seed=5)
            )
            serving = asyncio.create_task(generator.run(time.monotonic()))
            while not serving.done():
                seen.pages.append(await poller.poll(time.monotonic))
                await asyncio.sleep(POLL_S)
            await serving
    finally:
        receiver.close()
        await poller.close()
        await child.stop()
    return seen


@dataclass(frozen=True, slots=True)
class Measured:
    """Predicted and observed steps by window, the ratios from pages alone, the factor of the 90 % bound."""

    windows: tuple[Steps, ...]
    by_page: tuple[float, ...]
    upper_factor: float

    @property
    def by_step(self) -> tuple[float, ...]:
        """Predicted over observed iterations per second by window, every step with its own load."""
        return tuple(window.ratio for window in self.windows)

    @property
    def steps(self) -> int:
        """Steps in all windows."""
        return sum(len(window.measured_s) for window in self.windows)

    @property
    def covered(self) -> int:
        """Steps that took no longer than the bound."""
        return sum(window.covered(self.upper_factor) for window in self.windows)


def mape(ratios: Sequence[float]) -> float:
    """Mean error of predicted IPS, 0..1."""
    return float(np.mean(np.abs(np.array(ratios) - 1.0)))


async def measure(folder: Path, load_seed: int, load_s: float, minutes: float) -> Measured:
    """Profile and train by the command line, then conversations at clocks in between.

    `load_seed` and the next one choose the later load. The caller's environment must let NVML's library
    be the simulated one at `folder`/gpus.state (`simulated_nvml`).
    """
    state, python = folder / "gpus.state", vllm_python()
    with SimGpus.create(state, [load(CARD).gpu_spec(GPU)]):
        environment = os.environ | simulated_nvml(folder)
        with running(_server(python, folder, state)) as server:
            trained = artifact.load(profiled(folder, server, environment, minutes))
            windows: list[Steps] = []
            by_pages: list[float] = []
            for index, clock in enumerate(UNSEEN_MHZ):
                items = requests((Phase(RATE_PER_S, load_s),), seed=load_seed + index)
                seen = await later_load(server, folder, clock, items)
                page = seen.pages[0]
                shape = EngineShape(page.block_size, page.num_blocks, MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
                model = compile_model(trained, UNSEEN_MHZ, shape)
                windows += by_step(model, page, seen.records, clock)
                by_pages += by_page(model, seen.pages, clock)
    return Measured(tuple(windows), tuple(by_pages), trained.upper_factor)


def _server(python: Path, folder: Path, state: Path) -> VllmServer:
    return VllmServer(
        python,
        make_model(python, folder / "tiny"),
        state,
        free_port(),
        folder / "vllm.log",
        environment={"KVWATT_TAP_SOCKET": str(folder / TAP_SOCKET)},
        paths=plugin_paths(folder),
        # Else a prompt's tokens are told when it is done, up to seconds after the steps that computed them.
        flags=["--enable-logging-iteration-details"],
    )


def simulated_nvml(folder: Path) -> dict[str, str]:
    """Environment of processes that shall see the simulated GPUs of `measure`."""
    return env_for(build(), folder / "gpus.state")
