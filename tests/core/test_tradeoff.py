"""The decision by request: expected misses against energy, at a price that the budget sets."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import SLO, model, shape, traffic

from kvwatt.attainment import Tally
from kvwatt.budget import Budget
from kvwatt.length_classes import ClassLengths, FinishedRequest
from kvwatt.outlook import expected_misses, waits
from kvwatt.outlook_cohort import cohort
from kvwatt.outlook_speeds import speeds
from kvwatt.policy import Applied, Bounds, PolicyParams, decide
from kvwatt.state import Binding, Decision, EngineState, Metric, RequestState, Slo, SloTarget
from kvwatt.traffic import Traffic

NOW_S = 1000.0
PARAMS = PolicyParams()


@cache
def lengths() -> ClassLengths:
    """Answers of 210 tokens on average, exponentially spread."""
    rng = np.random.default_rng(5)
    known = ClassLengths()
    known.update([FinishedRequest(1000, int(1 + n)) for n in rng.exponential(209.0, 2000)])
    known.refit()
    return known


def load(rate: float = 1.5) -> Traffic:
    return replace(traffic(arrival_per_s=rate), lengths=lengths())


def running(produced: int, tbt_s: float, prompt: int = 1000) -> RequestState:
    """A request that decodes and got its tokens `tbt_s` apart, its first after half a second."""
    first_s = NOW_S - produced * tbt_s
    return RequestState(first_s - 0.5, prompt, prompt, produced, 2048, first_token_s=first_s)


def waiting(age_s: float, prompt: int = 1000) -> RequestState:
    return RequestState(NOW_S - age_s, prompt, 0, 0, 2048)


def engine(*requests: RequestState, kv_used: float | None = None) -> EngineState:
    inside = sum(r.output_tokens > 0 for r in requests)
    held = sum(r.prompt_tokens + r.output_tokens for r in requests if r.output_tokens)
    return EngineState(NOW_S, inside, len(requests) - inside, kv_used or held, requests)


def steady(count: int = 30, tbt_s: float = 0.08) -> EngineState:
    """`count` requests at every stage of their answers."""
    return engine(*(running(10 + 12 * i, tbt_s) for i in range(count)))


def choose(
    seen: EngineState,
    seen_traffic: Traffic | None = None,
    slo: Slo = SLO,
    budget: Budget | None = None,
    applied: Applied | None = None,
) -> Decision:
    return decide(
        NOW_S,
        seen,
        seen_traffic or load(),
        shape(),
        model(),
        slo,
        Bounds(),
        PARAMS,
        applied or Applied(None, 0.0),
        budget or Budget(),
    )


def rank(decision: Decision) -> float:
    return float("inf") if decision.clock_mhz is None else decision.clock_mhz


def spent(missed: float, seen: float = 2000.0) -> Budget:
    return Budget({m: Tally(seen, missed, 0.01 * seen) for m in Metric})


requests = st.one_of(
    st.builds(running, st.integers(1, 600), st.floats(0.02, 0.35), st.integers(1, 4000)),
    st.builds(waiting, st.floats(0.0, 5.0), st.integers(1, 4000)),
)
engines = st.lists(requests, max_size=60).map(
    lambda rows: engine(*sorted(rows, key=lambda r: r.output_tokens == 0))
)
rates = st.floats(0.0, 6.0)


@settings(max_examples=150, deadline=None)
@given(engines, rates)
def test_every_decision_is_a_clock_of_the_model_or_default_with_a_reason(
    seen: EngineState, rate: float
) -> None:
    """Whatever is inside, the answer is one of the model's clocks or driver default."""
    decision = choose(seen, load(rate))
    assert decision.reason and decision == choose(seen, load(rate))
    assert decision.clock_mhz is None or decision.clock_mhz in model().clocks_mhz
    if decision.clock_mhz is not None:
        assert decision.chosen is not None and decision.chosen.feasible


