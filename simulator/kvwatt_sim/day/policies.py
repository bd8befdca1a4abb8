"""The ways to run a day, by name: members and clocks together.

default      the reference members at driver default
best-fixed   the best fixed pool at the best fixed clock, in hindsight
keda-queue   waiting requests over 5 a member, as in the vLLM production stack's tutorial
keda-load    running and waiting requests; keda-kv: KV cache use; targets tuned on tuning seeds
paper        throttLL'eM: its autoscaler and its clocks, told the true lengths and the plant's step law
clocks       kvwatt's clocks on the reference members
kvwatt       kvwatt's clocks and members
best-found   members and clocks per window, with knowledge of the day's rates (see `oracle`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvwatt.pool import Member, PoolParams
from kvwatt.queueing import CapacityTable
from kvwatt_sim.day import clocks
from kvwatt_sim.day.clocks import Maker, Scheduled
from kvwatt_sim.day.oracle import USES, Planned, planned, sizes
from kvwatt_sim.day.ours import Planner, engine_kind, kvwatt_clocks
from kvwatt_sim.day.pool import DayRun, Pool, Scaler
from kvwatt_sim.day.profile import Profile
from kvwatt_sim.day.result import DayRow, row, worst
from kvwatt_sim.day.rivals import Fixed, Paper, Threshold, kv_use, outstanding, waiting
from kvwatt_sim.day.setting import Setting
from kvwatt_sim.day.traffic import FULL_DAY_S
from kvwatt_sim.replay.scenario import QUANTILE

QUEUE_TARGET = 5.0  # waiting requests a member: production stack, "Autoscaling with KEDA"
POLL_S, STABILIZATION_S = 30.0, 300.0  # KEDA's and the autoscaler's defaults, on a full day
LEAST_PERIOD_S = 2.0
LEAST = 0.7  # of the peak rate: a fixed pool of less capacity is not tried


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was chosen for the rivals on tuning seeds, per setting; in their favour."""

    load_target: float
    kv_target: float
    paper_use: float
    paper_rate_s: float
    paper_grace_s: float


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a setting before its day. `profiles`: by replay, for the oracle only; `tables`: the
    capacity model that kvwatt plans with."""

    profiles: Callable[[], Mapping[str, Profile]]
    tables: Callable[[], Mapping[str, CapacityTable]]
    tuned: Tuned
    params: PoolParams


def run(setting: Setting, policy: str, known: Known) -> DayRow:
    """The day under `policy`. Raises ValueError for a name that is none of POLICIES."""
    if policy not in POLICIES:
        raise ValueError(f"policy = {policy!r}: one of {', '.join(POLICIES)} is accepted")
    return POLICIES[policy](setting, known)


def play(setting: Setting, scaler: Scaler, maker: Maker) -> DayRun:
    return Pool(setting, scaler, maker).run()


def _default(setting: Setting, known: Known) -> DayRow:
    return row(setting, play(setting, Fixed(frozenset(setting.reference)), clocks.fixed(None)))


def _clocks(setting: Setting, known: Known) -> DayRow:
    return row(setting, play(setting, Fixed(frozenset(setting.reference)), kvwatt_clocks(setting)))


def ours(setting: Setting, known: Known, maker: Maker) -> DayRow:
    """kvwatt's members under any clocks."""
    tables = known.tables()
    kinds = {
        name: engine_kind(kind, tables[name], setting.parked_w, can_sleep=True)
        for name, kind in setting.kinds.items()
    }
    carried = {name: table.max_rate_per_s for name, table in tables.items()}
    return row(setting, Pool(setting, Planner(kinds, known.params), maker, carried).run())


def _threshold(metric: Callable[[Member], float], target: Callable[[Tuned], float]) -> Callable[..., DayRow]:
    def serve(setting: Setting, known: Known) -> DayRow:
        kind = next(iter(setting.kinds))
        most = sum(place.kind.name == kind for place in setting.places)
        pace = setting.day_s / FULL_DAY_S  # its time constants shrink with the day
        wanted = target(known.tuned)
        period_s = max(POLL_S * pace, LEAST_PERIOD_S)
        scaler = Threshold(kind, metric, wanted, most, period_s, STABILIZATION_S * pace)
        return row(setting, play(setting, scaler, clocks.fixed(None)), f"target {wanted:g}")

    return serve


def _paper(setting: Setting, known: Known) -> DayRow:
    tuned = known.tuned
    scaler = Paper(setting.kinds, sizes(setting), tuned.paper_use, tuned.paper_rate_s, tuned.paper_grace_s)
    return row(
        setting, play(setting, scaler, clocks.throttllem(setting)), f"capacity used to {tuned.paper_use:g}"
    )


def _best_found(setting: Setting, known: Known) -> DayRow:
    profiles = known.profiles()
    return best([_planned(setting, planned(setting, profiles, use), f"use {use:g}") for use in USES])


def _planned(setting: Setting, made: Planned, note: str) -> DayRow:
    return row(setting, play(setting, made, lambda kind: Scheduled(kind, made.clock)), note)


def best(found: Sequence[DayRow]) -> DayRow:
    """The least energy of those that keep every promise; where none does, the one that keeps most."""
    kept = [one for one in found if worst(one) >= QUANTILE]
    return min(kept, key=lambda one: one["energy_j"]) if kept else max(found, key=worst)


def _best_fixed(setting: Setting, known: Known) -> DayRow:
    kinds, peak = setting.kinds, max(setting.rates_per_s)
    able = [
        s for s in sizes(setting) if sum(n * kinds[k].capacity_per_s for k, n in s.items()) >= LEAST * peak
    ]
    return best([one for size in able for one in _fixed_size(setting, size)])


def _fixed_size(setting: Setting, size: Mapping[str, int]) -> list[DayRow]:
    """The lowest clock that keeps the promises, by bisection, and some above it: energy may have its
    minimum there."""
    (kind, count), *_ = size.items()
    names = [place.name for place in setting.places if place.kind.name == kind][:count]
    own, scaler = replace(setting, reference=tuple(names)), Fixed(frozenset(names))
    lockable = setting.kinds[kind].clocks_mhz
    tried: dict[int, DayRow] = {}

    def at(index: int) -> DayRow:
        if index not in tried:
            clock = lockable[index]
            note = f"{count} x {kind} at {clock} MHz"
            tried[index] = row(own, play(own, scaler, clocks.fixed(clock)), note)
        return tried[index]

    low, high = -1, len(lockable) - 1
    if worst(at(high)) < QUANTILE:
        return [at(high)]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if worst(at(middle)) >= QUANTILE else (middle, high)
    for above in (2, 4, 8):
        at(min(high + above, len(lockable) - 1))
    return list(tried.values())


POLICIES: Mapping[str, Callable[[Setting, Known], DayRow]] = {
    "default": _default,
    "best-fixed": _best_fixed,
    "keda-queue": _threshold(waiting, lambda tuned: QUEUE_TARGET),
    "keda-load": _threshold(outstanding, lambda tuned: tuned.load_target),
    "keda-kv": _threshold(kv_use, lambda tuned: tuned.kv_target),
    "paper": _paper,
    "clocks": _clocks,
    "kvwatt": lambda setting, known: ours(setting, known, kvwatt_clocks(setting)),
    "best-found": _best_found,
}
