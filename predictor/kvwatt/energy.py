"""Power of a GPU group by clock and load: a non-negative law times a learned correction.

    P = sum of c_i phi_i,  phi = 1, f, u_m, f u_c, f^3 u_c, f u_m, f^3 u_m, f^3 u_b

f = clock / reference clock; u_c, u_m = fraction of the step that arithmetic, or memory traffic, takes;
u_b = 1 while busy, 0 while idle. f^3 stands for clock times voltage squared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvwatt.lattice import Floats, Lattice
from kvwatt.prior import StepPrior

TERMS = 8


@dataclass(frozen=True, slots=True)
class PowerPrior:
    """The law above; idle power is interpolated where it was measured."""

    coefficients: tuple[float, ...]
    reference_mhz: float
    idle_clock_mhz: tuple[float, ...]
    idle_w: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.asarray(self.coefficients)
        if values.shape != (TERMS,) or not np.all(np.isfinite(values)) or np.any(values < 0):
            raise ValueError(f"power prior needs {TERMS} finite non-negative coefficients, got {values}")
        if not self.reference_mhz > 0:
            raise ValueError(f"reference_mhz must be positive, got {self.reference_mhz}")
        if len(self.idle_clock_mhz) != len(self.idle_w):
            raise ValueError("idle_clock_mhz and idle_w must have equal length")

    def busy_w(
        self, step: StepPrior, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats
    ) -> Floats:
        """Watts while stepping; arguments broadcast."""
        compute, memory = step.shares(clock_mhz, batch, kv, prefill)
        columns = power_terms(clock_mhz / self.reference_mhz, compute, memory, 1.0)
        return np.asarray(np.stack(columns, axis=-1) @ np.asarray(self.coefficients))

    def idle_power_w(self, clock_mhz: Floats) -> Floats:
        """Watts while no request runs, at a locked clock."""
        if self.idle_clock_mhz:
            return np.interp(clock_mhz, self.idle_clock_mhz, self.idle_w)
        zero = np.zeros_like(clock_mhz)
        columns = power_terms(clock_mhz / self.reference_mhz, zero, zero, 0.0)
        return np.asarray(np.stack(columns, axis=-1) @ np.asarray(self.coefficients))


def power_terms(f: Floats, compute: Floats, memory: Floats, busy: float | Floats) -> list[Floats]:
    """The columns phi, each of the broadcast shape."""
    cubed = f**3
    one = np.ones(np.broadcast_shapes(f.shape, compute.shape))
    terms = (
        one,
        f * one,
        memory * one,
        f * compute,
        cubed * compute,
        f * memory,
        cubed * memory,
        cubed * busy * one,
    )
    return [np.asarray(term, dtype=np.float64) for term in terms]


@dataclass(frozen=True, slots=True)
class PowerModel:
    """`prior` times exp(`correction`), the correction linear in the clock between its nodes."""

    prior: PowerPrior
    correction: Lattice

    def power_w(
        self, step: StepPrior, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats
    ) -> Floats:
        """Watts at n loads: (n, clocks) for clocks of shape (clocks,); never below idle."""
        at_nodes = self.correction.at(batch, kv, prefill)
        log_ratio = _interpolate_clock(np.array(self.correction.clocks_mhz), at_nodes, clock_mhz)
        b, k, n = (column[:, None] for column in (batch, kv, prefill))
        busy = self.prior.busy_w(step, clock_mhz[None, :], b, k, n) * np.exp(log_ratio)
        return np.maximum(busy, self.prior.idle_power_w(clock_mhz)[None, :])


def _interpolate_clock(nodes: Floats, values: Floats, clock_mhz: Floats) -> Floats:
    """Columns of `values` (n, nodes) interpolated at the clocks; constant beyond the ends."""
    if len(nodes) == 1:
        return np.repeat(values, len(clock_mhz), axis=1)
    cell = np.clip(np.searchsorted(nodes, clock_mhz, side="right") - 1, 0, len(nodes) - 2)
    share = np.clip((clock_mhz - nodes[cell]) / (nodes[cell + 1] - nodes[cell]), 0.0, 1.0)
    return np.asarray(values[:, cell] * (1 - share) + values[:, cell + 1] * share)
