"""A step law from steps that a real engine took at one clock: for plants that were measured, not published.

With one clock the terms in 1/f cannot be told from those that do not depend on it; together they are the
step's time at that clock, which is all that such a plant is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from kvwatt_sim import gpu
from kvwatt_sim.fit.laws import Laws, fit_step
from kvwatt_sim.fit.tables import StepPoint
from kvwatt_sim.gpu import StepLaw
from kvwatt_sim.nvml.spec import PowerLaw

CLOCK_MHZ = 1000  # stands for the one clock there is
MOST_STEPS = 1500  # a law of ten numbers needs no more
_SECONDS = tuple(item.name for item in fields(StepLaw) if "_s" in item.name)
# A small engine's steps are milliseconds; the ranges of the fit start at those of a large GPU's.
_ANY = StepLaw(CLOCK_MHZ, 1e-3, 1e-3, 0.0, 1e-3, 20.0, 1e-5, 1.0, 1e-8, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """What one step computed and how long the engine took for it, its own work around it included."""

    decode_batch: int
    kv_tokens: int
    prefill_tokens: int
    prefill_context_tokens: float
    time_s: float


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """`mape` and `worst_decile`: relative error of single steps, mean and 90th percentile."""

    plant: Laws
    mape: float
    error_p90: float
    steps: int

    def time_s(self, step: MeasuredStep) -> float:
        """What the law gives for a step's work."""
        return _time_s(self.plant, step)


def fit_measured(steps: Sequence[MeasuredStep], seed: int = 0) -> FittedLaw:
    """The law of least squared relative error on a sample of `steps`, scaled to their total time.

    The scale puts back what relative errors leave out: rare long steps weigh little in them, but requests
    wait for those too. Raises ValueError on fewer than 50 steps.
    """
    if len(steps) < 50:
        raise ValueError(f"{len(steps)} measured steps: at least 50 are needed")
    chosen = np.random.default_rng(seed).permutation(len(steps))[:MOST_STEPS]
    base = Laws(_ANY, PowerLaw(CLOCK_MHZ, 1.0), (CLOCK_MHZ,), 1e9)
    law = replace(base, step=fit_step([_point(steps[i]) for i in chosen], base))
    total_s = sum(step.time_s for step in steps)
    scale = total_s / sum(_time_s(law, step) for step in steps)
    scaled = {name: scale * getattr(law.step, name) for name in _SECONDS}
    plant = replace(law, step=replace(law.step, **scaled))
    errors = np.array([abs(_time_s(plant, step) / step.time_s - 1.0) for step in steps])
    return FittedLaw(plant, float(errors.mean()), float(np.quantile(errors, 0.9)), len(steps))


def _point(step: MeasuredStep) -> StepPoint:
    work = (step.decode_batch, step.kv_tokens, step.prefill_tokens)
    return StepPoint(CLOCK_MHZ, *work, step.time_s, 1.0, step.prefill_context_tokens)


def _time_s(plant: Laws, step: MeasuredStep) -> float:
    work = (step.decode_batch, step.kv_tokens, step.prefill_tokens, step.prefill_context_tokens)
    return gpu.step_time_s(plant, CLOCK_MHZ, *work)
