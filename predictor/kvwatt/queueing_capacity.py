"""How much an instance carries: traffic in regimes, and the table of largest rates and watts by clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.capacity_table import CapacityTable
from kvwatt.queueing_demand import Latency
from kvwatt.queueing_instance import InstanceQueue, Operation
from kvwatt.state import Slo, SloTarget

FloatArray = npt.NDArray[np.float64]

WIDER, CLOSE = 1.25, 0.02  # steps and end of the search for the largest rate


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """Traffic of the share `share` of all time, at `rate_factor` times the mean rate."""

    share: float
    rate_factor: float
    queue: InstanceQueue


class MixedQueue:
    """One engine under traffic whose rate and lengths move more slowly than queues do (minutes).

    Raises ValueError for shares that do not sum to 1 and factors whose mean is not 1.
    """

    def __init__(self, regimes: Sequence[Regime]) -> None:
        self._regimes = tuple(regimes)
        self._shares = np.array([r.share for r in regimes])
        self._factors = np.array([r.rate_factor for r in regimes])
        total, mean = float(self._shares.sum()), float(self._shares @ self._factors)
        if abs(total - 1.0) > 1e-6 or abs(mean - 1.0) > 1e-6:
            raise ValueError(f"shares must sum to 1 and factors average 1, got {total:g} and {mean:g}")
        self.model = regimes[0].queue.model

    def watts_at(self, rates_per_s: FloatArray, clock: int) -> FloatArray:
        """As of `InstanceQueue`, by the regimes' shares of time."""
        parts = [r.queue.watts_at(rates_per_s * r.rate_factor, clock) for r in self._regimes]
        return np.asarray(self._shares @ np.array(parts))

    def at(self, rate_per_s: float, clock: int) -> Operation:
        """Latencies mixed by what each regime serves, batch and watts by its time."""
        parts = [r.queue.at(rate_per_s * r.rate_factor, clock) for r in self._regimes]
        served = self._factors * self._shares
        return Operation(
            clock_mhz=self.model.clocks_mhz[clock],
            rate_per_s=rate_per_s,
            carries=all(p.carries for p in parts),
            batch=float(self._shares @ [p.batch for p in parts]),
            tbt_s=float(served @ [p.tbt_s for p in parts]),
            ttft=Latency.mixed([p.ttft for p in parts], served),
            tbt=Latency.mixed([p.tbt for p in parts], served),
            e2e=Latency.mixed([p.e2e for p in parts], served),
            itl=Latency.mixed([p.itl for p in parts], served),
            power_w=float(self._shares @ [p.power_w for p in parts]),
        )


def capacity_table(
    queue: InstanceQueue | MixedQueue,
    slo: Slo,
    clocks: Sequence[int] | None = None,
    rates: int = 13,
    margin: float = 0.1,
) -> CapacityTable:
    """Largest rate at each clock within `slo`, to about 2 %, and watts at `rates` rates up to the largest.

    `clocks`: MHz to look at, all of the model by default. `margin`: share of each limit that is not used,
    for the p99 of the model are low by 5 % (TTFT) to 11 % (TBT) on average. Each clock's search starts from
    its neighbour's result, scaled by the clock.
    """
    slo = _tightened(slo, 1.0 - margin)
    known = queue.model.clocks_mhz
    columns = [known.index(clock) for clock in clocks] if clocks is not None else list(range(len(known)))
    limits, guess = np.zeros(len(columns)), 1.0
    for j, column in enumerate(columns):
        limits[j] = _largest_rate(queue, slo, column, guess)
        following = known[columns[min(j + 1, len(columns) - 1)]]
        guess = max(limits[j], 1e-2) * following / known[column]
    grid = np.linspace(0.0, max(float(limits.max()), 1e-3), rates)
    asked = np.minimum(grid[:, None], np.maximum(limits, 1e-6))
    watts = [queue.watts_at(asked[:, j], column) for j, column in enumerate(columns)]
    return CapacityTable(tuple(known[c] for c in columns), grid, np.stack(watts, axis=1), limits)


def _largest_rate(queue: InstanceQueue | MixedQueue, slo: Slo, clock: int, guess_per_s: float) -> float:
    """The rate up to which the promises hold: bracketed from a guess, then bisected."""
    low, high = 0.0, guess_per_s
    while high < 1e4 and queue.at(high, clock).keeps(slo):
        low, high = high, WIDER * high
    while low == 0.0:
        if high < 1e-3:
            return 0.0
        low = high / WIDER if queue.at(high / WIDER, clock).keeps(slo) else 0.0
        high = high if low else high / WIDER
    while high - low > CLOSE * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if queue.at(middle, clock).keeps(slo) else (low, middle)
    return low


def _tightened(slo: Slo, factor: float) -> Slo:
    def less(target: SloTarget | None) -> SloTarget | None:
        return SloTarget(target.limit_s * factor, target.quantile) if target is not None else None

    return Slo(less(slo.ttft), less(slo.tbt), less(slo.e2e), less(slo.itl))
