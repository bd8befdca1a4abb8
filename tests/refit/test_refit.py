"""Champion and challenger: what is fitted, and what it takes to serve."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refit_world import CLOCKS, as_profiled, served, slower

from kvwatt.profiles import ProfileTable
from kvwatt.refit import (
    MIN_NEWEST,
    columns_of,
    compare,
    expected_itl_s,
    fit_challenger,
    refit,
    split,
    training_table,
)
from kvwatt.throughput import StepModel

seconds = st.floats(1e-3, 1.0)


def drawn(seed: int, count: int, spread: float) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, spread, count))


@given(st.lists(seconds, min_size=MIN_NEWEST, max_size=80), st.integers(0, 2**31))
def test_of_two_models_at_most_one_beats_the_other(observed: list[float], seed: int) -> None:
    """Whatever was observed, A beats B and B beats A never hold together, and none beats itself."""
    truth = np.array(observed)
    a, b = truth * drawn(seed, len(truth), 0.3), truth * drawn(seed + 1, len(truth), 0.2)
    assert not (compare(truth, a, b).promote and compare(truth, b, a).promote)
    assert not compare(truth, a, a).promote


@given(seconds, st.integers(0, 2**31), st.floats(0.01, 100.0))
def test_the_verdict_does_not_depend_on_the_unit(scale: float, seed: int, unit: float) -> None:
    """Seconds or milliseconds: the errors are relative."""
    truth = scale * drawn(seed, 60, 0.3)
    a, b = truth * drawn(seed + 1, 60, 0.2), truth * drawn(seed + 2, 60, 0.1)
    one, other = compare(truth, a, b), compare(truth * unit, a * unit, b * unit)
    assert one.promote == other.promote
    assert one.gain_low == pytest.approx(other.gain_low, abs=1e-9)


@given(st.integers(MIN_NEWEST, 200), st.floats(1.05, 3.0), st.booleans(), st.integers(0, 2**31))
def test_a_champion_that_is_off_loses_to_one_that_is_right(
    count: int, off: float, fast: bool, seed: int
) -> None:
    """A steady error of 5 % or more is always noticed, whichever its sign."""
    truth = drawn(seed, count, 0.5)
    assert compare(truth, truth * (off if fast else 1 / off), truth).promote


@given(st.integers(0, MIN_NEWEST - 1))
def test_too_few_samples_promote_nothing(count: int) -> None:
    """Even a perfect challenger waits for enough of the newest data."""
    truth = np.ones(count)
    assert not compare(truth, truth * 2, truth).promote


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_prediction_that_is_no_time_promotes_nothing(bad: float) -> None:
    """One value that is not finite and positive is enough to be refused."""
    truth = np.ones(60)
    predicted = truth.copy()
    predicted[7] = bad
    assert not compare(truth, truth * 2, predicted).promote


def test_equals_rarely_replace_each_other() -> None:
    """Two models of equal skill: the challenger wins in at most 2.5 % of trials, by the test's level."""
    won = 0
    for seed in range(400):
        truth = np.ones(60)
        won += compare(truth, drawn(2 * seed, 60, 0.05), drawn(2 * seed + 1, 60, 0.05)).promote
    assert won <= 10


@settings(max_examples=50)
@given(st.integers(0, 400), st.integers(0, 400))
def test_the_newest_samples_are_seen_by_neither(count: int, seen_through: int) -> None:
    """What is compared on is newer than what either model was fitted to, and nothing is in both."""
    samples = served(1, count) if count else []
    training, newest = split(samples, seen_through)
    assert all(sample.number > seen_through for sample in newest)
    if training and newest:
        assert training[-1].number < newest[0].number
    assert len(newest) <= max(MIN_NEWEST, round(0.3 * count) + 1)


