"""What a sweep measures, in which order, and which windows it believes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from blank_page import BLANK
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.profiler.plan import (
    DecodeLoad,
    IdleLoad,
    Limits,
    PrefillLoad,
    clock_ladder,
    decode_loads,
    plan,
    prefill_loads,
    worst_next_s,
)
from kvwattd.profiler.rows import (
    ForeignTrafficError,
    WindowUnusable,
    check_plausible,
    decode_row,
    mixed_row,
    prefill_row,
    prompts_in,
)
from kvwattd.profiler.windows import Window, nominal_clock_mhz

LIMITS = Limits(
    kv_capacity_tokens=200_000, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=32_768
)


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.integers(100, 3000), min_size=1, max_size=120),
    st.integers(2, 20),
)
def test_the_ladder_is_supported_descending_and_spans_the_range(clocks: set[int], count: int) -> None:
    """Every rung is a supported clock; the ends are the highest and lowest permitted ones."""
    ladder = clock_ladder(sorted(clocks), min(clocks), max(clocks), count)
    assert set(ladder) <= clocks
    assert list(ladder) == sorted(set(ladder), reverse=True)
    assert (ladder[0], ladder[-1]) == (max(clocks), min(clocks))
    assert len(ladder) <= count or len(clocks) <= count


def test_no_clock_within_the_bounds_is_an_error() -> None:
    """The message tells the bounds."""
    with pytest.raises(ValueError, match="between 100 and 200 MHz"):
        clock_ladder((900, 1000), 100, 200, 5)


@settings(max_examples=100, deadline=None)
@given(st.integers(64, 2_000_000), st.integers(1, 600), st.integers(16, 16_384), st.integers(64, 131_072))
def test_every_load_fits_the_engine(kv: int, seqs: int, chunk: int, length: int) -> None:
    """No planned load preempts, exceeds the batch limit, the chunk or the context."""
    limits = Limits(kv, seqs, chunk, length)
    for load in decode_loads(limits):
        assert 1 <= load.batch <= seqs
        assert load.context_tokens < length
        assert load.batch * load.context_tokens <= kv
    for prompt in prefill_loads(limits):
        assert 1 <= prompt.prompt_tokens <= min(chunk, length, kv)


def test_the_first_loads_already_span_the_range() -> None:
    """Stopped early, the table still holds a large and a small batch, prompts and idle power."""
    first = plan(LIMITS)[:5]
    batches = [load.batch for load in first if isinstance(load, DecodeLoad)]
    prompts = [load.prompt_tokens for load in first if isinstance(load, PrefillLoad)]
    assert (max(batches), min(batches)) == (256, 1)
    assert (max(prompts), min(prompts)) == (2048, 64)
    assert any(isinstance(load, IdleLoad) for load in first)


def test_the_plan_holds_every_load_once() -> None:
    """Ordering neither loses nor repeats a load."""
    loads = plan(LIMITS)
    expected = {*decode_loads(LIMITS), *prefill_loads(LIMITS), IdleLoad()}
    assert set(loads) == expected
    assert len(loads) == len(expected) > 20


def test_the_worst_case_is_inverse_proportion() -> None:
    """Half the clock at most doubles a latency."""
    assert worst_next_s(0.05, 2000, 1000) == pytest.approx(0.1)


def histogram(total: float, count: float) -> Histogram:
    return Histogram((math.inf,), (count,), total, count)


def snapshot(observed_s: float, steps: float, running: int = 4) -> EngineSnapshot:
    """After `steps` steps of 20 ms with four sequences."""
    return replace(
        BLANK,
        observed_s=observed_s,
        running=running,
        kv_usage=0.1,
        num_blocks=1001,
        prompt_tokens_total=1000.0,
        generation_tokens_total=4 * steps,
        iterations=histogram(4 * steps, steps),
        itl_s=histogram(0.02 * 4 * steps, 4 * steps),
    )


def window() -> Window:
    return Window(snapshot(10.0, 500), snapshot(11.0, 550), energy_j=150.0, energy_s=1.0, clock_mhz=1498.0)


def test_a_steady_window_becomes_a_row() -> None:
    """Step time is the mean inter-token latency, power the energy over its own time."""
    row = decode_row(window(), 1500, batch=4, tp=1)
    assert row.step_time_s == pytest.approx(0.02)
    assert row.power_w == pytest.approx(150.0)
    assert (row.clock_mhz, row.decode_batch, row.prefill_tokens, row.kind) == (1500, 4, 0, "decode")
    assert row.kv_tokens == pytest.approx(0.1 * 16_000 - 4 * 8)


def test_a_capped_clock_is_recorded_as_it_was() -> None:
    """A power cap that keeps the GPU below the asked clock must not blame that clock."""
    assert nominal_clock_mhz(1500, 1495) == 1500
    assert nominal_clock_mhz(1500, 1350) == 1350


def test_foreign_requests_stop_the_sweep_unless_live() -> None:
    """More running than ours: an error; live, a row of what was really there."""
    busy = replace(window(), after=snapshot(11.0, 550, running=6))
    with pytest.raises(ForeignTrafficError, match="6 requests are running, 4 are ours"):
        decode_row(busy, 1500, batch=4, tp=1)
    assert decode_row(busy, 1500, batch=4, tp=1, live=True).decode_batch == 5


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (snapshot(11.0, 501), "only 1 steps"),
        (snapshot(11.0, 550, running=3), "3 of 4"),
        (replace(snapshot(11.0, 550), prompt_tokens_total=2000.0), "prompt"),
        (replace(snapshot(11.0, 550), preemptions_total=1.0), "preempted"),
    ],
)
def test_disturbed_windows_are_refused(after: EngineSnapshot, message: str) -> None:
    """A window with few steps, missing sequences, a prompt or a preemption is not a decode measurement."""
    with pytest.raises(WindowUnusable, match=message):
        decode_row(replace(window(), after=after), 1500, batch=4, tp=1)


def test_steps_slower_than_the_clock_explains_are_refused() -> None:
    """A busy host is not mistaken for a slow GPU."""
    check_plausible(0.05, 0.0)
    check_plausible(0.05, 0.05)
    with pytest.raises(WindowUnusable, match="at most"):
        check_plausible(0.08, 0.05)


def test_pauses_between_prompts_are_taken_off_their_power() -> None:
    """Prompts of 0.8 s in a window of 1 s: the idle 0.2 s drew idle power."""
    row = prefill_row(512, [0.4, 0.4], (1.0, 0.8 * 250 + 0.2 * 50), 50.0, 1500, 1500.0, 1)
    assert row.power_w == pytest.approx(250.0)
    assert row.step_time_s == pytest.approx(0.4)
    unknown = prefill_row(512, [0.4, 0.4], (1.0, 210.0), math.nan, 1500, 1500.0, 1)
    assert unknown.power_w == pytest.approx(210.0)


def with_prompts(prompts: int, steps: int, plain_s: float, mixed_s: float, tokens: int = 500) -> Window:
    """`steps` steps of four sequences, `prompts` of them with a prompt beside."""
    total_s = (steps - prompts) * plain_s + prompts * mixed_s
    first = snapshot(10.0, 500)
    itl = histogram(first.itl_s.sum + 4 * total_s, first.itl_s.count + 4 * steps)
    after = replace(
        snapshot(10.0 + total_s, 500 + steps), itl_s=itl, prompt_tokens_total=1000.0 + prompts * tokens
    )
    share = prompts * mixed_s / total_s
    return Window(first, after, (150 + share * 100) * total_s, total_s, 1500.0)


def test_steps_with_a_prompt_are_told_from_those_without() -> None:
    """Ten of thirty steps took a prompt: their time and power come out exactly."""
    plain = decode_row(window(), 1500, batch=4, tp=1)
    seen = with_prompts(10, 30, plain_s=0.02, mixed_s=0.09)
    assert prompts_in(seen, 500, 4) == 10
    row = mixed_row(seen, plain, 500, 10)
    assert row.step_time_s == pytest.approx(0.09)
    assert row.power_w == pytest.approx(250.0)
    assert (row.decode_batch, row.prefill_tokens, row.kind) == (4, 500, "mixed")


def test_windows_that_do_not_show_whole_prompts_are_refused() -> None:
    """Too few prompts, parts of prompts, or steps faster than plain ones are no measurement."""
    plain = decode_row(window(), 1500, batch=4, tp=1)
    with pytest.raises(WindowUnusable, match="2 prompts"):
        mixed_row(with_prompts(2, 30, 0.02, 0.09), plain, 500, 2)
    with pytest.raises(WindowUnusable, match="no multiple"):
        prompts_in(with_prompts(5, 30, 0.02, 0.09, tokens=450), 500, 4)
    with pytest.raises(WindowUnusable, match="with a prompt took"):
        mixed_row(with_prompts(10, 30, 0.02, 0.01), plain, 500, 10)
    crowded = with_prompts(5, 30, 0.02, 0.09)
    with pytest.raises(ForeignTrafficError, match="9 requests are running"):
        prompts_in(replace(crowded, after=replace(crowded.after, running=9)), 500, 4)
