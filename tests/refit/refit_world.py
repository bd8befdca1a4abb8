"""A made-up GPU whose law is known, its profile, and what serving on it looks like."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from kvwatt.prior import StepPrior
from kvwatt.profiles import ProfileRow
from kvwatt.samples import Sample

CLOCKS = (600, 800, 1000, 1300, 1600, 2000)
LAW = StepPrior((2e-3, 5e-4, 12e-3, 5e-3, 3e-4, 1e-5, 2.5e-4, 2.5e-4, 1e-5, 5e-6, 7e-8, 8e-8, 3e-9, 5.0, 5.0))
CHUNK_TOKENS = 256.0

Slower = Callable[[float, float], float]  # clock, batch -> factor on the law


def step_s(clock: float, batch: float, kv: float, prefill: float) -> float:
    """Seconds of one step by the law."""
    at = (np.array([float(value)]) for value in (clock, batch, kv, prefill))
    return float(LAW.step_time_s(*at)[0])


def watts(clock: float, batch: float, kv: float, prefill: float) -> float:
    """Power by a law that bends upward with the clock."""
    compute, memory = (
        float(share[0]) for share in LAW.shares(*(np.array([float(v)]) for v in (clock, batch, kv, prefill)))
    )
    return 60 + 180 * (clock / 2000) ** 2 * (0.7 * compute + 0.5 * memory) + 30 * memory


def profile_rows() -> list[ProfileRow]:
    """What `kvwatt profile` would have measured, with 1 % noise."""
    noise = np.random.default_rng(5)
    loads = [(b, b * c, 0) for b in (1, 4, 16, 64, 128) for c in (128, 1024, 3000)]
    loads += [(0, 0, n) for n in (64, 256, 1024, 2048)] + [(32, 32_000, n) for n in (128, 512)]
    rows = []
    for clock in CLOCKS:
        for load in loads:
            seconds = step_s(clock, *load) * float(np.exp(noise.normal(0, 0.01)))
            rows.append(ProfileRow(clock, *load, seconds, watts(clock, *load)))
        rows.append(ProfileRow(clock, 0, 0, 0, math.nan, 60 + clock / 200, kind="idle"))
    return rows


def as_profiled(clock: float, batch: float) -> float:
    """A GPU that is what its profile says."""
    return 1.0


def slower(clock: float, batch: float) -> float:
    """A GPU that is 12 % slower than its profile, 18 % with large batches."""
    return 1.12 if batch < 32 else 1.18


def served(seed: int, count: int, factor: Slower = as_profiled, first: int = 1) -> list[Sample]:
    """Operating points of serving: a load that wanders, clocks that follow, 3 % noise."""
    draw = np.random.default_rng(seed)
    samples, level = [], 24.0
    for index in range(count):
        level = float(np.clip(level * math.exp(draw.normal(0, 0.25)), 2, 120))
        clock = CLOCKS[int(np.clip(level / 25, 0, 5))]
        batch, kv = level, level * float(draw.uniform(400, 1200))
        chunks = float(draw.uniform(0, 0.08))
        decode = step_s(clock, batch, kv, 0)
        itl_s = decode + chunks * (step_s(clock, batch, kv, CHUNK_TOKENS) - decode)
        itl_s *= factor(clock, batch) * math.exp(draw.normal(0, 0.03))
        power_w = watts(clock, batch, kv, 0) * math.exp(draw.normal(0, 0.02))
        samples.append(Sample(first + index, clock, batch, kv, CHUNK_TOKENS, chunks, itl_s, power_w))
    return samples
