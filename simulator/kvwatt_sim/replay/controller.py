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


class Drive:
    """A controller at the wheel of a plant: asks it every `period_s` and sets the clock that it names.

    The first clock is in force from the start; each later one `switch_latency_s` after it was asked for.
    """

    def __init__(self, plant: VirtualPlant, controller: Controller, switch_latency_s: float = 0.2) -> None:
        self.plant = plant
        self._controller = controller
        self._latency_s = switch_latency_s
        self._held = controller.target(0.0, plant)
        self._asked, self._changes = 1, 0
        plant.set_clock(self._held, 0.0)

    def advance(self, until_s: float) -> None:
        """Run until `until_s`, asking as often as is due."""
        plant, period_s = self.plant, self._controller.period_s
        while plant.now_s < until_s - 1e-12:
            plant.advance(min(self._asked * period_s, until_s))
            if plant.now_s >= self._asked * period_s - 1e-9:
                self._ask()

    def _ask(self) -> None:
        self._asked += 1
        target = self._controller.target(self.plant.now_s, self.plant)
        if target != self._held:
            self.plant.set_clock(target, self._latency_s)
            self._held, self._changes = target, self._changes + 1

    def finish(self, until_s: float) -> Outcome:
        """Run until `until_s` is over and everything has finished."""
        self.advance(until_s)
        while not self.plant.done:
            self.advance(self.plant.now_s + DRAIN_STEP_S)
        return self.plant.outcome(self._changes)


def replay(
    card: Card,
    shape: EngineShape,
    requests: Sequence[TraceRequest],
    controller: Controller,
    until_s: float,
    switch_latency_s: float = 0.2,
) -> Outcome:
    """Serve `requests` under `controller` until `until_s` is over and everything has finished."""
    return Drive(VirtualPlant(card, shape, requests), controller, switch_latency_s).finish(until_s)


def replay_group(
    card: Card,
    shape: EngineShape,
    requests: Sequence[TraceRequest],
    controllers: Sequence[Controller],
    until_s: float,
    switch_latency_s: float = 0.2,
) -> list[Outcome]:
    """The same over one plant per controller: a request goes where the fewest are unfinished when it comes,
    among those to the plant that had the fewest so far."""
    drives = [Drive(VirtualPlant(card, shape, (), len(requests)), c, switch_latency_s) for c in controllers]
    given = [0] * len(drives)
    for request in requests:
        for drive in drives:
            drive.advance(request.arrival_s)
        least = min(range(len(drives)), key=lambda i: (drives[i].plant.unfinished, given[i]))
        drives[least].plant.add(request)
        given[least] += 1
    return [drive.finish(until_s) for drive in drives]
