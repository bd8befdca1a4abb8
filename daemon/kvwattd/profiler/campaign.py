"""Which load to measure next and at which clocks, and when to stop. Pure: told the rows and the seconds.

A few loads at the ends of every range come first; then always the load whose measurement lowers the
summed variance over all candidate points most per second it costs. Enough is known when a model that has
never seen a load predicts it within the target: measured by leaving whole loads out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvwatt.fitting import fit_step_prior
from kvwatt.lattice import Floats
from kvwatt.profiles import ProfileRow, ProfileTable, table_of
from kvwatt.training import Mask, Origin, cross_validate, fit, upper_factor
from kvwattd.profiler.information import Points, joined, posterior, reduction
from kvwattd.profiler.plan import (
    DecodeLoad,
    IdleLoad,
    Limits,
    Load,
    MixedLoad,
    PrefillLoad,
    decode_loads,
    mixed_loads,
    plan,
    prefill_loads,
)

MIN_ROWS = 12
MIN_LOADS = {DecodeLoad: 6, PrefillLoad: 3, MixedLoad: 3}
CLOCKS_PER_LOAD = 3
LOAD_FOLDS = 6
ASSESS_EVERY = 2
SEEDS = 5
BOUND_PER_ERROR = 2.0  # a bound this many times the target error is good enough
_SETUP_S_PER_TOKEN = 1e-4  # before any was measured
_LARGEST_SETUP_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Task:
    """One load, measured at these clocks from high to low."""

    load: Load
    clocks_mhz: tuple[int, ...]


@dataclass
class Campaign:
    """`next` says what to measure, `add` takes what came of it. Times in seconds."""

    limits: Limits
    clocks_mhz: tuple[int, ...]  # from high to low
    target_error: float = 0.03
    point_s: float = 2.0  # for one clock of one load
    budget_s: float = 600.0
    rows: list[ProfileRow] = field(default_factory=list)
    error: float | None = None  # mean relative error on loads left out
    bound: float | None = None  # 90 % upper factor on them
    _done: list[Load] = field(default_factory=list)
    _seen: dict[Load, set[int]] = field(default_factory=dict)  # clocks asked for
    _groups: list[int] = field(default_factory=list)  # which load a row came from
    _setup_s_per_token: float = _SETUP_S_PER_TOKEN

    def __post_init__(self) -> None:
        mixed = mixed_loads(self.limits)
        ends = plan(self.limits)[:SEEDS]
        self._seeds: list[Load] = [*ends, *mixed[-1:]]
        self._candidates: list[Load] = [*decode_loads(self.limits), *prefill_loads(self.limits), *mixed]
        self.planned_loads = len(self._candidates) + 1

    @property
    def good_enough(self) -> bool:
        """Loads left out are predicted within the target, and their bound is close."""
        if self.error is None or self.bound is None:
            return False
        return self.error <= self.target_error and self.bound <= 1.0 + BOUND_PER_ERROR * self.target_error

    def next(self, left_s: float) -> Task | None:
        """The most informative load that fits the time left; None when nothing is left to learn."""
        if self.good_enough:
            return None
        while self._seeds:
            load = self._seeds.pop(0)
            if self._cost_s(load, len(self.clocks_mhz)) <= left_s or isinstance(load, IdleLoad):
                return Task(load, self.clocks_mhz)
        return self._most_informative(left_s)

    def add(self, task: Task, rows: Sequence[ProfileRow], setup_s: float | None = None) -> None:
        """What the task gave; `setup_s` from the start of its requests to the last first token."""
        self._done.append(task.load)
        cut_short = len({row.clock_mhz for row in rows}) < len(task.clocks_mhz)
        # Where a promise or the server stood in the way, it will again.
        self._seen.setdefault(task.load, set()).update(self.clocks_mhz if cut_short else task.clocks_mhz)
        tokens = _context(task.load)
        if setup_s is not None and tokens:
            self._setup_s_per_token = setup_s / tokens
        self.rows += rows
        self._groups += [len(self._done)] * len(rows)
        if self._all_kinds_seen() and len(self._done) % ASSESS_EVERY == 0:
            self._assess()

    def _all_kinds_seen(self) -> bool:
        for kind, least in MIN_LOADS.items():
            possible = sum(isinstance(load, kind) for load in self._candidates)
            if sum(isinstance(load, kind) for load in self._done) < min(least, possible):
                return False
        return True

    def _assess(self) -> None:
        table, groups = self._table()
        if table is None:
            return
        predicted = cross_validate(table, _load_folds(groups), lambda rows: fit(rows, Origin("profile")))
        ratio = table.step_time_s / predicted.step_time_s
        known = np.isfinite(ratio)
        if known.sum() >= MIN_ROWS:
            self.error = float(np.mean(np.abs(1.0 / ratio[known] - 1.0)))
            self.bound = upper_factor(ratio[known])

    def _table(self) -> tuple[ProfileTable | None, list[int]]:
        """The busy rows as a table, and their groups in the same order."""
        busy = [row.kind != "idle" for row in self.rows]
        if sum(busy) < MIN_ROWS or len({r.clock_mhz for r in self.rows}) < 2:
            return None, []
        table = table_of(self.rows)
        groups = [group for group, is_busy in zip(self._groups, busy, strict=True) if is_busy]
        return (table, groups) if len(table) == len(groups) else (None, [])

    def _most_informative(self, left_s: float) -> Task | None:
        every = set(self.clocks_mhz)
        loads = [
            load
            for load in self._candidates
            if self._seen.get(load, set()) < every and self._fits(load, left_s)
        ]
        if not loads:
            return None
        table, _ = self._table()
        if table is None:
            return Task(loads[0], self.clocks_mhz)
        measured = Points(table.clock_mhz, *table.load)
        asked = joined([_points(load, self.clocks_mhz) for load in loads])
        covariance = posterior(fit_step_prior(table), measured, asked)
        width = len(self.clocks_mhz)
        tasks = [self._clocks_for(covariance, i * width, load) for i, load in enumerate(loads)]
        gains = [
            gain / self._cost_s(load, len(picked)) for load, (picked, gain) in zip(loads, tasks, strict=True)
        ]
        best = int(np.argmax(gains))
        return Task(loads[best], tuple(self.clocks_mhz[index] for index in tasks[best][0]))

    def _clocks_for(self, covariance: Floats, first: int, load: Load) -> tuple[list[int], float]:
        """The highest clock, from which the promise is approached, and those that teach most beside it."""
        picked, seen = [0], self._seen.get(load, set())
        for _ in range(CLOCKS_PER_LOAD - 1):
            others = [i for i, mhz in enumerate(self.clocks_mhz) if i not in picked and mhz not in seen]
            if not others:
                break
            gains = [reduction(covariance, [first + i for i in (*picked, other)]) for other in others]
            picked.append(others[int(np.argmax(gains))])
        return sorted(picked), reduction(covariance, [first + i for i in picked])

    def _fits(self, load: Load, left_s: float) -> bool:
        setup_s = _context(load) * self._setup_s_per_token
        return (
            setup_s <= max(_LARGEST_SETUP_SHARE * self.budget_s, 10.0)
            and self._cost_s(load, min(CLOCKS_PER_LOAD, len(self.clocks_mhz))) <= left_s
        )

    def _cost_s(self, load: Load, clocks: int) -> float:
        windows = 2 if isinstance(load, MixedLoad) else 1
        return _context(load) * self._setup_s_per_token + windows * clocks * self.point_s


def _context(load: Load) -> int:
    """Tokens that must be in the cache before the load runs."""
    return load.batch * load.context_tokens if isinstance(load, DecodeLoad | MixedLoad) else 0


def _points(load: Load, clocks_mhz: tuple[int, ...]) -> Points:
    batch, prompt = 0, 0
    if isinstance(load, DecodeLoad | MixedLoad):
        batch = load.batch
    if isinstance(load, PrefillLoad | MixedLoad):
        prompt = load.prompt_tokens
    clock = np.array(clocks_mhz, dtype=np.float64)
    full = np.ones(len(clock))
    return Points(clock, batch * full, _context(load) * full, prompt * full)


def _load_folds(groups: Sequence[int]) -> list[Mask]:
    """Masks that each leave out every sixth load whole."""
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = min(LOAD_FOLDS, int(number.max()) + 1)
    return [number % count == fold for fold in range(count)]
