"""Physical prior of one engine step: where its time goes, as a law with non-negative coefficients.

    g    = 1000 / clock_mhz                                   everything that runs at the SM clock
    mem  = max~(w0, w1 g) + (l0 + l1 g) log2(1 + B)           weights and activations, read once per step
    comp = (cd B + cp N) g                                    arithmetic of B decode and N prefill tokens
    attn = K max~(k0, k1 g)                                   KV cache: bandwidth- or clock-bound
    T    = o0 + o1 g + max~(mem, comp) + (s0 + s1 g) B + attn + q N^2 g

with max~(a, b) = (a^p + b^p)^(1/p), the p-norm between perfect overlap (p -> inf) and none (p = 1).
Each term is non-increasing in the clock, hence so is T. Times in seconds, K in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COEFFICIENTS = (
    "overhead_s",
    "overhead_clock_s",
    "weights_s",
    "weights_clock_s",
    "width_s",
    "width_clock_s",
    "decode_compute_s",
    "prefill_compute_s",
    "sequence_s",
    "sequence_clock_s",
    "kv_bandwidth_s",
    "kv_clock_s",
    "prefill_attention_s",
    "overlap",
    "kv_overlap",
)


@dataclass(frozen=True, slots=True)
class StepPrior:
    """The law above; `coefficients` in the order of `COEFFICIENTS`, all non-negative, overlaps >= 1."""

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.asarray(self.coefficients)
        if values.shape != (len(COEFFICIENTS),) or not np.all(np.isfinite(values)) or np.any(values < 0):
            raise ValueError(
                f"prior needs {len(COEFFICIENTS)} finite non-negative coefficients, got {values}"
            )
        if values[-2] < 1 or values[-1] < 1:
            raise ValueError(f"overlap exponents must be >= 1, got {values[-2]} and {values[-1]}")

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Seconds of one step; arguments broadcast."""
        return step_time_s(self.coefficients, clock_mhz, batch, kv, prefill)

    def shares(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> tuple[Floats, Floats]:
        """Fraction of the step, 0..1, that arithmetic and that memory traffic would take alone."""
        c = self.coefficients
        g = 1000.0 / clock_mhz
        total = self.step_time_s(clock_mhz, batch, kv, prefill)
        compute = (c[6] * batch + c[7] * prefill) * g + c[12] * prefill**2 * g
        memory = c[2] + c[4] * np.log2(1 + batch) + c[10] * kv
        return np.minimum(compute / total, 1.0), np.minimum(memory / total, 1.0)


def step_time_s(
    c: Sequence[float] | Floats, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats
) -> Floats:
    """The law of this module with coefficients `c`."""
    g = 1000.0 / clock_mhz
    memory = _smooth_max(np.asarray(c[2]), c[3] * g, c[14]) + (c[4] + c[5] * g) * np.log2(1.0 + batch)
    dense = _smooth_max(memory, (c[6] * batch + c[7] * prefill) * g, c[13])
    attention = kv * _smooth_max(np.asarray(c[10]), c[11] * g, c[14])
    total = c[0] + c[1] * g + dense + (c[8] + c[9] * g) * batch + attention + c[12] * prefill**2 * g
    return np.asarray(total, dtype=np.float64)


def _smooth_max(a: Floats, b: Floats, exponent: float) -> Floats:
    high = np.maximum(a, b)
    ratio = np.minimum(a, b) / np.maximum(high, 1e-300)
    return np.asarray(high * (1.0 + ratio**exponent) ** (1.0 / exponent))
