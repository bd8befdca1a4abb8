"""The pool as REST and /metrics show it; built only when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from kvwatt.pool import Member, MemberStatus
from kvwattd.api.schemas import (
    KindView,
    ManualScaleView,
    MemberView,
    PoolActionView,
    PoolPlanView,
    PoolView,
    RateForecastView,
    ScaleEventView,
    StartTimeView,
)
from kvwattd.pool.counts import BOUNDS_S, ScaleCounts
from kvwattd.pool.manual import ManualScale
from kvwattd.pool.record import RecordedPlan
from kvwattd.pool.task import Pool

CHANGES_SHOWN = 20

Unix = Callable[[float], float]  # monotonic seconds -> unix seconds


def pool_view(pool: Pool, now_s: float, unix: Unix) -> PoolView:
    """Everything of it."""
    members, newest = pool.scaler.members(), pool.plans.newest
    changes = list(pool.plans.changes)[-CHANGES_SHOWN:][::-1]
    return PoolView(
        enabled=True,
        backend=pool.backend,
        router=pool.router,
        acting=pool.scaler.acting,
        minimum=pool.params.minimum,
        maximum=pool.params.maximum,
        fault=pool.fault,
        kinds=_kinds(pool, members),
        members=[_member(pool, member, now_s) for member in members],
        forecast=_forecast(pool),
        manual=manual_view(pool.manual, now_s),
        plan=_plan(newest, unix) if newest is not None else None,
        changes=[_plan(recorded, unix) for recorded in changes],
        plans_total=dict(pool.plans.totals),
        scale_events_total=[
            ScaleEventView(action=action, outcome=outcome, count=count)
            for (action, outcome), count in sorted(pool.counts.events.items())
        ],
        start_times=_start_times(pool.counts),
        errors_total={f"{part}:{cause}": count for (part, cause), count in pool.scaler.errors.items()},
    )


def manual_view(manual: ManualScale | None, now_s: float) -> ManualScaleView | None:
    """The number by hand while it holds."""
    if manual is None or now_s >= manual.until_s:
        return None
    return ManualScaleView(instances=manual.instances, left_s=manual.until_s - now_s, by=manual.by)


def _member(pool: Pool, member: Member, now_s: float) -> MemberView:
    return MemberView(
        name=member.name,
        kind=member.kind,
        status=member.status,
        status_s=max(now_s - member.since_s, 0.0),
        reason=pool.scaler.reason_of(member.name),
        running=member.running,
        waiting=member.waiting,
        kv_usage=member.kv_usage,
    )


def _kinds(pool: Pool, members: tuple[Member, ...]) -> list[KindView]:
    newest, known = pool.plans.newest, pool.kinds.known()
    desired: Mapping[str, int] = newest.plan.desired if newest is not None else {}
    out = []
    for kind in dict.fromkeys(member.kind for member in members):
        count = Counter(member.status for member in members if member.kind == kind)
        facts = known.get(kind)
        out.append(
            KindView(
                kind=kind,
                desired=desired.get(kind, 0) if newest is not None else None,
                ready=count[MemberStatus.READY],
                starting=count[MemberStatus.STARTING],
                draining=count[MemberStatus.DRAINING],
                asleep=count[MemberStatus.ASLEEP],
                stopped=count[MemberStatus.STOPPED],
                failed=count[MemberStatus.FAILED],
                unknown=count[MemberStatus.UNKNOWN],
                capacity_per_s=facts.points.max_rate_per_s if facts else None,
                start_s=facts.start_s if facts and facts.can_stop else None,
                wake_s=facts.wake_s if facts and facts.can_sleep else None,
            )
        )
    return out


def _forecast(pool: Pool) -> RateForecastView | None:
    seen = pool.forecast
    if seen is None:
        return None
    known, level = pool.kinds.known().values(), pool.params.forecast_quantile
    horizon_s = (
        max((k.start_s if k.can_stop else k.wake_s for k in known), default=0.0) + pool.params.period_s
    )
    return RateForecastView(
        now_per_s=max(seen.mean_per_s(0.0), 0.0),
        horizon_s=horizon_s,
        mean_per_s=max(seen.mean_per_s(horizon_s), 0.0),
        quantile=level,
        quantile_per_s=max(seen.cautious_per_s(level, horizon_s), 0.0),
    )


def _plan(recorded: RecordedPlan, unix: Unix) -> PoolPlanView:
    plan = recorded.plan
    refused = {refusal.action: refusal.reason for refusal in recorded.refused}
    return PoolPlanView(
        decided_unix_s=unix(plan.decided_s),
        state=recorded.state,
        desired=dict(plan.desired),
        actions=[
            PoolActionView(member=a.member, action=a.action, reason=a.reason, refused=refused.get(a))
            for a in plan.actions
        ],
        reason=plan.reason,
        applied=recorded.applied,
    )


def _start_times(counts: ScaleCounts) -> list[StartTimeView]:
    return [
        StartTimeView(
            kind=kind,
            action=action,
            bounds_s=BOUNDS_S,
            cumulative=seen.cumulative(),
            sum_s=seen.sum_s,
            count=seen.count,
        )
        for (kind, action), seen in sorted(counts.starts.items())
    ]
