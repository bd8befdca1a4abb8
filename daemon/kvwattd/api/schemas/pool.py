"""The pool: how many instances run, how many should, what was done about it and why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvwatt.pool import ActionKind, MemberStatus
from kvwattd.api.schemas.base import View
from kvwattd.config_values import JSON_NUMBER, Count

MANUAL_MAX_S = 86_400.0
PlanState = Literal["up", "down", "hold", "manual", "blind"]


class MemberView(View):
    """One instance of the pool."""

    name: str
    kind: str
    status: MemberStatus
    status_s: float = Field(description="how long it has had this status")
    reason: str = ""
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class KindView(View):
    """The members of one kind, counted, and how many of them are to be ready."""

    kind: str
    desired: int | None = Field(None, description="null before the first plan")
    ready: int = 0
    starting: int = 0
    draining: int = 0
    asleep: int = 0
    stopped: int = 0
    failed: int = 0
    unknown: int = 0
    capacity_per_s: float | None = Field(
        None, description="largest request rate of one within the promises; null while no model tells"
    )
    start_s: float | None = Field(None, description="how long a start takes")
    wake_s: float | None = Field(None, description="how long waking up takes; null where it cannot sleep")


class RateForecastView(View):
    """Requests a second that come to the whole pool."""

    now_per_s: float
    horizon_s: float = Field(description="how far it looks: as long as a start takes")
    mean_per_s: float
    quantile: float
    quantile_per_s: float = Field(description="what capacity is planned for")


class PoolActionView(View):
    member: str
    action: ActionKind
    reason: str
    refused: str | None = Field(None, description="why it was not begun")


class PoolPlanView(View):
    """One plan and why; `applied` false: it was only told of (mode shadow or off)."""

    decided_unix_s: float
    state: PlanState
    desired: dict[str, int]
    actions: list[PoolActionView] = Field(default_factory=list)
    reason: str
    applied: bool


class ManualScaleRequest(View):
    """So many instances for a limited time, within `pool.minimum` and `pool.maximum`."""

    instances: Annotated[Count, JSON_NUMBER]
    duration_s: Annotated[float, Field(gt=0, le=MANUAL_MAX_S, allow_inf_nan=False), JSON_NUMBER]


class ManualScaleView(View):
    instances: int
    left_s: float
    by: str = Field(description="name of the token")


class ScaleEventView(View):
    """How often an action ended so."""

    action: ActionKind
    outcome: str
    count: int


class StartTimeView(View):
    """How long starts of one kind took, as a histogram: `cumulative[i]` took at most `bounds_s[i]`."""

    kind: str
    action: ActionKind
    bounds_s: tuple[float, ...] = ()
    cumulative: tuple[int, ...] = ()
    sum_s: float = 0.0
    count: int = 0


class PoolView(View):
    """Everything about the number of instances; `enabled` false: it is left as it is."""

    enabled: bool = False
    backend: str | None = None
    router: str | None = None
    acting: bool = Field(False, description="false: only told of (mode shadow or off)")
    minimum: int | None = None
    maximum: int | None = None
    fault: str | None = Field(None, description="why nothing is scaled down now")
    kinds: list[KindView] = Field(default_factory=list)
    members: list[MemberView] = Field(default_factory=list)
    forecast: RateForecastView | None = Field(None, description="null before enough traffic was seen")
    manual: ManualScaleView | None = None
    plan: PoolPlanView | None = Field(None, description="the newest plan")
    changes: list[PoolPlanView] = Field(
        default_factory=list, description="the newest plans that began something, newest first"
    )
    plans_total: dict[PlanState, int] = Field(default_factory=dict)
    scale_events_total: list[ScaleEventView] = Field(default_factory=list)
    start_times: list[StartTimeView] = Field(default_factory=list)
    errors_total: dict[str, int] = Field(
        default_factory=dict, description="failed calls of backend, router, probe or journal, as WHO:CAUSE"
    )


class TargetGroupView(View):
    """One group of Prometheus HTTP service discovery."""

    targets: list[str] = Field(description="HOST:PORT")
    labels: dict[str, str]


class TargetView(View):
    """One instance that requests may be sent to."""

    name: str
    kind: str
    url: str


class TargetsView(View):
    """Instances that requests may be sent to."""

    instances: list[TargetView]
