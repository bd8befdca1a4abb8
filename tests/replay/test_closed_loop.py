"""The daemon's decisions around a simulated plant in virtual time: energy saved, promises kept."""

from __future__ import annotations

import numpy as np
import pytest

from kvwatt.compiled import CompiledModel, compile_model
from kvwatt.policy import PolicyParams
from kvwatt.profiles import table_of
from kvwatt.state import Slo, SloTarget
from kvwatt.training import Origin, train
from kvwatt_sim.cards import load
from kvwatt_sim.replay.closed_loop import Outcome, run_controlled, run_fixed
from kvwatt_sim.traces import TraceRequest
from kvwatt_sim.virtual_profile import virtual_profile
from kvwatt_sim.workload import generate

SLO = Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0))
CARD = load("l20")
SHAPE = CARD.engine_shape()
DURATION_S = 150.0


@pytest.fixture(scope="module")
def model() -> CompiledModel:
    trained = train(table_of(virtual_profile(CARD, seed=1)), Origin(CARD.gpu_name), folds=3, by_clock=False)
    return compile_model(trained, tuple(c for c in CARD.supported_mhz if c >= 900), SHAPE)


def attainment(outcome: Outcome) -> dict[str, float]:
    """Share of requests within each limit."""
    records = outcome.records
    assert records
    first = np.array([r.first_token_s or np.inf for r in records])
    last = np.array([r.last_token_s or np.inf for r in records])
    arrival = np.array([r.request.arrival_s for r in records])
    gaps = np.array([max(r.output_tokens - 1, 1) for r in records])
    return {
        "ttft": float(np.mean(first - arrival <= 3.0)),
        "tbt": float(np.mean((last - first) / gaps <= 0.2)),
        "e2e": float(np.mean(last - arrival <= 60.0)),
    }


def controlled(requests: tuple[TraceRequest, ...], model: CompiledModel) -> Outcome:
    return run_controlled(CARD, SHAPE, requests, model, SLO, DURATION_S, PolicyParams(reaction_s=0.8))


@pytest.mark.parametrize("seed", [101, 102])
def test_half_load_saves_energy_and_keeps_the_promises(model: CompiledModel, seed: int) -> None:
    """At half of capacity a quarter of the energy at least is saved with 99 % attainment."""
    requests = generate(1.5, DURATION_S, seed)
    default = run_fixed(CARD, SHAPE, requests, None, DURATION_S)
    ours = controlled(requests, model)
    assert ours.tokens == default.tokens
    assert 1.0 - ours.energy_j / default.energy_j > 0.25
    assert min(attainment(ours).values()) >= 0.99


def test_overload_is_served_as_fast_as_at_driver_default(model: CompiledModel) -> None:
    """Beyond capacity nothing is held back for energy's sake."""
    requests = generate(5.0, 60.0, 7)
    default = run_fixed(CARD, SHAPE, requests, None, 60.0)
    ours = run_controlled(CARD, SHAPE, requests, model, SLO, 60.0, PolicyParams(reaction_s=0.8))
    assert ours.duration_s <= 1.05 * default.duration_s


def test_the_same_run_gives_the_same_outcome(model: CompiledModel) -> None:
    """Replay is deterministic to the last joule."""
    requests = generate(1.0, 60.0, 5)
    first, second = (
        run_controlled(CARD, SHAPE, requests, model, SLO, 60.0, PolicyParams(reaction_s=0.8))
        for _ in range(2)
    )
    assert first.energy_j == second.energy_j
    assert first.clock_changes == second.clock_changes > 0


def test_energy_at_a_fixed_clock_is_power_times_time() -> None:
    """An empty plant draws its idle power."""
    empty = run_fixed(CARD, SHAPE, (), 900, 10.0)
    assert empty.energy_j / empty.duration_s == pytest.approx(CARD.power.idle_w, rel=0.35)
    assert empty.duration_s == pytest.approx(10.0)
