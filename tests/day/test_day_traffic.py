"""The day's requests: rates as told, lengths and bursts of the trace, nothing by chance but the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt_sim.day.traffic import day_requests, load_rates, scaled
from kvwatt_sim.traces import TraceError
from kvwatt_sim.workload import generate

SOURCE = generate(6.0, 1200.0, seed=0)


@settings(max_examples=25, deadline=None)
@given(
    rates=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=12),
    day_s=st.floats(60.0, 900.0),
    seed=st.integers(0, 1000),
)
def test_every_window_has_its_rate(rates: list[float], day_s: float, seed: int) -> None:
    """Up to one request by rounding, in order, inside its window."""
    if max(rates) * day_s / len(rates) >= len(SOURCE) - 1:
        return
    made = day_requests(rates, SOURCE, day_s, seed)
    at = np.array([r.arrival_s for r in made])
    assert (np.diff(at) >= 0.0).all()
    counts, _ = np.histogram(at, np.linspace(0.0, day_s, len(rates) + 1))
    window_s = day_s / len(rates)
    assert (np.abs(counts - np.array(rates) * window_s) <= 2.0).all()


def test_a_window_is_a_stretch_of_the_trace() -> None:
    """Lengths in the trace's order and gaps in its proportions."""
    made = day_requests([5.0], SOURCE, 100.0, seed=3)
    lengths = [(r.prompt_tokens, r.output_tokens) for r in SOURCE]
    mine = [(r.prompt_tokens, r.output_tokens) for r in made]
    first = next(i for i in range(len(lengths)) if lengths[i : i + len(mine)] == mine)
    theirs = np.diff([r.arrival_s for r in SOURCE[first : first + len(mine)]])
    ours = np.diff([r.arrival_s for r in made])
    assert ours.sum() > 90.0
    assert np.allclose(ours / ours.sum(), theirs / theirs.sum())


def test_seeds_differ_and_repeat() -> None:
    """The same seed gives the same day, another one another."""
    one, again, other = (day_requests([4.0, 8.0], SOURCE, 120.0, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_a_window_that_needs_more_than_the_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 12000 requests"):
        day_requests([20.0], SOURCE, 600.0, seed=1)


def test_rates_are_read_and_scaled(tmp_path: Path) -> None:
    """The highest window gets the peak, the others in proportion."""
    path = tmp_path / "rates.csv"
    path.write_text("window_start_s,requests_per_s\n0,5\n600,20\n1200,10\n")
    assert scaled(load_rates(path), 8.0) == pytest.approx((2.0, 8.0, 4.0))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n0,1\n", "columns"),
        ("window_start_s,requests_per_s\n0,nan\n", "line 2"),
        ("window_start_s,requests_per_s\n0,-1\n", "line 2"),
        ("window_start_s,requests_per_s\n0,1\n600\n", "line 3"),
        ("window_start_s,requests_per_s\n0,0\n", "no window"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=told):
        load_rates(path)
