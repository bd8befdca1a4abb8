"""How fast replay is: engine steps a second at a fixed clock, and real time with the controller in the loop.

    python bench/replay.py [--quick] [--json FILE]

An L20 at three quarters of its capacity, built-in workload, 10 ticks and 2 polls a second as live. Best of
three runs at the fixed clock; one run with the controller, since it takes long enough by itself. Speeds are
per second of one core (processor time), so that a busy machine does not count; decisions are timed inside
the replay by the wall clock, around `decide` alone.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bars import Bar, show, write
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.jobs import BUILTIN, open_trace
from kvwatt_sim.replay.policies import kvwatt
from kvwatt_sim.replay.scenario import Case, case, plant
from kvwatt_sim.traces import window
from kvwattd.durations import Durations

SEED = 100  # of the tuning seeds: nothing is scored here
LOAD = 0.75
PLANTS = ("l20", "a100-tp2")


@dataclass(frozen=True)
class Fast:
    """One plant at a fixed clock."""

    steps: int
    steps_per_s: float
    times_real: float


class EveryDuration(Durations):
    """Keeps each, not only the latest."""

    def __init__(self) -> None:
        super().__init__()
        self.all_s: list[float] = []

    def observe(self, duration_s: float) -> None:
        super().observe(duration_s)
        self.all_s.append(duration_s)


def fixed(setting: Case) -> Fast:
    """The best of three runs."""
    best_s, steps = float("inf"), 0
    for _ in range(3):
        begin_s = time.process_time()
        outcome = replay(setting.card, setting.shape, setting.requests, FixedClock(None), setting.until_s)
        best_s, steps = min(best_s, time.process_time() - begin_s), outcome.steps
    return Fast(steps, steps / best_s, setting.until_s / best_s)


def controlled(setting: Case, seconds: float) -> dict[str, float]:
    """Real-time factor and seconds per decision over the first `seconds`."""
    part = replace(setting, requests=window(setting.requests, seconds), until_s=seconds)
    kept = EveryDuration()
    controller = replace(kvwatt(part), durations=kept)
    begin_s = time.process_time()
    outcome = replay(part.card, part.shape, part.requests, controller, part.until_s)
    took_s = time.process_time() - begin_s
    spent_s = np.array(kept.all_s)
    return {
        "times_real": outcome.duration_s / took_s,
        "decisions": float(len(spent_s)),
        "mean_s": float(spent_s.mean()),
        "p99_s": float(np.quantile(spent_s, 0.99)),
        "clock_changes": float(outcome.clock_changes),
    }


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="ten minutes under control instead of an hour")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    trace = open_trace(BUILTIN)
    bars, details = [], {}
    for name in PLANTS:
        setting = case(plant(name), trace, LOAD, "paper", SEED)
        fast = fixed(setting)
        loop = controlled(setting, 600.0 if options.quick else setting.until_s)
        details[name] = {"steps": fast.steps, "fixed_times_real": fast.times_real, **loop}
        bars += [
            Bar(f"{name}: engine steps/s, fixed clock", fast.steps_per_s, 1e6, "higher"),
            Bar(f"{name}: times real, controller", loop["times_real"], 100.0, "higher"),
            Bar(f"{name}: decision, mean us", loop["mean_s"] * 1e6, 200.0, "lower"),
            Bar(f"{name}: decision, p99 us", loop["p99_s"] * 1e6, 1000.0, "lower"),
        ]
    show(bars, "replay")
    write(options.json, bars, plants=details)


if __name__ == "__main__":
    main()
