"""Least squares for the laws of `kvwatt_sim.gpu`. Deterministic: fixed starts, no randomness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from kvwatt_sim import gpu
from kvwatt_sim.fit.tables import PowerPoint, StepPoint
from kvwatt_sim.gpu import StepLaw
from kvwatt_sim.nvml.spec import PowerLaw

# name: (start, lower bound, upper bound); seconds, except the two ratios.
STEP_RANGES: Mapping[str, tuple[float, float, float]] = {
    "overhead_s": (2e-3, 0.0, 50e-3),
    "weights_s": (17e-3, 0.0, 50e-3),
    "weights_clock_s": (5e-3, 0.0, 20e-3),
    "tokens_s": (7e-3, 0.0, 20e-3),
    "tokens_half": (20.0, 1.0, 200.0),
    "compute_s_per_token": (140e-6, 1e-6, 1e-3),
    "decode_ratio": (1.2, 0.5, 2.0),
    "kv_s_per_token": (80e-9, 0.0, 1e-6),
    "kv_clock_s_per_token": (40e-9, 0.0, 1e-6),
    "attention_s_per_pair": (1e-9, 0.0, 50e-9),
}
# Watts, except the two of the voltage.
POWER_RANGES: Mapping[str, tuple[float, float, float]] = {
    "idle_w": (55.0, 20.0, 80.0),
    "idle_slope_w": (8.0, 0.0, 40.0),
    "compute_w": (200.0, 0.0, 500.0),
    "memory_clock_w": (100.0, 0.0, 500.0),
    "memory_w": (30.0, 0.0, 150.0),
    "v_min": (0.5, 0.1, 1.0),
    "v_slope": (0.9, 0.0, 2.5),
}
DIGITS = 5  # significant digits that a card keeps


@dataclass(frozen=True, slots=True)
class Laws:
    """The least a `gpu.Plant` needs, for laws that are not on a card yet."""

    step: StepLaw
    power: PowerLaw
    supported_mhz: tuple[int, ...]
    power_cap_w: float


def fit_step(points: Sequence[StepPoint], base: Laws) -> StepLaw:
    """The step law with the least squared relative error over `points`, at `base`'s reference clock."""
    f_ref_mhz = base.step.f_ref_mhz

    def residuals(values: Mapping[str, float]) -> list[float]:
        law = StepLaw(f_ref_mhz=f_ref_mhz, **values)
        plant = Laws(law, base.power, base.supported_mhz, base.power_cap_w)
        return [_time_s(plant, point) / point.time_s - 1.0 for point in points]

    return StepLaw(f_ref_mhz=f_ref_mhz, **_solve(STEP_RANGES, residuals))


def fit_power(points: Sequence[PowerPoint], f_ref_mhz: float, cap_w: float) -> PowerLaw:
    """The power law over `points`. What lies above the cap counts as the cap: the measured clock fell."""

    def residuals(values: Mapping[str, float]) -> list[float]:
        law = PowerLaw(f_ref_mhz=f_ref_mhz, **values)
        return [
            point.weight
            * (
                min(gpu.power_law_w(law, point.clock_mhz, point.compute, point.memory), cap_w) / point.power_w
                - 1
            )
            for point in points
        ]

    return PowerLaw(f_ref_mhz=f_ref_mhz, **_solve(POWER_RANGES, residuals))


def busy_points(points: Sequence[StepPoint], base: Laws) -> tuple[PowerPoint, ...]:
    """Measured power of steps at the activity that the step law gives them.

    Power of small batches is noisy in the source (10-20 %), so those points weigh less.
    """
    out = []
    for point in points:
        step = _step(base, point)
        noisy = point.is_decode and point.decode_batch < 16
        out.append(
            PowerPoint(point.clock_mhz, step.compute, step.memory, point.power_w, 0.3 if noisy else 1.0)
        )
    return tuple(out)


def predict(plant: gpu.Plant, point: StepPoint) -> tuple[float, float]:
    """Step time and power of the plant with its power cap in force."""
    asked = gpu.step(plant, point.clock_mhz, point.decode_batch, point.kv_tokens, point.prefill_tokens)
    clock_mhz = gpu.capped_clock_mhz(plant, int(point.clock_mhz), asked.compute, asked.memory)
    step = gpu.step(plant, clock_mhz, point.decode_batch, point.kv_tokens, point.prefill_tokens)
    return step.time_s, gpu.power_w(plant, clock_mhz, step.compute, step.memory)


def _solve(
    ranges: Mapping[str, tuple[float, float, float]],
    residuals: Callable[[Mapping[str, float]], list[float]],
) -> dict[str, float]:
    starts, lows, highs = (np.array(column) for column in zip(*ranges.values(), strict=True))
    # Solved in units of the starts, which spread over eight decades.
    found = least_squares(
        lambda x: np.array(residuals(dict(zip(ranges, (x * starts).tolist(), strict=True)))),
        np.ones(len(ranges)),
        bounds=(lows / starts, highs / starts),
        xtol=1e-10,
        ftol=1e-10,
    )
    values = (found.x * starts).tolist()
    return {name: _rounded(value, start) for name, value, start in zip(ranges, values, starts, strict=True)}


def _rounded(value: float, start: float) -> float:
    """The digits a card keeps; what the bound at zero holds back is zero."""
    return float(f"{value:.{DIGITS}g}") if value > 1e-6 * start else 0.0


def _step(plant: gpu.Plant, point: StepPoint) -> gpu.Step:
    work = (point.decode_batch, point.kv_tokens, point.prefill_tokens, point.prefill_context_tokens)
    return gpu.step(plant, point.clock_mhz, *work)


def _time_s(plant: gpu.Plant, point: StepPoint) -> float:
    return _step(plant, point).time_s
