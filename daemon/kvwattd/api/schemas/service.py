"""The daemon as a whole, its instances, and what it answers when it cannot."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from kvwatt.state import Binding, Metric
from kvwattd.api.schemas.attribution import AttributionView
from kvwattd.api.schemas.base import View
from kvwattd.api.schemas.changes import ConfigStateView, SecurityView, SettingsView
from kvwattd.api.schemas.decisions import DecisionView, OverrideView, SavingsView
from kvwattd.api.schemas.ledger import LedgerView
from kvwattd.api.schemas.models import ModelView
from kvwattd.api.schemas.observed import ClockRangeView, GpuView, ProjectionView, StepView, TelemetryView
from kvwattd.api.schemas.pool import PoolView
from kvwattd.api.schemas.promises import AttainmentView, LatencyBoundView, SloView
from kvwattd.api.schemas.shadow import ShadowView
from kvwattd.config import Mode
from kvwattd.regime import Regime

GuardState = Literal["connected", "disconnected", "unused"]


class GuardView(View):
    state: GuardState = "unused"
    version: str | None = None
    lease_s: float | None = None
    lease_left_s: float | None = None
    errors_total: int = 0
    last_error: str | None = None
    alarms: dict[str, str] = Field(default_factory=dict, description="UUID: why the guard leaves it alone")
    yields_total: int | None = Field(None, description="times that another program's clock was found")
    disobeyed_total: int | None = Field(None, description="times that a GPU did not run at what was set")
    driver_reloads_total: int | None = Field(None, description="times that a lock was lost with the driver")


class InstanceView(View):
    """One engine: what it does, what is asked of its GPUs, and how well its promises are kept."""

    name: str
    url: str
    tp: int = 1
    model_name: str | None = None
    regime: Regime
    regime_reason: str = ""
    mode: Mode
    clock_target_mhz: int | None = Field(None, description="null is driver default")
    clocks: ClockRangeView | None = Field(None, description="null before the GPUs were read")
    clock_changes_total: int = 0
    gpus: list[GpuView] = Field(default_factory=list)
    power_w: float | None = None
    energy_j: float | None = None
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    projection: ProjectionView | None = None
    step: StepView = StepView()
    slo: SloView = SloView()
    attainment: dict[Metric, AttainmentView] = Field(default_factory=dict)
    latency_bounds: dict[Metric, LatencyBoundView] = Field(default_factory=dict)
    telemetry: TelemetryView = TelemetryView()
    model: ModelView
    savings: SavingsView | None = Field(None, description="of the time in control")
    shadow: ShadowView | None = Field(None, description="null outside shadow mode")
    attribution: AttributionView | None = None
    override: OverrideView | None = None
    decisions_total: dict[Binding, int] = Field(default_factory=dict)
    last_decision: DecisionView | None = None


class DurationView(View):
    """How long deciding takes, as a histogram: `cumulative[i]` decisions took at most `bounds_s[i]`."""

    bounds_s: tuple[float, ...] = ()
    cumulative: tuple[int, ...] = ()
    sum_s: float = 0.0
    count: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None


class BuildView(View):
    version: str
    python: str


class StatusView(View):
    build: BuildView
    mode: Mode
    uptime_s: float
    ticks_total: int = 0
    ticks_skipped_total: int = Field(0, description="late ticks, skipped and not queued")
    decision_duration: DurationView = DurationView()
    tap_refused_total: dict[str, int] = Field(
        default_factory=dict, description="tap datagrams that were no use, by cause"
    )
    guard: GuardView = GuardView()
    settings: SettingsView = SettingsView()
    config: ConfigStateView = ConfigStateView()
    security: SecurityView = SecurityView()
    pool: PoolView = PoolView()
    ledger: LedgerView = LedgerView()
    instances: list[InstanceView] = Field(default_factory=list)


class HealthView(View):
    """Alive: the loop ticks."""

    ok: bool
    last_tick_age_s: float | None = None
    reason: str = ""


class ReadyView(View):
    """Ready: every instance is observed and decided for; otherwise the reasons why not."""

    ready: bool
    reasons: list[str] = Field(default_factory=list)


class ProblemView(BaseModel):
    """RFC 9457 problem details; names the field, its value and what is accepted."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = None
    value: str | None = None
    accepted: str | None = None
