"""What a day cost and kept, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import TypedDict

from kvwatt.pool import ActionKind
from kvwatt_sim.day.pool import DayRun, Sample
from kvwatt_sim.day.setting import Setting

SAMPLE_COLUMNS = tuple(item.name for item in fields(Sample))


class DayRow(TypedDict):
    """`kept`: share within each promise. `starts`: starts and wake-ups. `ready_s`: seconds ready, by kind.

    `changed_s`: when anything was begun on a member. `samples`: rows of SAMPLE_COLUMNS. `note`: what was
    chosen in hindsight, where anything was."""

    energy_j: float
    requests: int
    tokens: int
    kept: dict[str, float]
    starts: int
    changed_s: list[float]
    duration_s: float
    clock_changes: int
    ready_s: dict[str, float]
    samples: list[list[float]]
    note: str


def row(setting: Setting, done: DayRun, note: str = "") -> DayRow:
    """`done` in JSON's types. Raises ValueError where not every request was served."""
    if len(done.outcome.served) != len(setting.requests):
        raise ValueError(f"{len(done.outcome.served)} of {len(setting.requests)} requests were served")
    starts = sum(kind in (ActionKind.START, ActionKind.WAKE) for _, _, kind in done.events)
    return DayRow(
        energy_j=done.energy_j,
        requests=len(setting.requests),
        tokens=done.outcome.tokens,
        kept=done.outcome.attainment(setting.promises.slo),
        starts=starts,
        changed_s=[at for at, _, _ in done.events],
        duration_s=done.outcome.duration_s,
        clock_changes=done.outcome.clock_changes,
        ready_s=done.ready_s,
        samples=_rounded(done.samples),
        note=note,
    )


def worst(found: DayRow) -> float:
    """The promise kept least."""
    return min(found["kept"].values())


def _rounded(samples: Sequence[Sample]) -> list[list[float]]:
    return [[round(float(value), 2) for value in astuple(sample)] for sample in samples]
