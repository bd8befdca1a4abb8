"""A histogram of how long deciding takes: the daemon accounts for its own cost."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

BOUNDS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
RECENT = 1024


class Durations:
    """Counts per bucket since the start, quantiles over the most recent observations."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.sum_s = 0.0
        self.max_s = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    def observe(self, duration_s: float) -> None:
        self._counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self._recent.append(duration_s)
        self.sum_s += duration_s
        self.max_s = max(self.max_s, duration_s)

    def cumulative(self) -> tuple[int, ...]:
        """Observations at most each of BOUNDS_S."""
        total, out = 0, []
        for count in self._counts[:-1]:
            total += count
            out.append(total)
        return tuple(out)

    def quantile_s(self, q: float) -> float | None:
        if not self._recent:
            return None
        ordered = sorted(self._recent)
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]
