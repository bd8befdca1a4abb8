"""Projection of batch and KV cache: bounds, limits and agreement with a brute-force service."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.projection import FloatArray, KnownLengths, project, step_grid
from kvwatt.schedule import play
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
        recent_per_s=arrival_per_s,
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


def known(*totals: float) -> KnownLengths:
    return KnownLengths(np.array(totals))


def test_known_lengths_give_the_exact_batch_and_blocks() -> None:
    """With every length told and nothing to come, the projection is the play of the scheduler."""
    rng = np.random.default_rng(3)
    rows = tuple(
        RequestState(0.0, int(p), int(p), int(g))
        for p, g in zip(rng.integers(10, 900, 30), rng.integers(1, 90, 30), strict=True)
    )
    totals = [r.output_tokens + int(n) for r, n in zip(rows, rng.integers(1, 150, 30), strict=True)]
    p = project(state(30, rows), traffic(0.0), SHAPE, 0.05, 5.0, lengths=known(*totals))
    exact = play(rows, totals, SHAPE, 101)
    after = p.steps.astype(int)
    assert p.batch_mean == pytest.approx(exact.batch[after])
    assert p.kv_mean_blocks == pytest.approx(exact.kv_blocks[after])
    assert p.batch_upper == pytest.approx(p.batch_mean)


def test_prompts_decode_only_once_they_are_computed() -> None:
    """A queue enters as the token budget allows, holds its prompt, then counts as decoding."""
    rows = (RequestState(0.0, 1000, 1000, 5), *(RequestState(0.0, 4000, 0, 0) for _ in range(4)))
    p = project(
        EngineState(0.0, 1, 4, 1005.0, rows), traffic(0.0), SHAPE, 0.05, 5.0, lengths=known(*[1e4] * 5)
    )
    exact = play(rows, [10_000] * 5, SHAPE, 101)
    assert p.batch_mean[0] == pytest.approx(2.0)  # the first of the queue enters at once
    assert p.batch_mean[-1] == 5.0
    assert p.prefill_tokens[0] == pytest.approx(2000.0, rel=0.05)
    assert p.prefill_tokens[-1] == 0.0
    late = p.steps >= 16
    assert p.batch_mean[late] == pytest.approx(exact.batch[p.steps[late].astype(int)])
    assert p.kv_mean_tokens[-1] == pytest.approx(1005 + 4 * 4000 + 5 * 100, rel=0.01)


def test_the_queue_waits_for_seats() -> None:
    """Nobody enters a full batch before somebody leaves it."""
    full = EngineShape(block_size=16, num_blocks=20_001, max_num_seqs=4)
    rows = (*(RequestState(0.0, 100, 100, 10) for _ in range(4)), RequestState(0.0, 100, 0, 0))
    lengths = known(42.0, 900.0, 900.0, 900.0, 900.0)
    p = project(EngineState(0.0, 4, 1, 440.0, rows), traffic(0.0), full, 0.05, 5.0, lengths=lengths)
    assert p.batch_mean.max() == 4.0
    assert p.kv_mean_tokens[p.steps <= 16].max() <= 4 * 130
    assert p.batch_mean[-1] == 4.0


def test_the_queue_waits_for_kv_room() -> None:
    """A prompt that does not fit the cache stays outside until blocks are free."""
    tight = EngineShape(block_size=16, num_blocks=101, max_num_seqs=128)
    rows = (RequestState(0.0, 1000, 1000, 10), RequestState(0.0, 900, 0, 0))
    p = project(
        EngineState(0.0, 1, 1, 1010.0, rows), traffic(0.0), tight, 0.05, 5.0, lengths=known(42.0, 500.0)
    )
    assert p.kv_mean_blocks.max() <= 100
    assert p.kv_mean_tokens[-1] == pytest.approx(900 + 70, rel=0.1)


@pytest.mark.parametrize("prompt", [100, 40_000], ids=["no seat in sight", "more than the whole cache"])
def test_who_cannot_enter_within_the_horizon_leaves_the_rest_as_it_is(prompt: int) -> None:
    """Nothing is NaN and nothing is added, whatever stands in front of the queue."""
    full = EngineShape(block_size=16, num_blocks=2001, max_num_seqs=4)
    inside = tuple(RequestState(0.0, 100, 100, 10) for _ in range(4))
    lengths = known(*4 * (900.0,), 50.0)
    rows = (*inside, RequestState(0.0, prompt, 0, 0))
    p = project(EngineState(0.0, 4, 1, 440.0, rows), traffic(0.0), full, 0.05, 5.0, lengths=lengths)
    alone = project(EngineState(0.0, 4, 0, 440.0, inside), traffic(0.0), full, 0.05, 5.0, lengths=lengths)
    assert np.isfinite([p.batch_mean, p.kv_mean_tokens, p.kv_mean_blocks, p.prefill_tokens]).all()
    assert p.batch_mean == pytest.approx(alone.batch_mean)
    assert p.kv_mean_tokens == pytest.approx(alone.kv_mean_tokens)


def test_shared_prefixes_are_held_once() -> None:
    """What requests hold together beyond what the cache has in use is common to them."""
    rows = tuple(RequestState(0.0, 1000, 1000, 10) for _ in range(10))
    apart = project(state(10, rows), traffic(0.0), SHAPE, 0.05, 2.0)
    shared = project(EngineState(0.0, 10, 0, 2600.0, rows), traffic(0.0), SHAPE, 0.05, 2.0)
    assert shared.kv_mean_blocks[0] * 16 == pytest.approx(2600.0, rel=0.01)
    assert shared.batch_mean == pytest.approx(apart.batch_mean)
    assert (shared.kv_mean_tokens < apart.kv_mean_tokens).all()


def test_whole_blocks_are_what_the_cache_holds() -> None:
    """Every request rounds up to its block."""
    rows = (RequestState(0.0, 17, 17, 0), RequestState(0.0, 16, 16, 0))
    p = project(state(2, rows), traffic(0.0), SHAPE, 0.05, 0.05, lengths=known(99.0, 99.0))
    assert p.kv_mean_blocks[0] == 3.0
    assert p.kv_mean_blocks[1] == 4.0


class Linear:
    """Ten milliseconds, one for ten requests, one for a hundred prompt tokens."""

    def step_s(self, decode_batch: FloatArray, kv_tokens: FloatArray, prefill: FloatArray) -> FloatArray:
        return 0.010 + 0.0001 * decode_batch + 0.00001 * prefill + 0.0 * kv_tokens


def test_with_a_pace_the_steps_take_what_their_load_makes_them() -> None:
    """An unchanging batch takes its step time, prompts to come stretch it by their share."""
    rows = tuple(RequestState(0.0, 100, 100, 10) for _ in range(20))
    lengths = known(*[1e6] * 20)
    alone = project(state(20, rows), traffic(0.0), SHAPE, 0.012, 1.2, lengths=lengths, pace=Linear())
    assert alone.times_s == pytest.approx(0.012 * alone.steps)
    busy = project(state(20, rows), traffic(20.0), SHAPE, 0.012, 1.2, lengths=lengths, pace=Linear())
    # 20 prompts a second of 1,000 tokens at 10 us a token: a fifth of the time is theirs.
    assert busy.times_s[1] == pytest.approx(0.012 / 0.8, rel=0.02)
    assert busy.times_s[-1] > 1.25 * alone.times_s[-1]


def test_waiting_prompts_slow_the_first_steps() -> None:
    """A queue of prompts takes its time before the decodes have theirs."""
    rows = (RequestState(0.0, 100, 100, 10), RequestState(0.0, 8000, 0, 0))
    queue = EngineState(0.0, 1, 1, 110.0, rows)
    p = project(
        queue, traffic(0.0), SHAPE, 0.01, 0.64, lengths=known(1e6, 1e6), pace=Linear(), per_doubling=4
    )
    prompt_s = 8000 * 0.00001
    assert p.times_s[-1] == pytest.approx(0.0102 * p.steps[-1] + prompt_s, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3000), st.floats(0.0, 1.0), st.integers(0, 500)), min_size=1, max_size=40
    ),
    st.floats(0.0, 6.0),
)
def test_bounds_hold_whatever_is_inside(rows: list[tuple[int, float, int]], rate: float) -> None:
    """Means are finite, under their upper bounds, within the seats; time never goes back."""
    states = tuple(
        RequestState(0.0, prompt, int(prompt * share), done if share == 1.0 else 0)
        for prompt, share, done in rows
    )
    running = sum(r.computed_prompt_tokens > 0 for r in states)
    at = EngineState(0.0, running, len(states) - running, 1.0, states)
    p = project(at, traffic(rate), SHAPE, 0.02, 5.0, pace=Linear())
    for values in (p.batch_mean, p.kv_mean_tokens, p.kv_mean_blocks, p.prefill_tokens, p.times_s):
        assert np.isfinite(values).all() and (values >= -1e-9).all()
    assert (p.batch_upper >= p.batch_mean - 1e-9).all() and p.batch_upper.max() <= SHAPE.max_num_seqs
    assert (np.diff(p.times_s) > 0).all()
