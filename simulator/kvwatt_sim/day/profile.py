"""What one instance does at each clock and rate, found by replay: for oracles, and to judge a model by.

Nobody who decides live may use it: it is made with the plant itself and the trace of the day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.queueing import CapacityTable
from kvwatt.state import Slo
from kvwatt_sim.day.server import Kind
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.scenario import QUANTILE, fitted, thin
from kvwatt_sim.traces import TraceRequest, window

SEEDS = (1001, 1002)
CLOCKS, RATES = 12, 14
MINUTES = 30.0
BEYOND = 1.1  # rates up to this share of capacity

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """`watts`, `kept`: (rates, clocks): mean power of the group and the promise kept least."""

    clocks_mhz: tuple[int, ...]
    rates_per_s: Floats
    watts: Floats
    kept: Floats

    def table(self) -> CapacityTable:
        """As the planner takes it."""
        most = np.array([self._largest(column) for column in self.kept.T])
        return CapacityTable(self.clocks_mhz, self.rates_per_s, self.watts, most)

    def _largest(self, kept: Floats) -> float:
        """The rate at which the promise kept least falls below its share for the first time."""
        broken = np.flatnonzero(kept < QUANTILE)
        if not broken.size:
            return float(self.rates_per_s[-1])
        at = int(broken[0])
        if at == 0:
            return 0.0
        part = (kept[at - 1] - QUANTILE) / (kept[at - 1] - kept[at])
        return float(self.rates_per_s[at - 1] + part * (self.rates_per_s[at] - self.rates_per_s[at - 1]))


def profile(kind: Kind, source: Sequence[TraceRequest], slo: Slo) -> Profile:
    """`source`: the trace, with its bursts; half an hour of it, thinned to each rate (a minute of work)."""
    step = max((len(kind.clocks_mhz) - 1) / (CLOCKS - 1), 1.0)
    places = sorted({round(i * step) for i in range(CLOCKS)} & set(range(len(kind.clocks_mhz))))
    clocks = tuple(kind.clocks_mhz[i] for i in places)
    rates = np.linspace(0.0, BEYOND * kind.capacity_per_s, RATES)
    whole = fitted(kind.card, source)
    cells = [[_cell(kind, whole, slo, clock, float(rate)) for clock in clocks] for rate in rates]
    found = np.array(cells)
    return Profile(clocks, rates, found[:, :, 0], found[:, :, 1])


def _cell(
    kind: Kind, source: tuple[TraceRequest, ...], slo: Slo, clock: int, rate: float
) -> tuple[float, float]:
    """Mean watts and the promise kept least, over SEEDS together."""
    energy_j = span_s = 0.0
    kept: list[dict[str, float]] = []
    for seed in SEEDS:
        requests = window(thin(source, rate, seed), 60.0 * MINUTES) if rate > 0.0 else ()
        done = replay(kind.card, kind.shape, requests, FixedClock(clock), 60.0 * MINUTES)
        energy_j, span_s = energy_j + done.energy_j, span_s + done.duration_s
        kept.append(done.attainment(slo))
    return energy_j / span_s, min(float(np.mean([k[name] for k in kept])) for name in kept[0])
