"""What the daemon shows over REST and /metrics. Units are in the names; times are seconds.

Views are built only when somebody asks. None means unknown or not applicable, never zero.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from kvwatt.state import Binding, Decision, Forecast, Metric, Slo, SloTarget
from kvwattd.config import Megahertz, Mode, Quantile, Seconds
from kvwattd.regime import Regime

OVERRIDE_MAX_S = 3600.0

GuardState = Literal["connected", "disconnected", "unused"]
ModelState = Literal["ready", "missing", "learning", "refused"]
RefitOutcome = Literal["promoted", "kept", "too_few", "failed"]
ESTIMATE_BASELINE = "driver default clocks, from the energy model"


class View(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SloTargetView(View):
    """At least `quantile` of requests stay within `limit_s`."""

    limit_s: Seconds
    quantile: Quantile = 0.99


class SloView(View):
    """The promises of one instance; null is not promised."""

    ttft: SloTargetView | None = None
    tbt: SloTargetView | None = None
    e2e: SloTargetView | None = None

    @classmethod
    def of(cls, slo: Slo) -> Self:
        return cls(ttft=_target_view(slo.ttft), tbt=_target_view(slo.tbt), e2e=_target_view(slo.e2e))

    def slo(self) -> Slo:
        return Slo(ttft=_target(self.ttft), tbt=_target(self.tbt), e2e=_target(self.e2e))


def _target_view(target: SloTarget | None) -> SloTargetView | None:
    return SloTargetView(limit_s=target.limit_s, quantile=target.quantile) if target else None


def _target(view: SloTargetView | None) -> SloTarget | None:
    return SloTarget(limit_s=view.limit_s, quantile=view.quantile) if view else None


class AttainmentView(View):
    """How a promise was kept since the daemon started, from the server's own histograms."""

    limit_s: float
    quantile: float
    met: float = Field(description="requests within the limit")
    total: float = Field(description="requests observed")
    ratio: float | None = Field(description="met / total; null before the first request")


class GpuView(View):
    uuid: str
    name: str = ""
    clock_target_mhz: int | None = Field(None, description="null is driver default")
    clock_actual_mhz: int | None = None
    power_w: float | None = None
    energy_j: float | None = Field(None, description="sum of energy counter deltas since the daemon started")
    temperature_c: float | None = None
    utilization: float | None = None
    event_reasons: int | None = Field(None, description="NVML clocks event reasons, bit mask")
    age_s: float | None = Field(None, description="age of the reading")


class ProjectionView(View):
    horizon_s: float
    batch: float
    kv_tokens: float
    kv_usage: float | None = None


class RegimeView(View):
    """Online calibration of one kind of interval: plain decode, or mixed with prompts."""

    bias: float
    upper_factor: float
    coverage: float | None = None
    samples: int = 0


class LatencyBoundView(View):
    """How the forecast of one latency holds."""

    factor: float = Field(1.0, description="what the forecast would have to be widened by to hold")
    coverage: float | None = Field(None, description="share of requests within the widened forecast so far")


class StepView(View):
    """Mean time of an engine step (TBT), as predicted for the clock in force and as measured."""

    predicted_s: float | None = None
    measured_s: float | None = None
    error_ratio: float | None = Field(None, description="predicted / measured - 1")
    bias: float | None = Field(None, description="online correction factor on the prediction")
    upper_factor: float | None = Field(None, description="factor from prediction to its upper bound")
    coverage: float | None = Field(None, description="share of measurements within that bound so far")
    drifted: bool = False
    regimes: dict[str, RegimeView] = Field(default_factory=dict)


class TapView(View):
    """The plugin inside vLLM: what it sent, and why it is not relied on, if so."""

    age_s: float | None = Field(None, description="age of the newest record")
    records_total: int = 0
    lost_total: int = Field(0, description="records that the sender numbered and that never came")
    step_s: float | None = Field(None, description="time of the newest step that gave tokens")
    unused: str | None = Field(None, description="why the poll is used instead; null while the tap is used")


class TelemetryView(View):
    source: Literal["tap", "poll"] = Field(
        "poll", description="where step times, finished lengths and the newest state come from"
    )
    tap: TapView | None = Field(None, description="null where no tap is configured")
    age_s: float | None = Field(None, description="age of the newest accepted scrape")
    fresh: bool = False
    layout: str | None = None
    polls_total: int = 0
    errors_total: dict[str, int] = Field(default_factory=dict, description="failed polls by cause")
    last_error: str | None = None


class GuardView(View):
    state: GuardState = "unused"
    version: str | None = None
    lease_s: float | None = None
    lease_left_s: float | None = None
    errors_total: int = 0
    last_error: str | None = None


