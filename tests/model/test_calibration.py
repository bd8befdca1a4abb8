"""Online calibration: bias, coverage, drift, and what it refuses to learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.calibration import LatencyCalibration, OnlineCalibration, RegimeCalibration


def feed(calibration: OnlineCalibration, ratios: np.ndarray, start_s: float = 0.0) -> float:
    for index, ratio in enumerate(ratios):
        calibration.update(0.02, 0.02 * float(ratio), start_s + 0.5 * index)
    return start_s + 0.5 * len(ratios)


def noise(seed: int, n: int, spread: float = 0.03) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, spread, n))


def test_a_new_calibration_changes_nothing() -> None:
    """Before any sample the model stands as it is."""
    calibration = OnlineCalibration()
    assert (calibration.bias, calibration.upper_factor, calibration.drifted) == (1.0, 1.0, False)


def test_a_constant_bias_is_found() -> None:
    """An engine 15 % slower than predicted is corrected by that much, and that is no drift."""
    calibration = OnlineCalibration()
    feed(calibration, 1.15 * noise(1, 200))
    assert calibration.bias == pytest.approx(1.15, rel=0.02)
    assert not calibration.drifted


def test_the_bound_covers_nine_tenths() -> None:
    """Bias times factor bounds about 90 % of the samples that follow."""
    calibration = OnlineCalibration()
    ratios = 1.05 * noise(2, 1500, spread=0.06)
    covered = []
    for index, ratio in enumerate(ratios):
        if index > 100:
            covered.append(ratio <= calibration.bias * calibration.upper_factor)
        calibration.update(0.02, 0.02 * ratio, 0.5 * index)
    assert 0.86 <= np.mean(covered) <= 0.94


def test_a_sudden_slowdown_is_drift_until_it_is_learnt() -> None:
    """A jump by half flags drift within seconds; once it is the new normal the flag is gone."""
    calibration = OnlineCalibration()
    now_s = feed(calibration, noise(3, 200))
    now_s = feed(calibration, 1.45 * noise(4, 16), now_s)
    assert calibration.drifted
    feed(calibration, 1.45 * noise(5, 800), now_s)
    assert not calibration.drifted
    assert calibration.bias == pytest.approx(1.45, rel=0.05)


def test_a_model_that_is_far_off_stays_drifted() -> None:
    """Twice as slow as predicted is another engine: no amount of samples makes it normal."""
    calibration = OnlineCalibration()
    feed(calibration, 2.2 * noise(6, 1000))
    assert calibration.drifted
    assert calibration.bias <= 1.6 + 1e-9


@pytest.mark.parametrize(
    ("predicted", "observed", "now"),
    [
        (math.nan, 0.02, 1.0),
        (0.02, math.nan, 1.0),
        (0.02, math.inf, 1.0),
        (0.0, 0.02, 1.0),
        (0.02, 0.0, 1.0),
        (0.02, -1.0, 1.0),
        (0.02, 0.02, math.nan),
        (0.02, 0.02, -5.0),
    ],
)
def test_unusable_samples_are_counted_and_ignored(predicted: float, observed: float, now: float) -> None:
    """NaN, infinite, zero, negative or backward samples change neither bias nor bound."""
    calibration = OnlineCalibration()
    feed(calibration, noise(7, 50))
    before = (calibration.bias, calibration.upper_factor, calibration.samples)
    assert not calibration.update(predicted, observed, now)
    assert (calibration.bias, calibration.upper_factor, calibration.samples) == before
    assert calibration.rejected == 1


def test_a_pause_does_not_empty_the_memory() -> None:
    """After an hour without busy intervals one odd sample does not become the truth."""
    calibration = OnlineCalibration()
    now_s = feed(calibration, 1.1 * noise(8, 300))
    calibration.update(0.02, 0.02 * 3.0, now_s + 3600)
    assert calibration.bias == pytest.approx(1.1, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=100))
def test_bias_and_bound_stay_within_limits(ratios: list[float]) -> None:
    """Whatever is observed, the correction stays finite, bounded and the factor at least one."""
    calibration = OnlineCalibration()
    feed(calibration, np.array(ratios))
    assert 1 / 1.6 - 1e-9 <= calibration.bias <= 1.6 + 1e-9
    assert 1.0 <= calibration.upper_factor < math.inf


def test_coverage_so_far_is_told() -> None:
    """The monitor shows the share of scored samples within their bound; nothing before the first."""
    calibration = OnlineCalibration()
    assert calibration.coverage is None
    feed(calibration, noise(9, 1200, spread=0.05))
    assert calibration.scored > 1000
    assert calibration.coverage is not None
    assert 0.87 <= calibration.coverage <= 0.93


def test_the_bound_widens_before_drift_forces_default() -> None:
    """While an engine slows down step by step, the bound grows from sample to sample until it is drift."""
    calibration = OnlineCalibration()
    now_s = feed(calibration, noise(10, 300, spread=0.01))
    before = calibration.upper_factor
    factors = []
    for index in range(60):
        if calibration.drifted:
            break
        calibration.update(0.02, 0.02 * 1.45, now_s + 0.5 * index)
        factors.append(calibration.bias * calibration.upper_factor)
    assert calibration.drifted
    assert len(factors) >= 3
    assert factors == sorted(factors)
    assert factors[-1] > 1.1 * before


def test_each_regime_has_its_own_bound() -> None:
    """Steps with prompts that are 20 % slower than predicted raise the bound, though they are few."""
    calibration = RegimeCalibration()
    ratios = noise(11, 600, spread=0.02)
    for index, ratio in enumerate(ratios):
        mixed = index % 12 == 0
        factor = 1.2 * ratio if mixed else ratio
        calibration.update(0.02, 0.02 * factor, 0.5 * index, "mixed" if mixed else "decode")
    assert calibration.bias == pytest.approx(1.015, abs=0.02)
    assert calibration.bias * calibration.upper_factor > 1.19
    assert calibration.regimes["decode"].bias == pytest.approx(1.0, abs=0.01)
    assert not calibration.drifted


def test_one_regime_that_drifts_is_drift() -> None:
    """Decode as ever while steps with prompts take twice as long: the model must not be relied on."""
    calibration = RegimeCalibration()
    for index in range(400):
        mixed = index % 12 == 0
        calibration.update(0.02, 0.04 if mixed else 0.02, 0.5 * index, "mixed" if mixed else "decode")
    assert calibration.regimes["mixed"].drifted
    assert calibration.drifted


def latencies_met(factor: float, bound_s: float, seed: int, n: int) -> float:
    times = np.random.default_rng(seed).lognormal(math.log(0.5), 0.4, n)
    return float(np.sum(times <= factor * bound_s))


def test_a_latency_bound_that_is_too_tight_is_widened_until_it_holds() -> None:
    """A TTFT bound at the median grows until 95 % of requests lie within it, and no further."""
    calibration = LatencyCalibration(0.95, limit=4.0)
    late = []
    for index in range(1200):
        met = latencies_met(calibration.factor, 0.5, index, 5)
        calibration.update(met, 5)
        late.append(met)
    assert np.mean(late[600:]) / 5 == pytest.approx(0.95, abs=0.015)
    assert calibration.factor == pytest.approx(math.exp(0.4 * 1.645), rel=0.12)
    assert not calibration.drifted


def test_a_latency_bound_that_holds_is_left_alone() -> None:
    """Where all requests are well within the bound the factor stays 1."""
    calibration = LatencyCalibration(0.99)
    for _ in range(500):
        assert calibration.update(4, 4)
    assert (calibration.factor, calibration.coverage) == (1.0, 1.0)


def test_a_hopeless_latency_bound_forces_default() -> None:
    """When even the widest bound does not hold, the calibration says so; and recovers when it holds again."""
    calibration = LatencyCalibration(0.99)
    for _ in range(50):
        calibration.update(0, 4)
    assert calibration.drifted
    assert calibration.factor == pytest.approx(2.0)
    for _ in range(5000):
        calibration.update(4, 4)
    assert not calibration.drifted


@pytest.mark.parametrize(("met", "total"), [(math.nan, 4), (5, 4), (-1, 4), (0, 0), (1, math.inf)])
def test_unusable_counts_are_ignored(met: float, total: float) -> None:
    """NaN, infinite, negative or contradictory counts change nothing."""
    calibration = LatencyCalibration(0.9)
    assert not calibration.update(met, total)
    assert (calibration.factor, calibration.coverage) == (1.0, None)
