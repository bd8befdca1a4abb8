"""Curves of a report's page: rows gathered into buckets of equal width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvwatt.holdout import HELD, Arm
from kvwattd.config import Mode
from kvwattd.ledger import proof
from kvwattd.ledger.entry import Entry
from kvwattd.report.figures import Report

POINTS = 240
WIDTHS_S = (60, 300, 900, 3600, 4 * 3600, 86_400)
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Point:
    """One bucket of all instances."""

    start_ms: int
    end_ms: int
    power_w: float
    baseline_w: float | None  # what driver default would have drawn, while in control
    clock_mhz: float
    j_per_token: float | None
    held: bool
    attainment: Mapping[str, float]
    would_w: float | None = None  # what control would have drawn, in shadow mode: an estimate


@dataclass(frozen=True, slots=True)
class Day:
    """Saved in one UTC day, by its windows alone."""

    start_ms: int
    saved_j: float
    low_j: float
    high_j: float


def points(rows: Sequence[Entry], report: Report) -> list[Point]:
    """At most POINTS or so, oldest first."""
    span_s = max(report.to_ms - report.from_ms, 1) / 1e3
    width_ms = 1000 * next((w for w in WIDTHS_S if span_s / w <= POINTS), WIDTHS_S[-1])
    buckets: dict[int, list[Entry]] = {}
    for row in rows:
        buckets.setdefault(row.start_ms // width_ms, []).append(row)
    return [_point(index * width_ms, width_ms, some, report) for index, some in sorted(buckets.items())]


def _point(start_ms: int, width_ms: int, rows: Sequence[Entry], report: Report) -> Point:
    time_ms = max(sum(row.time_ms for row in rows), 1)
    # Instances run side by side: power is energy over the time that one of them was watched.
    watched_ms = max(sum(row.time_ms for row in some) for some in proof.by_instance(rows).values()) or 1
    tokens = sum(row.generation_tokens for row in rows)
    in_control = proof.controlled(rows)
    baseline_mj = sum(row.work_mj * report.baseline_scale.get(row.instance, 0.0) for row in in_control)
    shadowed = any(row.mode == Mode.SHADOW for row in rows)
    would_mj = sum(row.would_mj if row.mode == Mode.SHADOW else row.energy_mj for row in rows)
    other_mj = sum(row.energy_mj for row in rows if row.arm is not Arm.CONTROLLED)
    return Point(
        start_ms=start_ms,
        end_ms=start_ms + width_ms,
        power_w=sum(row.energy_mj for row in rows) / watched_ms,
        baseline_w=(baseline_mj + other_mj) / watched_ms if baseline_mj > 0 else None,
        clock_mhz=sum(row.clock_mhz_ms for row in rows) / time_ms,
        j_per_token=proof.energy_j(rows) / tokens if tokens else None,
        held=any(row.arm in HELD for row in rows),
        attainment={str(m): kept.ratio or 0.0 for m, kept in proof.kept_promises(rows).items()},
        would_w=would_mj / watched_ms if shadowed else None,
    )


def days(rows: Sequence[Entry]) -> list[Day]:
    """Days with enough windows, all instances with enough windows together."""
    by_day: dict[int, list[Entry]] = {}
    for row in rows:
        by_day.setdefault(row.start_ms // DAY_MS, []).append(row)
    found = []
    for index, some in sorted(by_day.items()):
        each = [e for own in proof.by_instance(some).values() if (e := proof.measured(own)) is not None]
        if each:
            saved_j = sum(e.saved_j for e in each)
            half_j = sum(e.half_width_j**2 for e in each) ** 0.5
            found.append(Day(index * DAY_MS, saved_j, saved_j - half_j, saved_j + half_j))
    return found
