"""A made-up GPU whose law is known, and loads on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvwatt.prior import StepPrior
from kvwatt.profiles import ProfileRow

Floats = npt.NDArray[np.float64]
CLOCKS = (600, 800, 1000, 1300, 1600, 2000)
LAW = StepPrior((2e-3, 5e-4, 12e-3, 5e-3, 3e-4, 1e-5, 2.5e-4, 2.5e-4, 1e-5, 5e-6, 7e-8, 8e-8, 3e-9, 5.0, 5.0))


def synthetic_rows() -> list[ProfileRow]:
    """A profile of a made-up GPU: known law, 1 % noise, power that bends upward."""
    noise = np.random.default_rng(5)
    loads = [(b, b * c, 0) for b in (1, 4, 16, 64, 128) for c in (128, 1024, 3000)]
    loads += [(0, 0, n) for n in (64, 256, 1024, 2048)] + [(32, 32_000, n) for n in (128, 512)]
    rows = []
    for clock in CLOCKS:
        for batch, kv, prefill in loads:
            at = (np.array([float(clock)]), *(np.array([float(x)]) for x in (batch, kv, prefill)))
            compute, memory = (float(share[0]) for share in LAW.shares(*at))
            watts = 60 + 180 * (clock / 2000) ** 2 * (0.7 * compute + 0.5 * memory) + 30 * memory
            seconds = float(LAW.step_time_s(*at)[0]) * float(np.exp(noise.normal(0, 0.01)))
            rows.append(ProfileRow(clock, batch, kv, prefill, seconds, watts))
        rows.append(ProfileRow(clock, 0, 0, 0, float("nan"), 60 + clock / 200, kind="idle"))
    return rows


def random_loads(seed: int, n: int) -> tuple[Floats, Floats, Floats]:
    """Loads inside the made-up profile's range, a third of them with a prefill chunk."""
    draw = np.random.default_rng(seed)
    batch = draw.integers(1, 129, n).astype(float)
    kv = batch * draw.uniform(64, 2500, n)
    prefill = np.where(draw.random(n) < 1 / 3, draw.uniform(1, 2048, n), 0.0)
    return batch, kv, prefill
