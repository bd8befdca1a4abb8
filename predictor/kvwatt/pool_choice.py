"""Which number of instances of each kind: the least watts among those that carry the rate.

A choice carries a rate up to the sum of what its members carry. Load is spread in proportion to that, so
every member has the same utilisation. Watts are those of serving the expected rate at each member's best
clock, and of what is parked: raising clocks and adding members are priced alike.

Among choices of sufficient capacity the watts at low rates need not fall into the same order as at high
ones. So that more traffic never asks for less, the choice for a rate has at least the capacity of the
choice for every lower one, on a fixed grid of rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from kvwatt.pool import EngineKind, Member, PoolParams

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

GRID = 48  # rates up to the whole pool's capacity
MOST_CHOICES = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """`counts` (c, k): members of each kind in `kinds` (k,); `capacity_per_s` (c,); `parked_w` (c,)."""

    kinds: tuple[EngineKind, ...]
    counts: npt.NDArray[np.intp]
    capacity_per_s: FloatArray
    parked_w: FloatArray

    def watts(self, rates_per_s: FloatArray) -> FloatArray:
        """Of the whole pool at rates (r,): (r, c). Beyond a choice's capacity: as at its capacity."""
        capacity = np.maximum(self.capacity_per_s, 1e-9)
        load = np.minimum(rates_per_s[:, None] / capacity, 1.0)
        busy = [
            self.counts[:, i] * kind.points.watts_at(load * kind.points.max_rate_per_s)
            for i, kind in enumerate(self.kinds)
        ]
        return np.asarray(np.sum(busy, axis=0) + self.parked_w)

    def index(self, wanted: Mapping[str, int]) -> int | None:
        """The row of these counts, None where it is not among the choices."""
        row = np.array([wanted.get(kind.name, 0) for kind in self.kinds])
        found = np.flatnonzero((self.counts == row).all(axis=1))
        return int(found[0]) if found.size else None

    def named(self, index: int) -> dict[str, int]:
        """Counts by kind's name."""
        return {kind.name: int(n) for kind, n in zip(self.kinds, self.counts[index], strict=True)}

    def cheapest(self, rate_per_s: float, allowed: BoolArray, extra_w: FloatArray) -> int | None:
        """The choice among `allowed`, see the module; `extra_w` (c,) is added to the watts."""
        if not allowed.any():
            return None
        top = max(float(self.capacity_per_s.max()), 1e-9)
        last = int(np.ceil(min(rate_per_s / top, 1.0) * GRID - 1e-9))
        cost = self.watts(top * np.arange(last + 1) / GRID) + extra_w
        chosen, floor = 0, -np.inf
        for row in cost:
            free = allowed & (self.capacity_per_s >= floor - 1e-12)
            chosen = int(np.argmin(np.where(free, row, np.inf)))
            floor = float(self.capacity_per_s[chosen])
        return chosen


def choices(
    members: Sequence[Member], kinds: Mapping[str, EngineKind], params: PoolParams, also: Mapping[str, int]
) -> Choices:
    """Every mix that `members` (those that may serve) and `params` allow, and `also` (what serves now).

    Smaller capacities first, so that ties go to them. Raises ValueError for too many mixes.
    """
    used = tuple(kinds[name] for name in sorted({m.kind for m in members}))
    have = [sum(m.kind == kind.name for m in members) for kind in used]
    if np.prod([n + 1.0 for n in have]) > MOST_CHOICES:
        raise ValueError(f"{have} members of kinds {[k.name for k in used]} make too many mixes to compare")
    total = gpus_of(members, kinds, params)
    present = tuple(also.get(kind.name, 0) for kind in used)
    rows = [
        row
        for row in product(*(range(n + 1) for n in have))
        if row == present or _allowed(row, used, total, params)
    ]
    counts = np.array(rows, dtype=np.intp).reshape(len(rows), len(used))
    capacity = counts @ np.array([kind.points.max_rate_per_s for kind in used])
    parked = _parked(counts, used, np.array(have), total)
    order = np.argsort(capacity, kind="stable")
    return Choices(used, counts[order], capacity[order], parked[order])


def gpus_of(members: Sequence[Member], kinds: Mapping[str, EngineKind], params: PoolParams) -> int:
    """GPUs of the pool: as configured, else those that are named, else what all members need together."""
    if params.gpus is not None:
        return params.gpus
    named: set[str] = set().union(*(m.gpus for m in members))
    return len(named) + sum(kinds[m.kind].gpus for m in members if not m.gpus)


def _allowed(row: tuple[int, ...], kinds: tuple[EngineKind, ...], gpus: int, params: PoolParams) -> bool:
    held = sum(n * kind.gpus for n, kind in zip(row, kinds, strict=True))
    alike = params.mixed or sum(n > 0 for n in row) <= 1
    return alike and sum(row) <= params.maximum and held <= gpus


def _parked(
    counts: npt.NDArray[np.intp], kinds: tuple[EngineKind, ...], have: npt.NDArray[np.intp], gpus: int
) -> FloatArray:
    """Watts of what does not serve; by GPU where kinds share them, so that none is counted twice."""
    each = np.array([off_w(kind) for kind in kinds])
    sizes = np.array([kind.gpus for kind in kinds])
    if int(have @ sizes) > gpus:
        per_gpu = float((each / sizes).min())
        return np.asarray(np.maximum(gpus - counts @ sizes, 0) * per_gpu, dtype=np.float64)
    return np.asarray(np.maximum(have - counts, 0) @ each, dtype=np.float64)


def off_w(kind: EngineKind) -> float:
    """Watts of a member taken out of service for good: stopped where it can be."""
    if kind.can_stop:
        return kind.stopped_w
    return kind.asleep_w if kind.can_sleep else kind.ready_idle_w
