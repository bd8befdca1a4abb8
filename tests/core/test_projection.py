"""Projection of batch and KV cache: bounds, limits and agreement with a brute-force service."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.projection import FloatArray, project, step_grid
from kvwatt.state import EngineShape, EngineState, RequestState
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, Traffic

SHAPE = EngineShape(block_size=16, num_blocks=20_001, max_num_seqs=128)


class Exponential:
    """Lengths without memory, where equilibrium and fresh requests survive alike."""

    def __init__(self, mean_tokens: float) -> None:
        self.mean_tokens = mean_tokens

    def survival(self, tokens: FloatArray) -> FloatArray:
        return np.exp(-np.asarray(tokens) / self.mean_tokens)

    equilibrium_survival = survival


def traffic(arrival_per_s: float, mean: float = 200.0, prompt: float = 1000.0) -> Traffic:
    return Traffic(
        arrival_per_s=arrival_per_s,
        arrival_upper_per_s=arrival_per_s * 1.3,
        dispersion=1.0,
        prompt_mean_tokens=prompt,
        prompt_sd_tokens=prompt,
        prompt_quantiles_tokens=prompt * 3 * PROMPT_LEVELS,
        output_mean_tokens=mean,
        output_short_tokens=mean * 2 * SHORT_LEVELS,
        output_high_tokens=4 * mean,
        unstarted=0.0,
        oldest_wait_s=0.0,
        burst_tokens=0.0,
        exposure_s=60.0,
        finished=100.0,
        lengths=Exponential(mean),
    )


def state(running: int, requests: tuple[RequestState, ...] = ()) -> EngineState:
    return EngineState(0.0, running, 0, running * 1100.0, requests)


@given(st.integers(0, 200), st.floats(0, 50))
def test_the_grid_starts_now_and_ends_at_the_horizon(horizon: int, extra: float) -> None:
    """Steps are distinct and ascending whatever the horizon."""
    grid = step_grid(horizon + extra)
    assert grid[0] == 0.0
    assert grid[-1] == max(horizon + extra, 1.0)
    assert (np.diff(grid) > 0).all()


@given(st.integers(0, 128), st.floats(0, 8), st.floats(0.005, 0.2))
def test_upper_bounds_lie_above_the_mean_and_the_batch_within_its_limit(
    running: int, rate: float, step_s: float
) -> None:
    """No projection promises less than its mean or more than the engine can hold."""
    p = project(state(running), traffic(rate), SHAPE, step_s, 5.0)
    assert (p.batch_upper >= p.batch_mean - 1e-9).all()
    assert (p.kv_upper_tokens >= p.kv_mean_tokens - 1e-9).all()
    assert p.batch_upper.max() <= SHAPE.max_num_seqs
    assert p.batch_mean[0] == pytest.approx(running)


def test_requests_and_aggregates_agree_where_lengths_have_no_memory() -> None:
    """The per-request projection reduces to the aggregate one for exponential lengths."""
    rows = tuple(RequestState(0.0, 1000, 1000, 100) for _ in range(32))
    one = project(state(32, rows), traffic(0.0), SHAPE, 0.03, 5.0)
    other = project(state(32), traffic(0.0), SHAPE, 0.03, 5.0)
    assert one.batch_mean == pytest.approx(other.batch_mean)
    assert one.kv_mean_tokens == pytest.approx(other.kv_mean_tokens)


def test_the_projected_batch_matches_a_simulated_service() -> None:
    """Mean and upper bound hold over many random futures (seeded)."""
    rng = np.random.default_rng(7)
    running, mean, steps, trials = 40, 200.0, 128, 4000
    p = project(state(running), traffic(0.0, mean), SHAPE, 0.04, steps * 0.04)
    left = rng.exponential(mean, size=(trials, running))
    alive = (left[:, :, None] > p.steps[None, None, :]).sum(axis=1)
    assert alive.mean(axis=0) == pytest.approx(p.batch_mean, rel=0.02)
    covered = (alive <= p.batch_upper[None, :] + 0.5).mean(axis=0)
    assert covered[1:].min() > 0.93


def test_a_request_is_gone_at_its_max_tokens() -> None:
    """Nobody is projected beyond what the caller allowed."""
    rows = (RequestState(0.0, 100, 100, 10, max_tokens=14),)
    p = project(state(1, rows), traffic(0.0), SHAPE, 0.03, 1.0)
    assert p.batch_mean[p.steps >= 4] == pytest.approx(0.0)
    assert p.batch_mean[p.steps < 4].min() > 0.9


def test_an_overflow_is_told_with_its_step() -> None:
    """A KV cache that will not hold the projected tokens is reported before it overflows."""
    small = EngineShape(block_size=16, num_blocks=2_901, max_num_seqs=128)
    growing = project(state(40), traffic(6.0), small, 0.03, 5.0)
    assert growing.kv_overflow_step(small) is not None
    assert project(state(2), traffic(0.1), small, 0.03, 5.0).kv_overflow_step(small) is None


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=40))
def test_cohort_weights_add_up(weights: list[float]) -> None:
    """Fractional cohorts count as the requests they stand for."""
    rows = tuple(RequestState(0.0, 500, 500, 50, weight=w) for w in weights)
    p = project(state(len(rows), rows), traffic(0.0), SHAPE, 0.03, 5.0)
    assert p.batch_mean[0] == pytest.approx(min(sum(weights), SHAPE.max_num_seqs))
