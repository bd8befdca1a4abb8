"""How the promises were kept: read from a latency histogram, and counted over a sliding window.

A promise is a quantile and a limit: of `seen` requests (1 - quantile) x seen may miss. Whoever counts over a
window knows how many of those misses are still to spend, which a single forecast does not tell.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import isinf

from kvwatt.state import Histogram, Metric, Slo, SloTarget

WINDOW_S = 900.0
SLICES = 60  # the window slides by one of them


@dataclass(frozen=True, slots=True)
class Attained:
    """`met` of `total` requests stayed within the limit."""

    met: float
    total: float

    @property
    def ratio(self) -> float | None:
        return self.met / self.total if self.total > 0 else None


def within(histogram: Histogram, limit_s: float) -> Attained:
    """Requests at most `limit_s`, interpolated inside the bucket that holds the limit.

    In the unbounded last bucket nothing is known to be within: the figure is then a lower bound.
    """
    low_s, below = 0.0, 0.0
    for bound_s, count in zip(histogram.bounds, histogram.cumulative, strict=True):
        if limit_s < bound_s:
            share = 0.0 if isinf(bound_s) else (limit_s - low_s) / (bound_s - low_s)
            return Attained(below + share * (count - below), histogram.count)
        low_s, below = bound_s, count
    return Attained(histogram.count, histogram.count)


def targets(slo: Slo) -> dict[Metric, SloTarget]:
    """The promises that are made."""
    pairs = ((Metric.TTFT, slo.ttft), (Metric.TBT, slo.tbt), (Metric.E2E, slo.e2e))
    return {metric: target for metric, target in pairs if target is not None}


@dataclass(frozen=True, slots=True)
class Tally:
    """One promise over the window. Counts from histograms are interpolated, hence no whole numbers."""

    seen: float = 0.0
    missed: float = 0.0
    permitted: float = 0.0  # misses that the promise allows of as many requests
    avoidable: float = 0.0  # of those missed, the ones that a higher clock would have saved, as far as known

    @property
    def left(self) -> float:
        """Misses still to spend; negative where the promise is broken."""
        return self.permitted - self.missed

    @property
    def unavoidable(self) -> float:
        """Misses that came at any clock, or of which nothing else is known."""
        return self.missed - self.avoidable

    @property
    def ratio(self) -> float | None:
        """Share of the requests that kept the promise."""
        return 1.0 - self.missed / self.seen if self.seen > 0 else None


@dataclass(slots=True)
class _Slice:
    index: int
    met: float
    total: float
    avoidable: float = 0.0


class Attainment:
    """Counts over the last `window_s` seconds, in slices: what leaves the window leaves it slice by slice.

    Time is the caller's, in seconds, and never goes back; an older one counts as the newest.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        if not 0.0 < window_s < math.inf:
            raise ValueError(f"window_s must be positive and finite, got {window_s}")
        self.window_s = window_s
        self._slices: dict[Metric, deque[_Slice]] = {metric: deque() for metric in Metric}

    def restart(self) -> None:
        """Other promises are made: what was counted is not theirs."""
        for slices in self._slices.values():
            slices.clear()

    def observe(self, metric: Metric, now_s: float, kept: Attained, avoidable: float = 0.0) -> bool:
        """Count requests that were judged at `now_s`; False where the counts make no sense.

        `avoidable`: of those that missed, the ones that a higher clock would have saved, as far as known."""
        if not (0.0 <= kept.met <= kept.total < math.inf and math.isfinite(now_s)):
            return False
        if kept.total == 0.0:
            return True
        slices, index = self._slices[metric], self._index(now_s)
        if slices and slices[-1].index >= index:
            slices[-1].met += kept.met
            slices[-1].total += kept.total
            slices[-1].avoidable += avoidable
        else:
            slices.append(_Slice(index, kept.met, kept.total, avoidable))
        self._forget(slices, index)
        return True

    def tally(self, metric: Metric, now_s: float, quantile: float) -> Tally:
        """One metric over the window that ends at `now_s`."""
        slices = self._slices[metric]
        self._forget(slices, self._index(now_s))
        seen = sum(part.total for part in slices)
        missed = max(seen - sum(part.met for part in slices), 0.0)
        avoidable = sum(part.avoidable for part in slices)
        return Tally(seen, missed, (1.0 - quantile) * seen, min(avoidable, missed))

    def budget(self, now_s: float, slo: Slo) -> Mapping[Metric, Tally]:
        """Every promised metric over the window that ends at `now_s`."""
        return {m: self.tally(m, now_s, target.quantile) for m, target in targets(slo).items()}

    def _index(self, now_s: float) -> int:
        return math.floor(now_s / self.window_s * SLICES)

    @staticmethod
    def _forget(slices: deque[_Slice], index: int) -> None:
        while slices and slices[0].index <= index - SLICES:
            slices.popleft()
