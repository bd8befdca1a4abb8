"""Capacity as kvwatt models it, for the planner."""

from __future__ import annotations

from collections.abc import Sequence

from kvwatt.queueing import CapacityTable, Demand, InstanceQueue, MixedQueue, Regime, capacity_table
from kvwatt.state import Slo
from kvwatt_sim import virtual_profile
from kvwatt_sim.day.server import Kind
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.plant import MAX_TOKENS
from kvwatt_sim.replay.scenario import fitted
from kvwatt_sim.traces import TraceRequest

TABLE_CLOCKS, TABLE_RATES = 6, 9  # a coarse table: made in seconds
GROUPS = 3
DISPERSION = 1.15  # of counts within minutes, behind a router that spreads evenly


def model_table(kind: Kind, source: Sequence[TraceRequest], slo: Slo) -> CapacityTable:
    """Capacity as kvwatt models it: its trained step times, the queueing model, lengths and burstiness
    as a daemon that saw `source` has learned them. No replay goes into it.

    Lengths move with the minutes: those of GROUPS of minutes, by their prompt tokens, are told apart. The
    rate is the forecast's, so it is the same in all of them."""
    clocks = virtual_profile.spread(kind.clocks_mhz, TABLE_CLOCKS)
    model = compiled_model(kind.card, clocks, kind.shape)
    groups = _groups(fitted(kind.card, source))
    minutes = sum(count for count, _ in groups)
    regimes = [
        Regime(count / minutes, 1.0, InstanceQueue(model, kind.shape, _demand(group)))
        for count, group in groups
    ]
    return capacity_table(MixedQueue(regimes), slo, rates=TABLE_RATES)


def _groups(source: Sequence[TraceRequest]) -> list[tuple[int, list[TraceRequest]]]:
    """Whole minutes of each group, and the requests in them."""
    by_minute: dict[int, list[TraceRequest]] = {}
    for request in source:
        by_minute.setdefault(int(request.arrival_s / 60.0), []).append(request)
    by_minute.pop(max(by_minute))
    ordered = sorted(by_minute.values(), key=lambda minute: sum(r.prompt_tokens for r in minute))
    parts = [ordered[i * len(ordered) // GROUPS : (i + 1) * len(ordered) // GROUPS] for i in range(GROUPS)]
    return [(len(part), [request for minute in part for request in minute]) for part in parts]


def _demand(group: Sequence[TraceRequest]) -> Demand:
    prompts, outputs = zip(*((r.prompt_tokens, min(r.output_tokens, MAX_TOKENS)) for r in group), strict=True)
    return Demand.of(prompts, outputs, DISPERSION)
