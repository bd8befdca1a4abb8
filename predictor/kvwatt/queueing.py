"""Capacity of one instance: largest rate, best clock and watts at each rate within its promises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class CapacityPoint:
    """One instance at one rate and its best clock."""

    clock_mhz: int
    power_w: float  # average, idle share included
    keeps: bool  # every promise holds; False: the top clock, and still too slow


@dataclass(frozen=True, slots=True, eq=False)
class CapacityTable:
    """What an instance does at each rate and clock, as the planner asks it.

    `clocks_mhz` (m,) ascending; `rates_per_s` (n,) ascending from 0; `watts` (n, m) average power of the
    instance's GPUs; `keeps` (n, m) whether every promise holds there.
    """

    clocks_mhz: tuple[int, ...]
    rates_per_s: FloatArray
    watts: FloatArray
    keeps: BoolArray

    def __post_init__(self) -> None:
        n, m = len(self.rates_per_s), len(self.clocks_mhz)
        if n < 2 or m < 1 or self.watts.shape != (n, m) or self.keeps.shape != (n, m):
            raise ValueError(f"watts and keeps must be (rates, clocks) = ({n}, {m})")
        if self.rates_per_s[0] != 0.0 or not np.all(np.diff(self.rates_per_s) > 0.0):
            raise ValueError("rates_per_s must ascend from 0")
        if list(self.clocks_mhz) != sorted(set(self.clocks_mhz)):
            raise ValueError(f"clocks_mhz must ascend, got {self.clocks_mhz}")
        if not np.all(np.isfinite(self.watts)) or np.any(self.watts < 0.0):
            raise ValueError("watts must be finite and >= 0")

    @property
    def max_rate_per_s(self) -> float:
        """Largest rate in the table up to which some clock keeps every promise."""
        kept = np.logical_and.accumulate(self.keeps.any(axis=1))
        return float(self.rates_per_s[int(kept.sum()) - 1]) if kept[0] else 0.0

    def max_rate_at(self, clock_mhz: int) -> float:
        """Largest rate kept at one clock; 0 where none is. Raises ValueError for a clock not listed."""
        kept = np.logical_and.accumulate(self.keeps[:, self.clocks_mhz.index(clock_mhz)])
        return float(self.rates_per_s[int(kept.sum()) - 1]) if kept[0] else 0.0

    def at(self, rate_per_s: float) -> CapacityPoint:
        """Best clock at a rate: least watts that keeps every promise, the top one where none does."""
        if not rate_per_s >= 0.0:
            raise ValueError(f"rate_per_s must be >= 0, got {rate_per_s}")
        row = int(np.searchsorted(self.rates_per_s, rate_per_s))
        keeps = self.keeps[row] if row < len(self.rates_per_s) else np.zeros(len(self.clocks_mhz), dtype=bool)
        power = np.array([np.interp(rate_per_s, self.rates_per_s, column) for column in self.watts.T])
        best = int(np.argmin(np.where(keeps, power, np.inf))) if keeps.any() else len(self.clocks_mhz) - 1
        return CapacityPoint(self.clocks_mhz[best], float(power[best]), bool(keeps.any()))
