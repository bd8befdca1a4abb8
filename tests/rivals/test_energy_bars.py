"""How runs become bars: what breaks a promise does not count, ideals make no best found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

from energy_bars import Table, bars
from energy_code import COMMON, MODULES, files_of
from energy_runs import Row, Task

SETTING = ("l20", "conv", "paper", 0.75)
NAMES = {
    "default": "saved vs default, L20 conv paper 0.75, %",
    "fixed": "saved vs best fixed, L20 conv paper 0.75, %",
    "found": "above best found, L20 conv paper 0.75, %",
    "throttllem": "less energy than throttllem (true lengths) at no less attainment, share",
    "voltana": "less energy than voltana where it keeps 99 %, share",
}


def row(energy_j: float, kept: float = 0.995) -> Row:
    return Row(
        energy_j=energy_j,
        requests=1000,
        tokens=1,
        clock_changes=0,
        kept={"ttft": 1.0, "e2e": kept},
        decision_mean_s=1e-4,
        decision_p99_s=5e-4,
    )


def runs(ours: tuple[Row, Row], voltana: Row) -> dict[Task, Row]:
    """Two seeds of one setting."""
    others = {
        "max": row(100.0),
        "best-fixed": row(80.0),
        "best-pair": row(40.0),
        "best-found": row(60.0),
        "throttllem": row(70.0, 0.98),
        "voltana": voltana,
    }
    told = {Task(*SETTING, s, 60.0, p): r for s in (1, 2) for p, r in others.items()}
    return told | {Task(*SETTING, s, 60.0, "kvwatt"): r for s, r in zip((1, 2), ours, strict=True)}


def values(rows: dict[Task, Row]) -> dict[str, float]:
    return {bar.name: bar.value for bar in bars(rows)}


def test_means_over_the_seeds() -> None:
    """60 and 66 of 100, 80 and 60 J: 37 %, 21.25 % and 5 %."""
    found = values(runs((row(60.0), row(66.0)), row(70.0)))
    assert found[NAMES["default"]] == pytest.approx(37.0)
    assert found[NAMES["fixed"]] == pytest.approx(21.25)
    assert found[NAMES["found"]] == pytest.approx(5.0)
    assert found[NAMES["throttllem"]] == 1.0
    assert found[NAMES["voltana"]] == 1.0


def test_a_promise_broken_on_one_seed_makes_the_setting_count_for_nothing() -> None:
    """However much was saved."""
    found = values(runs((row(50.0), row(50.0, 0.9899)), row(70.0)))
    assert found[NAMES["default"]] == 0.0
    assert found[NAMES["fixed"]] == 0.0
    assert found[NAMES["found"]] == 100.0
    assert found[NAMES["voltana"]] == 0.0


def test_a_rival_that_breaks_its_promises_need_not_be_beaten_in_energy() -> None:
    """Keeping them is enough there."""
    ours = (row(60.0), row(60.0))
    assert values(runs(ours, row(50.0, 0.9)))[NAMES["voltana"]] == 1.0
    assert values(runs(ours, row(50.0)))[NAMES["voltana"]] == 0.0


def test_best_found_is_the_least_of_what_can_be_and_keeps_its_promises() -> None:
    """Neither the ideal pair nor a broken run."""
    table = Table(runs((row(58.0), row(66.0)), row(50.0, 0.9)))
    assert table.best_found_j(SETTING, 1) == 58.0
    assert table.best_found_j(SETTING, 2) == 60.0


def test_a_rivals_result_outlives_a_change_of_our_policy() -> None:
    """What is kept is kept by the code that made it: our own decision is in the key of our runs alone."""
    files = {name: {p.name for p in files_of((*COMMON, *modules))} for name, modules in MODULES.items()}
    assert {"tradeoff.py", "outlook.py", "budget.py", "traffic.py", "instance.py"} < files["kvwatt"]
    for name in MODULES.keys() - {"kvwatt"}:
        assert {"controller.py", "kernel.py", "state.py", "core.py"} < files[name]
        assert not {"policy.py", "tradeoff.py", "outlook.py", "inputs.py"} & files[name]
    assert "proj.py" in files["throttllem"] and "throttllem.py" not in files["voltana"]
