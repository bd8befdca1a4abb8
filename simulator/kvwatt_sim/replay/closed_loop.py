"""The daemon's own instance code around a plant in virtual time: what it would do, without waiting."""

from __future__ import annotations

from collections.abc import Sequence

from kvwatt.compiled import CompiledModel
from kvwatt.policy import PolicyParams
from kvwatt.state import EngineShape, Slo
from kvwatt_sim.cards import Card
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.traces import TraceRequest


def run_fixed(
    card: Card, shape: EngineShape, requests: Sequence[TraceRequest], clock_mhz: int | None, until_s: float
) -> Outcome:
    """Serve at one clock (None: driver default) until everything has finished and `until_s` is over."""
    return replay(card, shape, requests, FixedClock(clock_mhz), until_s)


def run_controlled(
    card: Card,
    shape: EngineShape,
    requests: Sequence[TraceRequest],
    model: CompiledModel,
    slo: Slo,
    until_s: float,
    params: PolicyParams,
    poll_s: float = 0.5,
    tick_s: float = 0.1,
    switch_latency_s: float = 0.2,
) -> Outcome:
    """Serve under the daemon's decisions, polled and ticked as live."""
    controller = KvwattController(card, shape, model, slo, params, poll_s, tick_s, switch_latency_s)
    return replay(card, shape, requests, controller, until_s, switch_latency_s)
