"""The bars of the energy comparison, from its rows. Part of bench/energy.py.

A setting in which a promise was kept by less than 99 % on any metric and seed does not count: its saving is
taken as 0, its excess over the best found as 100 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

from bars import Bar
from energy_runs import BOUND, OURS, Row, Task, worst
from kvwatt_sim.replay.scenario import QUANTILE

Rows = Mapping[Task, Row]
Setting = tuple[str, str, str, float]  # plant, trace, preset, load

# What no GPU can do (a clock for prompts, switched to in no time) and what is no run make no best found.
IDEAL = ("best-pair", BOUND)
VS_DEFAULT: Mapping[Setting, float] = {
    ("l20", "conv", "paper", 0.25): 42.0,
    ("l20", "conv", "paper", 0.5): 42.0,
    ("l20", "conv", "paper", 0.75): 34.0,
    ("l20", "conv", "paper", 0.9): 26.0,
    ("a100-tp2", "conv", "paper", 0.5): 46.0,
    ("a100-tp2", "conv", "paper", 0.75): 42.0,
    ("a100-tp2", "conv", "paper", 0.9): 35.0,
}
VS_FIXED: Mapping[Setting, float] = {
    ("l20", "conv", "paper", 0.5): 12.0,
    ("l20", "conv", "paper", 0.75): 15.0,
    ("l20", "conv", "paper", 0.9): 20.0,
    ("l20", "conv", "strict", 0.75): 5.0,
}
ABOVE_FOUND = {"paper": 5.0, "strict": 10.0}
SWITCH_PERCENT, STEP_MINUTE = 1.0, 0.98
DECISION_MEAN_S, DECISION_P99_S = 200e-6, 1e-3


class Table:
    """The rows by setting, policy and seed."""

    def __init__(self, rows: Rows) -> None:
        self.cells: dict[Setting, dict[str, dict[int, Row]]] = {}
        self.variants: dict[str, dict[tuple[str, int], Row]] = {}
        for t, row in rows.items():
            if t.variant:
                self.variants.setdefault(t.variant, {})[t.policy, t.seed] = row
            else:
                setting = (t.plant, t.trace, t.preset, t.load)
                self.cells.setdefault(setting, {}).setdefault(t.policy, {})[t.seed] = row

    def counts(self, setting: Setting, policy: str) -> bool:
        """Every promise kept at every seed."""
        return self.kept(setting, policy) >= QUANTILE

    def kept(self, setting: Setting, policy: str) -> float:
        return min(worst(row) for row in self.cells[setting][policy].values())

    def saved(self, setting: Setting, policy: str, against: str) -> list[float]:
        """Percent of the other's energy that was saved, per seed."""
        ours, theirs = (self.cells[setting][name] for name in (policy, against))
        return [100.0 * (1.0 - ours[s]["energy_j"] / theirs[s]["energy_j"]) for s in ours]

    def best_found_j(self, setting: Setting, seed: int) -> float | None:
        """The least energy of anything tried that kept the promises on this seed."""
        tried = [rows[seed] for name, rows in self.cells[setting].items() if name not in IDEAL]
        return min((row["energy_j"] for row in tried if worst(row) >= QUANTILE), default=None)

    def above_found(self, setting: Setting) -> list[float]:
        """Percent by which ours is above the best found, per seed that anything was found for."""
        ours = self.cells[setting][OURS]
        found = {seed: self.best_found_j(setting, seed) for seed in ours}
        return [100.0 * (ours[s]["energy_j"] / j - 1.0) for s, j in found.items() if j is not None]


Judge = Callable[[Table, Setting, str], bool]


def bars(rows: Rows) -> list[Bar]:
    """Every bar that the rows can tell of."""
    table = Table(rows)
    return [
        *_savings(table, VS_DEFAULT, "max", "default"),
        *_savings(table, VS_FIXED, "best-fixed", "best fixed"),
        *_above_found(table),
        *_against_rivals(table),
        *_robustness(table),
        *_cost(table),
    ]


