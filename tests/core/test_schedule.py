"""The exact projection: PROJ against brute force, the scheduler's play against the engine itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kvwatt.schedule import fits, play
from kvwatt.scheduling.proj import peak_blocks
from kvwatt.state import EngineShape, RequestState
from kvwatt_sim.engine import Engine, Request

Jobs = st.lists(
    st.tuples(st.integers(-60, 80), st.integers(1, 300), st.integers(1, 120)), min_size=1, max_size=25
)


def brute_force(
    jobs: list[tuple[int, int, int]], block_size: int, horizon: int
) -> tuple[list[int], list[int]]:
    """The paper's two sums, step by step and request by request: KV blocks and batch."""
    blocks, batch = [], []
    for j in range(horizon):
        present = [(s, q) for s, q, r in jobs if s <= j < s + r]
        blocks.append(sum(-(-(q + j - s) // block_size) for s, q in present))
        batch.append(len(present))
    return blocks, batch


@settings(max_examples=300, deadline=None)
@given(Jobs, st.sampled_from([1, 7, 16, 32]), st.integers(1, 120))
def test_the_peak_is_that_of_brute_force(
    jobs: list[tuple[int, int, int]], block_size: int, horizon: int
) -> None:
    """Height and first step of the peak are exact."""
    blocks, _ = brute_force(jobs, block_size, horizon)
    start, prompt, output = zip(*jobs, strict=True)
    peak = peak_blocks(start, prompt, output, block_size, horizon)
    assert peak.blocks == max(blocks)
    assert peak.step == blocks.index(max(blocks))


@settings(max_examples=300, deadline=None)
@given(Jobs, st.integers(1, 60), st.integers(1, 12), st.integers(1, 120))
def test_a_plan_fits_exactly_when_no_step_exceeds_blocks_or_seats(
    jobs: list[tuple[int, int, int]], num_blocks: int, seats: int, horizon: int
) -> None:
    """PROJ says yes if and only if brute force finds no step over either limit."""
    shape = EngineShape(16, num_blocks + 1, max_num_seqs=seats)
    blocks, batch = brute_force(jobs, 16, horizon)
    start, prompt, output = np.array(jobs).T
    assert fits(start, prompt, output, shape, horizon) == (max(blocks) <= num_blocks and max(batch) <= seats)


Shapes = st.builds(
    EngineShape,
    block_size=st.sampled_from([4, 16]),
    num_blocks=st.integers(120, 400),
    max_num_seqs=st.integers(2, 12),
    max_num_batched_tokens=st.integers(16, 400),
)
Load = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 60)), min_size=1, max_size=25)


# Of two, the second was preempted and has a part of its prompt and answer computed again.
@example(EngineShape(4, 138, max_num_seqs=4, max_num_batched_tokens=70), [(134, 29), (385, 40)], 32)
@settings(max_examples=150, deadline=None)
@given(Shapes, Load, st.integers(0, 40))
def test_the_play_is_what_the_engine_then_does(
    shape: EngineShape, load: list[tuple[int, int]], warm_up: int
) -> None:
    """Batch, decodes, KV blocks and prefill tokens agree step by step until something is preempted."""
    engine = Engine(shape)
    for i, (prompt, output) in enumerate(load):
        if -(-(prompt + output) // shape.block_size) < shape.num_blocks:
            engine.add(Request(f"r{i}", 0.0, prompt, output, None))
    for step in range(warm_up):
        plan = engine.schedule(float(step))
        if plan is None:
            break
        engine.complete(plan, step + 1.0)
    inside = engine.requests()
    states = [state for _, state in inside]
    # Who computes its answer again and is just at the end of its prompt looks like one that decodes.
    again = [state for request, state in inside if request.request_id in engine._prefilling]
    assume(all(s.output_tokens == 0 or s.computed_prompt_tokens != s.prompt_tokens for s in again))
    told = play(states, [request.output_tokens for request, _ in inside], shape, 60)
    fork = copy.deepcopy(engine)
    for step in range(60):
        plan = fork.schedule(100.0 + step)
        if plan is None:
            assert told.batch[step:].sum() == 0
            break
        if plan.preempted:
            assert told.overflow_step is not None and told.overflow_step <= step
            break
        assert told.batch[step] == fork.running
        assert told.decode_batch[step] == plan.decode_batch
        assert told.kv_blocks[step] == fork.kv_used_blocks
        assert told.kv_tokens[step] == plan.kv_tokens
        assert told.prefill_tokens[step] == plan.prefill_tokens
        assert told.prefill_context_tokens[step] == pytest.approx(plan.prefill_context_tokens)
        fork.complete(plan, 101.0 + step)


def test_the_properties_met_queues_and_chunks() -> None:
    """The engine comparison is not empty: a long queue is chunked, waits for seats, and drains."""
    shape = EngineShape(16, 200, max_num_seqs=3, max_num_batched_tokens=64)
    told = play([RequestState(0.0, 150, 0, 0)] * 6, [20] * 6, shape, 120)
    assert told.prefill_tokens.max() > 60 and told.prefill_tokens.sum() == 900
    assert told.batch.max() == 3
    assert told.batch[-1] == 0
    assert told.overflow_step is None


def test_an_overflow_is_told_with_its_step() -> None:
    """Requests that outgrow the cache are reported at the first step that does not fit."""
    shape = EngineShape(16, 9, max_num_seqs=8)
    told = play([RequestState(0.0, 32, 32, 1)] * 2, [100, 100], shape, 60)
    # Eight blocks: both hold 2 for 32 tokens, and need a fifth each for the 65th token.
    assert told.overflow_step == 64 - 32


def test_lengths_must_match_requests() -> None:
    """One length for each request."""
    with pytest.raises(ValueError, match="2 requests but 1"):
        play([RequestState(0.0, 10, 10, 1)] * 2, [5], EngineShape(16, 100), 10)
