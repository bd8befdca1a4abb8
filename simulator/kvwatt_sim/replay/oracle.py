"""Best found: a clock schedule fitted to one run with full knowledge of its arrivals and lengths.

Nobody can drive like this; it says how much is there to be had. It is *not* an optimum and proves
nothing about what is impossible: that is `oracle_bound`.

The schedule holds one clock per segment of a few seconds. It is improved by descent: cut the run into
windows longer than a request lives, change a few segments at the start of every window at once, replay,
and keep the changes of those windows whose own cost went down. Cost of a window: its energy, plus a price
for each request that finished in it late. A price rises while more requests of its promise are late than
the promise permits and falls while fewer are, so that in the end the permitted misses are spent where
they save the most (Lagrange). What counts in the end is the run itself: least energy among the schedules
tried that keep every promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from kvwatt_sim.replay.controller import Controller, replay
from kvwatt_sim.replay.gaps import bin_of
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.policies import worst_attainment
from kvwatt_sim.replay.scenario import QUANTILE, Case, Promises

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEGMENT_S = 5.0
WINDOW_S = 90.0
RUN_SEGMENTS = (1, 2, 4, 8, 16)  # segments changed together
STEP_SHARES = (0.006, 0.012, 0.025, 0.05, 0.1)  # of the highest clock
LOWER_SHARE = 0.6  # of the moves: there is more to win below
RAMP = 0.05  # a request costs from 5 % below its limit on, in full at it: late ones are paid once
PRICE_UP, PRICE_DOWN = 1.1, 0.97
FIRST_PRICE = 0.1  # of the energy of an average request
PRICE_SPAN = (1e-3, 1e3)


@dataclass(frozen=True, slots=True)
class Found:
    """The schedule of least energy that kept every promise, and what it did."""

    clocks_mhz: tuple[int, ...]
    outcome: Outcome


class Schedule:
    """A clock per segment, the last one for ever; a Controller. Notes what had been spent at each bound."""

    period_s = SEGMENT_S

    def __init__(self, clocks_mhz: Sequence[int], itl_limit_s: float | None = None) -> None:
        self._clocks = clocks_mhz
        self._over_bin = BEYOND if itl_limit_s is None else bin_of(itl_limit_s) + 1
        self.energy_j: list[float] = []
        self.late_gaps: list[int] = []

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        segment = round(now_s / self.period_s)
        self.energy_j.append(plant.energy_j)
        self.late_gaps.append(int(plant.outcome(0).gaps.counts[self._over_bin :].sum()))
        return int(self._clocks[min(segment, len(self._clocks) - 1)])


BEYOND = 1 << 30


class Recorded:
    """Any controller, with the clocks that it held per segment: a start for the search."""

    def __init__(self, inner: Controller) -> None:
        self._inner = inner
        self.period_s = inner.period_s
        self.held: list[tuple[float, int]] = []

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        target = self._inner.target(now_s, plant)
        self.held.append((now_s, plant.card.boost_mhz if target is None else target))
        return target

    def schedule(self, until_s: float) -> tuple[int, ...]:
        """The mean clock asked for in each segment."""
        times, clocks = (np.array(side, dtype=np.float64) for side in zip(*self.held, strict=True))
        fine = np.arange(0.0, until_s, SEGMENT_S / 20)
        held = clocks[np.searchsorted(times, fine, side="right") - 1]
        whole = held[: len(held) // 20 * 20].reshape(-1, 20).mean(axis=1)
        return tuple(int(clock) for clock in whole)


def best_found(case: Case, starts: Sequence[Sequence[int]], rounds: int, seed: int = 0) -> Found | None:
    """Descend from each start; the best of all. None: nothing tried kept the promises."""
    found = [_Descent(case, start, seed + i).run(rounds) for i, start in enumerate(starts)]
    return min((f for f in found if f is not None), key=lambda f: f.outcome.energy_j, default=None)


@dataclass(frozen=True, slots=True)
class _Run:
    """One schedule replayed. `lateness`: latency over limit, (requests, metrics)."""

    outcome: Outcome
    energy_j: Floats  # (segments + 1,)
    late_gaps: Floats  # (segments + 1,)
    finished_s: Floats
    lateness: Floats

    def late(self) -> Ints:
        return np.asarray((self.lateness > 1.0).sum(axis=0), dtype=np.int64)


class _Descent:
    def __init__(self, case: Case, start: Sequence[int], seed: int) -> None:
        self._case = case
        self._rng = np.random.default_rng(seed)
        self._segments = ceil(case.until_s / SEGMENT_S)
        self._clocks = np.array(case.clocks_mhz, dtype=np.int64)
        padded = [*start, *[start[-1]] * self._segments][: self._segments]
        self._now = self._snap(np.array(padded, dtype=np.int64))
        self._run = self._try(self._now)
        request_j = self._run.outcome.energy_j / max(len(case.requests), 1)
        self._unit_j = request_j
        self._price_j = np.full(self._run.lateness.shape[1], FIRST_PRICE * request_j)
        self._gap_price_j = FIRST_PRICE * request_j / 100.0
        self._best: Found | None = None
        self._keep()

    def run(self, rounds: int) -> Found | None:
        for _ in range(rounds):
            self._round()
            self._reprice()
        return self._best

    def _round(self) -> None:
        bounds_s = np.arange(self._rng.uniform(-WINDOW_S, 0.0), self._case.until_s, WINDOW_S)
        firsts = np.maximum(bounds_s / SEGMENT_S, 0).astype(np.int64)
        length = int(self._rng.choice(RUN_SEGMENTS))
        size = float(self._rng.choice(STEP_SHARES)) * float(self._clocks[-1])
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
                self._keep()

    def _snap(self, clocks: Ints) -> Ints:
        """The nearest permitted clock."""
        above = np.clip(np.searchsorted(self._clocks, clocks), 1, len(self._clocks) - 1)
        low, high = self._clocks[above - 1], self._clocks[above]
        return np.asarray(np.where(clocks - low < high - clocks, low, high), dtype=np.int64)

    def _try(self, clocks: Ints) -> _Run:
        c = self._case
        schedule = Schedule(clocks.tolist(), c.promises.itl_s)
        outcome = replay(c.card, c.shape, c.requests, schedule, c.until_s, switch_latency_s=0.0)
        marks = self._segments + 1
        energy_j = [*schedule.energy_j, *[outcome.energy_j] * marks][:marks]
        energy_j[-1] = outcome.energy_j
        gaps = [*schedule.late_gaps, *schedule.late_gaps[-1:] * marks][:marks]
        return _Run(
            outcome,
            np.array(energy_j),
            np.array(gaps, dtype=np.float64),
            np.array([r.finished_s for r in outcome.records]),
            _lateness(outcome, c.promises),
        )

    def _cost_j(self, run: _Run, bounds_s: Floats) -> Floats:
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
        moved = np.where(self._run.late() > permitted, PRICE_UP, PRICE_DOWN)
        self._price_j = (self._price_j * moved).clip(low, high)
        itl_s = self._case.promises.itl_s
        if itl_s is not None:
            over = self._run.outcome.gaps.share_within(itl_s) < QUANTILE
            self._gap_price_j *= PRICE_UP if over else PRICE_DOWN

    def _keep(self) -> None:
        run = self._run
        best_j = inf if self._best is None else self._best.outcome.energy_j
        if run.outcome.energy_j < best_j and worst_attainment(self._case, run.outcome) >= QUANTILE:
            self._best = Found(tuple(self._now.tolist()), run.outcome)


def _lateness(outcome: Outcome, promises: Promises) -> Floats:
    """Latency over limit per request and promised metric; 0 where a request has no such latency."""
    rows = [
        (r.request.arrival_s, r.first_token_s, r.last_token_s, max(r.output_tokens - 1, 1))
        for r in outcome.records
    ]
    arrival, first, last, gaps = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    slo = promises.slo
    pairs = ((first - arrival, slo.ttft), ((last - first) / gaps, slo.tbt), (last - arrival, slo.e2e))
    return np.stack([value / target.limit_s for value, target in pairs if target is not None], axis=1)
