"""Savings from windows: exact where there is no noise, an interval that holds where there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvwatt.attainment import Attained
from kvwatt.savings_stats import LEAST_WINDOWS, TWO_COLUMNS, Window, Work, estimate, slo_cost

sizes = st.lists(st.floats(1e3, 1e5), min_size=LEAST_WINDOWS, max_size=TWO_COLUMNS - 1)


def window(model_j: float, energy_j: float, seconds: float = 80.0) -> Window:
    return Window(Work(seconds, 8e4, 2e4, model_j), energy_j)


@given(sizes, st.floats(0.2, 5.0), st.floats(1e5, 1e8), st.floats(0.1, 1.5))
def test_a_model_wrong_by_a_factor_finds_the_saving(
    models: list[float], factor: float, all_j: float, used: float
) -> None:
    """Without noise the saving is exact whatever the model's level, and its interval closes on it."""
    assume(max(models) < 50 * min(models))
    windows = [window(m, factor * m) for m in models]
    found = estimate(windows, Work(86_400.0, 1e8, 1e7, all_j), used * factor * all_j)
    assert found is not None and found.columns == ("model_j",)
    assert found.saved_j == pytest.approx((1.0 - used) * factor * all_j, rel=1e-6, abs=1e-6 * factor * all_j)
    assert found.half_width_j < 1e-5 * factor * all_j


def test_with_many_windows_what_is_used_at_no_load_is_told_apart() -> None:
    """The model knows nothing of idle power: a second column finds it."""
    models = np.linspace(2e3, 2e4, TWO_COLUMNS)
    windows = [window(float(m), 60.0 * 80.0 + 0.9 * float(m)) for m in models]
    found = estimate(windows, Work(1000.0, 0.0, 0.0, 5e5), 1e5)
    assert found is not None and found.columns == ("model_j", "seconds")
    assert found.slope == pytest.approx((0.9, 60.0))
    assert found.baseline_j == pytest.approx(60.0 * 1000.0 + 0.9 * 5e5)


def test_without_a_model_work_is_seconds_then_tokens() -> None:
    few = [window(0.0, 1e4 + i) for i in range(4)]
    found = estimate(few, Work(1e4, 1e6, 1e6), 1e6)
    assert found is not None and found.columns == ("seconds",)
    many = [Window(Work(80.0, 1e4 * i, 2e3 * i), 80 * 70 + 0.5 * 1.2e4 * i) for i in range(1, 14)]
    found = estimate(many, Work(1e4, 1e6, 1e6), 1e5)
    assert found is not None and found.columns == ("seconds", "tokens")
    assert found.slope == pytest.approx((70.0, 0.5))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_windows_give_no_interval(count: int) -> None:
    assert estimate([window(1e4, 1e4)] * count, Work(1e3, 1.0, 1.0, 1e6), 1e5) is None


def test_nothing_in_control_gives_no_saving() -> None:
    assert estimate([window(1e4, 1e4)] * 5, Work(), 0.0) is None


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate([window(1e4, float("nan"))] * 5, Work(1e3, 1.0, 1.0, 1e6), 1e5)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 30])
def test_the_interval_holds_for_few_and_unequal_windows(count: int) -> None:
    """600 draws with noise as it is assumed: the interval holds the truth about as often as it says."""
    rng = np.random.default_rng(100 + count)
    sizes, hits = rng.uniform(0.3, 1.0, (600, count)) * 2e4, 0
    for models in sizes:
        energy = models * 1.1 + np.sqrt(models * 1e4) * 0.05 * rng.normal(size=count)
        windows = [window(float(m), float(e)) for m, e in zip(models, energy, strict=True)]
        found = estimate(windows, Work(86_400.0, 1.0, 1.0, 1.5e7), 1e7)
        assert found is not None
        hits += found.low_j <= 1.1 * 1.5e7 - 1e7 <= found.high_j
    assert 0.92 * 600 <= hits <= 0.985 * 600


def test_a_figure_outside_the_interval_is_more_than_one_half_width_away() -> None:
    found = estimate([window(1e4, e) for e in (1e4, 1.1e4, 0.9e4, 1.05e4)], Work(1e3, 1.0, 1.0, 1e6), 5e5)
    assert found is not None
    assert found.beyond(found.saved_j) == 0.0
    assert found.beyond(found.high_j) == pytest.approx(1.0)
    assert found.beyond(found.high_j + 1.0) > 1.0


def test_the_cost_in_promises_has_its_interval() -> None:
    """Equal shares cost nothing; the interval narrows with requests and widens where misses come together."""
    even = slo_cost([Attained(990, 1000)] * 6, Attained(99_000, 100_000))
    assert even is not None and even.cost == pytest.approx(0.0) and even.low < 0.0 < even.high
    clustered = slo_cost([*[Attained(1000, 1000)] * 5, Attained(940, 1000)], Attained(99_000, 100_000))
    assert clustered is not None and clustered.high - clustered.low > even.high - even.low
    none = slo_cost([Attained(1000, 1000)] * 6, Attained(9900, 10_000))
    assert none is not None and none.cost == pytest.approx(0.01) and none.low > 0.0
    assert slo_cost([], Attained(1, 1)) is None


def test_a_load_that_never_changes_still_gives_a_saving() -> None:
    """Nothing tells idle energy from work then; one column is enough."""
    rng = np.random.default_rng(3)
    windows = [window(1e4, 1.1e4 * (1.0 + 0.01 * rng.normal())) for _ in range(8)]
    found = estimate(windows, Work(86_400.0, 1.0, 1.0, 1e7), 5e6)
    assert found is not None and found.columns == ("model_j",)
    assert found.low_j < 6e6 < found.high_j
