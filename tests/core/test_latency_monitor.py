"""Forecast latencies against what the requests got."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from blank_page import BLANK

from kvwatt.attainment import Tally
from kvwatt.state import EngineSnapshot, Forecast, Histogram, Metric, Slo, SloTarget
from kvwattd.latency_monitor import LatencyMonitor

SLO = Slo(ttft=SloTarget(1.0, 0.95), tbt=None, e2e=None)
BOUNDS = (0.1, 0.2, 0.5, 1.0, 2.0, math.inf)


def page(observed_s: float, cumulative: tuple[float, ...]) -> EngineSnapshot:
    """A page on which so many requests got their first token within each of BOUNDS."""
    ttft_s = Histogram(BOUNDS, cumulative, 0.0, cumulative[-1])
    return replace(BLANK, observed_s=observed_s, ttft_s=ttft_s)


def forecast(ttft_s: float) -> Forecast:
    return Forecast(1500, tbt_s=0.05, ttft_s=ttft_s, e2e_s=10.0, power_w=200.0, feasible=True)


def test_requests_are_scored_against_the_forecast_before_them() -> None:
    """Ten requests within 0.5 s of a forecast of 0.5 s: all are covered, whatever is forecast next."""
    monitor = LatencyMonitor()
    monitor.on_page(page(0.0, (0, 0, 0, 0, 0, 0)), forecast(0.5), SLO)
    monitor.on_page(page(0.5, (0, 4, 10, 10, 10, 10)), forecast(0.01), SLO)
    found = monitor.calibrations[Metric.TTFT]
    assert (found.coverage, found.factor, found.total) == (1.0, 1.0, 10)


def test_a_forecast_that_is_too_short_is_widened() -> None:
    """Requests that take longer than forecast raise the factor, page by page."""
    monitor = LatencyMonitor()
    factors = []
    for n in range(20):
        monitor.on_page(page(0.5 * n, (0, 0, 0, 4 * n, 4 * n, 4 * n)), forecast(0.4), SLO)
        if n > 0:
            factors.append(monitor.calibrations[Metric.TTFT].factor)
    assert factors[0] > 1.0
    assert factors == sorted(factors)
    assert factors[-1] == pytest.approx(2.0)


def test_nothing_is_learned_without_a_forecast_or_across_a_restart() -> None:
    """No forecast, an unbounded one or counters that went back: no score."""
    monitor = LatencyMonitor()
    monitor.on_page(page(0.0, (0, 0, 0, 0, 0, 0)), None, SLO)
    monitor.on_page(page(0.5, (1, 1, 1, 1, 1, 1)), forecast(math.inf), SLO)
    monitor.on_page(page(1.0, (2, 2, 2, 2, 2, 2)), forecast(0.5), SLO)
    monitor.on_page(page(1.5, (1, 1, 1, 1, 1, 1)), forecast(0.5), SLO)
    assert Metric.TTFT not in monitor.calibrations
    monitor.on_page(page(2.0, (2, 2, 2, 2, 2, 2)), forecast(0.5), SLO)
    assert monitor.calibrations[Metric.TTFT].total == 1
    monitor.restart()
    assert monitor.calibrations == {}


def monitored(wide_s: float) -> LatencyMonitor:
    """Forecasts of 0.4 s that were too short for everybody, or long enough."""
    monitor = LatencyMonitor()
    for n in range(20):
        monitor.on_page(page(0.5 * n, (0, 0, 0, 4 * n, 4 * n, 4 * n)), forecast(wide_s), SLO)
    return monitor


def test_limits_are_cautious_only_where_a_promise_is_broken_and_forecasts_fell_short() -> None:
    """One alone is no reason; with both the limit shrinks as the misses grow, by no more than the factor."""
    factor = monitored(0.4).calibrations[Metric.TTFT].factor
    assert factor > 1.5
    limits = []
    for missed in (0.0, 5.0, 6.0, 7.0, 8.0, 50.0):
        budget = {Metric.TTFT: Tally(100.0, missed, 5.0)}
        assert monitored(5.0).cautious(SLO, budget) is SLO
        told = monitored(0.4).cautious(SLO, budget)
        assert told.ttft is not None
        assert told.ttft.quantile == 0.95
        limits.append(told.ttft.limit_s)
    assert limits[:2] == [1.0, 1.0]
    assert limits == sorted(limits, reverse=True)
    assert limits[2] < 1.0
    assert limits[-1] == pytest.approx(1.0 / factor)
