"""Best found: members and clocks for every window, chosen with knowledge of the day's rates.

Nobody can decide like this. It is not an optimum: per window it takes the pool and the clock of least
measured watts whose measured capacity, used up to `use`, holds the window's rate; the sequence of pools is
the cheapest one when each start is paid for (dynamic programming). Several values of `use` are replayed; the
least energy that keeps the promises is what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from kvwatt.pool import PoolAction
from kvwatt_sim.day.pool import View
from kvwatt_sim.day.profile import Profile
from kvwatt_sim.day.rivals import toward
from kvwatt_sim.day.server import Kind
from kvwatt_sim.day.setting import Setting

USES = (1.8, 1.6, 1.4, 1.2, 1.1, 1.0, 0.9, 0.8)
HOPELESS_W = 1e6  # of the largest pool where nothing holds the rate
LEAD_S = 5.0  # a member is ready so long before its window


@dataclass(frozen=True, slots=True)
class Choice:
    """A pool of `count` members of one kind, all at one clock."""

    kind: str
    count: int
    clock_mhz: int
    watts: float


@dataclass
class Planned:
    """Scaler and clocks of a day that was planned beforehand, one choice per window."""

    setting: Setting
    choices: Sequence[Choice]
    period_s: float = 0.5

    def actions(self, view: View) -> list[PoolAction]:
        now, then = self.choices[self._window(view.now_s)], self.choices[self._soon(view.now_s)]
        wanted = {now.kind: now.count}
        wanted[then.kind] = max(wanted.get(then.kind, 0), then.count)
        return toward(view.members, wanted)

    def clock(self, now_s: float, kind: Kind) -> int:
        return self.choices[self._window(now_s)].clock_mhz

    def _window(self, now_s: float) -> int:
        return min(int(now_s / self.setting.window_s), len(self.choices) - 1)

    def _soon(self, now_s: float) -> int:
        start_s = max(kind.start_s for kind in self.setting.kinds.values())
        return self._window(now_s + start_s + LEAD_S)


def sizes(setting: Setting) -> list[Mapping[str, int]]:
    """Pools of members of one kind, in order of capacity."""
    found = [
        {name: n}
        for name in setting.kinds
        for n in range(1, sum(place.kind.name == name for place in setting.places) + 1)
    ]
    kinds = setting.kinds
    return sorted(found, key=lambda size: sum(n * kinds[k].capacity_per_s for k, n in size.items()))


def planned(setting: Setting, profiles: Mapping[str, Profile], use: float) -> Planned:
    """The cheapest sequence of choices by the profiles."""
    pools = [(k, n) for size in sizes(setting) for k, n in size.items()]
    table = [
        [_choice(setting, profiles[k], k, n, rate, use) for k, n in pools] for rate in setting.rates_per_s
    ]
    cost = np.array([[choice.watts * setting.window_s for choice in row] for row in table])
    change = np.array([[_start_j(setting, a, b) for b in pools] for a in pools])
    total, back = cost[0], np.zeros(cost.shape, dtype=np.int64)
    for t in range(1, len(cost)):
        reach = total[:, None] + change
        back[t] = reach.argmin(axis=0)
        total = reach.min(axis=0) + cost[t]
    path = [int(total.argmin())]
    for t in range(len(cost) - 1, 0, -1):
        path.append(int(back[t][path[-1]]))
    return Planned(setting, [row[i] for row, i in zip(table, reversed(path), strict=True)])


def _choice(setting: Setting, known: Profile, kind: str, count: int, rate: float, use: float) -> Choice:
    """The clock of least watts that holds the rate; infinite watts where none does."""
    each, points = rate / count, known.table()
    fits = points.max_rates_per_s >= each / use
    if not fits.any():
        fallback_w = HOPELESS_W if (kind, count) == _most(setting) else inf
        return Choice(kind, count, known.clocks_mhz[-1], fallback_w)
    watts = [float(np.interp(each, known.rates_per_s, column)) for column in known.watts.T]
    best = int(np.where(fits, watts, np.inf).argmin())
    gpus = setting.kinds[kind].card.tp * count
    parked_w = setting.parked_w * (len(setting.gpus) - gpus)
    return Choice(kind, count, known.clocks_mhz[best], watts[best] * count + parked_w)


def _most(setting: Setting) -> tuple[str, int]:
    """The pool of the largest capacity: where nothing holds a rate, everything is tried."""
    return next(iter(sizes(setting)[-1].items()))


def _start_j(setting: Setting, before: tuple[str, int], after: tuple[str, int]) -> float:
    kind = setting.kinds[after[0]]
    started = after[1] - (before[1] if before[0] == after[0] else 0)
    return max(started, 0) * kind.starting_w * kind.start_s
