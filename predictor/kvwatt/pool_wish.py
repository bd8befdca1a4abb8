"""How many members of each kind are wanted, and why: enough, the least watts, fewer, or as before.

See `pool_plan.py` for the rules; this is where they are reckoned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import numpy.typing as npt

from kvwatt.pool import PlanMemory, PoolState
from kvwatt.pool_actions import COMING, Crew
from kvwatt.pool_choice import Choices, choices

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CAUTION = 0.95  # of what survivors may carry, per regret


@dataclass(frozen=True, slots=True)
class Wish:
    """How many of each kind, why, and whether what is too many may leave now (to stop, not only to sleep)."""

    wanted: Mapping[str, int]
    reason: str
    less_since_s: float
    expected_w: float = 0.0
    clocks_mhz: Mapping[str, int] = field(default_factory=dict)
    may_go: bool = False
    to_stop: bool = False  # those who stay carry the rate until a stopped one could be back


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests per second: expected, and the upper quantile when one more could serve, when the one after
    that could, and until one that leaves could be back from sleep or from stopped."""

    mean: float
    soon: float
    after: float
    back: float
    back_from_stop: float
    lead_s: float

    @classmethod
    def of(cls, state: PoolState, crew: Crew) -> Rates:
        params, kinds = crew.params, crew.kinds.values()
        rate, level = state.rate, params.forecast_quantile
        lead_s = crew.lead_s() + params.period_s
        wake_s = max((k.wake_s if k.can_sleep else k.start_s for k in kinds), default=0.0)
        start_s = max((k.start_s for k in kinds), default=0.0)
        waiting = sum(m.waiting for m in state.members)
        fresh = max(rate.cautious_per_s(level, lead_s), 0.0)
        soon = fresh + waiting / max(lead_s, params.drain_s)

        def until(horizon_s: float) -> float:
            parts = (0.0, horizon_s / 2.0, horizon_s)
            return max(soon, *(rate.cautious_per_s(level, part) for part in parts))

        back = until(params.drain_s + wake_s + params.period_s)
        longest = until(params.drain_s + start_s + params.period_s)
        after = max(soon, rate.cautious_per_s(level, lead_s + start_s) + soon - fresh)
        return cls(max(rate.mean_per_s(lead_s), 0.0), soon, after, back, max(back, longest), lead_s)


def wish_of(state: PoolState, crew: Crew, memory: PlanMemory) -> Wish:
    """What is wanted of those that serve or may be asked to."""
    late = {m.name for m in crew.late()}
    present: dict[str, int] = {}
    for m in state.members:
        present[m.kind] = present.get(m.kind, 0) + (m.status in COMING and m.name not in late)
    able = crew.serving()
    if not able:
        return Wish({}, "no member can serve: none is ready and none may be tried", inf)
    options = choices(able, crew.kinds, crew.params, present)
    here = options.index(present)
    if here is None:
        raise AssertionError("what serves is always among the choices")
    if not state.telemetry_ok:
        return _blind(options, here, state, crew, memory)
    rates = Rates.of(state, crew)
    total = options.counts.sum(axis=1)
    near = _near(options, here, crew)
    least = min(crew.params.minimum, int(total[near].max(initial=0)))  # as many as can be had
    legal = near & (total >= least)
    enough = legal & (options.capacity_per_s * crew.params.load_max >= rates.soon)
    if not enough[here]:
        return _more(options, here, rates, enough, legal, crew)
    return _perhaps_less(options, here, rates, legal, crew, memory)


def _near(options: Choices, here: int, crew: Crew) -> BoolArray:
    """Choices whose additional members could begin to come now."""
    reach = crew.reach()
    more = np.maximum(options.counts - options.counts[here], 0)
    near = (more <= np.array([reach.get(kind.name, 0) for kind in options.kinds])).all(axis=1)
    return np.asarray(near & (options.counts.sum(axis=1) <= crew.params.maximum))


def _blind(options: Choices, here: int, state: PoolState, crew: Crew, memory: PlanMemory) -> Wish:
    """Without telemetry: what serves, what was wanted before, the minimum, and more where those that can be
    seen have more to do than all that serve could carry."""
    wanted = _kept(options, here, crew, memory)
    floor = np.array([wanted[kind.name] for kind in options.kinds])
    reason = f"telemetry is out: {told(wanted)} kept, nobody leaves"
    waiting = sum(m.waiting for m in state.members)
    load = state.seen_per_s + waiting / max(crew.lead_s() + crew.params.period_s, crew.params.drain_s)
    carried = float(floor @ [kind.points.max_rate_per_s for kind in options.kinds])
    able = _near(options, here, crew) & (options.counts >= floor).all(axis=1)
    if load <= carried or not able.any():
        return Wish(wanted, reason, inf)
    best = options.cheapest(load, able & (options.capacity_per_s >= load), _switch_w(options, here, crew))
    if best is None:
        best = int(np.argmax(np.where(able, options.capacity_per_s, -1.0)))
    more = options.named(best)
    need = f"at least {load:.3g}/s are seen, they carry {carried:.3g}/s"
    return Wish(more, f"{reason}; {need}: {told(more)}", inf)


