"""The bars of the day's comparison, from its rows. Part of bench/day.py.

A day in which a promise was kept by less than 99 % on any metric and seed does not count: its saving is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

from bars import Bar
from day_runs import Row, Task
from kvwatt_sim.day.result import worst
from kvwatt_sim.replay.scenario import QUANTILE

Rows = Mapping[Task, Row]
OURS, REFERENCE = "kvwatt", "default"
# Percent of the reference's energy; parked at 36 W, stopped, and the paper's own headline.
SAVED = {"l20-parked": 50.0, "l20-stopped": 55.0, "a100": 43.8}
TOKENS_PER_J = {"a100": 1.78}
RIVALS = ("keda-queue", "keda-load", "keda-kv", "paper")
SETTLED_S = 900.0
MOST_CHANGES = 1.0


class Table:
    """The rows by setting, policy and seed; those of a constant rate apart."""

    def __init__(self, rows: Rows) -> None:
        self.cells: dict[str, dict[str, dict[int, Row]]] = {}
        self.constant: dict[Task, Row] = {}
        for task, row in rows.items():
            if task.policy == "constant":
                self.constant[task] = row
            else:
                self.cells.setdefault(task.setting, {}).setdefault(task.policy, {})[task.seed] = row

    def kept(self, setting: str, policy: str) -> float:
        """The promise kept least, on the worst seed."""
        return min(worst(row.day) for row in self.cells[setting][policy].values())

    def counts(self, setting: str, policy: str) -> bool:
        return self.kept(setting, policy) >= QUANTILE

    def saved(self, setting: str, policy: str, against: str = REFERENCE) -> list[float]:
        """Percent of the other's energy that was saved, per seed."""
        ours, theirs = (self.cells[setting][name] for name in (policy, against))
        return [100.0 * (1.0 - ours[s].day["energy_j"] / theirs[s].day["energy_j"]) for s in ours]

    def tokens_per_j(self, setting: str, policy: str, against: str = REFERENCE) -> list[float]:
        """Times the other's tokens per joule, per seed."""

        def per_j(row: Row) -> float:
            return row.day["tokens"] / row.day["energy_j"]

        ours, theirs = (self.cells[setting][name] for name in (policy, against))
        return [per_j(ours[s]) / per_j(theirs[s]) for s in ours]


def changes(row: Row) -> int:
    """How often the number of members wanted was changed after SETTLED_S: starts, wake-ups and drains."""
    return sum(at > SETTLED_S for at in row.day["changed_s"])


def bars(rows: Rows) -> list[Bar]:
    """Every bar that the rows can tell of; a setting without our own day has none."""
    table = Table(rows)
    steady = list(_steady(table))
    table.cells = {name: policies for name, policies in table.cells.items() if OURS in policies}
    return [*_savings(table), *_kept(table), *_rivals(table), *steady]


def _savings(table: Table) -> Iterator[Bar]:
    for setting, limit in SAVED.items():
        if setting in table.cells:
            value = fmean(table.saved(setting, OURS)) if table.counts(setting, OURS) else 0.0
            yield Bar(f"saved vs driver default, {setting}, %", value, limit, "higher")
    for setting, limit in TOKENS_PER_J.items():
        if setting in table.cells:
            value = fmean(table.tokens_per_j(setting, OURS)) if table.counts(setting, OURS) else 1.0
            yield Bar(f"tokens per J vs driver default, {setting}, times", value, limit, "higher")


def _kept(table: Table) -> Iterator[Bar]:
    for setting in table.cells:
        yield Bar(f"kept, every promise and seed, {setting}", table.kept(setting, OURS), QUANTILE, "higher")


def _rivals(table: Table) -> Iterator[Bar]:
    """At equal or better attainment; what is kept above the promised 99 % is nobody's gain, and a rival
    that breaks a promise is beaten by keeping it."""
    for setting, policies in table.cells.items():
        for rival in (name for name in RIVALS if name in policies):
            saved = fmean(table.saved(setting, OURS, rival)) if table.counts(setting, OURS) else -100.0
            words = "" if table.counts(setting, rival) else f" (it kept {table.kept(setting, rival):.1%})"
            name = f"less energy than {rival}{words}, {setting}, %"
            if table.counts(setting, rival) or saved > 0.0:
                yield Bar(name, saved, 0.0, "higher")
            else:
                yield Bar(
                    f"kept more than {rival}{words}, {setting}", *_more(table, setting, rival), "higher"
                )


def _more(table: Table, setting: str, rival: str) -> tuple[float, float]:
    return table.kept(setting, OURS), max(table.kept(setting, rival), QUANTILE)


def _steady(table: Table) -> Iterator[Bar]:
    if table.constant:
        most = max(changes(row) for row in table.constant.values())
        name = f"changes after settling at {len(table.constant)} constant rates, most"
        yield Bar(name, float(most), MOST_CHANGES, "lower")
