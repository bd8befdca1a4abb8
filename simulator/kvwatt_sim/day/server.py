"""One member of a virtual pool: an engine on its GPUs that is started, serves, is drained and stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import numpy as np

from kvwatt.pool import LEGAL_FROM, ActionKind, Member, MemberStatus
from kvwatt.state import EngineShape
from kvwatt_sim.cards import Card
from kvwatt_sim.gpu import power_w
from kvwatt_sim.replay.controller import Controller
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.traces import TraceRequest

RUNS = frozenset({MemberStatus.READY, MemberStatus.DRAINING})
HOLDS = RUNS | {MemberStatus.STARTING, MemberStatus.ASLEEP}  # its GPUs are nobody else's
SWITCH_LATENCY_S = 0.2


class PoolError(RuntimeError):
    """An action that its member's state does not permit, or a request to one that is not ready."""


class Clocks(Controller, Protocol):
    """Who sets a member's clock; told when the engine begins to serve again, at driver default."""

    def resumed(self, now_s: float, restarted: bool) -> None:
        """`restarted`: the process is a new one; otherwise it slept."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One engine shape. Watts are of the whole group.

    `start_s`: from no process to ready; `wake_s`: from asleep. `asleep_w`: process and context held.
    `starting_w` is drawn while starting or waking. `capacity_per_s`: see `replay.scenario.Capacity`."""

    name: str
    card: Card
    shape: EngineShape
    clocks_mhz: tuple[int, ...]
    capacity_per_s: float
    start_s: float
    wake_s: float
    starting_w: float
    asleep_w: float

    @property
    def ready_idle_w(self) -> float:
        """Ready without requests, at the lowest clock that may be locked."""
        return self.card.tp * power_w(self.card, self.clocks_mhz[0], 0.0, 0.0)


class Server:
    """Driven by `advance`; `energy_j` is what its GPUs took while it held them."""

    def __init__(
        self, name: str, kind: Kind, gpus: frozenset[str], clocks: Callable[[], Clocks], room: int
    ) -> None:
        """`room`: for how many requests at most."""
        self.name, self.kind, self.gpus = name, kind, gpus
        self.status, self.since_s = MemberStatus.STOPPED, 0.0
        self.given = 0
        self._plant = VirtualPlant(kind.card, kind.shape, (), room)
        self._clocks = clocks()
        self._arrived_s: list[float] = []
        self._held: int | None = None
        self._next_s = self._change_s = inf
        self._then = self._before = MemberStatus.STOPPED
        self._changes, self._at_s = 0, 0.0
        self._spent_j = self._base_j = 0.0

    @property
    def unfinished(self) -> int:
        """Requests that are inside."""
        return self._plant.unfinished

    @property
    def energy_j(self) -> float:
        return self._spent_j + self._plant.energy_j - self._base_j

    @property
    def clock_mhz(self) -> int:
        return self._plant.clock_mhz

    @property
    def view(self) -> Member:
        """As a planner sees it."""
        p = self._plant
        seen = (p.running, p.waiting, max(p.kv_usage, 0.0)) if self.status in RUNS else (0, 0, 0.0)
        return Member(self.name, self.kind.name, self.status, self.since_s, *seen, self.gpus)

    def begin_ready(self) -> None:
        """Serve from the start of the day on."""
        self._serve(restarted=True)

    def advance(self, until_s: float) -> None:
        """Run until `until_s`, asking for the clock as often as is due."""
        if self.status in RUNS:
            self._run(until_s)
        else:
            self._spent_j += self._resting_w() * (until_s - self._at_s)
        self._at_s = until_s

    def _resting_w(self) -> float:
        if self.status is MemberStatus.STARTING:
            return self.kind.starting_w
        return self.kind.asleep_w if self.status is MemberStatus.ASLEEP else 0.0

    def _run(self, until_s: float) -> None:
        plant = self._plant
        while plant.now_s < until_s - 1e-12:
            plant.advance(min(self._next_s, until_s))
            if plant.now_s >= self._next_s - 1e-9:
                self._ask()

    def _ask(self) -> None:
        self._next_s += self._clocks.period_s
        target = self._clocks.target(self._plant.now_s, self._plant)
        if target != self._held:
            self._plant.set_clock(target, SWITCH_LATENCY_S)
            self._held, self._changes = target, self._changes + 1

    def give(self, request: TraceRequest) -> None:
        """A request, now. Raises PoolError where this member is not ready."""
        if self.status is not MemberStatus.READY:
            raise PoolError(f"{self.name} is {self.status}: a request was sent to it")
        self._arrived_s.append(request.arrival_s)
        self._plant.add(replace(request, arrival_s=max(request.arrival_s, self._at_s)))
        self.given += 1

    def begin(self, action: ActionKind) -> None:
        """Start what `action` says. Raises PoolError where it is not legal."""
        if self.status not in LEGAL_FROM[action]:
            raise PoolError(f"{self.name} is {self.status}: {action} is not legal")
        if action in (ActionKind.START, ActionKind.WAKE):
            self._before = self.status
            wait_s = self.kind.start_s if action is ActionKind.START else self.kind.wake_s
            self._become(MemberStatus.STARTING)
            self._change_s = self._at_s + wait_s
        elif action is ActionKind.CANCEL_START:
            self._change_s = inf
            self._become(self._before)
        elif action is ActionKind.UNDRAIN:
            self._become(MemberStatus.READY)
        else:
            stops = action is ActionKind.DRAIN_TO_STOP
            self._then = MemberStatus.STOPPED if stops else MemberStatus.ASLEEP
            self._become(MemberStatus.DRAINING if self.status is MemberStatus.READY else self._then)

    def settle(self) -> None:
        """Finish a start or a drain that is through by now."""
        if self.status is MemberStatus.STARTING and self._at_s >= self._change_s - 1e-9:
            self._serve(restarted=self._before is not MemberStatus.ASLEEP)
        elif self.status is MemberStatus.DRAINING and self.unfinished == 0:
            self._become(self._then)

    def _serve(self, restarted: bool) -> None:
        """From now on it runs: at driver default, as every engine that comes up."""
        plant, self._change_s = self._plant, inf
        self._spent_j = self.energy_j
        plant.set_clock(None, 0.0)
        plant.advance(self._at_s)
        self._base_j = plant.energy_j
        self._held, self._next_s = None, self._at_s
        self._clocks.resumed(self._at_s, restarted)
        self._become(MemberStatus.READY)
        self._ask_at_start()

    def _ask_at_start(self) -> None:
        target = self._clocks.target(self._at_s, self._plant)
        self._plant.set_clock(target, 0.0 if self._at_s == 0.0 else SWITCH_LATENCY_S)
        self._held, self._next_s = target, self._at_s + self._clocks.period_s

    def _become(self, status: MemberStatus) -> None:
        if status not in RUNS and self.status in RUNS:
            self._spent_j, self._base_j = self.energy_j, self._plant.energy_j
        self.status, self.since_s = status, self._at_s

    def outcome(self) -> Outcome:
        """What it served; arrivals are those at the router."""
        done = self._plant.outcome(self._changes)
        arrived_s = np.array(self._arrived_s, dtype=np.float64)[done.served.index]
        return replace(done, energy_j=self.energy_j, served=replace(done.served, arrival_s=arrived_s))
