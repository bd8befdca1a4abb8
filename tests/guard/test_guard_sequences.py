"""Random sequences of faults against guard, daemon's link and simulated GPUs together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.sequences.play import STEPS
from kvwatt_sim.sequences.run import make_gpus, run

SEQUENCES = 24  # `bench/faults.py` plays a thousand and more


def test_no_sequence_of_faults_breaks_an_invariant() -> None:
    """No wrong clock, no clock off the record, none left behind, and control returns: whatever happened."""
    summary = run(SEQUENCES, first_seed=5_000, processes=2, timeout_s=600.0)
    assert summary.violations == []
    assert summary.sequences == SEQUENCES
    assert summary.setter_calls > SEQUENCES
    assert len(summary.steps) > len(set(STEPS)) // 2


# A guard with one part missing must be caught by some sequence; the first seeds save time: there one did.
BROKEN = {
    "checks no clock": (10, "ClockSetter.check = lambda self, low, high: None"),
    "keeps no record": (0, "Recorder.persist = lambda self, wanted: asyncio.sleep(0)"),
    "resets nothing": (0, "ClockSetter.reset = lambda self: None"),
    "rolls nothing back": (27, "ClockKeeper._roll_back = lambda self, gpus: asyncio.sleep(0)"),
}
SCRIPT = """
import asyncio, logging, sys, tempfile
from pathlib import Path
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.sequences import play
from kvwattd.guard.clocks import ClockKeeper
from kvwattd.guard.recorder import Recorder
from kvwattd.guard.setters import ClockSetter

logging.disable(logging.CRITICAL)
play.PATIENCE_S = 3.0
{patch}

async def main():
    with SimGpus.open(Path(sys.argv[1])) as gpus:
        for seed in range({first}, 400):
            with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as folder:
                await play.play(seed, gpus, Path(folder))

asyncio.run(main())
"""


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_guard_is_caught(what: str, tmp_path: Path) -> None:
    """The sequences are no formality: a guard that lacks one of its duties does not pass them."""
    make_gpus(tmp_path / "gpus")
    first, patch = BROKEN[what]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(first=first, patch=patch), str(tmp_path / "gpus")],
        env={**os.environ, **env_for(build(), tmp_path / "gpus")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "ViolationError: seed" in done.stderr
