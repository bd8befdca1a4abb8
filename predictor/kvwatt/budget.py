"""What a missed promise may cost: the misses still to spend, and the price of one in joules.

A promise permits (1 - quantile) of the requests to miss. Least energy under such a constraint is the least
of energy + price x expected misses, the price being the constraint's multiplier. Nobody knows it beforehand:
it depends on traffic, lengths and GPU. So it is learned as multipliers are, from the constraint itself: it
rises exponentially where more was missed than planned, and falls where less was,

    price = usual x exp(GAIN x (missed + lost - planned) / (SOFT + SPREAD x seen))

with `lost` the requests inside that would miss even at the top clock, and `planned` the permitted misses
less a reserve. It falls little, and that of E2E not at all: what was saved up in quiet hours would else be
spent in the first busy minute. While traffic rises beyond chance the least price is higher: what the next
minute needs is not known yet.

That law is slow on purpose and spends beyond plan before it answers. Misses that no clock avoids come on top,
by chance and in clusters: where the driver default itself needs most of what is permitted, one spent by us
breaks the promise. So a part of what is permitted, the guard, is kept for them. It is the reserve of an
insurer (Cramer and Lundberg): each request brings its permitted share of a miss, and some miss at any clock.
Of n such in a window, clustered with the index of dispersion D, r = permitted - n is what a window without
spending gains, against a variance of D n, and a reserve of g is ever used up with the probability
exp(-2 r g / (D n)); hence, with one cluster more than was seen,

    guard = D (n + D) ln(1 / RUIN) / (2 r)

Where r is small that grows without bound; but two windows differ by less than GUARD_Z x sqrt(2 D (n + 1))
but for one in twenty, which is enough, too: the smaller of both is kept. n are the misses seen that no clock
would have avoided; all of them where it is not known which. Into the guard every second miss makes a further
one e times dearer, up to a price that avoids nearly all; beyond what is permitted every miss does. Few
requests permit few misses: none is spent there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvwatt.attainment import Tally
from kvwatt.state import Metric, SloTarget

GAIN = 3.0
SOFT_MISSES = 3.0
SPREAD = 0.002
MAX_LOG = 6.0
SURGE_LOG = 1.4  # of the least price while traffic rises
# Seconds of the clocks' whole range of power that a miss is worth to begin with.
USUAL_S = {Metric.E2E: 2.0, Metric.TTFT: 1.0, Metric.TBT: 3.0}
# Logarithm of the least price. E2E's never falls: in quiet hours the lowest clocks would spend misses and
# save next to nothing, for at them the batch grows until it takes what the clock saves.
MIN_LOG = {Metric.E2E: 0.0, Metric.TTFT: -1.0, Metric.TBT: -1.0}
# Twice the usual traffic breaks TBT for many at once where the top clock has no room for it; to pay when it
# comes is too late, so that every miss costs so many times more from the start.
STRAIN = 12.0
RUIN, GUARD_Z = 0.05, 1.64  # five in a hundred, of each
# D of the misses at driver default in eighths of simulated hours: 1 to 2 where few miss, 6 to 20 near
# capacity, where it matters; the geometric middle of those.
CLUSTERING = 11.0
# A price that swings far loses energy for the misses it avoids: held for half an hour on an A100 at 90 %, e^4
# times the usual one leaves 6 of them and saves 18 %, e^6 none and 11 %. So the guard raises the least price
# to e^GUARD_LOG at most.
GUARD_SLOPE, GUARD_LOG = 0.5, 3.3
NOTHING = Tally()


@dataclass(frozen=True, slots=True)
class Budget:
    """Requests seen and misses spent per promise over the operator's window; empty: nothing counted."""

    tallies: Mapping[Metric, Tally] = field(default_factory=dict)

    def standing(
        self,
        metric: Metric,
        target: SloTarget,
        reserve: float,
        inside: float,
        strain: float = 0.0,
        surge: float = 0.0,
    ) -> Standing:
        """`inside`: requests that are not judged yet, to come within the window's next moments included.

        `strain`: how much of the limit twice the usual traffic takes at the top clock, 0 to 1. `surge`, 0 to
        1: how surely traffic rises.
        """
        tally = self.tallies.get(metric, NOTHING)
        permitted = 1.0 - target.quantile
        usual_s = USUAL_S[metric] * (1.0 + STRAIN * strain**2)
        least = MIN_LOG[metric]
        return Standing(
            tally.seen,
            tally.missed,
            permitted,
            reserve,
            inside,
            usual_s,
            least + (SURGE_LOG - least) * surge,
            tally.unavoidable,
            GUARD_LOG - least,
        )


@dataclass(slots=True)  # made at every decision, not frozen for the time that takes
class Standing:
    """One promise now: what was spent and what may be."""

    seen: float
    missed: float
    permitted_ratio: float
    reserve: float
    inside: float
    usual_s: float
    least_log: float = 0.0
    unavoidable: float = 0.0
    guard_log: float = GUARD_LOG  # by so much the guard raises the price at most

    def over(self, lost: float) -> float:
        """Misses beyond plan, `lost` of those inside included; negative: still to spend."""
        planned = (1.0 - self.reserve) * self.permitted_ratio
        return self.missed + lost - planned * (self.seen + self.inside)

    def into_guard(self, lost: float) -> float:
        """Misses that take room from those which no clock may avoid; 0 without counts."""
        if self.seen <= 0.0:
            return 0.0
        permitted = self.permitted_ratio * (self.seen + self.inside)
        return max(self.missed + lost + self._guard(permitted) - permitted, 0.0)

    def _dearer(self, lost: float) -> float:
        """By how much the logarithm of the price rises for the guard and for what is beyond permitted."""
        into = self.into_guard(lost)
        if into <= 0.0:
            return 0.0
        beyond = self.missed + lost - self.permitted_ratio * (self.seen + self.inside)
        return min(GUARD_SLOPE * into, self.guard_log) + max(beyond, 0.0)

    def _guard(self, permitted: float) -> float:
        """Misses to keep for those that come at any clock: see above."""
        between_windows = GUARD_Z * math.sqrt(2.0 * CLUSTERING * (self.unavoidable + 1.0))
        room = permitted - self.unavoidable
        claims = CLUSTERING * (self.unavoidable + CLUSTERING) * -math.log(RUIN)
        return min(between_windows, claims / (2.0 * room)) if room > 0.0 else between_windows

    def price_j(self, power_range_w: float, lost: float) -> float:
        """Joules that are spent to avoid one more expected miss; never falls as more were missed."""
        log_price = GAIN * self.over(lost) / (SOFT_MISSES + SPREAD * self.seen)
        log_price = max(log_price, self.least_log) + self._dearer(lost)
        return self.usual_s * power_range_w * math.exp(min(log_price, MAX_LOG))
