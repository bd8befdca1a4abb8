"""Simulated GPUs as tests have them, and code run over them in a process of its own: NVML is process-wide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvwatt_sim.nvml.build import NvmlLibs, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import GpuSpec, PowerLaw, demo_uuid

GPU = GpuSpec(
    name="NVIDIA L20",
    uuid=demo_uuid(0),
    arch="ada",
    memory_total_bytes=48 << 30,
    memory_clock_mhz=9001,
    supported_mhz=tuple(range(210, 2521, 15)),
    boost_mhz=2520,
    idle_mhz=210,
    power_law=PowerLaw(
        f_ref_mhz=2520, idle_w=36, idle_slope_w=12, compute_w=150, memory_clock_w=60, memory_w=50
    ),
    default_cap_w=275.0,
    min_cap_w=100.0,
    max_cap_w=275.0,
)


def gpu_spec(index: int, mig: bool = False) -> GpuSpec:
    """The one at this place of a machine."""
    return replace(GPU, uuid=demo_uuid(index), mig=mig)


def answer(
    script: str, body: str, specs: Sequence[GpuSpec], libs: NvmlLibs, path: Path, manual_time: bool = False
) -> Any:
    """What the script prints as JSON: `{body}` in it becomes a function's, `sys.argv[1]` names the GPUs."""
    program = script.replace("{body}", textwrap.indent(textwrap.dedent(body), "    "))
    with SimGpus.create(path, list(specs), manual_time=manual_time, libs=libs):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, str(path)],
            env={**os.environ, **env_for(libs, path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
