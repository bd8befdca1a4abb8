"""Every series of /metrics, as tables: name, help with the unit, extra labels and where the value is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar, get_args

from kvwattd.api.schemas import (
    AttainmentView,
    GpuView,
    GuardState,
    InstanceView,
    ModelState,
    RefitOutcome,
    SavingsView,
    StatusView,
)
from kvwattd.config import Mode
from kvwattd.regime import Regime

T = TypeVar("T")
Samples = Iterable[tuple[tuple[str, ...], float | None]]

# NVML clocks event reasons (nvml.h): why a GPU does not run at the clock that was asked for.
EVENT_REASONS = {
    "idle": 0x1,
    "power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "power_brake": 0x80,
}


@dataclass(frozen=True, slots=True)
class Series(Generic[T]):
    """`samples` gives label values (beside instance and gpu) with a value; None is unknown: no sample."""

    name: str
    help: str
    samples: Callable[[T], Samples]
    labels: tuple[str, ...] = ()
    counter: bool = False


def _one(name: str, help_: str, value: Callable[[T], float | None], *, counter: bool = False) -> Series[T]:
    return Series(name, help_, lambda view: [((), value(view))], counter=counter)


def _count(name: str, help_: str, value: Callable[[T], float | None]) -> Series[T]:
    return _one(name, help_, value, counter=True)


def _states(
    name: str, help_: str, label: str, states: Iterable[str], current: Callable[[T], str]
) -> Series[T]:
    """One sample per state, 1 for the current one: the usual way to show an enumeration."""
    known = tuple(str(state) for state in states)
    return Series(name, help_, lambda v: [((s,), float(s == str(current(v)))) for s in known], (label,))


def _slo(
    name: str, help_: str, value: Callable[[AttainmentView], float | None], *, counter: bool = False
) -> Series[InstanceView]:
    def samples(view: InstanceView) -> Samples:
        return [((str(metric),), value(item)) for metric, item in view.attainment.items()]

    return Series(name, help_, samples, ("metric",), counter)


def _saved(name: str, help_: str, value: Callable[[SavingsView], float | None]) -> Series[InstanceView]:
    def samples(view: InstanceView) -> Samples:
        return [((view.savings.baseline,), value(view.savings))] if view.savings else []

    return Series(name, help_, samples, ("baseline",))


def _hertz(clock_mhz: int | None) -> float | None:
    return None if clock_mhz is None else clock_mhz * 1e6


def _reasons(gpu: GpuView) -> Samples:
    mask = gpu.event_reasons
    return [
        ((name,), None if mask is None else float(bool(mask & bit))) for name, bit in EVENT_REASONS.items()
    ]


STATUS_SERIES: tuple[Series[StatusView], ...] = (
    Series(
        "kvwatt_build_info",
        "Versions of kvwatt and Python; always 1.",
        lambda v: [((v.build.version, v.build.python), 1.0)],
        ("version", "python"),
    ),
    _one("kvwatt_uptime_seconds", "Time since the daemon started, in seconds.", lambda v: v.uptime_s),
    _states("kvwatt_mode", "1 for the mode the daemon is in, else 0.", "mode", Mode, lambda v: v.mode),
    _count("kvwatt_ticks", "Ticks of the decision loop.", lambda v: v.ticks_total),
    Series(
        "kvwatt_tap_refused",
        "Tap datagrams that were no use, by cause.",
        lambda v: [((cause,), n) for cause, n in v.tap_refused_total.items()],
        ("cause",),
        counter=True,
    ),
    _count("kvwatt_ticks_skipped", "Late ticks, skipped and not queued.", lambda v: v.ticks_skipped_total),
    _states(
        "kvwatt_guard_state",
        "1 for the state of the connection to the guard, else 0.",
        "state",
        get_args(GuardState),
        lambda v: v.guard.state,
    ),
    _count(
        "kvwatt_guard_errors", "Requests that the guard refused or missed.", lambda v: v.guard.errors_total
    ),
    _one(
        "kvwatt_guard_lease_remaining_seconds",
        "Time until the guard resets clocks unless the lease is renewed, in seconds.",
        lambda v: v.guard.lease_left_s,
    ),
)

INSTANCE_SERIES: tuple[Series[InstanceView], ...] = (
    _states(
        "kvwatt_regime", "1 for the regime the instance is in, else 0.", "regime", Regime, lambda v: v.regime
    ),
    _count("kvwatt_clock_changes", "Clock targets confirmed by the guard.", lambda v: v.clock_changes_total),
    Series(
        "kvwatt_decisions",
        "Decisions by what kept the clock from being lower.",
        lambda v: [((str(binding),), n) for binding, n in v.decisions_total.items()],
        ("binding",),
        counter=True,
    ),
    _one("kvwatt_requests_running", "Requests in the running batch.", lambda v: v.running),
    _one("kvwatt_requests_waiting", "Requests that wait for admission.", lambda v: v.waiting),
    _one("kvwatt_kv_usage_ratio", "Share of the KV cache in use, 0 to 1.", lambda v: v.kv_usage),
    _one(
        "kvwatt_projected_requests",
        "Running batch projected to the horizon.",
        lambda v: v.projection.batch if v.projection else None,
    ),
    _one(
        "kvwatt_projected_kv_tokens",
        "KV cache projected to the horizon, in tokens.",
        lambda v: v.projection.kv_tokens if v.projection else None,
    ),
    _one(
        "kvwatt_projected_kv_usage_ratio",
        "Share of the KV cache projected to be in use at the horizon, 0 to 1.",
        lambda v: v.projection.kv_usage if v.projection else None,
    ),
    _one(
        "kvwatt_projection_horizon_seconds",
        "How far batch and KV cache are projected, in seconds.",
        lambda v: v.projection.horizon_s if v.projection else None,
    ),
    _one(
        "kvwatt_step_time_predicted_seconds",
        "Predicted mean time of an engine step at the clock in force, in seconds.",
        lambda v: v.step.predicted_s,
    ),
    _one(
        "kvwatt_step_time_measured_seconds",
        "Measured mean time of an engine step, in seconds.",
        lambda v: v.step.measured_s,
    ),
    _one(
        "kvwatt_step_time_error_ratio",
        "Predicted over measured step time, less 1.",
        lambda v: v.step.error_ratio,
    ),
    _one("kvwatt_step_time_bias_ratio", "Correction factor learned online.", lambda v: v.step.bias),
    _one(
        "kvwatt_step_time_upper_ratio",
        "Factor from the predicted step time to its upper bound.",
        lambda v: v.step.upper_factor,
    ),
    _one(
        "kvwatt_step_time_coverage_ratio",
        "Share of measured step times within the 90 % upper bound so far, 0 to 1.",
        lambda v: v.step.coverage,
    ),
    Series(
        "kvwatt_step_time_regime_bias_ratio",
        "Correction factor learned online, by kind of interval (decode, mixed with prompts).",
        lambda v: [((name,), regime.bias) for name, regime in v.step.regimes.items()],
        ("regime",),
    ),
    Series(
        "kvwatt_step_time_regime_upper_ratio",
        "Factor from the corrected step time to its upper bound, by kind of interval.",
        lambda v: [((name,), regime.upper_factor) for name, regime in v.step.regimes.items()],
        ("regime",),
    ),
    Series(
        "kvwatt_latency_bound_upper_ratio",
        "Factor by which the forecast latency would have to be widened to hold.",
        lambda v: [((str(metric),), bound.factor) for metric, bound in v.latency_bounds.items()],
        ("metric",),
    ),
    Series(
        "kvwatt_latency_bound_coverage_ratio",
        "Share of requests within the widened forecast so far, 0 to 1.",
        lambda v: [((str(metric),), bound.coverage) for metric, bound in v.latency_bounds.items()],
        ("metric",),
    ),
    _one("kvwatt_model_drifted", "1 when predictions no longer fit, else 0.", lambda v: v.step.drifted),
    _states(
        "kvwatt_model_state",
        "1 for the state of the model, else 0.",
        "state",
        get_args(ModelState),
        lambda v: v.model.state,
    ),
    _one(
        "kvwatt_model_version",
        "Version of the model in use; 0 is the shipped one, others were refitted online.",
        lambda v: v.model.version,
    ),
    Series(
        "kvwatt_model_refits",
        "Refits of the model by outcome.",
        lambda v: [((o,), n) for o, n in v.model.refit.outcomes_total.items()] if v.model.refit else [],
        ("outcome",),
        counter=True,
    ),
    Series(
        "kvwatt_model_last_refit",
        "1 for the outcome of the latest refit, else 0; no sample before the first.",
        lambda v: (
            [((o,), float(o == v.model.refit.last)) for o in get_args(RefitOutcome)]
            if v.model.refit and v.model.refit.last
            else []
        ),
        ("outcome",),
    ),
    _one(
        "kvwatt_model_samples",
        "Operating points kept to refit the model to.",
        lambda v: v.model.refit.samples if v.model.refit else None,
    ),
    _slo("kvwatt_slo_limit_seconds", "The promised latency limit, in seconds.", lambda a: a.limit_s),
    _slo("kvwatt_slo_objective_ratio", "The promised share of requests, 0 to 1.", lambda a: a.quantile),
    _slo("kvwatt_slo_requests", "Requests observed.", lambda a: a.total, counter=True),
    _slo("kvwatt_slo_requests_met", "Requests within the limit.", lambda a: a.met, counter=True),
    _slo("kvwatt_slo_attainment_ratio", "Share of requests within the limit, 0 to 1.", lambda a: a.ratio),
    _one(
        "kvwatt_telemetry_age_seconds",
        "Age of the newest accepted scrape, in seconds.",
        lambda v: v.telemetry.age_s,
    ),
    _one(
        "kvwatt_telemetry_fresh",
        "1 when telemetry is fresh enough to act on, else 0.",
        lambda v: v.telemetry.fresh,
    ),
    _states(
        "kvwatt_telemetry_source",
        "1 for where step times, lengths and the newest state come from, else 0.",
        "source",
        ("tap", "poll"),
        lambda v: v.telemetry.source,
    ),
    _count(
        "kvwatt_tap_records",
        "Engine steps that the plugin inside vLLM told of.",
        lambda v: v.telemetry.tap.records_total if v.telemetry.tap else None,
    ),
    _count(
        "kvwatt_tap_lost_records",
        "Engine steps that it told of in vain.",
        lambda v: v.telemetry.tap.lost_total if v.telemetry.tap else None,
    ),
    _count("kvwatt_telemetry_polls", "Scrapes of the server tried.", lambda v: v.telemetry.polls_total),
    Series(
        "kvwatt_telemetry_errors",
        "Scrapes of the server that failed, by cause.",
        lambda v: [((cause,), n) for cause, n in v.telemetry.errors_total.items()],
        ("cause",),
        counter=True,
    ),
    _one(
        "kvwatt_override_active", "1 when a clock is held by hand, else 0.", lambda v: v.override is not None
    ),
    _one(
        "kvwatt_override_remaining_seconds",
        "Time until the clock held by hand is given up, in seconds.",
        lambda v: v.override.left_s if v.override else None,
    ),
    _saved(
        "kvwatt_energy_saved_estimate_joules",
        "Energy saved against the baseline, in joules: an estimate of the energy model, not a measurement.",
        lambda s: s.saved_j,
    ),
    _saved(
        "kvwatt_energy_baseline_estimate_joules",
        "Energy the baseline would have used, in joules: an estimate of the energy model.",
        lambda s: s.baseline_j,
    ),
    _saved(
        "kvwatt_energy_saved_estimate_ratio",
        "Share of the baseline's energy that was saved: an estimate of the energy model.",
        lambda s: s.saved_ratio,
    ),
)

GPU_SERIES: tuple[Series[GpuView], ...] = (
    _one(
        "kvwatt_gpu_clock_target_hertz",
        "SM clock asked for, in hertz; no sample at driver default.",
        lambda g: _hertz(g.clock_target_mhz),
    ),
    _one(
        "kvwatt_gpu_clock_held",
        "1 when a clock is asked for, 0 at driver default.",
        lambda g: g.clock_target_mhz is not None,
    ),
    _one(
        "kvwatt_gpu_clock_actual_hertz", "SM clock read back, in hertz.", lambda g: _hertz(g.clock_actual_mhz)
    ),
    _one("kvwatt_gpu_power_watts", "Power drawn, in watts.", lambda g: g.power_w),
    _count(
        "kvwatt_gpu_energy_joules", "Energy used since the daemon started, in joules.", lambda g: g.energy_j
    ),
    _one("kvwatt_gpu_temperature_celsius", "Temperature, in degrees Celsius.", lambda g: g.temperature_c),
    _one(
        "kvwatt_gpu_utilization_ratio", "Share of time with work on the GPU, 0 to 1.", lambda g: g.utilization
    ),
    Series(
        "kvwatt_gpu_clock_event", "1 when this reason holds the clock back, else 0.", _reasons, ("reason",)
    ),
    _one("kvwatt_gpu_reading_age_seconds", "Age of the GPU's reading, in seconds.", lambda g: g.age_s),
)
