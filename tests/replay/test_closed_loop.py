"""The daemon's decisions around a simulated plant in virtual time: energy saved, promises kept."""

from __future__ import annotations

import pytest

from kvwatt.policy import PolicyParams
from kvwatt.state import Slo, SloTarget
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.scenario import clocks, plant
from kvwatt_sim.traces import TraceRequest
from kvwatt_sim.workload import generate

SLO = Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0))
CARD = plant("l20")
SHAPE = CARD.engine_shape()
DURATION_S = 150.0


def at_default(requests: tuple[TraceRequest, ...], until_s: float) -> Outcome:
    return replay(CARD, SHAPE, requests, FixedClock(None), until_s)


def controlled(requests: tuple[TraceRequest, ...], until_s: float, tapped: bool = True) -> Outcome:
    model = compiled_model(CARD, clocks(CARD), SHAPE)
    controller = KvwattController(CARD, SHAPE, model, SLO, PolicyParams(reaction_s=0.8), tapped=tapped)
    return replay(CARD, SHAPE, requests, controller, until_s)


@pytest.mark.parametrize("tapped", [True, False])
@pytest.mark.parametrize("seed", [101, 102])
def test_half_load_saves_energy_and_keeps_the_promises(seed: int, tapped: bool) -> None:
    """At half of capacity a quarter of the energy at least is saved with 99 % attainment."""
    requests = generate(1.5, DURATION_S, seed)
    default, ours = at_default(requests, DURATION_S), controlled(requests, DURATION_S, tapped)
    assert ours.tokens == default.tokens
    assert 1.0 - ours.energy_j / default.energy_j > 0.25
    assert min(ours.attainment(SLO).values()) >= 0.99


def test_overload_is_served_as_fast_as_at_driver_default() -> None:
    """Beyond capacity nothing is held back for energy's sake."""
    requests = generate(5.0, 60.0, 7)
    assert controlled(requests, 60.0).duration_s <= 1.05 * at_default(requests, 60.0).duration_s


def test_the_same_run_gives_the_same_outcome() -> None:
    """Replay is deterministic to the last joule."""
    requests = generate(1.0, 60.0, 5)
    first, second = (controlled(requests, 60.0) for _ in range(2))
    assert first.energy_j == second.energy_j
    assert first.clock_changes == second.clock_changes > 0


def test_energy_at_a_fixed_clock_is_power_times_time() -> None:
    """An empty plant draws its idle power."""
    empty = replay(CARD, SHAPE, (), FixedClock(900), 10.0)
    assert empty.energy_j / empty.duration_s == pytest.approx(CARD.power.idle_w, rel=0.35)
    assert empty.duration_s == pytest.approx(10.0)
