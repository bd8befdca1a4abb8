"""Best found: a clock schedule fitted to one run with full knowledge of its arrivals and lengths.

Nobody can drive like this; it says how much there is to be had. It is *not* an optimum and proves
nothing about what is impossible: that is `oracle_bound`.

The schedule holds one clock per segment of a few seconds, switched in no time. It is improved by descent:
cut the run into windows as long as a request lives or twice that, change a few segments at the start of every
window at once, replay, and keep the changes of those windows whose own cost went down. Cost of a window:
its energy, plus a price for each request that finished in it late. A price rises while more requests of
its promise are late than the promise permits and falls while fewer are, so that in the end the permitted
misses are spent where they save the most (a Lagrangian). What counts in the end is the run itself: the
least energy among the schedules tried that keep every promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from kvwatt.state import Slo
from kvwatt_sim.replay.gaps import bin_of
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import QUANTILE, Case

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDS = 600  # twice as many find up to 0.7 % more under strict promises, 0.1 % under paper
SEGMENT_S = 5.0
WINDOWS_S = (90.0, 45.0)  # in turn
RUN_SEGMENTS = (1, 2, 4, 8, 16)  # segments changed together
STEP_SHARES = (0.006, 0.012, 0.025, 0.05, 0.1)  # of the highest clock
LOWER_SHARE = 0.6  # of the moves: there is more to win below
RAMP = 0.05  # a request costs from 5 % below its limit on, in full at it and not more beyond
PRICE_UP, PRICE_DOWN = 1.1, 0.97
FIRST_PRICE = 0.1  # of the energy of an average request
PRICE_SPAN = (1e-3, 1e3)
DRAIN_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """The schedule of least energy that kept every promise, and what it did."""

    clocks_mhz: tuple[int, ...]  # one per SEGMENT_S, the last one until the end
    outcome: Outcome


def best_found(
    case: Case, starts: Sequence[Sequence[int]], rounds: int = ROUNDS, seed: int = 0
) -> Found | None:
    """Descend from each start (a clock per segment, the last one until the end); the best of all.

    None: nothing tried kept the promises."""
    found = [_Descent(case, start, seed + i).run(rounds) for i, start in enumerate(starts)]
    return min((f for f in found if f is not None), key=lambda f: f.outcome.energy_j, default=None)


@dataclass(frozen=True, slots=True)
class Run:
    """One schedule replayed, with its costs along time.

    `lateness`: latency over limit, (requests, promised metrics). The others but `finished_s` hold the sums
    up to each segment's bound: (segments + 1,)."""

    outcome: Outcome
    energy_j: Floats
    late_gaps: Floats
    finished_s: Floats
    lateness: Floats


def run_schedule(case: Case, clocks_mhz: Sequence[int]) -> Run:
    """Serve `case` with one clock per segment; it drains at the last one."""
    plant = VirtualPlant(case.card, case.shape, case.requests)
    itl = case.promises.slo.itl
    energy_j, late_gaps, changes = [0.0], [0], 0
    for segment, clock in enumerate(clocks_mhz):
        if clock != plant.clock_mhz:
            plant.set_clock(clock, 0.0)
            changes += 1
        plant.advance(min((segment + 1) * SEGMENT_S, case.until_s))
        energy_j.append(plant.energy_j)
        if itl is not None:
            late_gaps.append(int(plant.gaps().counts[bin_of(itl.limit_s) + 1 :].sum()))
    while not plant.done:
        plant.advance(plant.now_s + DRAIN_STEP_S)
    energy_j[-1] = plant.energy_j
    outcome = plant.outcome(changes)
    gaps = np.array(late_gaps if itl is not None else np.zeros(len(energy_j)), dtype=np.float64)
    lateness = _lateness(outcome, case.promises.slo)
    return Run(outcome, np.array(energy_j), gaps, outcome.served.last_s, lateness)


