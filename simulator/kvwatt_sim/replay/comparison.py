"""Rows of a sweep side by side: per setting and policy the mean over seeds and the worst seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from rich.table import Table

from kvwatt_sim.replay.jobs import Row
from kvwatt_sim.replay.scenario import QUANTILE

BASELINE = "max"
_SETTING = ("plant", "trace", "slo", "load")


@dataclass(frozen=True, slots=True)
class Line:
    """One policy in one setting over its seeds. `saved`: share of the baseline's energy on the same seeds,
    None without it. `attainment`: each promise on its worst seed."""

    setting: tuple[object, ...]
    policy: str
    seeds: int
    energy_j: float
    saved: float | None
    saved_spread: float
    attainment: dict[str, float]
    clock_changes: float
    j_per_token: float

    @property
    def kept(self) -> bool:
        """Every promise at every seed."""
        return min(self.attainment.values(), default=1.0) >= QUANTILE


def compare(rows: Iterable[Row]) -> list[Line]:
    """One line per setting and policy, in the order in which they first come."""
    groups: dict[tuple[object, ...], dict[str, list[Row]]] = {}
    for row in rows:
        setting = tuple(row[name] for name in _SETTING)
        groups.setdefault(setting, {}).setdefault(row["policy"], []).append(row)
    return [
        _line(setting, name, found, by_policy.get(BASELINE, []))
        for setting, by_policy in groups.items()
        for name, found in by_policy.items()
    ]


def _line(setting: tuple[object, ...], policy: str, rows: Sequence[Row], baseline: Sequence[Row]) -> Line:
    base_j = {row["seed"]: row["energy_j"] for row in baseline}
    saved = [1.0 - row["energy_j"] / base_j[row["seed"]] for row in rows if row["seed"] in base_j]
    return Line(
        setting=setting,
        policy=policy,
        seeds=len(rows),
        energy_j=fmean(row["energy_j"] for row in rows),
        saved=fmean(saved) if saved else None,
        saved_spread=pstdev(saved) if saved else 0.0,
        attainment={name: min(row["attainment"][name] for row in rows) for name in rows[0]["attainment"]},
        clock_changes=fmean(row["clock_changes"] for row in rows),
        j_per_token=fmean(row["energy_j"] / max(row["tokens"], 1) for row in rows),
    )


def tables(lines: Sequence[Line]) -> list[Table]:
    """One per setting, for the terminal; a policy that breaks a promise is marked: its saving is none."""
    settings = dict.fromkeys(line.setting for line in lines)
    return [_table([line for line in lines if line.setting == setting]) for setting in settings]


def _table(lines: Sequence[Line]) -> Table:
    plant, trace, slo, load = lines[0].setting
    promised = list(lines[0].attainment)
    out = Table(
        title=f"{plant}, {str(trace).rsplit('/', 1)[-1]}, {slo}, load {load}, seeds: {lines[0].seeds}",
        caption=f"% within the promise at the worst seed; *: fewer than {QUANTILE:.0%} of them",
    )
    out.add_column("policy", no_wrap=True)
    for name in ("kJ", "J/token", "saved %", *(f"{name.upper()} %" for name in promised), "changes"):
        out.add_column(name, justify="right")
    for line in lines:
        saved = "" if line.saved is None else f"{100 * line.saved:.1f}±{100 * line.saved_spread:.1f}"
        out.add_row(
            line.policy + ("" if line.kept else " *"),
            f"{line.energy_j / 1000:.1f}",
            f"{line.j_per_token:.2f}",
            saved,
            *(f"{100 * line.attainment[name]:.2f}" for name in promised),
            f"{line.clock_changes:.0f}",
        )
    return out
