"""Laws and accuracy of the step-time and power model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import CLOCKS, LAW, random_loads

from kvwatt.prior import StepPrior
from kvwatt.profiles import ProfileTable
from kvwatt.throughput import StepModel
from kvwatt.training import (
    Origin,
    TrainingError,
    clock_folds,
    cross_validate,
    fit,
    random_folds,
    scores,
    train,
    upper_factor,
)

ALL_CLOCKS = np.arange(500.0, 2200.0, 7.0)


def test_step_time_never_rises_with_the_clock(model: StepModel) -> None:
    """At any load, inside and outside the profile, a higher clock is never slower."""
    batch, kv, prefill = random_loads(1, 200)
    table = model.step_table(ALL_CLOCKS, batch * 1.5, kv * 2, prefill * 1.5)
    assert np.all(np.diff(table, axis=1) <= 1e-12)
    assert np.any(table[:, 0] > 1.5 * table[:, -1])


def test_predictions_are_finite_and_positive_far_outside_the_profile(model: StepModel) -> None:
    """Absurd loads still give finite positive times and at least idle power."""
    loads = (np.array([0.0, 1e4, 0.3]), np.array([0.0, 1e8, 500.0]), np.array([0.0, 1e5, 3.0]))
    clocks = np.array([100.0, 1000.0, 5000.0])
    step_s, watts = model.step_table(clocks, *loads), model.power_table(clocks, *loads)
    assert np.all(np.isfinite(step_s)) and np.all(step_s > 0)
    assert np.all(watts >= model.idle_power_w(clocks)[None, :])


def test_beyond_the_profiled_loads_the_correction_only_slows(model: StepModel) -> None:
    """A load larger than any profiled one is never predicted faster than the physical prior."""
    batch, kv, prefill = (np.array([x]) for x in (200.0, 200 * 3500.0, 3000.0))
    clocks = np.array(CLOCKS, dtype=float)
    prior = model.prior.step_time_s(clocks, batch, kv, prefill)
    assert np.all(model.step_table(clocks, batch, kv, prefill)[0] >= prior - 1e-12)


def test_unseen_loads_and_clocks_are_predicted_within_a_few_percent(model: StepModel) -> None:
    """Between the profiled points the error stays near the measurement noise of 1 %."""
    batch, kv, _ = random_loads(2, 400)
    clocks = np.array([700.0, 900.0, 1150.0, 1450.0, 1800.0])
    zero = np.zeros(len(batch))
    truth = LAW.step_time_s(clocks[None, :], batch[:, None], kv[:, None], zero[:, None])
    error = np.abs(model.step_table(clocks, batch, kv, zero) / truth - 1)
    assert error.mean() < 0.02
    assert np.quantile(error, 0.95) < 0.06


def test_broadcasting_gives_the_same_as_the_table(model: StepModel) -> None:
    """Scalars and arrays of any shape are answered alike."""
    batch, kv, prefill = random_loads(3, 12)
    clocks = np.array(CLOCKS, dtype=float)
    table = model.step_table(clocks, batch, kv, prefill)
    assert np.allclose(
        model.step_time_s(clocks[None, :], batch[:, None], kv[:, None], prefill[:, None]), table
    )
    assert model.step_time_s(1000, batch[0], kv[0], prefill[0]).shape == ()
    assert model.step_time_s(np.array([]), 1, 1, 0).shape == (0,)
    power = model.power_w(clocks[None, :], batch[:, None], kv[:, None], prefill[:, None])
    assert np.allclose(power, model.power_table(clocks, batch, kv, prefill))


def test_training_twice_gives_the_same_trees(table: ProfileTable, model: StepModel) -> None:
    """Fitting is deterministic: same table, same artifact."""
    again = fit(table, Origin("Made-up GPU"))
    assert again.step_trees == model.step_trees
    assert again.prior == model.prior


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1e-2), min_size=13, max_size=13),
    st.floats(1, 8),
    st.floats(0, 512),
    st.floats(0, 1e6),
    st.floats(0, 8192),
)
def test_any_prior_is_monotone_in_clock_and_load(
    coefficients: list[float], overlap: float, batch: float, kv: float, prefill: float
) -> None:
    """Whatever the coefficients, the law falls with the clock and rises with every part of the load."""
    prior = StepPrior((1e-3, *coefficients[1:], overlap, overlap))
    clocks = np.array([300.0, 900.0, 2500.0])
    here = prior.step_time_s(clocks, *(np.array(x) for x in (batch, kv, prefill)))
    more = prior.step_time_s(clocks, *(np.array(x) for x in (batch + 1, kv + 100, prefill + 1)))
    assert np.all(np.diff(here) <= 1e-12 * here[:-1])
    assert np.all(more >= here * (1 - 1e-12))


def test_a_profile_at_one_clock_is_refused(table: ProfileTable) -> None:
    """One clock says nothing about others."""
    with pytest.raises(TrainingError, match="one clock"):
        fit(table.select(table.clock_mhz == CLOCKS[0]), Origin("x"))


def test_too_few_rows_are_refused(table: ProfileTable) -> None:
    """The message says how many rows there are and how many are needed."""
    with pytest.raises(TrainingError, match="5 busy rows, at least 12"):
        fit(table.select(np.arange(len(table)) < 5), Origin("x"))


def test_folds_leave_out_every_row_once() -> None:
    """Random folds partition the rows; clock folds each hold one clock."""
    assert np.array_equal(sum(mask.astype(int) for mask in random_folds(53, 10)), np.ones(53))
    clocks = np.repeat([900.0, 1200.0, 1500.0], 4)
    assert [set(clocks[mask]) for mask in clock_folds(clocks)] == [{900.0}, {1200.0}, {1500.0}]


def test_upper_factor_is_the_conformal_rank() -> None:
    """Of 99 ratios the 90th smallest is the bound; below one it is one."""
    assert upper_factor(np.arange(1, 100) / 10) == pytest.approx(9.0)
    assert upper_factor(np.full(20, 0.5)) == 1.0
    with pytest.raises(TrainingError):
        upper_factor(np.array([np.nan]))


def test_ninety_percent_of_unseen_steps_stay_below_the_bound(table: ProfileTable) -> None:
    """The bound calibrated on one half covers about nine tenths of the other half's fresh noise."""
    trained = train(table, Origin("x"), by_clock=False)
    fresh = np.random.default_rng(99)
    batch, kv, prefill = (np.tile(column, 20) for column in table.load)
    clock = np.tile(table.clock_mhz, 20)
    observed = LAW.step_time_s(clock, batch, kv, prefill) * np.exp(fresh.normal(0, 0.01, len(clock)))
    covered = observed <= trained.upper_factor * trained.step_time_s(clock, batch, kv, prefill)
    assert 0.85 <= covered.mean() <= 1.0
    assert trained.manifest.errors["fold_decode_mape"] < 0.03


def test_the_measured_l20_is_predicted_within_the_bars(l20_table: ProfileTable) -> None:
    """Random folds and clocks left out, on splits fixed by seed, beat the published predictor's errors."""

    def fit_l20(rows: ProfileTable) -> StepModel:
        return fit(rows, Origin("NVIDIA L20"))

    folds = scores(l20_table, cross_validate(l20_table, random_folds(len(l20_table), 10), fit_l20))
    assert folds["ips_r2"] >= 0.997
    assert folds["ips_mae"] <= 0.40
    left_out = cross_validate(l20_table, clock_folds(l20_table.clock_mhz), fit_l20)
    clocks = scores(l20_table, left_out)
    assert clocks["ips_r2"] >= 0.993
    assert clocks["ips_mae"] <= 0.70
    inside = (l20_table.clock_mhz > 900) & (l20_table.clock_mhz < 2520)
    inner = scores(l20_table, left_out, inside)
    assert inner["decode_mape"] <= 0.02
    assert inner["prefill_mape"] <= 0.04
    assert inner["power_batch16_mape"] <= 0.06
