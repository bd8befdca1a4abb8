"""plan(): how many instances serve, every few seconds one decision in joules and risk of missing promises.

Enough is what carries the forecast's upper quantile at the moment a member asked for now would be ready:
a rate that will be down again by then is left to clocks and queue. Among what is enough the least watts
win, each member at its best clock, so that a higher clock, a longer queue and another member are compared
by one price. A member goes only if those who stay carry, below `survivors_load_max` of what they can, the
upper quantile until it could be back; if fewer have been enough for `less_for_s`; after `cooldown_s`
without a change; and if what is saved in `stay_s` repays the way back. Without telemetry nothing goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import numpy.typing as npt

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
from kvwatt.pool_actions import COMING, Crew, arrivals, departure, worth_stopping
from kvwatt.pool_choice import Choices, choices, gpus_of

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MOST_REGRETS = 5
CAUTION = 0.95  # of what survivors may carry, per regret


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
    wish = _wish(state, crew, memory)
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


@dataclass(frozen=True, slots=True)
class _Wish:
    """How many of each kind, why, and whether what is too many may leave now (to stop, not only to sleep)."""

    wanted: Mapping[str, int]
    reason: str
    less_since_s: float
    expected_w: float = 0.0
    clocks_mhz: Mapping[str, int] = field(default_factory=dict)
    may_go: bool = False
    to_stop: bool = False  # those who stay carry the rate until a stopped one could be back


@dataclass(frozen=True, slots=True)
class _Rates:
    """Requests per second: expected, and the upper quantile when one more could serve, and until one that
    leaves could be back from sleep or from stopped."""

    mean: float
    soon: float
    back: float
    back_from_stop: float
    lead_s: float

    @classmethod
    def of(cls, state: PoolState, crew: Crew) -> _Rates:
        params, kinds = crew.params, crew.kinds.values()
        rate, level = state.rate, params.forecast_quantile
        lead_s = crew.lead_s() + params.period_s
        wake_s = max((k.wake_s if k.can_sleep else k.start_s for k in kinds), default=0.0)
        start_s = max((k.start_s for k in kinds), default=0.0)
        waiting = sum(m.waiting for m in state.members)
        soon = max(rate.quantile_per_s(level, lead_s), 0.0) + waiting / max(lead_s, params.drain_s)

        def until(horizon_s: float) -> float:
            parts = (0.0, horizon_s / 2.0, horizon_s)
            return max(soon, *(rate.quantile_per_s(level, part) for part in parts))

        back = until(params.drain_s + wake_s + params.period_s)
        longest = until(params.drain_s + start_s + params.period_s)
        return cls(max(rate.mean_per_s(lead_s), 0.0), soon, back, max(back, longest), lead_s)


def _wish(state: PoolState, crew: Crew, memory: PlanMemory) -> _Wish:
    late = {m.name for m in crew.late()}
    present: dict[str, int] = {}
    for m in state.members:
        present[m.kind] = present.get(m.kind, 0) + (m.status in COMING and m.name not in late)
    able = crew.serving()
    if not able:
        return _Wish({}, "no member can serve: none is ready and none may be tried", inf)
    options = choices(able, crew.kinds, crew.params, present)
    here = options.index(present)
    if here is None:
        raise AssertionError("what serves is always among the choices")
    if not state.telemetry_ok:
        return _blind(options, here, crew, memory)
    rates = _Rates.of(state, crew)
    total = options.counts.sum(axis=1)
    reach = crew.reach()
    more = np.maximum(options.counts - options.counts[here], 0)
    near = (more <= np.array([reach.get(kind.name, 0) for kind in options.kinds])).all(axis=1)
    near &= total <= crew.params.maximum
    least = min(crew.params.minimum, int(total[near].max(initial=0)))  # as many as can be had
    legal = near & (total >= least)
    enough = legal & (options.capacity_per_s >= rates.soon)
    if not enough[here]:
        return _more(options, here, rates, enough, legal, crew)
    return _perhaps_less(options, here, rates, legal, crew, memory)


def _blind(options: Choices, here: int, crew: Crew, memory: PlanMemory) -> _Wish:
    """Without telemetry: what serves, and what was wanted before, and the minimum."""
    wanted = options.named(here)
    for kind, count in memory.desired.items():
        if kind in wanted:
            wanted[kind] = max(wanted[kind], count)
    missing = crew.params.minimum - sum(wanted.values())
    most = options.named(int(np.argmax(options.counts.sum(axis=1))))
    for kind in sorted(wanted):
        add = min(max(missing, 0), max(most[kind] - wanted[kind], 0))
        wanted[kind], missing = wanted[kind] + add, missing - add
    return _Wish(wanted, f"telemetry is out: {_told(wanted)} kept, nobody leaves", inf)


def _more(
    options: Choices, here: int, rates: _Rates, enough: BoolArray, legal: BoolArray, crew: Crew
) -> _Wish:
    level = crew.params.forecast_quantile
    extra = _switch_w(options, here, crew)
    best = options.cheapest(rates.mean, enough, extra)
    need = (
        f"up to {rates.soon:.3g}/s ({level:.0%}) in {rates.lead_s:.0f} s, "
        f"{_told(options.named(here))} carry {options.capacity_per_s[here]:.3g}/s"
    )
    if best is None:  # nothing is enough: all that may serve
        best = int(np.argmax(np.where(legal, options.capacity_per_s, -1.0)))
        need += f"; even {_told(options.named(best))} carry only {options.capacity_per_s[best]:.3g}/s"
    return _settled(options, best, rates, f"{need}: {_told(options.named(best))}", inf)


def _perhaps_less(
    options: Choices, here: int, rates: _Rates, legal: BoolArray, crew: Crew, memory: PlanMemory
) -> _Wish:
    params, now_s = crew.params, crew.now_s
    survivors_per_s = options.capacity_per_s * params.survivors_load_max * CAUTION**memory.regrets
    safe = legal & (survivors_per_s >= rates.back)
    bigger = legal & (options.capacity_per_s >= options.capacity_per_s[here])
    allowed = safe | bigger
    extra = _switch_w(options, here, crew)
    best = options.cheapest(rates.mean, allowed, extra)
    present = _told(options.named(here))
    carried = f"{present} carry {options.capacity_per_s[here]:.3g}/s"
    told = f"{rates.mean:.3g}/s expected, up to {rates.back:.3g}/s; {carried}"
    deep = bool(survivors_per_s[here] >= rates.back_from_stop)
    if best is None or best == here:
        return replace(_settled(options, here, rates, f"{told}: kept, least watts", inf), to_stop=deep)
    power = options.watts(np.array([rates.mean]))[0] + extra
    would = _told(options.named(best))
    gain = f"{would} would draw {power[best]:.0f} W with the way there, {power[here]:.0f} W now"
    if not power[best] < power[here] * (1.0 - params.min_gain_ratio) and legal[here]:
        return _settled(options, here, rates, f"{told}: kept; {gain}", inf)
    since_s = min(memory.less_since_s, now_s)
    quiet_s = now_s - max(memory.last_up_s, memory.last_down_s)
    patience = 2.0**memory.regrets
    wait_s = max(patience * params.less_for_s - (now_s - since_s), patience * params.cooldown_s - quiet_s)
    if wait_s > 0.0:
        return _settled(options, here, rates, f"{told}: kept {wait_s:.0f} s more; {gain}", since_s)
    wish = _settled(options, best, rates, f"{told}: {gain}", since_s)
    to_stop = bool(survivors_per_s[best] >= rates.back_from_stop)
    return replace(wish, may_go=True, to_stop=to_stop)


def _switch_w(options: Choices, here: int, crew: Crew) -> FloatArray:
    """Energy of the way to each choice and back, as watts over `stay_s`: (c,)."""
    wake = np.array([k.wake_j if k.can_sleep else k.start_j for k in options.kinds])
    change = np.abs(options.counts - options.counts[here])
    return np.asarray(change @ wake / crew.params.stay_s)


def _settled(options: Choices, index: int, rates: _Rates, reason: str, less_since_s: float) -> _Wish:
    capacity = max(float(options.capacity_per_s[index]), 1e-9)
    load = min(rates.mean / capacity, 1.0)
    wanted = options.named(index)
    clocks = {
        kind.name: kind.points.at(load * kind.points.max_rate_per_s).clock_mhz
        for kind in options.kinds
        if wanted[kind.name]
    }
    expected = float(options.watts(np.array([rates.mean]))[0, index])
    return _Wish(wanted, reason, less_since_s, expected, clocks)


def _told(wanted: Mapping[str, int]) -> str:
    return " + ".join(f"{n} {kind}" for kind, n in sorted(wanted.items()) if n) or "none"


def _going(
    state: PoolState, crew: Crew, wish: _Wish, asked: list[PoolAction], memory: PlanMemory
) -> PoolAction | None:
    busy = any(m.status in (MemberStatus.DRAINING, MemberStatus.STARTING) for m in state.members)
    if not state.telemetry_ok or asked or busy:
        return None
    ready = crew.count({MemberStatus.READY})
    over = sum(ready.values()) > crew.params.maximum
    return departure(crew, wish.wanted, wish.to_stop) if wish.may_go or over else None


def _deeper(state: PoolState, crew: Crew, wish: _Wish, memory: PlanMemory) -> PoolAction | None:
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
