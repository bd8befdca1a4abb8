"""Attainment read from histograms."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.attainment import within
from kvwatt.state import Histogram

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