def test_a_gpu_slower_than_its_profile_is_learned(profile: ProfileTable, shipped: StepModel) -> None:
    """The challenger beats the shipped model, and is right about clocks that no sample is of."""
    samples = [s for s in served(3, 400, slower) if s.clock_mhz != 1300]
    done = refit(profile, shipped, shipped, samples, 0)
    assert done.verdict.promote, done.verdict
    assert done.challenger is not None
    assert done.verdict.challenger_error is not None and done.verdict.champion_error is not None
    assert done.verdict.challenger_error < 0.5 * done.verdict.champion_error
    unseen = columns_of([s for s in served(4, 400, slower) if s.clock_mhz == 1300])
    assert len(unseen.itl_s) > 20
    off = np.log(expected_itl_s(done.challenger, unseen) / unseen.itl_s)
    assert abs(float(np.median(off))) < 0.05
    assert done.trained_through < samples[-1].number


def test_a_model_that_fits_stays(profile: ProfileTable, shipped: StepModel) -> None:
    """On a GPU that is what its profile says there is nothing to win."""
    done = refit(profile, shipped, shipped, served(5, 300, as_profiled), 0)
    assert done.challenger is not None and not done.verdict.promote
    assert "not better" in done.verdict.reason


def test_samples_that_the_champion_has_seen_are_not_compared_on(
    profile: ProfileTable, shipped: StepModel
) -> None:
    """With nothing newer than what the champion was fitted to, there is no verdict."""
    samples = served(6, 300, slower)
    done = refit(profile, shipped, shipped, samples, samples[-1].number)
    assert done.challenger is None and "too few" in done.verdict.reason


def test_a_challenger_keeps_the_laws_of_a_model(profile: ProfileTable, shipped: StepModel) -> None:
    """Step time never rises with the clock; the clocks it holds for are those of the profile."""
    challenger = fit_challenger(profile, shipped, served(7, 300, slower))
    clocks = np.linspace(CLOCKS[0], CLOCKS[-1], 60)
    batch = np.array([1.0, 8.0, 40.0, 100.0])
    table = challenger.step_table(clocks, batch, batch * 800, np.zeros(4))
    assert (np.diff(table, axis=1) <= 1e-12).all()
    assert challenger.manifest.ranges == shipped.manifest.ranges


def test_noise_in_power_does_not_win(profile: ProfileTable, shipped: StepModel) -> None:
    """A challenger that is better in time but worse in power does not serve."""
    training, newest = split(served(8, 400, slower), 0)
    spoilt = [replace(s, power_w=s.power_w * 1.6) for s in training]
    done = refit(profile, shipped, shipped, [*spoilt, *newest], 0)
    assert not done.verdict.promote
    assert "power is worse" in done.verdict.reason


def test_speed_seen_while_decoding_is_not_credited_to_prompts(
    profile: ProfileTable, shipped: StepModel
) -> None:
    """Rows with prompt tokens become slower with all others, never faster."""
    columns = columns_of(served(9, 200, lambda clock, batch: 0.8))
    table = training_table(profile, shipped, columns)
    rows = slice(0, len(profile))
    prompts = profile.prefill_tokens > 0
    ratio = table.step_time_s[rows] / profile.step_time_s
    assert np.allclose(ratio[prompts], 1.0)
    assert (ratio[~prompts] < 0.85).all()


def test_a_host_that_was_starved_for_a_while_spoils_nothing(
    profile: ProfileTable, shipped: StepModel
) -> None:
    """A tenth of the points eight times too slow: the challenger is as right as without them."""
    clean = served(10, 300, slower)
    starved = [replace(s, itl_s=s.itl_s * 8) if s.number % 10 == 0 else s for s in clean]
    unseen = columns_of(served(11, 300, slower))
    off = [
        float(np.abs(np.log(expected_itl_s(model, unseen) / unseen.itl_s)).mean())
        for model in (fit_challenger(profile, shipped, samples) for samples in (clean, starved))
    ]
    assert off[0] < 0.04 and off[1] < off[0] + 0.01
