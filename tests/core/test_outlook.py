"""Expected misses: right where everything is known, monotone everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import SLO, model, shape, traffic

from kvwatt.attainment import Tally, targets
from kvwatt.budget import Budget
from kvwatt.outlook import SOON_LEAST_S, expected_misses, waits
from kvwatt.outlook_behind import BURST_SHARES, BURST_Z, behind_pace
from kvwatt.outlook_cohort import DECODING, GAPS, MOST_DECODES, TURN_S, cohort
from kvwatt.outlook_coming import COMING_S, COMPUTED, PROMPT, WEIGHT, coming
from kvwatt.outlook_speeds import FloatArray, speeds
from kvwatt.projection import KnownLengths
from kvwatt.state import EngineState, Metric, RequestState, Slo, SloTarget
from kvwatt.traffic import PROMPT_LEVELS

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
    late, by_time = misses[-2:]  # E2E's once more, by the seconds left
    assert slo.e2e is not None
    assert np.all(by_time >= late / slo.e2e.limit_s - 1e-12)
    assert np.all(by_time <= late / SOON_LEAST_S + 1e-12)
    return dict(zip(targets(slo), misses[:-1], strict=True)), pace.tbt_s[COLUMNS]


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


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-3.0, 3.0), st.integers(1, 400)), min_size=1, max_size=20),
    st.floats(0.001, 0.1),
    st.floats(0.001, 0.3),
)
def test_what_prompts_to_come_may_do_is_counted(
    those: list[tuple[float, int]], gain_s: float, scatter_s: float
) -> None:
    """A request misses at a level if its slack, what its tokens gain and what chance takes add up below
    zero at its end; so does it if tokens come too slowly on average, whatever chance does."""
    size = len(those)
    requests = tuple(RequestState(NOW_S, 500, 500, 1, first_token_s=NOW_S) for _ in those)
    group = cohort(NOW_S, EngineState(NOW_S, size, 0, 0.0, requests), QUIET, shape(), 0.5)
    total = KnownLengths(np.array([1 + more for _, more in those] + [1] * 3, dtype=np.float64))
    group.terms[DECODING], group.terms[GAPS] = [-s for s, _ in those] + [-9.0] * 3, 0.0
    gains_s = np.array([-gain_s, gain_s])
    found = behind_pace(group, 1.0, np.zeros(2), 1.0 - gains_s, np.full(2, scatter_s))
    _, alive = total.alive_and_some(group.requests, np.zeros((0, size + 3)), found.who, found.more)
    late, often = found.misses(alive, 2)
    expected, edge, behind = 0.0, 0.0, 0.0
    for slack, more in those:
        ends = [slack + k * gain_s - BURST_Z * scatter_s * np.sqrt(k) for k in (more - 1, more, more + 1)]
        expected += float(BURST_SHARES @ (ends[1] < 0.0))
        edge += float(BURST_SHARES @ (np.ptp(np.sign(ends), axis=0) > 0))
        behind += slack - more * gain_s < 0.0
    assert abs(often - expected) <= edge + 1e-6
    assert abs(late - behind) <= sum(abs(s - k * gain_s) < 2.0 * gain_s for s, k in those) + 1e-6


def test_a_large_batch_is_looked_at_in_turns() -> None:
    """Of very many decodes some stand for all, everybody in his turn; prompts are looked at always."""
    decodes = [RequestState(NOW_S - 9.0, 500, 500, 10 + i, first_token_s=NOW_S - 8.0) for i in range(300)]
    prompts = [RequestState(NOW_S - 1.0, 800, 0, 0) for _ in range(4)]
    state = EngineState(NOW_S, 300, 4, 200_000.0, (*decodes, *prompts))
    seen: set[float] = set()
    for turn in range(12):
        some = cohort(NOW_S + turn * TURN_S, state, QUIET, shape(), 0.5)
        assert len(some.weight) <= MOST_DECODES + 4 + 3
        assert some.decoding == pytest.approx(300.0) and some.inside == pytest.approx(304.0)
        assert some.kv_each_tokens == pytest.approx(660.0, rel=0.02)
        assert some.behind_tokens[0] == pytest.approx(3200.0)
        seen |= set(some.requests.produced.tolist())
    assert {float(r.output_tokens) for r in decodes} <= seen


def test_a_large_batch_of_which_nobody_decodes_yet() -> None:
    """More prompts at once than decodes are looked at, as at the start of a batch job."""
    prompts = tuple(RequestState(NOW_S - 1.0, 800, 0, 0) for _ in range(MOST_DECODES + 50))
    state = EngineState(NOW_S, 20, MOST_DECODES + 30, 0.0, prompts)
    for turn in range(3):
        some = cohort(NOW_S + turn * TURN_S, state, QUIET, shape(), 0.5)
        assert some.decoding == 0.0 and some.inside == pytest.approx(MOST_DECODES + 50)
        assert some.behind_tokens[0] == pytest.approx(800.0 * (MOST_DECODES + 49))


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


@pytest.mark.parametrize("metric", [Metric.E2E, Metric.TBT])
def test_a_miss_has_a_least_price(metric: Metric) -> None:
    """What quiet hours saved up makes a miss cheaper to a degree only: else one minute spends it."""
    target = SloTarget(60.0)
    usual_j = Budget().standing(metric, target, 1.0, 0.0).price_j(100.0, 0.0)
    prices_j = [
        Budget({metric: Tally(seen, 0.0, 0.01 * seen)})
        .standing(metric, target, 0.15, 30.0)
        .price_j(100.0, 0.0)
        for seen in (2000.0, 20_000.0)
    ]
    assert usual_j / 3.0 < prices_j[0] == prices_j[1] <= usual_j


def price(seen: float, missed: float, avoidable: float = 0.0) -> float:
    """Of a missed E2E promise of 99 %, beside the usual price."""
    target, budget = SloTarget(60.0), Budget({Metric.E2E: Tally(seen, missed, 0.01 * seen, avoidable)})
    usual_j = Budget().standing(Metric.E2E, target, 0.2, 30.0).price_j(100.0, 0.0)
    return budget.standing(Metric.E2E, target, 0.2, 30.0).price_j(100.0, 0.0) / usual_j


def test_what_the_default_clock_may_need_is_not_spent() -> None:
    """With 60 of 76 permitted misses made a miss costs twenty times the usual, with 20 no more than it."""
    assert price(7600.0, 20.0) == 1.0 < 20.0 < price(7600.0, 60.0)
    assert price(7600.0, 60.0) > price(7600.0, 60.0, avoidable=50.0)


def test_few_requests_permit_nothing() -> None:
    """Of 300 requests three may miss, and as many may at driver default: dear before the first one."""
    assert price(3000.0, 0.0) == 1.0 < price(300.0, 0.0) < price(300.0, 1.0)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_without_room_for_a_burst_a_miss_is_dearer_from_the_start(one: float, other: float) -> None:
    """The price rises with what twice the traffic would take of the limit."""
    prices = [
        Budget().standing(Metric.TBT, SloTarget(0.2), 0.95, 30.0, strain).price_j(100.0, 0.0)
        for strain in sorted((one, other))
    ]
    assert 0.0 < prices[0] <= prices[1]


def test_where_few_come_one_long_prompt_by_chance_counts() -> None:
    """Rare requests with short answers may meet a prompt while they decode; without traffic none is met."""
    alone = cohort(NOW_S, EngineState(NOW_S, 0, 0, 0.0), QUIET, shape(), 0.5)
    rare = cohort(NOW_S, EngineState(NOW_S, 0, 0, 0.0), traffic(arrival_per_s=0.05), shape(), 0.5)
    often = cohort(NOW_S, EngineState(NOW_S, 0, 0, 0.0), traffic(arrival_per_s=2.0), shape(), 0.5)
    assert np.all(alone.behind_tokens == 0.0)
    assert rare.behind_tokens[0] == 0.0 and rare.behind_tokens[-1] > 0.0
    assert np.all(often.behind_tokens >= rare.behind_tokens)


@given(st.floats(0.0, 5.0), st.lists(st.floats(1.0, 8000.0), min_size=10, max_size=10))
def test_requests_to_come_have_the_prompts_that_came(rate: float, prompts: list[float]) -> None:
    """Their prompts are quantiles of those seen, they come behind a burst, and meet none longer."""
    seen = replace(traffic(arrival_per_s=rate), prompt_quantiles_tokens=np.sort(prompts))
    columns, ahead, met = coming(seen, 0.5)
    own = np.interp((0.5, 0.9, 0.99), PROMPT_LEVELS, np.sort(prompts))
    assert columns[PROMPT] == pytest.approx(own) and np.array_equal(columns[PROMPT], columns[COMPUTED])
    assert columns[WEIGHT].sum() == pytest.approx(rate * COMING_S)
    rounding = 1e-9 * max(prompts)
    assert np.all(ahead >= columns[PROMPT])
    assert np.all(np.diff(met) >= -rounding) and met[-1] <= max(prompts) + rounding
