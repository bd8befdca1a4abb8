"""Many random sequences in a few processes: NVML is process-wide, so each has simulated GPUs of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid

GPUS = 3


@dataclass
class Summary:
    """What was played. `setter_calls` were all checked; `violations` say seed and invariant."""

    sequences: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    setter_calls: int = 0
    violations: list[str] = field(default_factory=list)


def run(count: int, first_seed: int = 0, processes: int = 2, timeout_s: float = 3600.0) -> Summary:
    """Play `count` sequences with the seeds from `first_seed`. Raises RuntimeError when a process fails."""
    with tempfile.TemporaryDirectory() as folder:
        shares = [range(first_seed + k, first_seed + count, processes) for k in range(processes)]
        workers = [
            _start(Path(folder) / str(k), share, processes) for k, share in enumerate(shares) if len(share)
        ]
        summary = Summary()
        for worker in workers:
            output, errors = worker.communicate(timeout=timeout_s)
            if worker.returncode != 0:
                raise RuntimeError(f"a worker ended with {worker.returncode}: {errors[-2000:]}")
            found = json.loads(output.splitlines()[-1])
            summary.sequences += found["sequences"]
            summary.steps.update(found["steps"])
            summary.setter_calls += found["setter_calls"]
            summary.violations += found["violations"]
    return summary


def make_gpus(state: Path) -> None:
    """Locks come into force at once: a lock that is seen was not reset a moment ago."""
    card = cards.load("l20", 1)
    specs = [replace(card.gpu_spec(demo_uuid(i)), switch_latency_s=0.0) for i in range(GPUS)]
    SimGpus.create(state, specs).close()


def _start(folder: Path, seeds: range, stride: int) -> subprocess.Popen[str]:
    folder.mkdir()
    state = folder / "gpus"
    make_gpus(state)
    arguments = [str(folder), str(seeds.start), str(len(seeds)), str(stride)]
    return subprocess.Popen(
        [sys.executable, "-m", "kvwatt_sim.sequences", *arguments],
        env={**os.environ, **env_for(build(), state)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
