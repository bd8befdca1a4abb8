"""A pool of two kinds as a daemon would show it."""

from __future__ import annotations

from kvwatt.pool import ActionKind, MemberStatus
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


def pool_view(manual: ManualScaleView | None) -> PoolView:
    action = PoolActionView(member="chat-2", action=ActionKind.START, reason="4/s are coming")
    plan = PoolPlanView(
        decided_unix_s=1_700_000_000.0,
        state="up",
        desired={"tp1": 2},
        actions=[action],
        reason="up to 4/s in 60 s, 1 tp1 carries 2.5/s: 2 tp1",
        applied=True,
    )
    return PoolView(
        enabled=True,
        backend="process",
        router="http-sd",
        acting=True,
        minimum=1,
        maximum=4,
        kinds=[
            KindView(kind="tp1", desired=2, ready=1, starting=1, capacity_per_s=2.5, start_s=60.0),
            KindView(kind="tp4", stopped=1),
        ],
        members=[MemberView(name="chat", kind="tp1", status=MemberStatus.READY, status_s=7.0, running=8)],
        forecast=RateForecastView(
            now_per_s=2.0, horizon_s=65.0, mean_per_s=3.0, quantile=0.95, quantile_per_s=4.0
        ),
        manual=manual,
        plan=plan,
        changes=[plan],
        plans_total={"up": 1, "hold": 7},
        scale_events_total=[ScaleEventView(action=ActionKind.START, outcome="done", count=3)],
        start_times=[
            StartTimeView(
                kind="tp1",
                action=ActionKind.START,
                bounds_s=(30.0, 60.0),
                cumulative=(1, 2),
                sum_s=150.0,
                count=3,
            )
        ],
        errors_total={"router:unreachable": 2},
    )
