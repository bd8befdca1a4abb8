"""The arrival-rate forecast: what it learns, what a gap does, and how often its quantiles hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.forecast import DAY_S, RateForecast, RateLearner


def fed(counts: np.ndarray, dt_s: float = 10.0, start_s: float = 0.0) -> RateLearner:
    learner = RateLearner()
    for i, count in enumerate(counts):
        learner.observe(start_s + i * dt_s, dt_s, float(count))
    return learner


def made(learner: RateLearner, now_s: float) -> RateForecast:
    forecast = learner.forecast(now_s)
    assert forecast is not None
    return forecast


def test_nothing_is_known_at_first() -> None:
    """No forecast before the first window of ten seconds is full."""
    learner = RateLearner()
    assert learner.forecast(0.0) is None
    learner.observe(0.0, 5.0, 10.0)
    assert learner.forecast(5.0) is None
    learner.observe(5.0, 5.0, 10.0)
    assert made(learner, 10.0).mean_per_s(0.0) > 0.5


def test_a_constant_rate_is_found() -> None:
    """After half an hour of Poisson arrivals: the mean within 5 %, and a narrow quantile above it."""
    counts = np.random.default_rng(100).poisson(50.0, 180)
    forecast = made(fed(counts), 1800.0)
    assert forecast.mean_per_s(60.0) == pytest.approx(5.0, rel=0.05)
    assert 5.0 < forecast.quantile_per_s(0.95, 60.0) < 5.8
    assert forecast.quantile_per_s(0.95, 60.0, window_s=60.0) > forecast.quantile_per_s(0.95, 60.0)


def test_a_step_is_followed() -> None:
    """The rate doubles: within a minute and a half the mean is most of the way."""
    counts = np.concatenate([np.full(180, 50.0), np.full(9, 100.0)])
    assert made(fed(counts), 1890.0).mean_per_s(0.0) > 8.5


def test_a_gap_is_not_zero() -> None:
    """Ten minutes without observations: the mean stays, the quantile widens; zeros told would lower it."""
    counts = np.random.default_rng(101).poisson(50.0, 120)
    before, after = made(fed(counts), 1200.0), made(fed(counts), 1800.0)
    assert after.mean_per_s(30.0) == pytest.approx(before.mean_per_s(30.0), rel=0.2)
    assert after.quantile_per_s(0.95, 30.0) > before.quantile_per_s(0.95, 30.0)
    zeros = made(fed(np.append(counts, np.zeros(60))), 1800.0)
    assert zeros.mean_per_s(30.0) < 1.0
    learner = fed(counts)
    learner.observe(1800.0, 10.0, 50.0)
    assert made(learner, 1810.0).mean_per_s(0.0) == pytest.approx(5.0, rel=0.25)


def test_a_daily_pattern_is_used() -> None:
    """A jump at the same time on three days is foreseen on the fourth, before it comes."""
    slots = np.full(int(DAY_S / 60.0), 300.0)
    slots[720:900] = 1200.0  # from noon on, for three hours
    days = np.random.default_rng(102).poisson(np.tile(slots, 3)).astype(float)
    morning = np.random.default_rng(103).poisson(slots[:715]).astype(float)
    learner = fed(np.concatenate([days, morning]), 60.0)
    now_s = 3 * DAY_S + 715 * 60.0
    assert made(learner, now_s).mean_per_s(900.0) > 1.5 * made(learner, now_s).mean_per_s(0.0)
    unaware = made(fed(np.tile(slots[:700], 1), 60.0), 42000.0)
    assert unaware.mean_per_s(900.0) < 1.1 * unaware.mean_per_s(0.0)


def test_the_quantile_holds_as_often_as_it_says() -> None:
    """A wandering rate: 95 % quantiles of the minute two minutes ahead hold in 91 to 99 %."""
    rng = np.random.default_rng(104)
    level = 5.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, 4000)) * 0.7)
    counts = rng.poisson(np.clip(level, 0.5, 50.0) * 10.0).astype(float)
    learner, kept = RateLearner(), []
    for i, count in enumerate(counts):
        learner.observe(i * 10.0, 10.0, count)
        if i > 200 and i % 6 == 0 and i + 19 < len(counts):
            upper = made(learner, (i + 1) * 10.0).quantile_per_s(0.95, 150.0, 60.0)
            kept.append(counts[i + 13 : i + 19].sum() / 60.0 <= upper)
    assert len(kept) > 600 and 0.91 <= np.mean(kept) <= 0.99


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.floats(0.0, 3600.0),
    st.floats(0.0, 7200.0),
)
def test_whatever_came_the_forecast_is_sound(
    counts: list[int], level: float, horizon_s: float, gap_s: float
) -> None:
    """Finite, not negative, higher for a higher level; asking changes nothing."""
    learner = fed(np.array(counts, dtype=float))
    forecast = made(learner, len(counts) * 10.0 + gap_s)
    low, high = (forecast.quantile_per_s(q, horizon_s) for q in (level, min(level + 0.009, 0.999)))
    assert 0.0 <= low <= high < np.inf
    assert 0.0 <= forecast.mean_per_s(horizon_s) < np.inf
    again = made(learner, len(counts) * 10.0 + gap_s)
    assert again.quantile_per_s(level, horizon_s) == low


@pytest.mark.parametrize(
    "bad", [(0.0, 0.0, 1.0), (0.0, 5.0, -1.0), (float("nan"), 5.0, 1.0), (0.0, 5.0, float("inf"))]
)
def test_nonsense_is_refused(bad: tuple[float, float, float]) -> None:
    """No duration, negative or infinite counts, times that are none."""
    with pytest.raises(ValueError, match="finite"):
        RateLearner().observe(*bad)


@given(
    st.lists(st.tuples(st.floats(1.0, 5000.0), st.integers(0, 10_000)), min_size=1, max_size=60),
    st.floats(0.05, 0.99),
    st.floats(0.0, 3600.0),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_told_the_forecast_is_a_rate(
    windows: list[tuple[float, int]], level: float, horizon_s: float
) -> None:
    """Windows of any length with any counts: finite, not negative, and no warning on the way."""
    learner, now_s = RateLearner(), 0.0
    for seconds, count in windows:
        learner.observe(now_s, seconds, float(count))
        now_s += seconds
    made = learner.forecast(now_s)
    if made is not None:
        assert 0.0 <= made.mean_per_s(horizon_s) < np.inf
        assert 0.0 <= made.quantile_per_s(level, horizon_s) < np.inf
