"""Series of one instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from kvwattd.api.schemas import (
    AttainmentView,
    ClockRangeView,
    InstanceView,
    ModelState,
    ProgressView,
    RefitOutcome,
    SavingsView,
)
from kvwattd.api.series.base import Samples, Series, count, hertz, one, states
from kvwattd.regime import Regime


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


def _ends(progress: ProgressView) -> Samples:
    return [
        (("matched",), progress.matched_total),
        (("unmatched",), progress.unmatched_total),
        (("vanished",), progress.vanished_total),
    ]


def _range(clocks: ClockRangeView) -> Samples:
    return [
        (("supported_min",), hertz(clocks.supported_min_mhz)),
        (("supported_max",), hertz(clocks.supported_max_mhz)),
        (("permitted_min",), hertz(clocks.permitted_min_mhz)),
        (("permitted_max",), hertz(clocks.permitted_max_mhz)),
    ]


INSTANCE_SERIES: tuple[Series[InstanceView], ...] = (
    states(
        "kvwatt_regime", "1 for the regime the instance is in, else 0.", "regime", Regime, lambda v: v.regime
    ),
    Series(
        "kvwatt_clock_range_hertz",
        "Ends of the clocks that all GPUs of the instance support, and of those that may be asked of them, "
        "in hertz.",
        lambda v: _range(v.clocks) if v.clocks else [],
        ("bound",),
    ),
    count("kvwatt_clock_changes", "Clock targets confirmed by the guard.", lambda v: v.clock_changes_total),
    Series(
        "kvwatt_decisions",
        "Decisions by what kept the clock from being lower.",
        lambda v: [((str(binding),), n) for binding, n in v.decisions_total.items()],
        ("binding",),
        counter=True,
    ),
    one("kvwatt_requests_running", "Requests in the running batch.", lambda v: v.running),
    one("kvwatt_requests_waiting", "Requests that wait for admission.", lambda v: v.waiting),
    one("kvwatt_kv_usage_ratio", "Share of the KV cache in use, 0 to 1.", lambda v: v.kv_usage),
    one(
        "kvwatt_projected_requests",
        "Running batch projected to the horizon.",
        lambda v: v.projection.batch if v.projection else None,
    ),
    one(
        "kvwatt_projected_kv_tokens",
        "KV cache projected to the horizon, in tokens.",
        lambda v: v.projection.kv_tokens if v.projection else None,
    ),
    one(
        "kvwatt_projected_kv_usage_ratio",
        "Share of the KV cache projected to be in use at the horizon, 0 to 1.",
        lambda v: v.projection.kv_usage if v.projection else None,
    ),
    one(
        "kvwatt_projection_horizon_seconds",
        "How far batch and KV cache are projected, in seconds.",
        lambda v: v.projection.horizon_s if v.projection else None,
    ),
    one(
        "kvwatt_step_time_predicted_seconds",
        "Predicted mean time of an engine step at the clock in force, in seconds.",
        lambda v: v.step.predicted_s,
    ),
    one(
        "kvwatt_step_time_measured_seconds",
        "Measured mean time of an engine step, in seconds.",
        lambda v: v.step.measured_s,
    ),
    one(
        "kvwatt_step_time_error_ratio",
        "Predicted over measured step time, less 1.",
        lambda v: v.step.error_ratio,
    ),
    one("kvwatt_step_time_bias_ratio", "Correction factor learned online.", lambda v: v.step.bias),
    one(
        "kvwatt_step_time_upper_ratio",
        "Factor from the predicted step time to its upper bound.",
        lambda v: v.step.upper_factor,
    ),
    one(
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
    one("kvwatt_model_drifted", "1 when predictions no longer fit, else 0.", lambda v: v.step.drifted),
    states(
        "kvwatt_model_state",
        "1 for the state of the model, else 0.",
        "state",
        get_args(ModelState),
        lambda v: v.model.state,
    ),
    one(
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
    one(
        "kvwatt_model_samples",
        "Operating points kept to refit the model to.",
        lambda v: v.model.refit.samples if v.model.refit else None,
    ),
    _slo("kvwatt_slo_limit_seconds", "The promised latency limit, in seconds.", lambda a: a.limit_s),
    _slo("kvwatt_slo_objective_ratio", "The promised share of requests, 0 to 1.", lambda a: a.quantile),
    _slo("kvwatt_slo_requests", "Requests observed.", lambda a: a.total, counter=True),
    _slo("kvwatt_slo_requests_met", "Requests within the limit.", lambda a: a.met, counter=True),
    _slo("kvwatt_slo_attainment_ratio", "Share of requests within the limit, 0 to 1.", lambda a: a.ratio),
    _slo(
        "kvwatt_slo_window_requests",
        "Requests judged within the operator's window.",
        lambda a: a.window_total,
    ),
    _slo("kvwatt_slo_window_missed", "Of these, requests beyond the limit.", lambda a: a.window_missed),
    _slo(
        "kvwatt_slo_window_permitted",
        "Misses that the promise permits of as many requests.",
        lambda a: a.window_permitted,
    ),
    one(
        "kvwatt_telemetry_age_seconds",
        "Age of the newest accepted scrape, in seconds.",
        lambda v: v.telemetry.age_s,
    ),
    one(
        "kvwatt_telemetry_fresh",
        "1 when telemetry is fresh enough to act on, else 0.",
        lambda v: v.telemetry.fresh,
    ),
    states(
        "kvwatt_telemetry_source",
        "1 for where step times, lengths and the newest state come from, else 0.",
        "source",
        ("tap", "poll"),
        lambda v: v.telemetry.source,
    ),
    count(
        "kvwatt_tap_records",
        "Engine steps that the plugin inside vLLM told of.",
        lambda v: v.telemetry.tap.records_total if v.telemetry.tap else None,
    ),
    count(
        "kvwatt_tap_lost_records",
        "Engine steps that it told of in vain.",
        lambda v: v.telemetry.tap.lost_total if v.telemetry.tap else None,
    ),
    one(
        "kvwatt_tap_requests_known",
        "1 when decisions see running requests one by one, 0 when they see sums.",
        lambda v: v.telemetry.tap.progress.used if v.telemetry.tap else None,
    ),
    one(
        "kvwatt_length_drift_ratio",
        "Newest output lengths against those before: above 1 their distribution has changed.",
        lambda v: v.telemetry.tap.length_drift_ratio if v.telemetry.tap else None,
    ),
    one(
        "kvwatt_tap_request_error_tokens",
        "Tokens by which the progress of finished requests was off, recent mean.",
        lambda v: v.telemetry.tap.progress.error_tokens if v.telemetry.tap else None,
    ),
    Series(
        "kvwatt_tap_requests",
        "Requests that ended, by how: matched as known, unmatched, or vanished untold.",
        lambda v: _ends(v.telemetry.tap.progress) if v.telemetry.tap else [],
        ("end",),
        counter=True,
    ),
    count("kvwatt_telemetry_polls", "Scrapes of the server tried.", lambda v: v.telemetry.polls_total),
    Series(
        "kvwatt_telemetry_errors",
        "Scrapes of the server that failed, by cause.",
        lambda v: [((cause,), n) for cause, n in v.telemetry.errors_total.items()],
        ("cause",),
        counter=True,
    ),
    one(
        "kvwatt_override_active", "1 when a clock is held by hand, else 0.", lambda v: v.override is not None
    ),
    one(
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
