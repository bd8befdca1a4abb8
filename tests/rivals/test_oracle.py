"""Bound, best found and every policy that keeps its promises stand in this order."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rival_cases import CARD, SHAPE, small

from kvwatt.state import Slo, SloTarget
from kvwatt_sim.replay import laws
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.oracle import best_found, run_schedule
from kvwatt_sim.replay.oracle_bound import _Program, lower_bound_j
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.policies import worst_attainment
from kvwatt_sim.replay.rivals import RIVALS
from kvwatt_sim.replay.rivals.hindsight import best_clock, best_pair
from kvwatt_sim.replay.scenario import Case

COVERED = ("throttllem", "voltana", "race-to-idle", "best-pair")  # lock permitted clocks only


def kept(case: Case, outcome: Outcome) -> bool:
    return worst_attainment(case, outcome) >= 0.99


@pytest.mark.parametrize(("rate_per_s", "seed"), [(0.3, 201), (1.0, 202), (2.0, 203), (2.6, 204)])
def test_bound_below_best_found_below_every_policy_that_keeps_its_promises(
    rate_per_s: float, seed: int
) -> None:
    """bound <= best found <= the schedule it began with, and the bound is below everything feasible."""
    case = small(rate_per_s, 300.0, seed)
    bound_j = lower_bound_j(case)
    clock, fixed = best_clock(case)
    found = best_found(case, [[clock]], rounds=60)
    assert kept(case, fixed)
    assert found is not None
    assert kept(case, found.outcome)
    assert 0.0 < bound_j <= found.outcome.energy_j <= fixed.energy_j
    served = [outcome for outcome in (RIVALS[name](case) for name in COVERED) if kept(case, outcome)]
    served += [replay(case.card, case.shape, case.requests, FixedClock(None), case.until_s)]
    assert len(served) >= 2
    assert all(bound_j <= outcome.energy_j for outcome in served)


def test_the_bound_says_something() -> None:
    """It is far above the power of idling alone, and rises with the load."""
    bounds = [lower_bound_j(small(rate, 300.0, 205)) / 360.0 for rate in (0.3, 2.6)]
    idle_w = 65.4  # at 900 MHz
    assert idle_w < bounds[0]
    assert bounds[1] > 1.4 * bounds[0]


def test_tighter_promises_never_lower_the_bound() -> None:
    """Less time for each request leaves less to share."""
    tight = Slo(SloTarget(5.0), SloTarget(0.05), SloTarget(15.0))
    assert lower_bound_j(small(1.5, 300.0, 206, tight)) >= lower_bound_j(small(1.5, 300.0, 206))


def test_no_bound_without_promises_on_which_it_rests() -> None:
    """A request that may wait for ever can be served with any company."""
    with pytest.raises(ValueError, match="TBT and E2E"):
        lower_bound_j(small(1.0, 60.0, 207, Slo(SloTarget(5.0))))


def test_the_search_is_deterministic() -> None:
    """Same case, starts, rounds and seed: same schedule."""
    case = small(1.5, 200.0, 208)
    first, second = (best_found(case, [[1500]], rounds=20) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.clocks_mhz == second.clocks_mhz


def test_a_schedule_of_one_clock_is_that_fixed_clock() -> None:
    """The search's own replay is the common one."""
    case = small(1.0, 200.0, 209)
    fixed = replay(case.card, case.shape, case.requests, FixedClock(1260), case.until_s)
    scheduled = run_schedule(case, [1260] * 60).outcome
    assert scheduled.energy_j == pytest.approx(fixed.energy_j, rel=1e-9)
    assert scheduled.served.last_s == pytest.approx(fixed.served.last_s)


def test_promises_that_nothing_keeps_are_not_found() -> None:
    """None instead of a schedule that breaks its promises."""
    case = small(1.0, 100.0, 210, Slo(SloTarget(0.01), SloTarget(0.2), SloTarget(50.0)))
    assert best_found(case, [[1260]], rounds=3) is None


def test_a_pair_is_at_least_as_good_as_one_clock() -> None:
    """One clock is the pair of it twice."""
    case = small(2.0, 200.0, 211)
    assert best_pair(case).energy_j <= best_clock(case)[1].energy_j


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_prices_hold_for_every_load_and_clock(data: st.DataObject) -> None:
    """(*) of the bound: no step that the engine can make costs less than its work is worth."""
    case, program, prices = _priced()
    f = data.draw(st.sampled_from([c for c in CARD.supported_mhz if c >= case.clocks_mhz[0]]))
    k = data.draw(st.integers(0, SHAPE.max_num_seqs))
    n = data.draw(st.integers(0 if k else 1, SHAPE.max_num_batched_tokens - k))
    prompts = [r.prompt_tokens for r in case.requests]
    longest = max(r.prompt_tokens + r.output_tokens for r in case.requests)
    c = k * data.draw(st.integers(min(prompts), longest))
    q = n * data.draw(st.floats(0.0, 4000.0))
    args = [np.array([float(value)]) for value in (f, k, c, n, q)]
    done = laws.work(CARD, *args)
    lowest = np.array([float(case.clocks_mhz[0])])
    resting = laws.Work(done.time_s, np.zeros(1), np.zeros(1))
    g_j = laws.energy_j(CARD, args[0], done) - laws.energy_j(CARD, lowest, resting)
    a, b, d, e, m, v = prices
    assert program.value(prices) > 0.0
    assert g_j + (m + v * k) * done.time_s >= (a * k + b * n + d * c + e * q) * (1.0 - 1e-9)


@cache
def _priced() -> tuple[Case, _Program, list[float]]:
    case = small(2.0, 300.0, 212, every=1)
    program = _Program(case, 0.2, 50.0)
    prices = program.solve()
    while program.cut(prices):
        prices = program.solve()
    return case, program, [float(price) for price in program.safe(prices)]


@given(clocks=st.lists(st.sampled_from((900, 1260, 1620, 2520)), min_size=5, max_size=25))
@settings(max_examples=30, deadline=None)
def test_no_schedule_that_keeps_its_promises_beats_the_bound(clocks: list[int]) -> None:
    """Whatever the clocks: a run that keeps the promises costs more than the bound."""
    case, bound_j = _bounded()
    outcome = run_schedule(case, [clock for clock in clocks for _ in range(2)]).outcome
    if kept(case, outcome):
        assert outcome.energy_j >= bound_j


@cache
def _bounded() -> tuple[Case, float]:
    case = small(1.5, 200.0, 213)
    return case, lower_bound_j(case)