def _kept(options: Choices, here: int, crew: Crew, memory: PlanMemory) -> dict[str, int]:
    """What serves and what was wanted before, filled up to the minimum."""
    wanted = options.named(here)
    for kind, count in memory.desired.items():
        if kind in wanted:
            wanted[kind] = max(wanted[kind], count)
    missing = crew.params.minimum - sum(wanted.values())
    most = options.named(int(np.argmax(options.counts.sum(axis=1))))
    for kind in sorted(wanted):
        add = min(max(missing, 0), max(most[kind] - wanted[kind], 0))
        wanted[kind], missing = wanted[kind] + add, missing - add
    return wanted


def _more(options: Choices, here: int, rates: Rates, enough: BoolArray, legal: BoolArray, crew: Crew) -> Wish:
    level = crew.params.forecast_quantile
    extra = _switch_w(options, here, crew)
    # What is started now must do until the next one could follow it.
    lasting = enough & (options.capacity_per_s * crew.params.load_max >= rates.after)
    best = options.cheapest(rates.mean, lasting if lasting.any() else enough, extra)
    need = (
        f"up to {rates.soon:.3g}/s ({level:.0%}) in {rates.lead_s:.0f} s, "
        f"{told(options.named(here))} carry {options.capacity_per_s[here]:.3g}/s"
    )
    if best is None:  # nothing is enough: all that may serve
        best = int(np.argmax(np.where(legal, options.capacity_per_s, -1.0)))
        need += f"; even {told(options.named(best))} carry only {options.capacity_per_s[best]:.3g}/s"
    return _settled(options, best, rates, f"{need}: {told(options.named(best))}", inf)


def _perhaps_less(
    options: Choices, here: int, rates: Rates, legal: BoolArray, crew: Crew, memory: PlanMemory
) -> Wish:
    params, now_s = crew.params, crew.now_s
    survivors_per_s = options.capacity_per_s * params.survivors_load_max * CAUTION**memory.regrets
    safe = legal & (survivors_per_s >= rates.back)
    bigger = legal & (options.capacity_per_s >= options.capacity_per_s[here])
    allowed = safe | bigger
    extra = _switch_w(options, here, crew)
    best = options.cheapest(rates.mean, allowed, extra)
    present = told(options.named(here))
    carried = f"{present} carry {options.capacity_per_s[here]:.3g}/s"
    seen = f"{rates.mean:.3g}/s expected, up to {rates.back:.3g}/s; {carried}"
    deep = bool(survivors_per_s[here] >= rates.back_from_stop)
    if best is None or best == here:
        return replace(_settled(options, here, rates, f"{seen}: kept, least watts", inf), to_stop=deep)
    power = options.watts(np.array([rates.mean]))[0] + extra
    would = told(options.named(best))
    gain = f"{would} would draw {power[best]:.0f} W with the way there, {power[here]:.0f} W now"
    if not power[best] < power[here] * (1.0 - params.min_gain_ratio) and legal[here]:
        return _settled(options, here, rates, f"{seen}: kept; {gain}", inf)
    since_s = min(memory.less_since_s, now_s)
    quiet_s = now_s - max(memory.last_up_s, memory.last_down_s)
    patience = 2.0**memory.regrets
    wait_s = max(patience * params.less_for_s - (now_s - since_s), patience * params.cooldown_s - quiet_s)
    if wait_s > 0.0:
        return _settled(options, here, rates, f"{seen}: kept {wait_s:.0f} s more; {gain}", since_s)
    wish = _settled(options, best, rates, f"{seen}: {gain}", since_s)
    to_stop = bool(survivors_per_s[best] >= rates.back_from_stop)
    return replace(wish, may_go=True, to_stop=to_stop)


def _switch_w(options: Choices, here: int, crew: Crew) -> FloatArray:
    """Energy of the way to each choice and back, as watts over `stay_s`: (c,)."""
    wake = np.array([k.wake_j if k.can_sleep else k.start_j for k in options.kinds])
    change = np.abs(options.counts - options.counts[here])
    return np.asarray(change @ wake / crew.params.stay_s)


def _settled(options: Choices, index: int, rates: Rates, reason: str, less_since_s: float) -> Wish:
    capacity = max(float(options.capacity_per_s[index]), 1e-9)
    load = min(rates.mean / capacity, 1.0)
    wanted = options.named(index)
    clocks = {
        kind.name: kind.points.at(load * kind.points.max_rate_per_s).clock_mhz
        for kind in options.kinds
        if wanted[kind.name]
    }
    expected = float(options.watts(np.array([rates.mean]))[0, index])
    return Wish(wanted, reason, less_since_s, expected, clocks)


def told(wanted: Mapping[str, int]) -> str:
    """A mix in words."""
    return " + ".join(f"{n} {kind}" for kind, n in sorted(wanted.items()) if n) or "none"
