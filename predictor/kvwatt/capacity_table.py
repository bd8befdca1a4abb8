"""What one instance does at each rate and clock, as the planner asks it: a table and its look-ups."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FINE = 257  # rates of the table of best watts


@dataclass(frozen=True, slots=True)
class CapacityPoint:
    """One instance at one rate and its best clock."""

    clock_mhz: int
    power_w: float  # average, idle share included
    keeps: bool  # every promise holds; False: the top clock, and still too slow


@dataclass(frozen=True, slots=True, eq=False)
class CapacityTable:
    """`clocks_mhz` (m,) ascending; `rates_per_s` (n,) ascending from 0; `watts` (n, m) average power of
    the instance's GPUs; `max_rates_per_s` (m,): largest rate at which every promise holds, per clock.

    Beyond the last rate the last watts hold. Raises ValueError for arrays that do not fit each other.
    """

    clocks_mhz: tuple[int, ...]
    rates_per_s: FloatArray
    watts: FloatArray
    max_rates_per_s: FloatArray
    _fine_per_s: FloatArray = field(init=False, repr=False)
    _fine_w: FloatArray = field(init=False, repr=False)  # at the best clock

    def __post_init__(self) -> None:
        n, m = len(self.rates_per_s), len(self.clocks_mhz)
        if n < 2 or m < 1 or self.watts.shape != (n, m) or self.max_rates_per_s.shape != (m,):
            raise ValueError(f"watts must be (rates, clocks) = ({n}, {m}) and max_rates_per_s ({m},)")
        if self.rates_per_s[0] != 0.0 or not np.all(np.diff(self.rates_per_s) > 0.0):
            raise ValueError("rates_per_s must ascend from 0")
        if list(self.clocks_mhz) != sorted(set(self.clocks_mhz)):
            raise ValueError(f"clocks_mhz must ascend, got {self.clocks_mhz}")
        for name, values in (("watts", self.watts), ("max_rates_per_s", self.max_rates_per_s)):
            if not np.all(np.isfinite(values)) or np.any(values < 0.0):
                raise ValueError(f"{name} must be finite and >= 0")
        fine = np.linspace(0.0, float(self.rates_per_s[-1]), FINE)
        object.__setattr__(self, "_fine_per_s", fine)
        object.__setattr__(self, "_fine_w", self._best(fine)[0])

    @property
    def max_rate_per_s(self) -> float:
        """Largest rate at which some clock keeps every promise."""
        return float(self.max_rates_per_s.max())

    def max_rate_at(self, clock_mhz: int) -> float:
        """Largest rate kept at one clock. Raises ValueError for a clock not listed."""
        return float(self.max_rates_per_s[self.clocks_mhz.index(clock_mhz)])

    def at(self, rate_per_s: float) -> CapacityPoint:
        """Best clock at a rate: least watts that keeps every promise; the most able one where none does."""
        if not rate_per_s >= 0.0:
            raise ValueError(f"rate_per_s must be >= 0, got {rate_per_s}")
        power, clock = self._best(np.array([rate_per_s]))
        keeps = rate_per_s <= self.max_rate_per_s
        return CapacityPoint(self.clocks_mhz[int(clock[0])], float(power[0]), keeps)

    def watts_at(self, rates_per_s: FloatArray) -> FloatArray:
        """Watts at the best clock for many rates, from a fine table: same shape."""
        return np.interp(rates_per_s, self._fine_per_s, self._fine_w)

    def _best(self, rates: FloatArray) -> tuple[FloatArray, npt.NDArray[np.intp]]:
        power = np.stack([np.interp(rates, self.rates_per_s, column) for column in self.watts.T])
        keeps = self.max_rates_per_s[:, None] >= rates
        best = np.argmin(np.where(keeps, power, np.inf), axis=0)
        best = np.where(keeps.any(axis=0), best, int(np.argmax(self.max_rates_per_s)))
        return power[best, np.arange(len(rates))], best
