"""The energy model learned while serving: windows in, a worker's verdict, and what a restart finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refit_instance import SHAPE, Instance, Slot

from kvwatt import artifact
from kvwatt.compiled import compile_model
from kvwatt.energy_factors import window_row
from kvwatt.energy_learning import Counted, WindowRing, columns_of
from kvwatt.energy_model import shipped as shipped_law
from kvwatt.energy_table import TableEnergy
from kvwatt.state import GpuSample
from kvwatt.throughput import StepModel
from kvwattd.energy_learning.job import Kept, Row
from kvwattd.energy_learning.learner import EnergyLearner
from kvwattd.energy_learning.refits import KEPT, EnergyRefits, restored
from kvwattd.energy_learning.worker import champion_of, score
from kvwattd.model_versions import VersionStore

CLOCKS = (900, 1200, 1500)


def served(step: TableEnergy, count: int, watts: Callable[[float], float]) -> list[Counted]:
    """Windows at random loads; `watts` turns the step law's power into what the counter says."""
    draw, found = np.random.default_rng(3), []
    for number in range(1, count + 1):
        clock, batch = float(draw.choice(CLOCKS)), draw.uniform(1, 60)
        kv = batch * 500.0
        one = np.ones(1)
        step_s = float(step.step_time_s(clock * one, batch * one, kv * one, 0 * one)[0])
        steps = draw.uniform(0.3, 0.95) / step_s
        row = window_row(10.0, {
            "clock_mhz": clock, "running": batch, "kv_capacity_tokens": 320_000.0, "kv_usage": kv / 320_000.0,
            "steps_per_s": steps, "output_tokens_per_s": steps * batch, "prompt_tokens_per_s": 0.0,
            "token_budget": 2048.0, "tp": 1.0, "temperature_c": draw.uniform(40, 70),
        })  # fmt: skip
        found.append(Counted(number, row, 1.0))
    windows, _ = columns_of(found)
    law = shipped_law(100.0).power_w(windows, step)
    noise = draw.normal(1.0, 0.01, count)
    told = [10.0 * watts(float(power)) * float(gain) for power, gain in zip(law, noise, strict=True)]
    return [replace(window, energy_j=joules) for window, joules in zip(found, told, strict=True)]


@pytest.fixture
def made(ship: Callable[[Path], Path], shipped: StepModel, tmp_path: Path) -> tuple[VersionStore, Instance]:
    store = VersionStore(tmp_path / "versions", ship(tmp_path / "model"))
    artifact.load_compiled(tmp_path / "model", CLOCKS, SHAPE)
    return store, Instance(Slot(compile_model(shipped, CLOCKS, SHAPE)))


async def test_a_hungrier_gpu_is_learned_and_survives_a_restart(
    made: tuple[VersionStore, Instance], tmp_path: Path
) -> None:
    """A third more power than the card says: the law is wrong by that, the model that serves next is not."""
    store, instance = made
    assert instance.model.compiled is not None
    step, learner = TableEnergy(instance.model.compiled), EnergyLearner()
    for window in served(step, 240, lambda watts: 1.3 * watts + 20.0):
        learner.ring.add(window.row, window.energy_j)
    refits = EnergyRefits(900.0, tmp_path / "energy", {"chat": store}, {"chat": learner})
    await refits.refit(instance)  # type: ignore[arg-type]  # what a refit asks of one
    first = refits.view("chat")
    assert first.last == "promoted", first.reason
    assert first.accuracy_ratio is not None
    assert first.accuracy_ratio < 0.8  # of the law, on what it had not seen

    fresh = EnergyLearner()
    again = EnergyRefits(900.0, tmp_path / "energy", {"chat": store}, {"chat": fresh})
    await again.admit("chat")
    assert len(fresh.ring) == len(learner.ring)
    assert again.view("chat").learned
    new = served(step, 300, lambda watts: 1.3 * watts + 20.0)[240:]
    model = champion_of(again.learned["chat"].kept.model, step)
    learned = score(model, new, step)
    assert learned is not None
    assert learned > 0.95


async def test_too_few_windows_and_a_broken_state_leave_the_law(
    made: tuple[VersionStore, Instance], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A handful of windows teaches nothing; a damaged file is told of and begun anew."""
    store, instance = made
    learner = EnergyLearner()
    refits = EnergyRefits(900.0, tmp_path / "energy", {"chat": store}, {"chat": learner})
    await refits.refit(instance)  # type: ignore[arg-type]
    assert refits.view("chat").last == "too_few"
    assert not refits.view("chat").learned
    path = tmp_path / "energy" / "chat" / KEPT
    for damaged in (
        "{",
        *(k.model_dump_json() for k in (Kept(windows=[_row(2), _row(2)]), Kept(model="{}"))),
    ):
        path.write_text(damaged)
        assert restored(path) == Kept()
    assert "learned anew" in caplog.text
    await EnergyRefits(0.0, tmp_path / "energy", {"chat": store}, {"chat": learner}).run({})  # never: at once


async def test_a_worker_that_fails_costs_a_log_line(
    made: tuple[VersionStore, Instance], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The step model is gone meanwhile: the outcome says so, nothing is raised."""
    store, instance = made
    for file in store.shipped.iterdir():
        file.unlink()
    refits = EnergyRefits(900.0, tmp_path / "energy", {"chat": store}, {"chat": EnergyLearner()})
    await refits.refit(instance)  # type: ignore[arg-type]
    view = refits.view("chat")
    assert view.last == "failed"
    assert view.outcomes_total == {"failed": 1}
    assert "energy model failed" in caplog.text


def _row(number: int) -> Row:
    return Row.of(Counted(number, window_row(10.0, {"clock_mhz": 900.0}), 100.0))


def test_rows_keep_what_is_not_known() -> None:
    """NaN is null on disk and NaN again."""
    row = _row(7)
    assert None in row.row
    back = Row.model_validate_json(row.model_dump_json()).counted()
    assert np.array_equal(back.row, row.counted().row, equal_nan=True)
    ring = WindowRing()
    ring.restore(back)
    with pytest.raises(ValueError, match="numbers must rise"):
        ring.restore(back)


def test_readings_without_a_page_teach_nothing() -> None:
    """The GPU is read before the engine was ever heard of."""
    learner = EnergyLearner()
    learner.on_gpu({"GPU-1": GpuSample(1.0, "GPU-1", 900, 100.0, 5.0, 40.0, 0.5, 0)})
    assert len(learner.ring) == learner.dropped == 0
