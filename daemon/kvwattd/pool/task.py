"""The pool's task: looks at the members every second, plans every few, and hands its orders to the scaler.

    pages of the members --> arrivals --> forecast --+
    scaler (backend, router, probe) --> members -----+--> plan() --> scaler.apply   (mode active)
    models --> kinds (capacity, power, start-up) ----+          '-> told only       (shadow, off)

A task of its own: the tick waits for nothing here. What fails outside (telemetry, router, backend) never
takes an instance away; it is told, and passes without a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from math import isfinite
from typing import Protocol

from kvwatt.pool import (
    EngineKind,
    Member,
    MemberStatus,
    PlanMemory,
    PoolAction,
    PoolParams,
    PoolPlan,
    PoolState,
    RateOutlook,
)
from kvwattd.config import Config
from kvwattd.instance import InstanceRuntime
from kvwattd.instances.http_sd import Listed
from kvwattd.instances.scaler import Refusal, Scaler
from kvwattd.pool import seen
from kvwattd.pool.arrivals import Arrivals, Window
from kvwattd.pool.counts import ScaleCounts
from kvwattd.pool.limits import limits_of
from kvwattd.pool.manual import ManualScale, in_force
from kvwattd.pool.minimum import to_minimum
from kvwattd.pool.record import PlanRecord
from kvwattd.pool.shares import Shares, Weigh

log = logging.getLogger(__name__)

STEP_S = 1.0


class Kinds(Protocol):
    """What is known of each kind of engine; `pool.kinds.KindBook` learns it."""

    def refresh(self, members: tuple[Member, ...], now_s: float) -> None:
        """Take up models, readings and start-up times that are new. Heavy work is done elsewhere."""

    def known(self) -> Mapping[str, EngineKind]:
        """Those whose capacity is known."""

    async def close(self) -> None:
        """End what is done elsewhere."""


class Learner(Protocol):
    """Learns the rate; `pool.pace.PacedLearner`."""

    def observe(self, start_s: float, dt_s: float, arrivals: float) -> None: ...
    def forecast(self, now_s: float) -> RateOutlook | None: ...


Planner = Callable[[PoolState, Mapping[str, EngineKind], PoolParams, PlanMemory], PoolPlan]


class Pool:
    """Owns the scaler and everything that the plan remembers."""

    def __init__(
        self,
        runs: Mapping[str, InstanceRuntime],
        scaler: Scaler,
        kinds: Kinds,
        new_learner: Callable[[], Learner],
        planner: Planner,
        params: PoolParams,
        counts: ScaleCounts,
        now: Callable[[], float],
        lowest_mhz: Callable[[InstanceRuntime], int | None],
        names: tuple[str, str],
        targets: Callable[[tuple[Member, ...], bool], tuple[Listed, ...] | None],
        gone: Callable[[str], None],
        release: Callable[[], Awaitable[None]],
        weigh: Weigh | None = None,
    ) -> None:
        self._runs = runs
        self.scaler = scaler
        self.kinds = kinds
        self._new_learner = new_learner
        self._learner = new_learner()
        self._planner = planner
        self.params = params
        self.counts = counts
        self._now = now
        self._lowest_mhz = lowest_mhz
        self.backend, self.router = names
        self._targets = targets
        self._gone, self._release = gone, release
        self._shares = Shares(weigh)
        self._arrivals = Arrivals()
        # What an earlier run changed, and how the traffic moves, is not known yet: as after a change.
        self._memory = PlanMemory(last_up_s=now())
        self._failed_calls = 0
        self._plan_s = 0.0
        self.plans = PlanRecord()
        self.forecast: RateOutlook | None = None
        self.manual: ManualScale | None = None
        self.fault: str | None = "nothing was looked at yet"

    def targets(self) -> tuple[Listed, ...] | None:
        """Where requests may be sent; None while that is not known."""
        return self._targets(self.scaler.members(), self.scaler.acting)

    def follow(self, config: Config) -> None:
        """Other limits and times from now on."""
        self.params, self.scaler.params = limits_of(config)

    def set_manual(self, manual: ManualScale | None) -> None:
        """A number by hand, or back to automatic; planned for at the next step."""
        self.manual = manual
        self._plan_s = self._now()

    async def run(self) -> None:
        """Step and plan until cancelled, at absolute deadlines; what is late is left out."""
        for name in self._runs:
            self._runs[name].park("not looked at yet in the pool")
        due_s = self._plan_s = self._now()
        try:
            while True:
                await self._guarded(self.step)
                if self._now() >= self._plan_s:
                    self._plan_s = max(self._plan_s + self.params.period_s, self._now())
                    await self._guarded(self.plan)
                due_s = max(due_s + STEP_S, self._now())
                await asyncio.sleep(due_s - self._now())
        finally:
            await self.kinds.close()
            await self.scaler.close()
            await self._release()

    async def _guarded(self, job: Callable[[], Awaitable[None]]) -> None:
        """A fault of ours must not end the daemon that guards the clocks: told, and tried again."""
        try:
            await job()
        except Exception as error:
            log.exception("pool: %s", error)
            self.fault = f"an internal error: {error}"
            for run in self._runs.values():  # nobody rests for certain any more
                run.unpark()

    async def step(self) -> None:
        """Move on what can move, and expect of every engine what its status says."""
        await self.scaler.step()
        for event in self.scaler.take_events():
            self.counts.on_event(event)
            if event.status in (MemberStatus.STOPPED, MemberStatus.FAILED):
                self._gone(event.member)
        for member in self.scaler.members():
            run = self._runs[member.name]
            seen.park(member, run, self.scaler.reason_of(member.name), self._lowest_mhz(run))

    async def plan(self) -> None:
        """One plan, carried out where the scaler acts."""
        now_s, members = self._now(), self.scaler.members()
        self.manual = in_force(self.manual, now_s)
        self._learn(now_s, members)
        self.kinds.refresh(members, now_s)
        params = self.params if self.manual is None else self.manual.over(self.params)
        plan = self._planned(now_s, members, params)
        self._memory = plan.memory
        refused = await self._apply(plan.actions) if self.scaler.acting else ()
        if self.scaler.acting:
            await self._shares.keep(members, self.kinds.known())
        blind = self.fault is not None
        self.plans.add(plan, self.manual is not None, blind, self.scaler.acting, refused)

    def _planned(self, now_s: float, members: tuple[Member, ...], params: PoolParams) -> PoolPlan:
        """The planner's, or the minimum while the rate or every capacity is unknown."""
        kinds = self.kinds.known()
        known = tuple(member for member in members if member.kind in kinds)
        if self.forecast is None or not known:
            why = "no model and lengths of answers yet" if not known else "no rate of requests yet"
            return to_minimum(now_s, members, params, self._memory, why)
        seen_per_s = self._arrivals.seen_per_s
        state = PoolState(now_s, known, self.forecast, self.fault is None, seen_per_s)
        return self._planner(state, kinds, params, self._memory)

    def _learn(self, now_s: float, members: tuple[Member, ...]) -> None:
        errors = sum(self.scaler.errors.values())
        fault = seen.fault(members, self._runs, now_s, errors - self._failed_calls)
        self._failed_calls = errors
        window = self._arrivals.window(now_s, seen.pages(members, self._runs, now_s))
        self._fold(window, now_s)
        if (fault is None) != (self.fault is None):
            level = logging.INFO if fault is None else logging.WARNING
            log.log(level, "pool: %s", fault or "all is seen")
        self.fault = fault

    def _fold(self, window: Window | None, now_s: float) -> None:
        if window is not None:
            self._learner.observe(window.start_s, window.dt_s, window.arrivals)
        try:
            self.forecast = self._learner.forecast(now_s)
            sane = self.forecast is None or self._sane(self.forecast)
        except (ValueError, ArithmeticError):
            sane = False
        if not sane:
            log.warning("pool: the forecast is no number: the rate is learned anew")
            self._learner, self.forecast = self._new_learner(), None

    def _sane(self, forecast: RateOutlook) -> bool:
        return isfinite(forecast.mean_per_s(0.0)) and isfinite(
            forecast.cautious_per_s(self.params.forecast_quantile, self.params.period_s)
        )

    async def _apply(self, actions: tuple[PoolAction, ...]) -> tuple[Refusal, ...]:
        if not actions:
            return ()
        for action in actions:
            self.counts.on_order(action.member, action.action)
        refused = await self.scaler.apply(actions)
        for refusal in refused:
            self.counts.on_refusal(refusal)
        return refused
