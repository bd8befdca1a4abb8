"""Cost and CO2 from one figure or a time series; a wrong file names its line and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwattd.money import CostConfig, CostFileError, Rates, Series, bill, load_rates

KWH = 3.6e6


def rates_from(tmp_path: Path, text: str, **more: float) -> Rates:
    path = tmp_path / "cost.csv"
    path.write_text(text)
    return load_rates(CostConfig(file=path, **more))


def test_one_figure_prices_everything() -> None:
    rates = load_rates(CostConfig(price_per_kwh=0.25, intensity_g_per_kwh=400.0))
    found = bill(rates, [(0.0, 3600.0, 2 * KWH), (3600.0, 7200.0, KWH)])
    assert (found.money, found.co2_g, found.unpriced_j) == (0.75, 1200.0, 0.0)


def test_a_series_prices_each_hour_with_its_own(tmp_path: Path) -> None:
    """Rows hold until the next; ISO times with their offset."""
    text = (
        "time,price_per_kwh,intensity_g_per_kwh\n"
        "1970-01-01T01:00:00+01:00,0.10,100\n1970-01-01T01:00:00Z,0.30,300\n7200,-0.10,50\n"
    )
    rates = rates_from(tmp_path, text)
    found = bill(rates, [(0.0, 3600.0, KWH), (1800.0, 5400.0, KWH), (9000.0, 9999.0, KWH)])
    assert found.money == pytest.approx(0.10 + 0.20 - 0.10)
    assert found.co2_g == pytest.approx(100 + 200 + 50)


def test_before_the_file_begins_the_static_figure_holds_or_nothing_is_known(tmp_path: Path) -> None:
    text = "time,price_per_kwh\n3600,0.5\n"
    known = rates_from(tmp_path, text, price_per_kwh=0.1)
    assert known.price_per_kwh(0.0, 7200.0) == pytest.approx(0.3)
    unknown = rates_from(tmp_path, text)
    found = bill(unknown, [(0.0, 7200.0, KWH), (3600.0, 7200.0, KWH)])
    assert (found.money, found.co2_g, found.unpriced_j) == (0.5, None, KWH)


def test_without_any_price_nothing_is_said() -> None:
    found = bill(Rates(), [(0.0, 1.0, KWH)])
    assert (found.money, found.co2_g, found.unpriced_j) == (None, None, KWH)
    assert not Rates().known


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("when,price_per_kwh\n1,2\n", "a header with time"),
        ("time,price\n1,2\n", "a header with time"),
        ("time,price_per_kwh\n", "no rows"),
        ("time,price_per_kwh\n1,nan\n", r"line 2: price_per_kwh = 'nan'"),
        ("time,price_per_kwh\n1,\n", r"line 2: price_per_kwh = ''"),
        ("time,price_per_kwh\n2026-01-01T00:00,1\n", r"line 2: time = .* with an offset"),
        ("time,price_per_kwh\n5,1\n5,2\n", "line 3: time = '5': later than the line before"),
        ("time,intensity_g_per_kwh\n5,-1\n", "intensity_g_per_kwh = '-1'"),
        ("time,price_per_kwh\n5\n", "price_per_kwh = None"),
    ],
)
def test_a_wrong_file_is_refused_by_line_and_value(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(CostFileError, match=told):
        rates_from(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CostFileError, match=r"nowhere\.csv"):
        load_rates(CostConfig(file=tmp_path / "nowhere.csv"))


steps = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


@given(steps, st.floats(0, 900), st.floats(0.001, 900), st.floats(0, 1))
def test_a_mean_over_a_span_is_that_of_its_parts(
    values: list[float], start: float, width: float, cut: float
) -> None:
    """Cutting a span anywhere changes no bill."""
    series = Series(tuple(100.0 * i for i in range(len(values))), tuple(values))
    middle, end = start + cut * width, start + width
    whole = series.mean(start, end, None)
    first, second = series.mean(start, middle, None), series.mean(middle, end, None)
    assert whole is not None and first is not None and second is not None
    assert whole * width == pytest.approx(first * cut * width + second * (end - middle), abs=1e-6)
    assert min(values) - 1e-9 <= whole <= max(values) + 1e-9