class _Descent:
    def __init__(self, case: Case, start: Sequence[int], seed: int) -> None:
        self._case = case
        self._rng = np.random.default_rng(seed)
        self._segments = ceil(case.until_s / SEGMENT_S)
        self._clocks = np.array(case.clocks_mhz, dtype=np.int64)
        padded = [*start, *[start[-1]] * self._segments][: self._segments]
        self._now = self._snap(np.array(padded, dtype=np.int64))
        self._best: Found | None = None
        self._run = self._try(self._now)
        self._unit_j = self._run.outcome.energy_j / max(len(case.requests), 1)
        self._price_j = np.full(self._run.lateness.shape[1], FIRST_PRICE * self._unit_j)
        self._gap_price_j = FIRST_PRICE * self._unit_j / 100.0

    def run(self, rounds: int) -> Found | None:
        for turn in range(rounds):
            self._round(WINDOWS_S[turn % len(WINDOWS_S)])
            self._reprice()
        return self._best

    def _round(self, window_s: float) -> None:
        bounds_s = np.arange(self._rng.uniform(-window_s, 0.0), self._case.until_s, window_s)
        firsts = np.maximum(bounds_s / SEGMENT_S, 0).astype(np.int64)
        length = int(self._rng.choice(RUN_SEGMENTS))
        size = max(float(self._rng.choice(STEP_SHARES)) * float(self._clocks[-1]), 1.0)
        tried = self._now.copy()
        for first in firsts:
            sign = -1.0 if self._rng.random() < LOWER_SHARE else 1.0
            tried[first : first + length] += round(sign * size)
        tried = self._snap(tried)
        before = self._cost_j(self._run, bounds_s)
        better = self._cost_j(self._try(tried), bounds_s) < before
        together = self._now.copy()
        for first in firsts[better]:
            together[first : first + length] = tried[first : first + length]
        if not np.array_equal(together, self._now):
            run = self._try(together)
            if self._cost_j(run, bounds_s).sum() < before.sum():
                self._now, self._run = together, run

    def _snap(self, clocks: Ints) -> Ints:
        """The nearest permitted clock."""
        if len(self._clocks) == 1:
            return np.full(len(clocks), self._clocks[0])
        above = np.clip(np.searchsorted(self._clocks, clocks), 1, len(self._clocks) - 1)
        low, high = self._clocks[above - 1], self._clocks[above]
        return np.asarray(np.where(clocks - low < high - clocks, low, high), dtype=np.int64)

    def _try(self, clocks: Ints) -> Run:
        run = run_schedule(self._case, clocks.tolist())
        best_j = inf if self._best is None else self._best.outcome.energy_j
        if run.outcome.energy_j < best_j and _kept(self._case, run.outcome):
            self._best = Found(tuple(clocks.tolist()), run.outcome)
        return run

    def _cost_j(self, run: Run, bounds_s: Floats) -> Floats:
        """Per window; what finishes after the last bound counts in the last window."""
        edges_s = np.append(bounds_s, self._segments * SEGMENT_S).clip(0.0)
        grid_s = np.arange(self._segments + 1) * SEGMENT_S
        spent_j = np.diff(np.interp(edges_s, grid_s, run.energy_j))
        gaps_j = self._gap_price_j * np.diff(np.interp(edges_s, grid_s, run.late_gaps))
        fine_j = np.clip((run.lateness - (1.0 - RAMP)) / RAMP, 0.0, 1.0) @ self._price_j
        window = np.searchsorted(bounds_s[1:], run.finished_s, side="right")
        return np.asarray(spent_j + gaps_j + np.bincount(window, fine_j, minlength=len(bounds_s)))

    def _reprice(self) -> None:
        permitted = (1.0 - QUANTILE) * len(self._case.requests)
        low, high = (limit * self._unit_j for limit in PRICE_SPAN)
        late = (self._run.lateness > 1.0).sum(axis=0)
        self._price_j = (self._price_j * np.where(late > permitted, PRICE_UP, PRICE_DOWN)).clip(low, high)
        itl = self._case.promises.slo.itl
        if itl is not None:
            over = self._run.outcome.gaps.share_within(itl.limit_s) < QUANTILE
            self._gap_price_j *= PRICE_UP if over else PRICE_DOWN


def _kept(case: Case, outcome: Outcome) -> bool:
    return min(outcome.attainment(case.promises.slo).values()) >= QUANTILE


def _lateness(outcome: Outcome, slo: Slo) -> Floats:
    """Latency over limit; a request of one token has no time between tokens: 0."""
    served = outcome.served
    tbt_s = (served.last_s - served.first_s) / np.maximum(served.output_tokens - 1, 1)
    pairs = (
        (served.first_s - served.arrival_s, slo.ttft),
        (tbt_s, slo.tbt),
        (served.last_s - served.arrival_s, slo.e2e),
    )
    return np.stack([value / target.limit_s for value, target in pairs if target is not None], axis=1)
