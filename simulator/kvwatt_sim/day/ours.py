"""kvwatt itself: the daemon's clocks on every member, and `pool_plan.plan` over their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvwatt.forecast import RateLearner
from kvwatt.policy import PolicyParams
from kvwatt.pool import EngineKind, PlanMemory, PoolAction, PoolParams, PoolPlan, PoolState
from kvwatt.pool_plan import plan
from kvwatt.queueing import CapacityTable
from kvwatt_sim.day.clocks import Maker
from kvwatt_sim.day.pool import View
from kvwatt_sim.day.server import Clocks, Kind
from kvwatt_sim.day.setting import Setting
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.models import compiled_model

PERIOD_S = 0.25  # between clock decisions; 0.1 in the daemon: what a day of four members takes to replay


class Kvwatt(KvwattController):
    """The daemon's own code for one instance. What it learned survives a start, as in the daemon."""

    def resumed(self, now_s: float, restarted: bool) -> None:
        if now_s == 0.0:
            return
        self._ticks = 0  # page and readings come at once
        self.run.on_applied(None, now_s)
        if restarted:
            self.run.observation.estimator.restart()


def kvwatt_clocks(setting: Setting) -> Maker:
    """kvwatt with its usual settings and a model trained on the plant's profile."""

    def make(kind: Kind) -> Clocks:
        return Kvwatt(
            kind.card,
            kind.shape,
            compiled_model(kind.card, kind.clocks_mhz, kind.shape),
            setting.promises.slo,
            PolicyParams(reaction_s=0.8),
            period_s=PERIOD_S,
        )

    return make


@dataclass
class Planner:
    """A scaler that asks `plan`. `plans`: what it said, newest last."""

    kinds: Mapping[str, EngineKind]
    params: PoolParams
    learner: RateLearner = field(default_factory=RateLearner)
    plans: list[PoolPlan] = field(default_factory=list, init=False)
    _memory: PlanMemory = field(default_factory=PlanMemory, init=False)
    _asked_s: float = field(default=0.0, init=False)

    @property
    def period_s(self) -> float:
        return self.params.period_s

    def actions(self, view: View) -> Sequence[PoolAction]:
        if view.now_s > self._asked_s:
            self.learner.observe(self._asked_s, view.now_s - self._asked_s, view.arrivals)
        self._asked_s = view.now_s
        rate = self.learner.forecast(view.now_s)
        if rate is None:
            return ()
        state = PoolState(view.now_s, view.members, rate, telemetry_ok=True)
        made = plan(state, self.kinds, self.params, self._memory)
        self._memory = made.memory
        self.plans.append(made)
        return made.actions


def engine_kind(kind: Kind, points: CapacityTable, parked_w: float, can_sleep: bool) -> EngineKind:
    """What the planner is told of a kind. `parked_w`: of one free GPU."""
    stopped_w = kind.card.tp * parked_w
    return EngineKind(
        name=kind.name,
        gpus=kind.card.tp,
        start_s=kind.start_s,
        start_j=(kind.starting_w - stopped_w) * kind.start_s,
        wake_s=kind.wake_s,
        wake_j=max(kind.starting_w - kind.asleep_w, 0.0) * kind.wake_s,
        ready_idle_w=kind.ready_idle_w,
        asleep_w=kind.asleep_w,
        stopped_w=stopped_w,
        can_sleep=can_sleep,
        can_stop=True,
        points=points,
    )