class RefitView(View):
    """Refitting the model to what is served, in a process of its own."""

    enabled: bool
    samples: int = Field(0, description="operating points kept")
    last: RefitOutcome | None = Field(None, description="outcome of the latest refit")
    reason: str = ""
    finished_unix_s: float | None = None
    outcomes_total: dict[RefitOutcome, int] = Field(default_factory=dict)


class ModelVersionView(View):
    """One version of a model: 0 was shipped, the others were refitted online."""

    version: int
    serving: bool
    state: Literal["sound", "damaged", "other_base"] = Field(
        description="only a sound version may serve; other_base was refitted from another shipped model"
    )
    detail: str = ""
    created: str | None = None
    parent: int | None = Field(None, description="the version it was compared with")
    samples: int | None = Field(None, description="newest operating points that both were compared on")
    champion_error_ratio: float | None = None
    challenger_error_ratio: float | None = None
    reason: str = ""


class ModelVersionsView(View):
    instance: str
    serving: int | None = Field(description="version in use; null without a model")
    held: bool = Field(description="true after a rollback: no refit replaces the version in use")
    versions: list[ModelVersionView]
    refit: RefitView


class RollbackRequest(View):
    """Back to a version; null is the one before that in use. `hold` keeps refits from replacing it."""

    version: Annotated[int, Field(ge=0, strict=True)] | None = None
    hold: Annotated[bool, Field(strict=True)] = True


class ModelView(View):
    """The step-time and power model in use for one instance."""

    state: ModelState
    reason: str = ""
    path: str | None = None
    version: int | None = Field(None, description="0 is the shipped model, others were refitted online")
    refit: RefitView | None = None
    hardware: str | None = None
    vllm_version: str | None = None
    created: str | None = None
    samples: int | None = None
    step_error_ratio: float | None = Field(None, description="median |predicted / measured - 1| when trained")
    power_error_ratio: float | None = None
    upper_factor: float | None = None
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)


class SavingsView(View):
    """Energy saved: an estimate, always with its baseline. `low` and `high` bound it where known."""

    estimate: Literal[True] = True
    baseline: str = ESTIMATE_BASELINE
    baseline_j: float = 0.0
    actual_j: float = 0.0
    saved_j: float = 0.0
    saved_ratio: float | None = None
    low_ratio: float | None = None
    high_ratio: float | None = None


class ForecastView(View):
    clock_mhz: int
    tbt_s: float | None
    ttft_s: float | None
    e2e_s: float | None
    power_w: float | None
    feasible: bool

    @classmethod
    def of(cls, forecast: Forecast | None) -> Self | None:
        if forecast is None:
            return None
        return cls(
            clock_mhz=forecast.clock_mhz,
            tbt_s=_finite(forecast.tbt_s),
            ttft_s=_finite(forecast.ttft_s),
            e2e_s=_finite(forecast.e2e_s),
            power_w=_finite(forecast.power_w),
            feasible=forecast.feasible,
        )


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity: an unbounded forecast is shown as null."""
    return value if float("-inf") < value < float("inf") else None


class DecisionView(View):
    """One decision and why; `clock_mhz` null is driver default."""

    instance: str
    decided_unix_s: float
    regime: Regime
    clock_mhz: int | None
    applied: bool = Field(description="false in shadow mode and when protection had the last word")
    binding: Binding
    reason: str
    chosen: ForecastView | None = None
    next_lower: ForecastView | None = None
    at_default: ForecastView | None = None
    projected_batch: float = 0.0
    projected_kv_tokens: float = 0.0

    @classmethod
    def of(
        cls, instance: str, decision: Decision, *, decided_unix_s: float, regime: Regime, applied: bool
    ) -> Self:
        return cls(
            instance=instance,
            decided_unix_s=decided_unix_s,
            regime=regime,
            clock_mhz=decision.clock_mhz,
            applied=applied,
            binding=decision.binding,
            reason=decision.reason,
            chosen=ForecastView.of(decision.chosen),
            next_lower=ForecastView.of(decision.next_lower),
            at_default=ForecastView.of(decision.at_default),
            projected_batch=decision.projected_batch,
            projected_kv_tokens=decision.projected_kv_tokens,
        )


class OverrideRequest(View):
    """A clock by hand for a limited time; `clock_mhz` null holds driver default."""

    clock_mhz: Megahertz | None
    duration_s: Annotated[Seconds, Field(le=OVERRIDE_MAX_S)]


class OverrideView(View):
    instance: str
    clock_mhz: int | None
    left_s: float


class ModeView(View):
    mode: Mode


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
    savings: SavingsView | None = None
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