def name_of(setting: Setting) -> str:
    plant, trace, preset, load = setting
    return f"{plant.upper().replace('-', ' ')} {trace} {preset} {load:g}"


def _savings(table: Table, limits: Mapping[Setting, float], against: str, words: str) -> Iterator[Bar]:
    for setting, limit in limits.items():
        if setting in table.cells and against in table.cells[setting]:
            counts = table.counts(setting, OURS)
            value = fmean(table.saved(setting, OURS, against)) if counts else 0.0
            yield Bar(f"saved vs {words}, {name_of(setting)}, %", value, limit, "higher")


def _above_found(table: Table) -> Iterator[Bar]:
    for setting, policies in table.cells.items():
        if "best-found" in policies and (above := table.above_found(setting)):
            value = fmean(above) if table.counts(setting, OURS) else 100.0
            yield Bar(f"above best found, {name_of(setting)}, %", value, ABOVE_FOUND[setting[2]], "lower")


def _against_rivals(table: Table) -> Iterator[Bar]:
    kept = [table.counts(setting, OURS) for setting in table.cells]
    yield Bar("settings with 99 % kept on every metric and seed, share", fmean(kept), 1.0, "higher")
    beaten = _share(table, "throttllem", _less_at_no_less_kept)
    for name, value in beaten:
        yield Bar(
            f"less energy than {name} (true lengths) at no less attainment, share", value, 1.0, "higher"
        )
    for rival in ("voltana", "agft"):
        for name, value in _share(table, rival, _less_or_they_break):
            yield Bar(f"less energy than {name} where it keeps 99 %, share", value, 1.0, "higher")


def _share(table: Table, rival: str, better: Judge) -> Iterator[tuple[str, float]]:
    settings = [s for s, policies in table.cells.items() if rival in policies]
    if settings:
        yield rival, fmean(better(table, s, rival) for s in settings)


def _less_at_no_less_kept(table: Table, setting: Setting, rival: str) -> bool:
    """What is kept above the promised 99 % is nobody's gain."""
    theirs = min(table.kept(setting, rival), QUANTILE)
    return fmean(table.saved(setting, OURS, rival)) > 0.0 and table.kept(setting, OURS) >= theirs


def _less_or_they_break(table: Table, setting: Setting, rival: str) -> bool:
    if not table.counts(setting, OURS):
        return False
    return not table.counts(setting, rival) or fmean(table.saved(setting, OURS, rival)) > 0.0


def _robustness(table: Table) -> Iterator[Bar]:
    v = table.variants
    usual, instant = v.get("usual", {}), v.get("switch-0", {})
    both = [key for key in usual if key in instant]
    if both:
        cost = [100.0 * (usual[key]["energy_j"] / instant[key]["energy_j"] - 1.0) for key in both]
        yield Bar("energy of 200 ms switch latency, %", fmean(cost), SWITCH_PERCENT, "lower")
    told = (("bias", "predictor bias -10 %"), ("lengths", "answers 1.5x as long from half-time"))
    for variant, words in told:
        if rows := _ours(v.get(variant, {})):
            kept = min(worst(row) for row in rows)
            yield Bar(f"kept, {words}, share", kept, QUANTILE, "higher")
    if rows := _ours(v.get("step", {})):
        minute = min(row["minute"] for row in rows)
        yield Bar("kept in the minute of a rate step x3, share", minute, STEP_MINUTE, "higher")


def _ours(rows: Mapping[tuple[str, int], Row]) -> Sequence[Row]:
    return [row for (policy, _), row in rows.items() if policy == OURS]


def _cost(table: Table) -> Iterator[Bar]:
    rows = [row for policies in table.cells.values() for row in policies[OURS].values()]
    mean = fmean(row["decision_mean_s"] for row in rows)
    yield Bar("decision in replay, mean, us", 1e6 * mean, 1e6 * DECISION_MEAN_S, "lower")
    p99 = max(row["decision_p99_s"] for row in rows)
    yield Bar("decision in replay, p99 of the slowest run, ms", 1e3 * p99, 1e3 * DECISION_P99_S, "lower")
