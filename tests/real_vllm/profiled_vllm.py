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
from load_phases import Phase, requests
from plant_model import free_port
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
from kvwatt.compiled import CompiledModel, compile_model
from kvwatt.profiles import parse_csv
from kvwatt.state import EngineShape, EngineSnapshot
from kvwatt.traffic import interval, kv_used_tokens
from kvwatt_sim.cards import load
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.traces import TraceRequest
from kvwattd.guard.spawn import spawn_guard
from kvwattd.profiler.lease import ClockLease
from kvwattd.telemetry.poller import Poller, new_client

GPU = "GPU-5f1c2b7e-0000-4000-8000-000000000021"
UNSEEN_MHZ = (1200, 1890)  # between the clocks of the profile
RATE_PER_S = 1.8
# A page counts a prompt when it is done, so a window must be long beside the seconds that one takes.
POLL_S, POLLS_PER_WINDOW = 0.3, 20
LEAST_RUNNING = 2  # at every look: the engine then never idled in between


def kvwatt(environment: dict[str, str], *arguments: str) -> str:
    """Run the command line; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "kvwattd", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def profiled(folder: Path, server: VllmServer, environment: dict[str, str]) -> Path:
    """A model of this server from a minute and a half of profiling."""
    table, model = folder / "profile.csv", folder / "model"
    options = {
        "--url": server.url,
        "--gpu": GPU,
        "--minutes": "1.6",
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


async def later_load(
    server: VllmServer, folder: Path, clock_mhz: int, items: Sequence[TraceRequest]
) -> list[EngineSnapshot]:
    """Pages of the server in quick succession while it serves `items` at a locked clock."""
    guard_socket = folder / f"guard-{clock_mhz}.sock"
    child = await spawn_guard(guard_socket, folder / "guard-state.json", [GPU])
    poller = Poller(server.url, 5.0, client=new_client())
    pages = []
    try:
        async with ClockLease(guard_socket, [GPU]) as lease:
            await lease.set(clock_mhz)
            generator = LoadGenerator(
                server.url, items, LoadOptions(model="tiny", exact_lengths=True, seed=5)
            )
            serving = asyncio.create_task(generator.run(time.monotonic()))
            while not serving.done():
                pages.append(await poller.poll(time.monotonic))
                await asyncio.sleep(POLL_S)
            await serving
    finally:
        await poller.close()
        await child.stop()
    return pages


def ratios(model: CompiledModel, pages: Sequence[EngineSnapshot], clock_mhz: int) -> list[float]:
    """Predicted over observed iterations per second in each window that was busy throughout."""
    column = model.clocks_mhz.index(clock_mhz)
    found = []
    for start in range(0, len(pages) - POLLS_PER_WINDOW, POLLS_PER_WINDOW):
        inside = pages[start : start + POLLS_PER_WINDOW + 1]
        if min(page.running for page in inside) < LEAST_RUNNING:
            continue
        step = interval(inside[0], inside[-1])
        batch = np.full(2, np.mean([page.running for page in inside]))
        kv = np.full(2, np.mean([kv_used_tokens(page) for page in inside]))
        prompts = inside[-1].ttft_s.count - inside[0].ttft_s.count
        chunk = min(step.prompt_tokens / max(prompts, 1.0), MAX_BATCHED_TOKENS)
        plain_s, mixed_s = model.step_time_s(batch, kv, np.array([0.0, chunk]))[:, column]
        expected_s = step.iterations * plain_s + prompts * (mixed_s - plain_s)
        found.append(float(step.dt_s / expected_s))
    return found


@dataclass(frozen=True, slots=True)
class Measured:
    """Predicted over observed iterations per second by window, and the factor of the model's 90 % bound."""

    ratios: tuple[float, ...]
    upper_factor: float

    @property
    def mape(self) -> float:
        """Mean error of predicted IPS, 0..1."""
        return float(np.mean(np.abs(np.array(self.ratios) - 1.0)))

    @property
    def covered(self) -> int:
        """Windows whose time per iteration lay under the bound."""
        return int(np.sum(np.array(self.ratios) <= self.upper_factor))


async def measure(folder: Path, load_seed: int, load_s: float) -> Measured:
    """Profile and train by the command line, then conversations at clocks in between.

    `load_seed` and the next one choose the later load. The caller's environment must let NVML's library
    be the simulated one at `folder`/gpus.state (`simulated_nvml`).
    """
    state, python = folder / "gpus.state", vllm_python()
    with SimGpus.create(state, [load(CARD).gpu_spec(GPU)]):
        environment = os.environ | simulated_nvml(folder)
        model_folder = make_model(python, folder / "tiny")
        with running(VllmServer(python, model_folder, state, free_port(), folder / "vllm.log")) as server:
            trained = artifact.load(profiled(folder, server, environment))
            seen = []
            for index, clock in enumerate(UNSEEN_MHZ):
                items = requests((Phase(RATE_PER_S, load_s),), seed=load_seed + index)
                pages = await later_load(server, folder, clock, items)
                shape = EngineShape(
                    pages[0].block_size, pages[0].num_blocks, MAX_NUM_SEQS, MAX_BATCHED_TOKENS
                )
                seen += ratios(compile_model(trained, UNSEEN_MHZ, shape), pages, clock)
    return Measured(tuple(seen), trained.upper_factor)


def simulated_nvml(folder: Path) -> dict[str, str]:
    """Environment of processes that shall see the simulated GPUs of `measure`."""
    return env_for(build(), folder / "gpus.state")
