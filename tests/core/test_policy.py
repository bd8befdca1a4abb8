"""The decision: promises before joules, raise at once, lower with reason, default on every doubt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import SLO, model, shape, state, traffic

from kvwatt.operating import Factors
from kvwatt.policy import Applied, Bounds, PolicyParams, decide
from kvwatt.state import Binding, Decision, EngineState, Slo, SloTarget
from kvwatt.traffic import Traffic

PARAMS = PolicyParams()
LONG_AGO = Applied(None, 0.0)

loads = st.builds(
    traffic,
    arrival_per_s=st.floats(0.0, 8.0),
    output_mean=st.floats(5.0, 2000.0),
    prompt_mean=st.floats(10.0, 8000.0),
    unstarted=st.floats(0.0, 40.0),
    oldest_wait_s=st.floats(0.0, 10.0),
)
states = st.builds(state, running=st.integers(0, 256), waiting=st.integers(0, 200))


def choose(
    seen: EngineState | None = None,
    load: Traffic | None = None,
    slo: Slo = SLO,
    bounds: Bounds | None = None,
    applied: Applied = LONG_AGO,
) -> Decision:
    return decide(
        100.0, seen or state(), load or traffic(), shape(), model(), slo, bounds or Bounds(), PARAMS, applied
    )


def rank(decision: Decision) -> float:
    """Driver default is the fastest answer there is."""
    return float("inf") if decision.clock_mhz is None else decision.clock_mhz


@settings(max_examples=150, deadline=None)
@given(states, loads)
def test_a_chosen_clock_is_supported_and_keeps_every_promise(seen: EngineState, load: Traffic) -> None:
    """Whatever the state, the answer is driver default or a feasible clock of the model."""
    decision = choose(seen, load)
    assert decision.reason
    if decision.clock_mhz is None:
        return
    assert decision.clock_mhz in model().clocks_mhz
    chosen = decision.chosen
    assert chosen is not None and chosen.feasible
    assert chosen.ttft_s <= 3.0 and chosen.tbt_s <= 0.2 and chosen.e2e_s <= 60.0


def test_the_property_above_is_not_vacuous() -> None:
    """Ordinary traffic gets a clock below default, and saves power."""
    decision = choose()
    assert decision.clock_mhz is not None and decision.clock_mhz < max(model().clocks_mhz)
    assert decision.chosen is not None and decision.at_default is not None
    assert decision.chosen.power_w < 0.8 * decision.at_default.power_w


@settings(max_examples=60, deadline=None)
@given(states, loads)
def test_the_same_input_gives_the_same_decision(seen: EngineState, load: Traffic) -> None:
    """Decisions depend on nothing but their inputs."""
    assert choose(seen, load) == choose(seen, load)


@settings(max_examples=80, deadline=None)
@given(states, loads, st.floats(1.0, 3.0))
def test_no_feasible_clock_appears_when_steps_turn_out_slower(
    seen: EngineState, load: Traffic, factor: float
) -> None:
    """A larger calibration factor never makes an infeasible load feasible."""
    before = choose(seen, load)
    after = choose(seen, load, bounds=Bounds(Factors(factor, factor)))
    if before.binding is Binding.NONE:
        assert after.clock_mhz is None


@pytest.mark.parametrize("metric", ["ttft", "tbt", "e2e"])
def test_a_tighter_promise_never_lowers_the_clock(metric: str) -> None:
    """Tightening any limit raises the clock or leaves it."""
    clocks = []
    for share in (1.0, 0.7, 0.5, 0.35, 0.2, 0.1):
        slo = replace(SLO, **{metric: SloTarget(getattr(SLO, metric).limit_s * share)})
        clocks.append(rank(choose(slo=slo)))
    assert clocks == sorted(clocks)
    assert clocks[-1] > clocks[0]


def test_more_traffic_asks_for_a_higher_clock() -> None:
    """From a trickle to overload the clock rises to driver default."""
    clocks = [rank(choose(load=traffic(arrival_per_s=rate))) for rate in (0.5, 1.5, 2.5, 4.0, 9.0)]
    assert clocks == sorted(clocks)
    assert clocks[-1] == float("inf")


def test_a_burst_raises_at_once_despite_the_dwell() -> None:
    """The dwell holds a clock down changes only: a promise at risk is answered at once."""
    just_lowered = Applied(900, 99.95)
    burst = traffic(unstarted=5.0, oldest_wait_s=0.6)
    decision = choose(state(running=20, waiting=5), burst, applied=just_lowered)
    assert rank(decision) > 900
    assert decision.binding is not Binding.DWELL


def test_a_recent_change_is_kept_for_the_dwell() -> None:
    """Lowering waits until the last change is old enough."""
    held = choose(applied=Applied(1500, 99.5))
    assert held.clock_mhz == 1500 and held.binding is Binding.DWELL
    later = choose(applied=Applied(1500, 90.0))
    assert rank(later) < 1500


def test_a_gain_not_worth_a_switch_changes_nothing() -> None:
    """Within the minimum gain the clock stays."""
    best = choose()
    assert best.clock_mhz is not None
    neighbour = best.clock_mhz + 15
    kept = choose(applied=Applied(neighbour, 0.0))
    assert kept.clock_mhz == neighbour


@pytest.mark.parametrize(
    ("load", "bounds", "told"),
    [
        (traffic(exposure_s=1.0), Bounds(), "watching traffic"),
        (traffic(finished=2.0), Bounds(), "watching lengths"),
        (traffic(), Bounds(drifted=True), "no longer fits"),
    ],
)
def test_what_is_not_known_leads_to_driver_default(load: Traffic, bounds: Bounds, told: str) -> None:
    """Too little traffic seen or a model that drifted: default clocks, with the reason."""
    decision = choose(load=load, bounds=bounds)
    assert decision.clock_mhz is None
    assert told in decision.reason


def test_requests_waiting_for_kv_cache_get_the_fastest_drain() -> None:
    """A full KV cache is drained at driver default."""
    decision = choose(state(running=60, waiting=3, capacity=3))
    assert decision.clock_mhz is None and decision.binding is Binding.KV


def test_the_reason_names_what_the_next_lower_clock_would_break() -> None:
    """Operators read why the clock is not lower."""
    decision = choose(load=traffic(arrival_per_s=2.5))
    assert decision.next_lower is not None and not decision.next_lower.feasible
    assert f"would break {decision.binding.value.upper()}" in decision.reason


def test_without_promises_only_energy_and_capacity_count() -> None:
    """No promise configured: the clock of least energy that carries the traffic."""
    free = choose(slo=Slo())
    assert free.clock_mhz is not None
    assert rank(free) <= rank(choose())
