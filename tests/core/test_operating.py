"""Laws of the operating points: fixed point, monotone latencies, sensible power."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import model, shape, state, traffic

from kvwatt.operating import Factors, operating_points, tables
from kvwatt.state import EngineState
from kvwatt.traffic import Traffic


def points(seen: EngineState, load: Traffic):  # noqa: ANN201 - the type is the function's own
    return operating_points(tables(model(), seen, load, shape()), seen, load, 0.8, 5.0, Factors())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 256), st.floats(0.0, 6.0), st.floats(0.0, 10.0))
def test_a_faster_clock_never_predicts_a_longer_latency(running: int, rate: float, unstarted: float) -> None:
    """TTFT, TBT and E2E do not grow with the clock."""
    p = points(state(running), traffic(arrival_per_s=rate, unstarted=unstarted))
    for values in (p.ttft_s, p.tbt_s, p.e2e_s, p.tbt_mean_s):
        assert np.isfinite(values).all() and (values > 0).all()
        assert (np.diff(values) <= 1e-4 * values[:-1]).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(0.2, 2.0))
def test_the_batch_settles_where_littles_law_says(rate: float) -> None:
    """In the long run batch = arrival rate x output tokens x TBT."""
    load = traffic(arrival_per_s=rate)
    seen = state(running=round(rate * 210 * 0.03))
    t = tables(model(), seen, load, shape())
    p = operating_points(t, seen, load, 0.8, 10_000.0, Factors())
    settled = rate * load.output_mean_tokens * p.tbt_mean_s
    low_load = p.batch < 0.9 * t.batch[-1]
    assert low_load.any()
    assert settled[low_load] == pytest.approx(p.batch[low_load], rel=0.03)


def test_power_lies_between_idle_and_busy() -> None:
    """A mostly idle engine draws about idle power, a full one clearly more."""
    idle, full = (
        points(state(0), traffic(arrival_per_s=0.001)),
        points(state(200), traffic(arrival_per_s=3.0)),
    )
    assert idle.power_w == pytest.approx(model().idle_power_w(), rel=0.05)
    assert (full.power_w > 1.2 * model().idle_power_w()).all()


def test_traffic_beyond_what_a_clock_carries_is_told() -> None:
    """At ten requests a second of 1,150 tokens not even the top clock keeps up."""
    assert not points(state(100), traffic(arrival_per_s=10.0)).carries.any()
    assert points(state(10), traffic(arrival_per_s=1.0)).carries.all()
