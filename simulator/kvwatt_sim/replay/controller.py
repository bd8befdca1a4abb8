"""Who sets the clock, and the loop that asks: every policy, kvwatt included, is driven by `replay`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from kvwatt.state import EngineShape
from kvwatt_sim.cards import Card
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.traces import TraceRequest

DRAIN_STEP_S = 1.0


class Controller(Protocol):
    """A policy. It may read of the plant what its source's authors could read, and keep a state of its
    own; one object drives one run."""

    @property
    def period_s(self) -> float:
        """Virtual seconds between two questions; inf: asked once, at the start."""

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        """The clock to hold from now on, MHz; None leaves it to the driver."""


@dataclass(frozen=True, slots=True)
class FixedClock:
    """One clock for the whole run; None: driver default."""

    clock_mhz: int | None = None
    period_s: float = inf

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        return self.clock_mhz


def replay(
    card: Card,
    shape: EngineShape,
    requests: Sequence[TraceRequest],
    controller: Controller,
    until_s: float,
    switch_latency_s: float = 0.2,
) -> Outcome:
    """Serve `requests` under `controller` until `until_s` is over and everything has finished.

    The first clock is in force from the start; each later one `switch_latency_s` after it was asked for.
    """
    plant = VirtualPlant(card, shape, requests)
    held = controller.target(0.0, plant)
    plant.set_clock(held, 0.0)
    changes, asked = 0, 1
    while plant.now_s < until_s or not plant.done:
        over_s = until_s if plant.now_s < until_s else plant.now_s + DRAIN_STEP_S
        plant.advance(min(asked * controller.period_s, over_s))
        if plant.now_s < asked * controller.period_s - 1e-9:
            continue
        asked += 1
        target = controller.target(plant.now_s, plant)
        if target != held:
            plant.set_clock(target, switch_latency_s)
            held, changes = target, changes + 1
    return plant.outcome(changes)
