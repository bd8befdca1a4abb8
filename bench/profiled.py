"""A real vLLM profiled by `kvwatt profile`: is later load predicted, and does the bound hold?

    python bench/profiled.py [--quick] [--json FILE]

For every seed anew: real vLLM on the CPU, held back to the simulated L20's step times, is profiled and a
model is trained by the command line; then it serves conversations at two clocks between the profiled ones. In
windows of 6 s that were busy throughout, iterations per second are compared with the prediction for the load
of every step, as the tap tells it; and, beside it, for the window's mean load, all that a metrics page tells.
The 90 % bound is held against single steps. The seeds were not used while developing.

Needs a quiet machine with two cores for itself, and real vLLM as tests/real_vllm does (2.5 GB, made on first
use); ends with 77 where it cannot be had.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bars import Bar, show, write

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tests" / "real_vllm"))

from profiled_vllm import Measured, mape, measure, simulated_nvml  # noqa: E402 (after the path is set)
from vllm_server import vllm_python  # noqa: E402

LOAD_SEEDS = (31, 41, 51)
LOAD_S, QUICK_S = 90.0, 40.0
MINUTES, QUICK_MINUTES = 3.0, 1.6  # of profiling; the command's own default is 10


def measured(load_seed: int, load_s: float, minutes: float) -> Measured:
    """One run with everything new."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(simulated_nvml(Path(folder)))  # for the guards that this process starts
        return asyncio.run(measure(Path(folder), load_seed, load_s, minutes))


def interval_of_coverage(runs: list[Measured], draws: int = 2000, seed: int = 1) -> tuple[float, float]:
    """95 %, by drawing whole windows again: steps of one window resemble each other."""
    counts = [
        (window.covered(one.upper_factor), len(window.measured_s)) for one in runs for window in one.windows
    ]
    table = np.array(counts, dtype=np.float64)
    drawn = table[np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return float(low), float(high)


def results(runs: list[Measured]) -> tuple[list[Bar], tuple[float, float]]:
    """The bars, and the interval of the coverage."""
    errors = [mape(one.by_step) for one in runs]
    covered = sum(one.covered for one in runs) / sum(one.steps for one in runs)
    low, high = interval_of_coverage(runs)
    print(f"coverage {100 * covered:.1f} % of steps (95 % interval {100 * low:.1f} to {100 * high:.1f} %)")
    name = "profiled real vLLM, "
    return [
        Bar(name + "IPS MAPE, mean of seeds", float(np.mean(errors)), 0.05, "lower"),
        Bar(name + "IPS MAPE, worst seed", max(errors), 0.05, "lower"),
        Bar(
            name + "IPS MAPE from pages alone",
            float(np.mean([mape(one.by_page) for one in runs])),
            0.05,
            "lower",
        ),
        Bar(name + "|coverage of the 90 % bound - 0.90|", abs(covered - 0.9), 0.03, "lower"),
    ], (low, high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars and every window to this file")
    parser.add_argument("--quick", action="store_true", help="one seed, less profiling and load")
    arguments = parser.parse_args()
    try:
        vllm_python().stat()
    except (pytest.skip.Exception, OSError, subprocess.SubprocessError) as error:
        print(f"real vLLM on the CPU is not available: {error}", file=sys.stderr)
        return 77
    console, runs = Console(width=120), dict[int, Measured]()
    load_s, minutes = (QUICK_S, QUICK_MINUTES) if arguments.quick else (LOAD_S, MINUTES)
    for seed in LOAD_SEEDS[:1] if arguments.quick else LOAD_SEEDS:
        one = runs[seed] = measured(seed, load_s, minutes)
        console.print(
            f"seed {seed}: {len(one.by_step)} windows, IPS MAPE {100 * mape(one.by_step):.2f} % by steps, "
            f"{100 * mape(one.by_page):.2f} % by means; {one.covered} of {one.steps} steps within the "
            f"bound of {one.upper_factor:.3f}"
        )
    bars, interval = results(list(runs.values()))
    show(bars, "Profiled by the command, later load")
    found = {
        seed: {"by_step": one.by_step, "by_page": one.by_page, "upper_factor": one.upper_factor}
        for seed, one in runs.items()
    }
    write(arguments.json, bars, runs=found, coverage_interval_95=interval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
