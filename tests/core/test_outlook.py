"""Expected misses: right where everything is known, monotone everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import SLO, model, shape, traffic

from kvwatt.attainment import Tally
from kvwatt.budget import Budget
from kvwatt.outlook import FloatArray, cohort, expected_misses, speeds, waits
from kvwatt.projection import KnownLengths
from kvwatt.state import EngineState, Metric, RequestState, Slo, SloTarget

NOW_S = 500.0
QUIET = traffic(arrival_per_s=0.0)
COLUMNS = np.arange(0, len(model().clocks_mhz), 8)

rows = st.lists(
    st.tuples(st.integers(1, 400), st.floats(0.01, 0.4), st.integers(1, 800), st.floats(0.0, 30.0)),
    min_size=1,
    max_size=40,
)


def world(
    those: list[tuple[int, float, int, float]], slo: Slo = SLO, margin: float = 0.0
) -> tuple[dict[Metric, FloatArray], FloatArray]:
    """Misses at COLUMNS of requests with known lengths, nobody to come; and the time between tokens."""
    requests = tuple(
        RequestState(NOW_S - g * s - wait, 500, 500, g, first_token_s=NOW_S - g * s)
        for g, s, _, wait in those
    )
    state = EngineState(NOW_S, len(requests), 0, 700.0 * len(requests), requests)
    group = cohort(NOW_S, state, QUIET, shape(), 0.5)
    total = np.array([g + more for g, _, more, _ in those] + [1] * 3, dtype=np.float64)
    pace = speeds(model(), len(requests), group.kv_each_tokens, QUIET, shape(), 1.0)
    wait_s = waits(group, pace, COLUMNS, QUIET, shape().max_num_batched_tokens)
    misses = expected_misses(group, pace, COLUMNS, wait_s, KnownLengths(total), slo, margin)
    return misses, pace.tbt_s[COLUMNS]


@settings(max_examples=100, deadline=None)
@given(rows)
def test_with_known_lengths_the_misses_are_counted(those: list[tuple[int, float, int, float]]) -> None:
    """Nobody to come, every length known: the sum of probabilities is the number that misses."""
    misses, tbt_s = world(those)
    assert SLO.e2e is not None and SLO.tbt is not None
    for column, tau in enumerate(tbt_s):
        ends = [(g * s + wait + more * tau, g * s + more * tau, g + more - 1) for g, s, more, wait in those]
        late = sum(age > SLO.e2e.limit_s + 1e-9 for age, _, _ in ends)
        slow = sum(time > SLO.tbt.limit_s * gaps + 1e-9 for _, time, gaps in ends)
        # A length that ends exactly at the limit may count either way.
        edge = sum(
            min(abs(age - SLO.e2e.limit_s), abs(time - SLO.tbt.limit_s * gaps)) < 2.0 * tau
            for age, time, gaps in ends
        )
        assert abs(misses[Metric.E2E][column] - late) <= edge + 1e-6
        assert abs(misses[Metric.TBT][column] - slow) <= edge + 1e-6


@settings(max_examples=100, deadline=None)
@given(rows, st.floats(0.3, 1.0))
def test_misses_never_fall_with_a_lower_clock_or_a_tighter_promise(
    those: list[tuple[int, float, int, float]], share: float
) -> None:
    """Slower clocks and tighter limits only add misses."""
    tight = Slo(*(SloTarget(t.limit_s * share) for t in (SLO.ttft, SLO.tbt, SLO.e2e) if t is not None))
    loose, strict = world(those)[0], world(those, tight)[0]
    for metric, numbers in loose.items():
        assert np.all(np.diff(numbers) <= 1e-9)
        assert np.all(strict[metric] >= numbers - 1e-9)
        assert np.all((numbers >= -1e-9) & (numbers <= len(those) + 1e-9))


def test_requests_that_are_not_listed_are_like_those_that_are() -> None:
    """Where the list is short of the count, those listed stand for all."""
    one = RequestState(NOW_S - 5.0, 500, 500, 50, first_token_s=NOW_S - 4.0)
    listed = cohort(NOW_S, EngineState(NOW_S, 2, 0, 1000.0, (one, one)), QUIET, shape(), 0.5)
    short = cohort(NOW_S, EngineState(NOW_S, 2, 0, 1000.0, (one,)), QUIET, shape(), 0.5)
    assert listed.inside == short.inside == pytest.approx(2.0)


def test_prompts_are_computed_in_order_and_stall_who_decodes() -> None:
    """Each waiting prompt has all before it ahead and all after it behind."""
    queue = (RequestState(NOW_S, 300, 0, 0), RequestState(NOW_S, 700, 0, 0))
    decodes = RequestState(NOW_S - 5.0, 500, 500, 50, first_token_s=NOW_S - 4.0)
    state = EngineState(NOW_S, 1, 2, 550.0, (decodes, *queue))
    those = cohort(NOW_S, state, QUIET, shape(), 0.5)
    assert list(those.ahead_tokens[:3]) == [0.0, 300.0, 1000.0]
    assert list(those.behind_tokens[:3]) == [1000.0, 700.0, 0.0]


def test_a_preempted_request_computes_again_what_it_had_produced() -> None:
    """Its prompt and its tokens are to be computed, though its first token came long ago."""
    lost = RequestState(NOW_S - 9.0, 500, 0, 100, first_token_s=NOW_S - 8.0)
    those = cohort(NOW_S, EngineState(NOW_S, 0, 1, 0.0, (lost,)), QUIET, shape(), 0.5)
    assert those.ahead_tokens[0] == 600.0 and those.started[0]


@given(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(0.0, 5.0))
def test_the_price_of_a_miss_rises_with_what_was_missed(one: float, other: float, lost: float) -> None:
    """Positive, finite, never falling."""
    prices = [
        Budget({Metric.E2E: Tally(1000.0, missed, 10.0)})
        .standing(Metric.E2E, SloTarget(60.0), 0.25, 30.0)
        .price_j(100.0, lost)
        for missed in sorted((one, other))
    ]
    assert 0.0 < prices[0] <= prices[1] < np.inf


def test_a_wider_reserve_makes_a_miss_dearer() -> None:
    """What is kept back is not there to be spent."""
    target = SloTarget(60.0)
    budget = Budget({Metric.E2E: Tally(1000.0, 5.0, 10.0)})
    prices = [budget.standing(Metric.E2E, target, r, 30.0).price_j(100.0, 0.0) for r in (0.0, 0.25, 0.8)]
    assert prices == sorted(prices) and prices[0] < prices[-1]
    stricter = budget.standing(Metric.E2E, replace(target, quantile=0.999), 0.25, 30.0)
    assert stricter.price_j(100.0, 0.0) > prices[1]


def test_where_few_come_one_long_prompt_by_chance_counts() -> None:
    """Rare requests with short answers may meet a prompt while they decode; without traffic none is met."""
    alone = cohort(NOW_S, EngineState(NOW_S, 0, 0, 0.0), QUIET, shape(), 0.5)
    rare = cohort(NOW_S, EngineState(NOW_S, 0, 0, 0.0), traffic(arrival_per_s=0.05), shape(), 0.5)
    often = cohort(NOW_S, EngineState(NOW_S, 0, 0, 0.0), traffic(arrival_per_s=2.0), shape(), 0.5)
    assert np.all(alone.behind_tokens == 0.0)
    assert rare.behind_tokens[0] == 0.0 and rare.behind_tokens[-1] > 0.0
    assert np.all(often.behind_tokens >= rare.behind_tokens)
