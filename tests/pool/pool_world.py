"""A small simulated pool in virtual time: members start, wake, drain; the planner is asked every period."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from kvwatt.capacity_table import CapacityTable
from kvwatt.pool import (
    LEGAL_FROM,
    ActionKind,
    EngineKind,
    Member,
    MemberStatus,
    PlanMemory,
    PoolParams,
    PoolPlan,
    PoolState,
    RateOutlook,
)
from kvwatt.pool_plan import plan

CLOCKS = (900, 1500, 2100, 2520)


def table(top_per_s: float = 3.0, idle_w: float = 74.0, busy_w: float = 230.0) -> CapacityTable:
    """An instance whose faster clocks carry more and cost more, convex in the rate."""
    share = np.array([0.45, 0.7, 0.9, 1.0])
    cost = np.array([0.62, 0.7, 0.85, 1.0])
    rates = np.linspace(0.0, top_per_s, 13)
    load = rates[:, None] / (top_per_s * share)
    watts = idle_w + (busy_w - idle_w) * cost * (1.0 - np.exp(-2.5 * load))
    return CapacityTable(CLOCKS, rates, watts, top_per_s * share)


def kind(name: str = "l20", gpus: int = 1, **changes: object) -> EngineKind:
    usual = EngineKind(
        name=name,
        gpus=gpus,
        start_s=90.0,
        start_j=9000.0,
        wake_s=10.0,
        wake_j=900.0,
        ready_idle_w=74.0 * gpus,
        asleep_w=60.0 * gpus,
        stopped_w=36.0 * gpus,
        can_sleep=False,
        can_stop=True,
        points=table(3.0 * gpus, 74.0 * gpus, 230.0 * gpus),
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@dataclass
class World:
    """`never_starts`: members whose start never comes. `outlook(now_s)`: what the planner is told."""

    kinds: dict[str, EngineKind]
    params: PoolParams
    outlook: Callable[[float], RateOutlook]
    members: dict[str, Member]
    never_starts: frozenset[str] = frozenset()
    now_s: float = 0.0
    memory: PlanMemory = field(default_factory=PlanMemory)
    plans: list[PoolPlan] = field(default_factory=list)
    ready_log: list[dict[str, int]] = field(default_factory=list)
    telemetry_ok: bool = True
    _due: dict[str, tuple[float, MemberStatus]] = field(default_factory=dict)

    def run(self, until_s: float) -> None:
        """One decision per period; what is asked is begun, legal or an AssertionError."""
        while self.now_s < until_s:
            self._mature()
            state = PoolState(
                self.now_s, tuple(self.members.values()), self.outlook(self.now_s), self.telemetry_ok
            )
            made = plan(state, self.kinds, self.params, self.memory)
            self.memory = made.memory
            self.plans.append(made)
            for action in made.actions:
                self.apply(action.member, action.action)
            self.ready_log.append(self.ready())
            self.now_s += self.params.period_s

    def ready(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for m in self.members.values():
            out[m.kind] = out.get(m.kind, 0) + (m.status is MemberStatus.READY)
        return out

    def changes(self, since_s: float) -> int:
        """How often the number of ready members changed after `since_s`."""
        first = int(since_s / self.params.period_s)
        totals = [sum(r.values()) for r in self.ready_log[first:]]
        return sum(a != b for a, b in pairwise(totals))

    def apply(self, name: str, action: ActionKind) -> None:
        member = self.members[name]
        assert member.status in LEGAL_FROM[action], (member, action)
        own = self.kinds[member.kind]
        if action is ActionKind.UNDRAIN:
            self._set(name, MemberStatus.READY)
            return
        if action is ActionKind.CANCEL_START:
            self._set(name, MemberStatus.STOPPED)
            return
        if action in (ActionKind.START, ActionKind.WAKE):
            self._hold_gpus(member)
            took_s = own.start_s if action is ActionKind.START else own.wake_s
            self._set(name, MemberStatus.STARTING)
            if name not in self.never_starts:
                self._due[name] = (self.now_s + took_s, MemberStatus.READY)
            return
        end = MemberStatus.ASLEEP if action is ActionKind.DRAIN_TO_SLEEP else MemberStatus.STOPPED
        took_s = 0.0 if member.status is MemberStatus.ASLEEP else 15.0
        self._set(name, MemberStatus.DRAINING)
        self._due[name] = (self.now_s + took_s, end)

    def _hold_gpus(self, member: Member) -> None:
        holding = {
            gpu
            for m in self.members.values()
            if m.status not in (MemberStatus.STOPPED, MemberStatus.FAILED) and m.name != member.name
            for gpu in m.gpus
        }
        assert not holding & member.gpus, f"{member.name} was started on GPUs that are held"

    def _mature(self) -> None:
        for name, (at_s, status) in list(self._due.items()):
            if self.now_s >= at_s:
                self._set(name, status)

    def _set(self, name: str, status: MemberStatus) -> None:
        self._due.pop(name, None)
        self.members[name] = replace(self.members[name], status=status, since_s=self.now_s)


def members(
    n: int, ready: int, name: str = "l20", off: MemberStatus = MemberStatus.STOPPED
) -> dict[str, Member]:
    made: Iterable[Member] = (
        Member(f"{name}-{i}", name, MemberStatus.READY if i < ready else off, 0.0) for i in range(n)
    )
    return {m.name: m for m in made}
