"""Small cases for the tests of rivals and oracle."""

from __future__ import annotations

from kvwatt.state import Slo, SloTarget
from kvwatt_sim.cards import load
from kvwatt_sim.replay.scenario import Case, Promises, clocks, horizon_s
from kvwatt_sim.workload import generate

CARD = load("l20")
SHAPE = CARD.engine_shape()
SLO = Slo(SloTarget(5.0), SloTarget(0.2), SloTarget(50.0))


def small(rate_per_s: float, duration_s: float, seed: int, slo: Slo = SLO, every: int = 12) -> Case:
    """Built-in conversations on the L20; every twelfth clock may be locked."""
    requests = generate(rate_per_s, duration_s, seed)
    some = clocks(CARD)[::every]
    return Case(CARD, some, SHAPE, requests, Promises(slo), horizon_s(requests))
