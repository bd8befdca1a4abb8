"""Step time at one clock, corrected by the last steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvwatt.compiled import CompiledModel
from kvwatt.pace import ClockPace, PaceCorrection

AXES = (np.array([0.0, 256.0]), np.array([0.0, 4096.0]), np.array([0.0, 2048.0]))


def model() -> CompiledModel:
    """20 ms at 1000 MHz and 10 ms at 2000 MHz, with 100 us and 50 us per prompt token added."""
    step_s = np.array([[0.02, 0.01] if i % 2 == 0 else [0.2248, 0.1124] for i in range(8)], dtype=np.float32)
    return CompiledModel((1000, 2000), 1.1, AXES, step_s, np.ones_like(step_s), np.array([30.0, 40.0]))


def ones(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def test_a_pace_is_its_clock_s_column() -> None:
    """The same numbers as the whole table's."""
    load = ones(10, 20), ones(1000, 9000), ones(0, 500)
    whole = model().step_time_s(*load)
    assert ClockPace(model(), 1000).step_s(*load) == pytest.approx(whole[:, 0])
    assert ClockPace(model(), 2000).step_s(*load) == pytest.approx(whole[:, 1])
    with pytest.raises(ValueError, match="clock_mhz = 1500"):
        ClockPace(model(), 1500)


def test_what_the_last_steps_took_corrects_the_next() -> None:
    """Small batches 5 % slow and prompts 20 % slow are learned apart; new loads lean on their kind."""
    correction = PaceCorrection()
    pace = ClockPace(model(), 2000, correction)
    for _ in range(20):
        batch, prefill = np.repeat(ones(4, 64, 8), 50), np.repeat(ones(0, 0, 500), 50)
        bare = ClockPace(model(), 2000).step_s(batch, 100 * batch, prefill)
        correction.update(batch, prefill, bare, bare * np.repeat(ones(1.05, 1.0, 1.2), 50))
    at = ones(4, 64, 16, 8), ones(400, 6400, 1600, 800), ones(0, 0, 0, 500)
    ratio = pace.step_s(*at) / ClockPace(model(), 2000).step_s(*at)
    assert ratio == pytest.approx(ones(1.05, 1.0, 1.025, 1.2), abs=0.005)


def test_outliers_and_nonsense_teach_nothing() -> None:
    """Steps off by more than a factor of two, zero, infinite or NaN leave the factors at one."""
    correction = PaceCorrection()
    bad = ones(0.05, 0.001, math.nan, math.inf, 0.0, -1.0)
    batch = np.full(6, 8.0)
    correction.update(batch, np.zeros(6), np.full(6, 0.01), bad)
    correction.update(batch, np.zeros(6), np.zeros(6), np.full(6, 0.01))
    assert correction.factor(batch, np.zeros(6)) == pytest.approx(np.ones(6))
    with pytest.raises(ValueError, match="memory_steps"):
        PaceCorrection(memory_steps=0.0)


def test_the_newest_steps_count_most() -> None:
    """A correction follows a change within its memory."""
    correction = PaceCorrection(memory_steps=100.0)
    batch, idle, bare = np.full(50, 8.0), np.zeros(50), np.full(50, 0.01)
    for factor in (1.2, 0.9):
        for _ in range(20):
            correction.update(batch, idle, bare, bare * factor)
    assert correction.factor(ones(8), ones(0))[0] == pytest.approx(0.9, abs=0.02)


def test_a_paced_model_is_the_model_times_what_was_learned() -> None:
    """At every clock and load; power stays, and what is learned later leaves it as it was."""
    correction = PaceCorrection()
    batch, idle, bare = np.full(500, 8.0), np.zeros(500), np.full(500, 0.01)
    correction.update(batch, idle, bare, bare * 1.3)
    paced = correction.paced(model())
    load = ones(8, 9, 100), ones(1000, 1000, 1000), ones(0, 0, 700)
    factor = correction.factor(load[0], load[2])
    assert paced.step_time_s(*load) == pytest.approx(model().step_time_s(*load) * factor[:, None])
    assert paced.power_w(*load) == pytest.approx(model().power_w(*load))
    for batch, kv, prefill in zip(*(column.tolist() for column in load), strict=True):
        step_s, power_w = paced.with_prompts(batch, kv, (0.0, prefill))
        row = np.full(2, batch), np.full(2, kv), np.array([0.0, prefill])
        assert step_s == pytest.approx(paced.step_time_s(*row))
        assert power_w == pytest.approx(model().power_w(*row))
    assert factor[0] > 1.25
    before = paced.step_time_s(*load)
    correction.update(batch, idle, bare, bare * 0.8)
    assert np.array_equal(paced.step_time_s(*load), before)


def test_how_far_off_the_model_is_in_all() -> None:
    """One number over what was seen; nothing seen is not off."""
    correction = PaceCorrection()
    assert (correction.steps, correction.overall) == (0.0, 1.0)
    bare = np.full(2000, 0.01)
    correction.update(np.full(2000, 8.0), np.zeros(2000), bare, bare * 1.4)
    assert correction.overall == pytest.approx(1.4, rel=0.05)
