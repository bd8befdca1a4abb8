"""What the page draws: the range of clocks, the course ahead with its band, an observed quantile."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.attainment import within
from kvwatt.projection import FloatArray, project
from kvwatt.state import EngineShape, EngineState, Histogram
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, Traffic
from kvwattd.views_page import clock_range_view, course_view, quantile_s

SHAPE = EngineShape(16, 2000, 64)
counts = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


def test_the_range_is_what_all_gpus_have() -> None:
    """The ends of the common clocks; nothing where there are none, or nobody was read yet."""
    view = clock_range_view(((210, 600, 900, 2520), (600, 900, 3000)), (600,))
    assert view is not None
    assert (view.supported_min_mhz, view.supported_max_mhz) == (600, 900)
    assert (view.permitted_min_mhz, view.permitted_max_mhz) == (600, 600)
    assert clock_range_view(((210,), (300,)), ()) is None
    assert clock_range_view((), ()) is None
    unknown = clock_range_view(((210, 600),), ())
    assert unknown is not None and unknown.permitted_max_mhz is None


@given(counts, st.floats(0.01, 0.99))
def test_a_share_of_requests_stayed_within_the_quantile(increments: list[int], level: float) -> None:
    """Read back as an attainment it gives that share; beyond the last bucket nothing is said."""
    cumulative = tuple(float(sum(increments[: n + 1])) for n in range(4))
    histogram = Histogram((0.1, 0.5, 2.0, inf), cumulative, 1.0, cumulative[-1])
    found = quantile_s(histogram, level)
    if found is None:
        assert cumulative[2] < level * cumulative[-1]
    else:
        assert 0.0 <= found <= 2.0
        kept = within(histogram, found)
        assert kept.met >= level * kept.total - 1e-9


def test_no_request_no_quantile() -> None:
    """Nothing was observed: nothing is said."""
    assert quantile_s(Histogram((1.0, inf), (0.0, 0.0), 0.0, 0.0), 0.99) is None


class Geometric:
    """Lengths without a memory, of this mean."""

    def __init__(self, mean: float) -> None:
        self._mean = mean

    def survival(self, tokens: FloatArray) -> FloatArray:
        return np.asarray((1.0 - 1.0 / self._mean) ** tokens)

    equilibrium_survival = survival


@pytest.mark.parametrize("running", [0, 5, 64])
def test_the_band_holds_the_course(running: int) -> None:
    """Low, mean and high in order at every point, wider with time, from now on."""
    lengths = Geometric(200.0)
    state = EngineState(0.0, running, 0, 100.0 * running)
    traffic = Traffic(
        1.0,
        1.5,
        1.0,
        1.2,
        100.0,
        50.0,
        100.0 + 0.0 * PROMPT_LEVELS,
        200.0,
        200.0 * SHORT_LEVELS,
        900.0,
        0.0,
        0.0,
        0.0,
        60.0,
        100.0,
        lengths,
    )
    view = course_view(project(state, traffic, SHAPE, 0.03, 5.0, 1.64, per_doubling=2), SHAPE, 7.0)
    assert view.observed_unix_s == 7.0 and view.times_s[0] == 0.0 and view.times_s == sorted(view.times_s)
    assert view.times_s[-1] == pytest.approx(5.0, rel=0.05)
    for low, mean, high in (
        (view.batch_low, view.batch, view.batch_high),
        (view.kv_usage_low, view.kv_usage, view.kv_usage_high),
    ):
        assert len(low) == len(mean) == len(high) == len(view.times_s)
        assert all(0.0 <= a <= b <= c for a, b, c in zip(low, mean, high, strict=True))
        assert high[-1] - low[-1] >= high[0] - low[0]
    assert max(view.batch_high) <= SHAPE.max_num_seqs
    assert view.batch[0] == running
