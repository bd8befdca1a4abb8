"""The compiled table says what the model says, only faster."""

from __future__ import annotations

import numpy as np
import pytest
from model_world import CLOCKS, random_loads

from kvwatt.compiled import CompiledModel, compile_model
from kvwatt.state import EngineShape
from kvwatt.throughput import StepModel

MANY = tuple(range(600, 2001, 25))


@pytest.fixture(scope="module")
def compiled(model: StepModel, shape: EngineShape) -> CompiledModel:
    return compile_model(model, MANY, shape)


def test_table_agrees_with_the_model(model: StepModel, compiled: CompiledModel) -> None:
    """At random loads, decoding, prefilling and mixed, both differ by at most two percent."""
    loads = random_loads(11, 500)
    clocks = np.array(MANY, dtype=float)
    step = compiled.step_time_s(*loads) / model.step_table(clocks, *loads)
    power = compiled.power_w(*loads) / model.power_table(clocks, *loads)
    assert np.abs(step - 1).max() < 0.02
    assert np.quantile(np.abs(power - 1), 0.99) < 0.02
    assert np.array_equal(compiled.idle_power_w(), model.idle_power_w(clocks))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_both_at_once_are_both(compiled: CompiledModel, scale: float) -> None:
    """Step time and power read together are what they are by themselves, beyond the grid too."""
    batch, kv, prefill = random_loads(14, 50)
    loads = (batch * scale, kv * scale, prefill)
    step_s, power_w = compiled.step_and_power(*loads)
    assert np.allclose(step_s, compiled.step_time_s(*loads), rtol=1e-12)
    assert np.allclose(power_w, compiled.power_w(*loads), rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_one_batch_with_several_chunks_is_read_like_loads_by_themselves(
    compiled: CompiledModel, scale: float
) -> None:
    """The decision's way to read the table, without prompts and on the grid's last line, too."""
    last = float(compiled.axes[2][-1])
    for batch, kv, prefill in zip(*(column.tolist() for column in random_loads(15, 50)), strict=True):
        chunks = (0.0, prefill, last)
        loads = (np.full(3, batch * scale), np.full(3, kv * scale), np.array(chunks))
        for one, other in zip(
            compiled.with_prompts(batch * scale, kv * scale, chunks),
            compiled.step_and_power(*loads),
            strict=True,
        ):
            assert np.allclose(one, other, rtol=2e-6)


def test_table_is_monotone_in_the_clock_inside_and_outside_its_grid(compiled: CompiledModel) -> None:
    """Step time never rises with the clock, wherever the load lies."""
    batch, kv, prefill = random_loads(12, 300)
    for scale in (1.0, 4.0, 30.0):
        step = compiled.step_time_s(batch * scale, kv * scale**2, prefill * scale)
        assert np.all(np.diff(step, axis=1) <= 1e-12)


def test_beyond_the_grid_time_goes_on_upwards(compiled: CompiledModel, shape: EngineShape) -> None:
    """A batch, context or chunk past the engine's limits is never faster than the limit itself."""
    top = (float(shape.max_num_seqs), float(shape.max_num_seqs * 2000), float(shape.max_num_batched_tokens))
    edge = compiled.step_time_s(*(np.array([x]) for x in top))
    for factor in (1.01, 2.0, 10.0):
        batch, kv, prefill = (np.array([x * factor]) for x in top)
        assert np.all(compiled.step_time_s(batch, kv, prefill) >= edge)


def test_fractional_batches_lie_between_whole_ones(compiled: CompiledModel) -> None:
    """Expected batches need not be whole, and an empty engine costs no more than one sequence."""
    batch, prefill = np.array([0.0, 0.5, 1.0]), np.zeros(3)
    step = compiled.step_time_s(batch, batch * 500, prefill)
    assert np.all(np.diff(step, axis=0) >= 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_impossible_loads_are_refused(compiled: CompiledModel, bad: float) -> None:
    """NaN, infinite or negative loads are errors, never a small step time."""
    good = np.array([4.0, 8.0])
    for place in range(3):
        loads = [good, good * 100, good]
        loads[place] = np.array([4.0, bad])
        with pytest.raises(ValueError, match="finite"):
            compiled.step_time_s(*loads)


@pytest.mark.parametrize("clocks", [(), (1000, 900), (900, 900), (0, 100)])
def test_clocks_must_ascend(model: StepModel, shape: EngineShape, clocks: tuple[int, ...]) -> None:
    """A table over unordered, repeated or missing clocks is refused."""
    with pytest.raises(ValueError, match="clocks_mhz"):
        compile_model(model, clocks, shape)


def test_one_clock_is_enough(model: StepModel, shape: EngineShape) -> None:
    """An operator may leave a single clock."""
    single = compile_model(model, (CLOCKS[2],), shape)
    assert single.step_time_s(*random_loads(13, 5)).shape == (5, 1)
