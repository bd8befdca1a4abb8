"""How days become bars: what breaks a promise does not count, whoever it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

from day_bars import Table, bars, changes
from day_runs import Row, Task
from kvwatt_sim.day.result import DayRow


def row(energy_j: float, kept: float = 0.995, changed_s: tuple[float, ...] = ()) -> Row:
    day = DayRow(
        energy_j=energy_j,
        requests=1000,
        tokens=1000,
        kept={"ttft": 1.0, "tbt": 1.0, "e2e": kept},
        starts=0,
        changed_s=list(changed_s),
        duration_s=3600.0,
        clock_changes=0,
        ready_s={},
        samples=[],
        note="",
    )
    return Row(day, 0.0)


def met(ours: Row, rival: Row, setting: str = "a100") -> dict[str, bool]:
    rows = {Task(setting, "default", 1, 2.4): row(100.0), Task(setting, "kvwatt", 1, 2.4): ours}
    rows[Task(setting, "paper", 1, 2.4)] = rival
    return {bar.name: bar.met for bar in bars(rows)}


def test_savings_count_where_every_promise_is_kept() -> None:
    """The paper's headline: 43.8 % and 1.78 times the tokens per joule."""
    found = met(row(56.0), row(60.0))
    assert found["saved vs driver default, a100, %"]
    assert found["tokens per J vs driver default, a100, times"]
    broken = met(row(56.0, kept=0.98), row(60.0))
    assert not any(broken.values())


def test_a_rival_that_keeps_its_promises_has_to_be_beaten_in_energy() -> None:
    found = met(row(56.0), row(55.0))
    assert not found["less energy than paper, a100, %"]


def test_a_rival_that_breaks_them_is_beaten_by_keeping_them() -> None:
    """Its energy is told where ours is even less."""
    cheaper = met(row(56.0), row(50.0, kept=0.95))
    assert cheaper["kept more than paper (it kept 95.0%), a100"]
    dearer = met(row(56.0), row(60.0, kept=0.95))
    assert dearer["less energy than paper (it kept 95.0%), a100, %"]


def test_oscillation_is_what_comes_after_settling() -> None:
    steady, restless = row(1.0, changed_s=(5.0, 800.0, 1000.0)), row(1.0, changed_s=(950.0, 1000.0))
    assert (changes(steady), changes(restless)) == (1, 2)
    rows = {Task("l20-stopped", "constant", 1, 1.0, 0.1): steady}
    assert bars(rows)[-1].met
    rows[Task("l20-stopped", "constant", 1, 1.0, 0.2)] = restless
    assert not bars(rows)[-1].met


def test_the_mean_is_over_seeds_and_the_worst_seed_counts() -> None:
    rows = {Task("l20-parked", "default", seed, 2.4): row(100.0) for seed in (1, 2)}
    rows |= {Task("l20-parked", "kvwatt", 1, 2.4): row(40.0), Task("l20-parked", "kvwatt", 2, 2.4): row(50.0)}
    table = Table(rows)
    assert table.saved("l20-parked", "kvwatt") == pytest.approx([60.0, 50.0])
    assert table.kept("l20-parked", "kvwatt") == pytest.approx(0.995)
