"""What rows of the ledger prove: the saving by the windows held at default, and the model's beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvwatt.attainment import Attained
from kvwatt.holdout import Arm, HoldoutParams, is_drawn
from kvwatt.savings_stats import LEVEL, Estimate, SloCost, Window, Work, estimate, slo_cost
from kvwatt.state import Metric
from kvwattd.ledger.entry import Entry
from kvwattd.ledger.schema import Run

ALARM_LEVEL = 0.99  # checked every hour over a week: at 95 % an honest model would be accused every few weeks
KNOWN = 0.99  # of the time, that a clock must have been judged to be compared
MODELLED = 0.9  # of the time, for which the model must have been asked; the rest is taken to be alike
FEASIBLE = 0.99


@dataclass(frozen=True, slots=True)
class BestFixed:
    """The one clock that would have cost least with its promises held, by the model, in hindsight."""

    clock_mhz: int
    baseline_j: float
    feasible: float  # share of the time in which it would have kept the promises


@dataclass(frozen=True, slots=True)
class Agreement:
    """The two ways to tell the saving of one instance, against each other."""

    instance: str
    measured: Estimate
    model_saved_j: float
    attainment: Mapping[Metric, Attained]  # in control

    @property
    def beyond(self) -> float:
        """Distance in half-widths of the interval."""
        return self.measured.beyond(self.model_saved_j)

    @property
    def disagrees(self) -> bool:
        return self.beyond > 1.0

    def told(self) -> str:
        m = self.measured
        return (
            f"instance {self.instance}: the model says {self.model_saved_j / 1e6:.2f} MJ saved, "
            f"{m.windows} windows at default say {m.saved_j / 1e6:.2f} "
            f"({m.low_j / 1e6:.2f} to {m.high_j / 1e6:.2f}, {m.level:.0%}): train the model again"
        )


def work_of(rows: Iterable[Entry]) -> Work:
    """`model_j` only where the model could be asked for most of it."""
    kept = list(rows)
    time_ms, work_ms = sum(row.time_ms for row in kept), sum(row.work_ms for row in kept)
    known = work_ms > 0 and work_ms >= MODELLED * time_ms
    return Work(
        seconds=time_ms / 1e3,
        prompt_tokens=float(sum(row.prompt_tokens for row in kept)),
        generation_tokens=float(sum(row.generation_tokens for row in kept)),
        model_j=sum(row.work_mj for row in kept) / 1e3 * time_ms / work_ms if known else 0.0,
    )


def energy_j(rows: Iterable[Entry]) -> float:
    return sum(row.energy_mj for row in rows) / 1e3


def windows_of(rows: Iterable[Entry]) -> dict[tuple[str, int, int], list[Entry]]:
    """Rows measured at default, by instance, run and slot."""
    found: dict[tuple[str, int, int], list[Entry]] = {}
    for row in rows:
        if row.arm is Arm.DEFAULT:
            found.setdefault((row.instance, row.run, row.slot), []).append(row)
    return found


def drawn_by_seed(rows: Iterable[Entry], runs: Iterable[Run]) -> tuple[int, int]:
    """Windows that the seed of their run draws, drawn again; and all windows."""
    seeds: dict[int, tuple[bytes, int]] = {}
    for start_ms, _, seed, told in runs:
        with contextlib.suppress(ValueError, TypeError):  # of a damaged file, or of another version
            seeds[start_ms] = bytes.fromhex(seed), HoldoutParams(**json.loads(told)).block
    found = windows_of(rows).values()
    ours = 0
    for first, *_ in found:
        seed_bytes, block = seeds.get(first.run, (b"", 0))
        own = seed_of(seed_bytes, first.instance)
        ours += block > 0 and is_drawn(own, first.stratum, first.place, block)
    return ours, len(found)


def seed_of(seed: bytes, instance: str) -> bytes:
    """Each instance draws from a seed of its own."""
    return seed + instance.encode()


def controlled(rows: Iterable[Entry]) -> list[Entry]:
    return [row for row in rows if row.arm is Arm.CONTROLLED]


def measured(rows: Sequence[Entry], level: float = LEVEL) -> Estimate | None:
    """The saving of one instance over its time in control; None where there are too few windows."""
    held = windows_of(rows).values()
    windows = [Window(work_of(some), energy_j(some), some[0].stratum) for some in held]
    kept = controlled(rows)
    return estimate(windows, work_of(kept), energy_j(kept), level)


def modelled_j(rows: Sequence[Entry]) -> float:
    """The model's saving over the same time: measured energy times its ratio of powers, less that energy."""
    return sum(row.default_mj - row.energy_mj for row in controlled(rows)) / 1e3


def agreements(rows: Iterable[Entry]) -> tuple[Agreement, ...]:
    """Of every instance with enough windows."""
    found = []
    for name, own in by_instance(rows).items():
        seen = measured(own, ALARM_LEVEL)
        if seen is not None:
            found.append(Agreement(name, seen, modelled_j(own), kept_promises(controlled(own))))
    return tuple(found)


def by_instance(rows: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for row in rows:
        found.setdefault(row.instance, []).append(row)
    return found


def kept_promises(rows: Iterable[Entry], would: str = "") -> Mapping[Metric, Attained]:
    """Requests judged in these rows, and those within the limit in force then.

    `would`: "would_" for those that shadow mode would have judged, at the clocks it decided on."""
    kept = list(rows)
    found = {}
    for metric in Metric:
        met = sum(getattr(row, f"{would}{metric}_met") for row in kept) / 1e3
        seen = sum(getattr(row, f"{would}{metric}_seen") for row in kept) / 1e3
        if seen > 0:
            found[metric] = Attained(met, seen)
    return found


def slo_costs(rows: Sequence[Entry]) -> dict[Metric, SloCost]:
    """What control cost in attainment, against the windows at default."""
    each = [kept_promises(some) for some in windows_of(rows).values()]
    found = {}
    for metric, kept in kept_promises(controlled(rows)).items():
        cost = slo_cost([one[metric] for one in each if metric in one], kept)
        if cost is not None:
            found[metric] = cost
    return found


def best_fixed(rows: Sequence[Entry], baseline_j: float) -> BestFixed | None:
    """`baseline_j`: energy of these rows at default; the model says only by what factor a clock differs."""
    work_mj, work_ms = sum(row.work_mj for row in rows), sum(row.work_ms for row in rows)
    sums: dict[str, list[int]] = {}
    for row in rows:
        for clock, told in row.fixed.items():
            before = sums.get(clock, [0, 0, 0])
            sums[clock] = [a + b for a, b in zip(before, told, strict=True)]
    judged = {int(clock): s for clock, s in sums.items() if s[2] >= KNOWN * work_ms and s[2] > 0}
    if not judged or work_mj <= 0:
        return None
    feasible = {clock: s for clock, s in judged.items() if s[1] >= FEASIBLE * s[2]}
    # Where no clock keeps the promises, the fastest is the best that could have been done.
    mhz = min(feasible, key=lambda clock: feasible[clock][0]) if feasible else max(judged)
    used_mj, kept_ms, judged_ms = judged[mhz]
    return BestFixed(mhz, baseline_j * used_mj / work_mj, kept_ms / judged_ms)
