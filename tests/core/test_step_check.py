"""The step-time model against steps: certain loads teach it, and a wrong model is not relied on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_promises import BLANK

from kvwatt.compiled import CompiledModel
from kvwatt.traffic import Interval
from kvwattd.step_check import StepCheck
from kvwattd.tap_stream import TapStep

AXES = (np.array([0.0, 64.0]), np.array([0.0, 4096.0]), np.array([0.0, 2048.0]))
STEP_S = 0.02


def model() -> CompiledModel:
    """20 ms a step whatever the load, at one clock."""
    step_s = np.full((8, 1), STEP_S, dtype=np.float32)
    return CompiledModel((1000,), 1.05, AXES, step_s, np.ones_like(step_s), np.array([30.0]))


def checked(off: float, exact: bool = True, seconds: float = 60.0) -> StepCheck:
    """After so long with steps that take `off` times what the model says."""
    check = StepCheck(2048.0)
    steps = [TapStep(STEP_S * off, 8, 0, 0.2, exact)] * 25
    interval = Interval(0.5, 0.0, 25.0, 0.0, 200.0, 200 * STEP_S * off, 200.0, 8.0, 1000.0, True)
    for poll in range(int(2 * seconds)):
        page = replace(BLANK, observed_s=0.5 * poll)
        check.interval(model(), page, interval, steps, 1000, 512.0)
    return check


@pytest.mark.parametrize("off", [0.8, 1.0, 1.3])
def test_steps_put_the_model_right(off: float) -> None:
    """Correction and bias together give the steps' own time, and it is relied on."""
    check = checked(off)
    load = (np.array([8.0]), np.array([3000.0]), np.array([0.0]))
    (told_s,) = check.paced(model()).step_time_s(*load)[0]
    assert told_s * check.calibration.bias == pytest.approx(STEP_S * off, rel=0.02)
    assert not check.bounds(model()).drifted


@pytest.mark.parametrize("off", [0.55, 1.8])
def test_a_model_of_another_engine_is_not_relied_on(off: float) -> None:
    """However well the corrections follow."""
    assert checked(off).bounds(model()).drifted


def test_steps_of_uncertain_load_teach_the_bias_only() -> None:
    """A prompt's chunk may have been in them that was not told."""
    check = checked(1.3, exact=False)
    assert check.pace.steps == 0
    assert check.paced(model()) is not None
    assert check.calibration.bias == pytest.approx(1.3, rel=0.05)


def test_nothing_new_gives_the_same_objects() -> None:
    """Decisions are made anew only where something changed."""
    check = checked(1.1)
    one = model()
    assert check.paced(one) is check.paced(one)
    assert check.bounds(one) is check.bounds(one)