@settings(max_examples=100, deadline=None)
@given(engines, rates, st.floats(0.0, 60.0), st.floats(0.0, 60.0))
def test_more_misses_spent_never_lower_the_clock(
    seen: EngineState, rate: float, one: float, other: float
) -> None:
    """The price of a miss only rises with what was missed."""
    fewer, more = sorted((one, other))
    assert rank(choose(seen, load(rate), budget=spent(fewer))) <= rank(
        choose(seen, load(rate), budget=spent(more))
    )


def test_the_budget_matters() -> None:
    """The law above is no empty one: with misses to spend the clock is lower than without."""
    assert rank(choose(steady(), budget=spent(0.0))) < rank(choose(steady(), budget=spent(40.0)))


@pytest.mark.parametrize("metric", ["ttft", "tbt", "e2e"])
def test_a_tighter_promise_asks_for_a_higher_clock(metric: str) -> None:
    """Where the permitted misses are spent: from an easy limit to an impossible one the clock rises, to
    driver default in the end."""
    ranks = []
    for share in (1.0, 0.7, 0.5, 0.35, 0.05):
        limit_s = getattr(SLO, metric).limit_s * share
        ranks.append(
            rank(choose(steady(), slo=replace(SLO, **{metric: SloTarget(limit_s)}), budget=spent(20.0)))
        )
    assert ranks == sorted(ranks) and ranks[-1] > ranks[0]


def lost(seen: EngineState, busy: Traffic, slo: Slo) -> float:
    """Requests that are expected to miss a promise at the top clock even."""
    those = cohort(NOW_S, seen, busy, shape(), PARAMS.reaction_s)
    top = np.array([len(model().clocks_mhz) - 1])
    inside = float(seen.running + seen.waiting)
    pace = speeds(model(), inside, those.kv_each_tokens, busy, shape(), 1.0)
    wait = waits(those, pace, top, busy, shape().max_num_batched_tokens)
    misses = expected_misses(those, pace, top, wait, lengths(), slo, PARAMS.margin)
    return float(misses[:-1].sum())


def test_a_tighter_limit_lowers_the_clock_only_where_it_makes_requests_hopeless() -> None:
    """Of random engines most keep or raise the clock; where it falls, more are lost at any clock.

    Only those inside are counted here, not the requests to come: now and then as many are lost.
    """
    rng = np.random.default_rng(17)
    lower = to_come = 0
    for _ in range(300):
        decodes = [
            running(int(rng.integers(1, 600)), rng.uniform(0.02, 0.19)) for _ in range(rng.integers(1, 60))
        ]
        seen = engine(*decodes, *(waiting(rng.uniform(0.0, 2.0)) for _ in range(rng.integers(0, 4))))
        busy, budget = load(rng.uniform(0.05, 4.0)), spent(5.0 * rng.integers(0, 5))
        metric = ("ttft", "tbt", "e2e")[rng.integers(3)]
        limit_s = getattr(SLO, metric).limit_s * rng.uniform(0.4, 0.98)
        tight = replace(SLO, **{metric: SloTarget(limit_s)})
        if rank(choose(seen, busy, tight, budget)) < rank(choose(seen, busy, SLO, budget)):
            lower += 1
            assert lost(seen, busy, tight) >= lost(seen, busy, SLO)
            to_come += lost(seen, busy, tight) == lost(seen, busy, SLO)
    assert lower <= 9 and to_come <= 2


def test_a_request_that_ran_fast_so_far_may_run_slower_now() -> None:
    """Time saved earlier is time to spend: the promise is on a request's mean, not on each step."""
    busy, slo = load(3.4), Slo(tbt=SloTarget(0.2))
    behind = choose(steady(tbt_s=0.19), busy, slo)
    ahead = choose(steady(tbt_s=0.05), busy, slo)
    assert rank(ahead) < rank(behind)


def test_long_answers_near_their_deadline_raise_the_clock() -> None:
    """A deadline in a few seconds asks for more speed than one in a minute."""
    late = [replace(r, arrival_s=NOW_S - 50.0) for r in steady().requests]
    assert rank(choose(engine(*late))) > rank(choose(steady()))


def test_a_lost_request_does_not_hold_the_clock_up() -> None:
    """Whose deadline has passed is lost at any clock: no energy is spent on it."""
    lost = replace(running(300, 0.08), arrival_s=NOW_S - 100.0)
    with_lost = choose(engine(*steady().requests, lost), budget=spent(0.0))
    assert rank(with_lost) <= rank(choose(steady(31), budget=spent(0.0))) + 45


