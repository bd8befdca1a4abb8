"""What is seen of GPUs and engines: readings, steps, telemetry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kvwattd.api.schemas.base import View
from kvwattd.api.schemas.scheduler import SchedulerView


class EnergyAccountView(View):
    """How far the energy counter can be trusted; `estimated_j` is power x time, in the counter's stead."""

    estimated_j: float = 0.0
    resets_total: int = 0
    refused_total: int = Field(0, description="deltas above what the GPU can draw")
    frozen_total: int = Field(0, description="readings at which it stood still under power")
    gaps_total: int = Field(0, description="stretches without a reading")
    disagreements_total: int = Field(0, description="windows in which counter and power differed")
    disagrees: bool = Field(False, description="counter and power differ by more than a tenth")


class GpuView(View):
    uuid: str
    name: str = ""
    clock_target_mhz: int | None = Field(None, description="null is driver default")
    clock_actual_mhz: int | None = None
    power_w: float | None = None
    energy_j: float | None = Field(None, description="sum of energy counter deltas since the daemon started")
    energy: EnergyAccountView | None = Field(None, description="what stands behind energy_j")
    temperature_c: float | None = None
    utilization: float | None = None
    event_reasons: int | None = Field(None, description="NVML clocks event reasons, bit mask")
    age_s: float | None = Field(None, description="age of the reading")


class ProjectionView(View):
    horizon_s: float
    batch: float
    kv_tokens: float
    kv_usage: float | None = None


class ClockRangeView(View):
    """The clocks of an instance's GPUs, in MHz: what all of them support, and what may be asked of them."""

    supported_min_mhz: int
    supported_max_mhz: int
    permitted_min_mhz: int | None = Field(None, description="within policy.floor_mhz and the guard's bounds")
    permitted_max_mhz: int | None = Field(
        None, description="within policy.ceiling_mhz and the guard's bounds"
    )


class TrajectoryView(View):
    """Batch and KV cache over the coming seconds: mean, and the band that `level` of courses stay within.

    All lists have the length of `times_s`; the first entry is now.
    """

    observed_unix_s: float = Field(description="when the state it starts from was seen")
    level: float = Field(description="of the band, two-sided: from low to high")
    times_s: list[float] = Field(description="from now")
    batch: list[float]
    batch_low: list[float]
    batch_high: list[float] = Field(description="at most max_num_seqs of the engine")
    kv_usage: list[float] = Field(description="share of the KV cache; above 1 it would overflow")
    kv_usage_low: list[float]
    kv_usage_high: list[float]


class HistoryView(View):
    """An instance over the last quarter of an hour at most, a point a second, oldest first.

    All lists have the length of `unix_s`; null is what was not known then.
    """

    unix_s: list[float]
    clock_target_mhz: list[float | None] = Field(description="in shadow mode what would be asked for")
    clock_actual_mhz: list[float | None] = Field(description="the lowest of its GPUs")
    power_w: list[float | None]
    predicted_power_w: list[float | None] = Field(description="at the decision's clock, while in control")
    running: list[float | None]
    waiting: list[float | None]
    kv_usage: list[float | None]
    step_s: list[float | None] = Field(description="as measured")
    predicted_step_s: list[float | None]
    step_bound_s: list[float | None] = Field(description="the bound above the prediction")


class RegimeView(View):
    """Online calibration of one kind of interval: plain decode, or mixed with prompts."""

    bias: float
    upper_factor: float
    coverage: float | None = None
    samples: int = 0


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


class ProgressView(View):
    """Running requests as reconstructed from the tap's records."""

    used: bool = Field(False, description="whether decisions see requests one by one")
    unused: str | None = Field(None, description="why they see only sums; null while they see requests")
    matched_total: int = Field(0, description="finished requests that were known")
    unmatched_total: int = Field(0, description="finished requests that were not seen to start")
    vanished_total: int = Field(0, description="known requests that ended untold, mostly aborted")
    error_tokens: float = Field(0.0, description="tokens by which finished requests were off, recent mean")


class TapView(View):
    """The plugin inside vLLM: what it sent, and why it is not relied on, if so."""

    age_s: float | None = Field(None, description="age of the newest record")
    records_total: int = 0
    lost_total: int = Field(0, description="records that the sender numbered and that never came")
    step_s: float | None = Field(None, description="time of the newest step that gave tokens")
    unused: str | None = Field(None, description="why the poll is used instead; null while the tap is used")
    period_s: float | None = Field(None, description="about the longest recent step: so late is a burst seen")
    progress: ProgressView = ProgressView()
    length_drift_ratio: float = Field(
        0.0, description="newest output lengths against those before; above 1 they have changed"
    )
    scheduler: SchedulerView | None = Field(None, description="null where vLLM runs its own scheduler")


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
