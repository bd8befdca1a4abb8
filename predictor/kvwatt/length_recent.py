"""What the newest requests say about lengths that a long memory has not caught up with.

Classes need thousands of requests; a drift common to all of them shows in a few hundred. By age of a
request (tokens produced so far, in groups that equal shares of the newest requests ended in) endings are
compared with what the hazards of the requests' classes led to expect. With O endings seen, E expected, and
k that the hazards lead to expect of `prior_requests` more requests that come to the group, all classes'
hazards in the group are multiplied by

    (O + k) / (E + k)

so little evidence moves little; the pooled curve is moved likewise by its own E. Survival, expectations and
quantiles all follow from the moved hazards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from kvwatt.length_curves import CELLS, Curves, Floats, Ints, cell_of, curves_of, hazards_of
from kvwatt.length_tree import Sample

_GROUPS = 16
_TINY = 1e-12
_FORGOTTEN = 5.0  # memories after which a request counts less than 1 %


@dataclass(frozen=True, slots=True)
class RecentOptions:
    """`memory_requests`: a request so many ago counts 1/e. `prior_requests`: see above."""

    memory_requests: float = 2000.0
    prior_requests: float = 5.0

    def __post_init__(self) -> None:
        for name in ("memory_requests", "prior_requests"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")

    def within(self, memory_requests: float) -> RecentOptions:
        """The same for classes of that memory: recent is at most a fifth of it."""
        return replace(self, memory_requests=min(self.memory_requests, memory_requests / 5.0))

    @property
    def reach_requests(self) -> int:
        """How many of the newest requests matter at all."""
        return math.ceil(_FORGOTTEN * self.memory_requests)


def corrected(curves: Curves, row: Ints, newest: Sample, options: RecentOptions) -> Curves:
    """`curves` (the last row pooled) moved by `newest` (of classes `row`) as they weigh; same rows."""
    hazards = hazards_of(curves.survival_rows)
    classes, pooled, cell = hazards[:-1], hazards[-1:], cell_of(newest.tokens)
    parts = [
        _moved(part, *_endings(len(part), place * CELLS + cell, newest), options.prior_requests)
        for part, place in ((classes, row), (pooled, np.zeros_like(row)))
    ]
    return curves_of(np.concatenate(parts))


def _endings(size: int, place: Ints, newest: Sample) -> tuple[Floats, Floats]:
    """Weight that ended in each cell and weight that came to it, both (size, CELLS)."""
    weight = newest.weight
    ended = np.bincount(place, weight * newest.ended, size * CELLS).reshape(size, CELLS)
    cut = np.bincount(place, weight * ~newest.ended, size * CELLS).reshape(size, CELLS)
    reached = np.cumsum((ended + cut)[:, ::-1], axis=1)[:, ::-1] - cut
    return np.asarray(ended, dtype=np.float64), np.asarray(reached)


def _moved(hazards: Floats, ended: Floats, reached: Floats, prior_requests: float) -> Floats:
    """`hazards` (n, CELLS) times the factor of each cell's group.

    `ended` and `reached`, both (n, CELLS): weight of requests that ended in a cell, and that came to it.
    """
    group = _groups(ended.sum(axis=0))
    seen = np.bincount(group, ended.sum(axis=0))
    due = np.bincount(group, (reached * hazards).sum(axis=0))
    stay = np.log1p(-np.minimum(_typical(hazards, reached), 1.0 - _TINY))
    prior = -prior_requests * np.expm1(np.bincount(group, stay))
    factor = (seen + prior) / np.maximum(due + prior, _TINY)
    return np.asarray(np.minimum(hazards * factor[group], 1.0))


def _typical(hazards: Floats, reached: Floats) -> Floats:
    """Mean hazard per cell over those who came to it; over all rows where nobody did."""
    total = reached.sum(axis=0)
    mean = (reached * hazards).sum(axis=0) / np.maximum(total, _TINY)
    return np.asarray(np.where(total > 0, mean, hazards.mean(axis=0)))


def _groups(ended: Floats) -> Ints:
    shares = np.cumsum(ended) / max(float(ended.sum()), 1e-12)
    first = np.unique(np.searchsorted(shares, np.arange(1, _GROUPS) / _GROUPS) + 1)
    return np.searchsorted(first, np.arange(CELLS), side="right")
