"""Attributed energy against the counter over any hour, and what it costs to attribute.

    python bench/energy_attribution.py [--quick] [--json FILE] [--seeds 1 2 3 4]

Two hours of the built-in conversation workload on the simulated L20 behind a noisy counter, the model trained
on a noisy profile, clocks changed at random; pages twice a second through the daemon's own observation. At
every page the attributed energy of the hour before (all parts) is compared with the counter's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random

import numpy as np

from bars import Bar, show, write
from kvwatt.attribution import MICRO, Part
from kvwatt_sim.metered.counter import Meter, Noise, sensor_gain
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import clocks, plant, shape_for
from kvwatt_sim.workload import generate
from kvwattd.energy_account import EnergyAccount
from kvwattd.energy_feed import attribute
from kvwattd.observation import Observation

POLL_S, HOUR_S = 0.5, 3600.0
RATE_PER_S = 3.0
HOLD_S = 60.0
LIMIT = 0.001


def run(seed: int, hours: float) -> dict[str, float]:
    """Largest difference over any hour, shares of the parts, and microseconds per page."""
    card = plant("l20")
    shape, allowed = shape_for(card, "paper"), clocks(card)[::10]
    model = compiled_model(card, allowed, shape)
    served = VirtualPlant(card, shape, generate(RATE_PER_S, hours * HOUR_S, seed))
    noise, random = Noise(), Random(seed)
    meter = Meter(served, noise, seed, sensor_gain(noise, seed))
    seen, account = Observation(POLL_S, 3 * POLL_S, shape.max_num_batched_tokens), EnergyAccount()
    counted, attributed, cost_s, held_s = [], [], 0.0, 0.0
    while served.now_s < hours * HOUR_S:
        if served.now_s >= held_s:
            served.set_clock(random.choice(allowed), card.switch_latency_s)
            held_s += HOLD_S
        seen.on_page(served.snapshot())
        sample = meter.sample("GPU")
        begin = time.process_time()
        attribute(account, seen, {"GPU": sample}, model)
        cost_s += time.process_time() - begin
        counted.append(sample.energy_j)
        attributed.append(account.book.total / MICRO)
        meter.advance(served.now_s + POLL_S)
    return _told(np.array(counted), np.array(attributed), account, cost_s)


def _told(
    counted: np.ndarray, attributed: np.ndarray, account: EnergyAccount, cost_s: float
) -> dict[str, float]:
    span = round(HOUR_S / POLL_S)
    hour_j = counted[span:] - counted[:-span]
    off = np.abs(attributed[span:] - attributed[:-span] - hour_j) / hour_j
    parts = {f"part_{part}": account.book.parts[part] / account.book.total for part in Part}
    return {"worst_hour": float(off.max()), "us_per_page": 1e6 * cost_s / len(counted), **parts}


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help="one seed, little more than an hour")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    options = parser.parse_args()
    seeds, hours = (options.seeds[:1], 1.1) if options.quick else (options.seeds, 2.0)
    rows = [run(seed, hours) for seed in seeds]
    for row in rows:
        print({key: round(value, 6) for key, value in row.items()})
    worst = max(row["worst_hour"] for row in rows)
    found = [Bar("attributed against the counter, worst of any hour, share", worst, LIMIT, "lower")]
    show(found, "Attribution")
    write(options.json, found, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
