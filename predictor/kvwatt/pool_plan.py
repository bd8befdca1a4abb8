"""plan(): how many instances serve, every few seconds one decision in joules and risk of missing promises.

Enough is what carries the forecast's upper quantile at the moment a member asked for now would be ready:
a rate that will be down again by then is left to clocks and queue. Among what is enough the least watts
win, each member at its best clock, so that a higher clock, a longer queue and another member are compared
by one price. A member goes only if those who stay carry, below `survivors_load_max` of what they can, the
upper quantile until it could be back; if fewer have been enough for `less_for_s`; after `cooldown_s`
without a change; and if what is saved in `stay_s` repays the way back. Without telemetry nothing
goes, and what is seen for certain may still ask for more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvwatt.pool import (
    ActionKind,
    EngineKind,
    MemberStatus,
    PlanMemory,
    PoolAction,
    PoolParams,
    PoolPlan,
    PoolState,
)
from kvwatt.pool_actions import Crew, arrivals, departure, worth_stopping
from kvwatt.pool_choice import gpus_of
from kvwatt.pool_wish import Wish, wish_of

MOST_REGRETS = 5


def plan(
    state: PoolState, kinds: Mapping[str, EngineKind], params: PoolParams, memory: PlanMemory
) -> PoolPlan:
    """One decision; same inputs, same plan. Raises ValueError for a member of a kind not in `kinds`."""
    unknown = sorted({m.kind for m in state.members} - set(kinds))
    if unknown:
        raise ValueError(f"members of kinds {unknown}: known are {sorted(kinds)}")
    now_s = state.observed_s
    crew = Crew(now_s, state.members, kinds, params, memory.tried_s, gpus_of(state.members, kinds, params))
    late = crew.late()
    tried = {**memory.tried_s, **{m.name: now_s for m in late}}
    crew = replace(crew, tried_s=tried)
    cancelled = [_cancel(m.name, now_s - m.since_s, params) for m in late]
    wish = wish_of(state, crew, memory)
    asked = arrivals(crew, wish.wanted)
    going = _going(state, crew, wish, asked, memory)
    if not asked and going is None:
        going = _deeper(state, crew, wish, memory)
    leaving = [going] if going is not None else []
    came = any(a.action is not ActionKind.DRAIN_TO_STOP for a in asked)
    return PoolPlan(
        decided_s=now_s,
        desired=wish.wanted,
        actions=(*cancelled, *asked, *leaving),
        reason=wish.reason,
        memory=PlanMemory(
            last_up_s=now_s if came or cancelled else memory.last_up_s,
            last_down_s=now_s if leaving else memory.last_down_s,
            less_since_s=wish.less_since_s,
            desired=wish.wanted,
            tried_s={name: at for name, at in tried.items() if now_s - at < params.retry_s},
            regrets=_regrets(now_s, came, bool(leaving), params, memory),
        ),
        expected_w=wish.expected_w,
        clocks_mhz=wish.clocks_mhz,
    )


def _regrets(now_s: float, came: bool, left: bool, params: PoolParams, memory: PlanMemory) -> int:
    """One more when somebody is wanted back within `stay_s`; one less for each departure that lasted."""
    lasted = now_s - memory.last_down_s >= params.stay_s
    if came and not lasted and memory.last_down_s > memory.last_up_s:
        return min(memory.regrets + 1, MOST_REGRETS)
    return max(memory.regrets - 1, 0) if left and lasted else memory.regrets


def _cancel(name: str, waited_s: float, params: PoolParams) -> PoolAction:
    reason = f"not ready after {waited_s:.0f} s of {params.start_timeout_s:.0f} s: another is tried"
    return PoolAction(name, ActionKind.CANCEL_START, reason)


def _going(
    state: PoolState, crew: Crew, wish: Wish, asked: list[PoolAction], memory: PlanMemory
) -> PoolAction | None:
    busy = any(m.status in (MemberStatus.DRAINING, MemberStatus.STARTING) for m in state.members)
    if not state.telemetry_ok or asked or busy:
        return None
    ready = crew.count({MemberStatus.READY})
    over = sum(ready.values()) > crew.params.maximum
    return departure(crew, wish.wanted, wish.to_stop) if wish.may_go or over else None


def _deeper(state: PoolState, crew: Crew, wish: Wish, memory: PlanMemory) -> PoolAction | None:
    """A sleeping member stopped, once that repays the longer way back and is not wanted before."""
    params, now_s = crew.params, crew.now_s
    quiet_s = now_s - max(memory.last_up_s, memory.last_down_s)
    if not (state.telemetry_ok and wish.to_stop) or quiet_s < params.cooldown_s:
        return None
    able = [
        m
        for m in state.members
        if m.status is MemberStatus.ASLEEP
        and now_s - m.since_s >= params.less_for_s
        and worth_stopping(crew.kinds[m.kind], params.stay_s)
    ]
    if not able:
        return None
    first = min(able, key=lambda m: (m.since_s, m.name))
    kind = crew.kinds[first.kind]
    saved = f"{kind.asleep_w:.0f} W asleep, {kind.stopped_w:.0f} W stopped"
    reason = f"asleep for {now_s - first.since_s:.0f} s and not wanted until it could be back: {saved}"
    return PoolAction(first.name, ActionKind.DRAIN_TO_STOP, reason)
