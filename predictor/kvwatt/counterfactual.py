"""What the model expects of a stretch of time at every clock, had the same tokens come in it.

Rates of tokens come from counters and lengths from finished requests, which no clock changes much: so the
answer is the same function of the work whatever clock was in force, as a baseline must be. Batch, time
between tokens and power are the steady ones of those rates (`operating.py`), not the engine's present ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel
from kvwatt.operating import Factors, operating_points, tables
from kvwatt.state import EngineShape, EngineState, Slo
from kvwatt.traffic import Traffic

LONG_S = 1e6  # a horizon at which the batch is steady
LEAST_TOKENS = 1e-6


@dataclass(frozen=True, slots=True)
class AtClocks:
    """Per clock of the model, ascending: mean power of the group, and whether the promises would hold."""

    clocks_mhz: tuple[int, ...]
    power_w: npt.NDArray[np.float64]
    feasible: npt.NDArray[np.bool_]


def at_clocks(
    model: CompiledModel,
    shape: EngineShape,
    slo: Slo,
    traffic: Traffic,
    prompt_per_s: float,
    generation_per_s: float,
    reaction_s: float,
) -> AtClocks:
    """Steady power at these rates of tokens; the fastest clock stands for driver default."""
    if generation_per_s <= LEAST_TOKENS:
        idle = np.asarray(model.idle_power_w(), dtype=np.float64)
        return AtClocks(model.clocks_mhz, idle, np.ones(len(idle), dtype=np.bool_))
    arrivals = generation_per_s / max(traffic.output_mean_tokens, 1.0)
    burst = max(traffic.arrival_upper_per_s / max(traffic.arrival_per_s, 1e-9), 1.0)
    steady = replace(
        traffic,
        arrival_per_s=arrivals,
        arrival_upper_per_s=arrivals * min(burst, 3.0),
        prompt_mean_tokens=max(prompt_per_s / arrivals, 1.0),
        unstarted=0.0,
        oldest_wait_s=0.0,
        burst_tokens=0.0,
    )
    nobody = EngineState(0.0, 0, 0, 0.0)
    table = tables(model, nobody, steady, shape)
    quantile = slo.tbt.quantile if slo.tbt is not None else 0.99
    points = operating_points(table, nobody, steady, reaction_s, LONG_S, Factors(), quantile)
    kept = points.carries.copy()
    for target, value in (
        (slo.ttft, points.ttft_s),
        (slo.tbt, points.tbt_s),
        (slo.e2e, points.e2e_s),
    ):
        if target is not None:
            kept &= value <= target.limit_s
    return AtClocks(model.clocks_mhz, points.power_w, kept)


def spread(clocks_mhz: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Indices of at most `most` of the clocks, evenly over their range, both ends included."""
    if len(clocks_mhz) <= most:
        return tuple(range(len(clocks_mhz)))
    wanted = np.linspace(clocks_mhz[0], clocks_mhz[-1], most)
    nearest = np.abs(np.array(clocks_mhz)[None, :] - wanted[:, None]).argmin(axis=1)
    return tuple(sorted({int(i) for i in nearest} | {0, len(clocks_mhz) - 1}))
