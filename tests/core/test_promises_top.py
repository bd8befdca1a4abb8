"""What would be inside at the top clock, and how long steps took against it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from blank_page import BLANK
from hypothesis import given
from hypothesis import strategies as st
from worlds import model

from kvwatt.state import Binding, Decision, EngineSnapshot, Forecast
from kvwattd.promises_top import AtTop, TopBatch

EACH_TOKENS, ANSWER_TOKENS = 1250.0, 210.0
BLOCKS = 20_001


def page(at_s: float, inside: float, ended: float) -> EngineSnapshot:
    running = round(inside)
    usage = running * EACH_TOKENS / (BLANK.block_size * (BLOCKS - 1))
    return replace(
        BLANK,
        observed_s=at_s,
        running=running,
        num_blocks=BLOCKS,
        kv_usage=usage,
        requests_finished_total=ended,
    )


def slowed(times: float) -> Decision:
    """A decision for a clock at which steps take so many times as long."""
    at = [Forecast(900, s, 0.1, 10.0, 200.0, True) for s in (0.03 * times, 0.03)]
    return Decision(0.0, 900, Binding.E2E, "", chosen=at[0], at_default=at[1])


def step_s(inside: float) -> float:
    """A decode step at the top clock."""
    return float(model().with_prompts(inside, inside * EACH_TOKENS, (0.0,))[0][0, -1])


def settled(times: float, rate: float) -> float:
    """Requests inside in balance where steps take so many times as long as at the top clock."""
    inside = 1.0
    for _ in range(2000):
        inside += 0.05 * (rate * ANSWER_TOKENS * times * step_s(inside) - inside)
    return inside


@pytest.mark.parametrize(("times", "rate"), [(1.0, 4.0), (1.5, 5.0), (2.0, 4.0)])
def test_the_batch_of_the_top_clock_is_found_from_that_of_a_lower_one(times: float, rate: float) -> None:
    """In balance as many would be inside as an engine at the top clock has."""
    batch, inside = TopBatch(), settled(times, rate)
    for second in range(120):
        ratio = batch.stretch(page(float(second), inside, rate * second), slowed(times), model())
    top = settled(1.0, rate)
    assert batch.inside == pytest.approx(top, rel=0.06)
    assert ratio == pytest.approx(times * step_s(inside) / step_s(top), rel=0.06)


def test_at_driver_default_both_become_one() -> None:
    """What a lower clock had gathered is worked off at the top."""
    batch, rate = TopBatch(), 4.0
    low, top = settled(2.0, rate), settled(1.0, rate)
    for second in range(60):
        batch.stretch(page(float(second), low, rate * second), slowed(2.0), model())
    assert batch.inside < 0.7 * low
    for second in range(60, 180):
        ratio = batch.stretch(page(float(second), top, rate * second), None, model())
    assert batch.inside == pytest.approx(top, rel=0.06) and ratio == pytest.approx(1.0, rel=0.06)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40), st.floats(1.0, 4.0)), min_size=1, max_size=40)
)
def test_never_more_would_be_inside_than_are(pages: list[tuple[int, int, float]]) -> None:
    """Nor fewer than none, whatever the pages tell; steps are never shorter than at the top."""
    batch, ended = TopBatch(), 0
    for second, (inside, more, times) in enumerate(pages):
        ended += more
        ratio = batch.stretch(page(float(second), inside, float(ended)), slowed(times), model())
        assert 0.0 <= batch.inside <= inside and ratio >= 1.0


def test_another_run_begins_anew() -> None:
    """Counters of another engine run say nothing about this one; nor does a page without a model."""
    at_top, rate = AtTop(), 4.0
    low = settled(2.0, rate)
    for second in range(60):
        at_top.batch.stretch(page(float(second), low, rate * second), slowed(2.0), model())
    at_top.restart()
    assert at_top.batch.stretch(page(60.0, 50.0, 0.0), slowed(2.0), model()) == 1.0
    assert at_top.batch.inside == 50.0
    assert at_top.batch.stretch(page(61.0, 40.0, 0.0), slowed(2.0), None) == 1.0
    assert at_top.batch.inside == 40.0
