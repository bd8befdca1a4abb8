"""Figures of a report, from the ledger's rows. Every saving has its baseline, interval and attainment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvwatt.holdout import Arm
from kvwatt.savings_stats import LEVEL, SloCost
from kvwattd.config import Mode
from kvwattd.ledger import proof
from kvwattd.ledger.entry import Entry
from kvwattd.ledger.schema import Run
from kvwattd.money import Bill, Rates, bill

AT_DEFAULT = "driver default, measured in windows drawn at random"
BY_MODEL = "driver default, by the energy model"
AS_IT_RAN = "driver default, as it ran"
FIXED = "best fixed clock in hindsight, by the energy model"


@dataclass(frozen=True, slots=True)
class Kept:
    """Requests judged and the share that kept the promise in force."""

    seen: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Saving:
    """`low_j`, `high_j` None: no interval can be given, and `note` says why."""

    baseline: str
    baseline_j: float
    saved_j: float
    low_j: float | None
    high_j: float | None
    note: str
    would: bool = False  # in shadow mode: nothing was saved, it would have been
    windows: int = 0

    @property
    def ratio(self) -> float | None:
        return self.saved_j / self.baseline_j if self.baseline_j > 0 else None


@dataclass(frozen=True, slots=True)
class Figures:
    """One instance over the range, or all of them (`name` empty)."""

    name: str
    hours: float
    energy_j: float
    estimated_j: float
    prompt_tokens: int
    generation_tokens: int
    requests: int
    clock_mhz: float | None
    attainment: Mapping[str, Kept]
    regimes_h: Mapping[str, float]
    decisions: Mapping[str, int]
    controlled_h: float
    held_h: float
    savings: tuple[Saving, ...]
    best_fixed_mhz: int | None
    disagrees: bool | None  # the model's figure against the measured interval; None: nothing to compare
    slo_cost: Mapping[str, SloCost]
    bill: Bill
    saved_bill: Bill | None  # of the first saving
    would_attainment: Mapping[str, Kept] = field(default_factory=dict)  # in shadow mode, by the model

    @property
    def j_per_token(self) -> float | None:
        """All energy over tokens generated."""
        return self.energy_j / self.generation_tokens if self.generation_tokens else None


@dataclass(frozen=True, slots=True)
class Report:
    """`level`: of all intervals."""

    from_ms: int
    to_ms: int
    currency: str
    level: float
    total: Figures
    instances: tuple[Figures, ...]
    windows: int = 0
    windows_drawn: int = 0  # of them, those that the seed kept in the ledger draws
    baseline_scale: Mapping[str, float] = field(default_factory=dict)  # measured over modelled work


def make(rows: Sequence[Entry], from_ms: int, to_ms: int, rates: Rates, runs: Iterable[Run] = ()) -> Report:
    """Of rows in [from_ms, to_ms)."""
    own = proof.by_instance(rows)
    instances = tuple(_figures(name, some, rates) for name, some in sorted(own.items()))
    total = instances[0] if len(instances) == 1 else _total(rows, instances, rates)
    scale = {name: scale for name, some in own.items() if (scale := _scale(some)) is not None}
    drawn, windows = proof.drawn_by_seed(rows, runs)
    return Report(from_ms, to_ms, rates.currency, LEVEL, total, instances, windows, drawn, scale)


def _figures(name: str, rows: Sequence[Entry], rates: Rates) -> Figures:
    measured = proof.measured(rows)
    active, shadow = proof.controlled(rows), _in_shadow(rows)
    savings = [*_measured(rows), *_modelled(active), *_would(shadow)]
    best = None
    if active:
        baseline_j = measured.baseline_j if measured else sum(row.default_mj for row in active) / 1e3
        best = proof.best_fixed(active, baseline_j)
    if best is not None:
        savings.append(_against_fixed(active, best))
    model_j = proof.modelled_j(rows)
    return _common(
        name,
        rows,
        savings,
        rates,
        best_fixed_mhz=best.clock_mhz if best else None,
        disagrees=measured.beyond(model_j) > 1.0 if measured else None,
        slo_cost={str(metric): cost for metric, cost in proof.slo_costs(rows).items()},
    )


def _total(rows: Sequence[Entry], instances: Sequence[Figures], rates: Rates) -> Figures:
    """Sums over instances; their windows are drawn independently, so half-widths add in square."""
    groups: dict[tuple[str, bool], list[Saving]] = {}
    for one in instances:
        for saving in one.savings:
            groups.setdefault((saving.baseline, saving.would), []).append(saving)
    savings = [_sum(some, len(instances)) for some in groups.values()]
    told = [one.disagrees for one in instances if one.disagrees is not None]
    return _common("", rows, savings, rates, None, any(told) if told else None, {})


def _sum(some: Sequence[Saving], of: int) -> Saving:
    first, saved_j = some[0], sum(s.saved_j for s in some)
    note = first.note if len(some) == of else f"{len(some)} of {of} instances: {first.note}"
    low_j = high_j = None
    if all(s.low_j is not None for s in some):
        half_j = sum(((s.high_j or 0.0) - (s.low_j or 0.0)) ** 2 / 4 for s in some) ** 0.5
        low_j, high_j = saved_j - half_j, saved_j + half_j
    return Saving(
        first.baseline,
        sum(s.baseline_j for s in some),
        saved_j,
        low_j,
        high_j,
        note,
        first.would,
        sum(s.windows for s in some),
    )


def _common(
    name: str,
    rows: Sequence[Entry],
    savings: Sequence[Saving],
    rates: Rates,
    best_fixed_mhz: int | None,
    disagrees: bool | None,
    slo_cost: Mapping[str, SloCost],
) -> Figures:
    time_ms = sum(row.time_ms for row in rows)
    saved_bill = None
    if savings and savings[0].saved_j and rates.known:
        saved_bill = bill(rates, _spread(rows, savings[0]))
    return Figures(
        name=name,
        hours=time_ms / 3.6e6,
        energy_j=proof.energy_j(rows),
        estimated_j=sum(row.estimated_mj for row in rows) / 1e3,
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        generation_tokens=sum(row.generation_tokens for row in rows),
        requests=sum(row.requests for row in rows),
        clock_mhz=sum(row.clock_mhz_ms for row in rows) / time_ms if time_ms else None,
        attainment=_attained(rows),
        would_attainment=_attained(rows, "would_"),
        regimes_h={n: ms / 3.6e6 for n, ms in _counted(row.regimes for row in rows).items()},
        decisions=_counted(row.bindings for row in rows),
        controlled_h=sum(row.time_ms for row in proof.controlled(rows)) / 3.6e6,
        held_h=sum(row.time_ms for row in rows if row.arm in (Arm.DEFAULT, Arm.WARMUP)) / 3.6e6,
        savings=tuple(savings),
        best_fixed_mhz=best_fixed_mhz,
        disagrees=disagrees,
        slo_cost=slo_cost,
        bill=bill(rates, ((row.start_ms / 1e3, row.end_ms / 1e3, row.energy_mj / 1e3) for row in rows)),
        saved_bill=saved_bill,
    )


def _attained(rows: Sequence[Entry], would: str = "") -> dict[str, Kept]:
    kept = proof.kept_promises(rows, would)
    return {str(metric): Kept(told.total, told.ratio or 0.0) for metric, told in kept.items()}


def _measured(rows: Sequence[Entry]) -> list[Saving]:
    """By the windows; where they are too few, a saving that is not known, and why."""
    found = proof.measured(rows)
    if found is None:
        return []
    used = "work as the model sees it" if "model_j" in found.columns else "work in seconds and tokens"
    note = f"{found.windows} windows, baseline linear in {used}, t with {found.degrees:.1f} degrees"
    return [
        Saving(
            AT_DEFAULT,
            found.baseline_j,
            found.saved_j,
            found.low_j,
            found.high_j,
            note,
            windows=found.windows,
        )
    ]


def _modelled(active: Sequence[Entry]) -> list[Saving]:
    if not active:
        return []
    baseline_j = sum(row.default_mj for row in active) / 1e3
    saved_j = baseline_j - proof.energy_j(active)
    return [Saving(BY_MODEL, baseline_j, saved_j, None, None, "a model's figure")]


def _against_fixed(active: Sequence[Entry], best: proof.BestFixed) -> Saving:
    saved_j = best.baseline_j - proof.energy_j(active)
    told = f"{best.clock_mhz} MHz, promises kept in {best.feasible:.1%} of the time: a model's figure"
    return Saving(FIXED, best.baseline_j, saved_j, None, None, told)


def _would(shadow: Sequence[Entry]) -> list[Saving]:
    if not shadow:
        return []
    baseline_j = proof.energy_j(shadow)
    saved_j = baseline_j - sum(row.would_mj for row in shadow) / 1e3
    half_j = sum(row.would_error_mj for row in shadow) / 1e3
    low_j, high_j = (saved_j - half_j, saved_j + half_j) if half_j > 0 else (None, None)
    note = "shadow mode: nothing was set; the baseline was measured, the saving is a model's figure"
    if half_j > 0:
        note += ", the interval its error on loads it had not seen and that of shadow mode against control"
    return [Saving(AS_IT_RAN, baseline_j, saved_j, low_j, high_j, note, would=True)]


def _in_shadow(rows: Iterable[Entry]) -> list[Entry]:
    return [row for row in rows if row.mode == Mode.SHADOW]


def _counted(maps: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for item in maps:
        total.update(item)
    return dict(total.most_common())


def _scale(rows: Sequence[Entry]) -> float | None:
    """Baseline energy per millijoule of modelled work, of the time in control."""
    work_mj = sum(row.work_mj for row in proof.controlled(rows))
    measured = proof.measured(rows)
    if work_mj <= 0:
        return None
    if measured is None:
        return sum(row.default_mj for row in proof.controlled(rows)) / work_mj
    return 1e3 * measured.baseline_j / work_mj


def _spread(rows: Sequence[Entry], saving: Saving) -> Iterable[tuple[float, float, float]]:
    """The saving over the rows in proportion to what each used, for prices that change over the day."""
    chosen = _in_shadow(rows) if saving.would else proof.controlled(rows)
    total_mj = sum(row.energy_mj for row in chosen) or 1
    for row in chosen:
        yield row.start_ms / 1e3, row.end_ms / 1e3, saving.saved_j * row.energy_mj / total_mj
