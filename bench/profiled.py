"""A real vLLM profiled by `kvwatt profile`: is later load predicted, and does the bound hold?

    python bench/profiled.py [--quick] [--json FILE]

For every seed anew: real vLLM on the CPU, held back to the simulated L20's step times, is profiled and a
model is trained by the command line; then it serves conversations at two clocks between the profiled ones. In
windows of 6 s that were busy throughout, iterations per second are compared with the prediction for the
window's mean load. The seeds were not used while developing. The interval of the coverage is the binomial
one (Clopper and Pearson); windows of one run resemble each other, so that the true one is somewhat wider.

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
from scipy.stats import beta

from bars import Bar, show, write

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tests" / "real_vllm"))

from profiled_vllm import Measured, measure, simulated_nvml  # noqa: E402 (after the path is set)
from vllm_server import vllm_python  # noqa: E402

LOAD_SEEDS = (31, 41, 51)
LOAD_S, QUICK_S = 120.0, 40.0


def measured(load_seed: int, load_s: float) -> Measured:
    """One run with everything new."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(simulated_nvml(Path(folder)))  # for the guards that this process starts
        return asyncio.run(measure(Path(folder), load_seed, load_s))


def binomial_interval(covered: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's, 95 %."""
    low = float(beta.ppf(0.025, covered, of - covered + 1)) if covered else 0.0
    high = float(beta.ppf(0.975, covered + 1, of - covered)) if covered < of else 1.0
    return low, high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars and every window to this file")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, 40 s of load per clock instead of 120"
    )
    arguments = parser.parse_args()
    try:
        vllm_python().stat()
    except (pytest.skip.Exception, OSError, subprocess.SubprocessError) as error:
        print(f"real vLLM on the CPU is not available: {error}", file=sys.stderr)
        return 77
    console, runs = Console(width=120), dict[int, Measured]()
    for seed in LOAD_SEEDS[:1] if arguments.quick else LOAD_SEEDS:
        one = runs[seed] = measured(seed, QUICK_S if arguments.quick else LOAD_S)
        console.print(
            f"seed {seed}: {len(one.ratios)} windows, IPS MAPE {100 * one.mape:.2f} %, "
            f"{one.covered} under the bound of {one.upper_factor:.3f}"
        )
    errors = [one.mape for one in runs.values()]
    covered, windows = (
        sum(one.covered for one in runs.values()),
        sum(len(one.ratios) for one in runs.values()),
    )
    low, high = binomial_interval(covered, windows)
    console.print(
        f"IPS MAPE over seeds: mean {100 * np.mean(errors):.2f} %, {100 * min(errors):.2f} to "
        f"{100 * max(errors):.2f} %; coverage {covered} of {windows} windows = "
        f"{100 * covered / windows:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )
    bars = [
        Bar("profiled real vLLM, IPS MAPE, mean of seeds", float(np.mean(errors)), 0.05, "lower"),
        Bar("profiled real vLLM, IPS MAPE, worst seed", max(errors), 0.05, "lower"),
        Bar(
            "profiled real vLLM, |coverage of the 90 % bound - 0.90|",
            abs(covered / windows - 0.9),
            0.03,
            "lower",
        ),
    ]
    show(bars, "Profiled by the command, later load")
    found = {seed: {"ratios": one.ratios, "upper_factor": one.upper_factor} for seed, one in runs.items()}
    write(arguments.json, bars, runs=found, coverage_interval_95=[low, high])
    return 0


if __name__ == "__main__":
    sys.exit(main())
