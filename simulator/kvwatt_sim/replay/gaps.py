"""Times between tokens, millions of them: a histogram with narrow bins, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
import numpy.typing as npt

LOWEST_S, HIGHEST_S = 1e-4, 100.0
BINS = 4096  # each 0.34 % wide
SCALE = BINS / log(HIGHEST_S / LOWEST_S)


def bin_of(gap_s: float) -> int:
    """The bin a gap falls into; what lies outside goes to the first or the last."""
    return min(max(int(log(max(gap_s, LOWEST_S) / LOWEST_S) * SCALE), 0), BINS - 1)


@dataclass(frozen=True, slots=True)
class Gaps:
    """`counts[i]` gaps fell into bin i. Results are exact to a bin's width, 0.34 %."""

    counts: npt.NDArray[np.int64]

    def quantile(self, level: float) -> float:
        """Upper edge of the bin in which the quantile lies; NaN of nothing."""
        total = int(self.counts.sum())
        if total == 0:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self.counts), level * total))
        return LOWEST_S * exp((place + 1) / SCALE)

    def share_within(self, limit_s: float) -> float:
        """Share of gaps in bins up to the one of `limit_s`; 1 of nothing."""
        total = int(self.counts.sum())
        return float(self.counts[: bin_of(limit_s) + 1].sum()) / total if total else 1.0
