"""Settings chosen in hindsight: what an operator who knew the run to come would have set by hand.

`best_fixed`  one clock for the whole run.
`best_pair`   one clock for steps with prompt tokens and one for the others, switched in no time: an ideal
              (a real switch takes as long as such a step).
`best_cap`    a power cap; below it the GPU's own governor chooses clocks (`gpu.capped_clock_mhz`), those
              that nobody may lock included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import ceil, inf

from kvwatt_sim.replay import controller
from kvwatt_sim.replay.controller import FixedClock
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import QUANTILE, Case

CAP_STEP_W = 2.5
PAIR_STEPS = (32, 16, 8, 4, 2, 1)  # supported clocks moved at once in the search for a pair

Point = tuple[int, ...]


@dataclass
class Search:
    """Outcomes of settings, each replayed once. Better: keeps the promises at less energy; where nothing
    keeps them, keeps more of the one that is kept least."""

    case: Case
    serve: Callable[[Point], Outcome]
    tried: dict[Point, Outcome] = field(default_factory=dict)

    def rank(self, point: Point) -> tuple[float, float]:
        """The smaller the better."""
        if point not in self.tried:
            self.tried[point] = self.serve(point)
        outcome = self.tried[point]
        kept = min(outcome.attainment(self.case.promises.slo).values())
        return (min(kept - QUANTILE, 0.0) * -1.0, outcome.energy_j)

    def best(self, points: Iterable[Point]) -> Point:
        return min(points, key=self.rank)


def best_fixed(case: Case) -> Outcome:
    """Every permitted clock is tried."""
    return best_clock(case)[1]


def best_clock(case: Case) -> tuple[int, Outcome]:
    """The best fixed clock, MHz, and what it did."""
    search = Search(case, lambda point: _fixed(case, point[0]))
    best = search.best([(clock,) for clock in case.clocks_mhz])
    return best[0], search.tried[best]


def best_pair(case: Case) -> Outcome:
    """Pattern search over (prefill clock, decode clock) from the best fixed clock, steps halving to one."""
    clocks = case.clocks_mhz
    search = Search(case, lambda point: _paired(case, clocks[point[0]], clocks[point[1]]))
    at = clocks.index(best_clock(case)[0])
    best: Point = (at, at)
    for step in PAIR_STEPS:
        while (better := search.best(_around(best, step, len(clocks)))) != best:
            best = better
    return search.tried[best]


def best_cap(case: Case) -> Outcome:
    """Every cap between the board's limits in steps of CAP_STEP_W, top clock asked for."""
    low, high = case.card.min_cap_w, case.card.max_cap_w
    caps = [min(low + CAP_STEP_W * i, high) for i in range(ceil((high - low) / CAP_STEP_W) + 1)]
    search = Search(case, lambda point: _capped(case, caps[point[0]]))
    return search.tried[search.best([(i,) for i in range(len(caps))])]


def _around(point: Point, step: int, count: int) -> list[Point]:
    """The point itself first, so that it stays where nothing is better."""
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, 1), (1, -1)]
    near = [(point[0] + step * a, point[1] + step * b) for a, b in moves]
    return [p for p in near if 0 <= p[0] < count and 0 <= p[1] < count]


def _fixed(case: Case, clock_mhz: int) -> Outcome:
    return controller.replay(case.card, case.shape, case.requests, FixedClock(clock_mhz), case.until_s)


def _paired(case: Case, prefill_mhz: int, decode_mhz: int) -> Outcome:
    return controller.replay(
        case.card, case.shape, case.requests, Pair(prefill_mhz, decode_mhz), case.until_s
    )


def _capped(case: Case, cap_w: float) -> Outcome:
    capped = replace(case.card, power_cap_w=cap_w)
    return controller.replay(capped, case.shape, case.requests, FixedClock(None), case.until_s)


@dataclass(frozen=True, slots=True)
class Pair:
    """Controller: asked once, it sets both clocks for good."""

    prefill_mhz: int
    decode_mhz: int
    period_s: float = inf

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        plant.set_prefill_clock(self.prefill_mhz)
        return self.decode_mhz
