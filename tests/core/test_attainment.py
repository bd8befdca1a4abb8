"""Attainment read from histograms, and counted over a sliding window."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.attainment import SLICES, Attained, Attainment, Tally, within
from kvwatt.state import Histogram, Metric, Slo, SloTarget

H = Histogram((0.1, 0.2, 0.4, inf), (5.0, 7.0, 9.0, 10.0), 3.0, 10.0)


@pytest.mark.parametrize(("limit_s", "met"), [(0.1, 5.0), (0.15, 6.0), (0.2, 7.0), (0.3, 8.0), (9.0, 9.0)])
def test_counts_are_interpolated_inside_a_bucket(limit_s: float, met: float) -> None:
    """What lies beyond the last finite bound is never counted as met."""
    assert within(H, limit_s).met == pytest.approx(met)


@given(st.floats(0.001, 10), st.floats(0.001, 10))
def test_a_looser_limit_never_meets_less(one: float, other: float) -> None:
    """Attainment grows with the limit."""
    low, high = sorted((one, other))
    assert within(H, low).met <= within(H, high).met + 1e-9


def test_no_requests_have_no_ratio() -> None:
    """Nothing observed is unknown, not perfect."""
    assert within(Histogram((1.0, inf), (0.0, 0.0), 0.0, 0.0), 0.5).ratio is None


SLO = Slo(ttft=SloTarget(1.0, 0.9), e2e=SloTarget(9.0, 0.99))


@given(
    st.lists(
        st.tuples(st.floats(0.0, 50.0), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40
    ),
    st.floats(10.0, 100.0),
)
def test_the_window_counts_what_lies_in_it(steps: list[tuple[float, int, int]], window_s: float) -> None:
    """Nothing older than the window counts, nothing younger than all but one slice of it is missing."""
    counted, now_s = Attainment(window_s), 0.0
    told = []
    for gap_s, met, missed in steps:
        now_s += gap_s
        told.append((now_s, met, missed))
        assert counted.observe(Metric.TTFT, now_s, Attained(met, met + missed))
    got = counted.tally(Metric.TTFT, now_s, 0.9)
    slice_s = window_s / SLICES
    most = sum(m for at, _, m in told if at >= now_s - window_s - 1e-6)
    least = sum(m for at, _, m in told if at > now_s - window_s + slice_s + 1e-6)
    assert least - 1e-9 <= got.missed <= most + 1e-9
    assert got.missed <= got.seen + 1e-9


def test_the_promise_says_how_many_may_miss() -> None:
    """Of 100 requests at a quantile of 0.9 ten may miss: after four, six are left; after twelve, -2."""
    counted = Attainment(60.0)
    counted.observe(Metric.TTFT, 1.0, Attained(96.0, 100.0))
    tally = counted.budget(1.0, SLO)[Metric.TTFT]
    assert (tally.seen, tally.missed, tally.ratio) == (100.0, 4.0, 0.96)
    assert tally.left == pytest.approx(6.0)
    counted = Attainment(60.0)
    counted.observe(Metric.TTFT, 1.0, Attained(88.0, 100.0))
    assert counted.budget(1.0, SLO)[Metric.TTFT].left == pytest.approx(-2.0)


def test_only_promised_metrics_have_a_budget() -> None:
    """What is not promised permits nothing and forbids nothing."""
    counted = Attainment()
    counted.observe(Metric.TBT, 0.0, Attained(1.0, 2.0))
    assert set(counted.budget(0.0, SLO)) == {Metric.TTFT, Metric.E2E}
    assert counted.budget(0.0, SLO)[Metric.E2E] == Tally()
    assert Tally().ratio is None


@pytest.mark.parametrize("kept", [Attained(2.0, 1.0), Attained(-1.0, 1.0), Attained(0.0, inf)])
def test_counts_that_make_no_sense_are_refused(kept: Attained) -> None:
    """Neither more met than seen, nor negative, nor unbounded."""
    counted = Attainment(10.0)
    assert not counted.observe(Metric.TTFT, 0.0, kept)
    assert counted.tally(Metric.TTFT, 0.0, 0.9).seen == 0.0


@pytest.mark.parametrize("window_s", [0.0, -1.0, inf])
def test_a_window_is_positive_and_finite(window_s: float) -> None:
    """Anything else is refused with its value."""
    with pytest.raises(ValueError, match=str(window_s)):
        Attainment(window_s)