def test_many_lost_requests_get_the_fastest_drain() -> None:
    """Where a third is lost already, the queue itself is the problem: driver default."""
    late = [replace(r, arrival_s=NOW_S - 100.0) for r in steady().requests]
    decision = choose(engine(*late))
    assert decision.clock_mhz is None and "E2E" in decision.reason


def test_overload_gets_driver_default() -> None:
    """Prompts that come faster than the top clock computes them are not held back."""
    decision = choose(steady(), load(12.0))
    assert decision.clock_mhz is None and "faster than the top clock" in decision.reason


def test_who_waits_too_long_raises_the_clock() -> None:
    """A queue of prompts near the limit on the first token asks for speed."""
    queue = [waiting(1.5) for _ in range(6)]
    assert rank(choose(engine(*steady().requests, *queue))) > rank(choose(steady()))


def test_a_full_cache_counts_as_waiting() -> None:
    """Who needs KV cache that others hold waits for their ends, which come sooner at a higher clock."""
    there = [*steady().requests, *(waiting(1.6) for _ in range(6))]
    free = choose(engine(*there))
    full = choose(engine(*there, kv_used=float(shape().kv_capacity_tokens)))
    assert rank(full) > rank(free)


def test_nobody_inside_and_nobody_to_come_parks_at_the_lowest_clock() -> None:
    """An idle engine with next to no traffic is parked."""
    decision = choose(engine(), load(0.01))
    assert decision.clock_mhz == model().clocks_mhz[0] and decision.binding is Binding.LOWEST


def test_a_promise_on_gaps_sets_a_floor() -> None:
    """A full step must fit the gap promised: lower clocks are out, whatever is to spend."""
    slo = replace(SLO, itl=SloTarget(0.4))
    free, bound = choose(steady(), slo=SLO), choose(steady(), slo=slo)
    assert rank(bound) > rank(free) and bound.binding is Binding.ITL
    impossible = choose(steady(), slo=replace(SLO, itl=SloTarget(0.05)))
    assert impossible.clock_mhz is None


def test_the_reason_names_the_promise_and_the_misses() -> None:
    """Operators read which promise binds, what the next lower clock would cost and what was spent."""
    decision = choose(steady(tbt_s=0.15), load(2.0), budget=spent(10.0))
    assert decision.binding in (Binding.E2E, Binding.TBT, Binding.TTFT)
    assert f"would break {decision.binding.value.upper()}" in decision.reason
    assert "10 of 2000 E2E" in decision.reason
    assert decision.next_lower is not None and not decision.next_lower.feasible


def test_lowering_waits_for_the_dwell_and_raising_does_not() -> None:
    """A clock just set is kept for the dwell unless a higher one is asked for."""
    held = choose(steady(), applied=Applied(model().clocks_mhz[-1], NOW_S - 0.2))
    assert held.binding is Binding.DWELL and held.clock_mhz == model().clocks_mhz[-1]
    late = engine(*(replace(r, arrival_s=NOW_S - 50.0) for r in steady().requests))
    raised = choose(late, applied=Applied(model().clocks_mhz[0], NOW_S - 0.2))
    assert rank(raised) > model().clocks_mhz[0]


def test_without_requests_one_by_one_the_aggregates_decide() -> None:
    """A poll knows counts only: the steady state of the traffic decides as before."""
    seen = replace(steady(), requests=())
    decision = choose(seen)
    assert decision.clock_mhz is not None and "expected" not in decision.reason


def test_rising_traffic_raises_the_clock_whatever_was_saved_up() -> None:
    """While more and more come no misses of quiet hours are spent: never a lower clock, here a higher one."""
    late, quiet = steady(40, tbt_s=0.15), spent(0.0)
    ranks = [rank(choose(late, replace(load(2.0), surge=surge), budget=quiet)) for surge in (0.0, 0.5, 1.0)]
    assert ranks == sorted(ranks) and ranks[-1] > ranks[0]
