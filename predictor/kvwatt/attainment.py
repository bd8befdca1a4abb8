"""How a promise was kept, read from a latency histogram."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf

from kvwatt.state import Histogram


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
