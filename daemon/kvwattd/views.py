"""Builds what REST and /metrics show from the runtime state; called only when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvwatt.attainment import within
from kvwatt.state import Histogram, Metric
from kvwattd.api.schemas import (
    AttainmentView,
    DecisionView,
    DurationView,
    EnergyAccountView,
    GpuView,
    GuardView,
    InstanceView,
    LatencyBoundView,
    ModelVersionsView,
    ModelVersionView,
    ModelView,
    OverrideView,
    ProgressView,
    ProjectionView,
    RefitView,
    RegimeView,
    SavingsView,
    SloView,
    StepView,
    TapView,
    TelemetryView,
)
from kvwattd.config import Mode
from kvwattd.durations import BOUNDS_S, Durations
from kvwattd.guard_link import GuardLink
from kvwattd.instance import InstanceRuntime, Recorded
from kvwattd.model_versions import SHIPPED, Version
from kvwattd.observation import Observation
from kvwattd.scheduler_link.view import scheduler_view
from kvwattd.shadow.view import shadow_view
from kvwattd.telemetry.energy_counter import EnergyReading
from kvwattd.views_energy import attribution_view
from kvwattd.views_page import clock_range_view, quantile_s

Unix = Callable[[float], float]  # monotonic seconds -> unix seconds


def instance_view(
    run: InstanceRuntime,
    mode: Mode,
    now_s: float,
    unix: Unix,
    model: ModelView,
    permitted_mhz: Sequence[int] = (),
) -> InstanceView:
    seen = run.observation.snapshot
    gpus = gpu_views(run, now_s)
    known_w = [gpu.power_w for gpu in gpus if gpu.power_w is not None]
    known_j = [gpu.energy_j for gpu in gpus if gpu.energy_j is not None]
    return InstanceView(
        name=run.name,
        url=run.config.url,
        tp=run.config.tp,
        model_name=seen.model_name if seen else run.config.model_name,
        regime=run.regime,
        regime_reason=run.standing.reason,
        mode=mode,
        clock_target_mhz=run.confirmed_mhz,
        clocks=clock_range_view([info.supported_mhz for info in run.gpus], permitted_mhz),
        clock_changes_total=run.clock_changes,
        gpus=gpus,
        power_w=sum(known_w) if known_w else None,
        energy_j=sum(known_j) if known_j else None,
        running=seen.running if seen else None,
        waiting=seen.waiting if seen else None,
        kv_usage=seen.kv_usage if seen else None,
        projection=projection_view(run),
        step=step_view(run.observation),
        slo=SloView.of(run.slo),
        attainment=attainment_views(run, now_s),
        latency_bounds={
            metric: LatencyBoundView(factor=c.factor, coverage=c.coverage)
            for metric, c in run.latencies.calibrations.items()
        },
        telemetry=telemetry_view(run, now_s),
        model=model,
        savings=savings_view(run),
        shadow=shadow_view(run),
        attribution=attribution_view(run.account),
        override=override_view(run, now_s),
        decisions_total=dict(run.bindings),
        last_decision=decision_view(run.name, run.decisions[-1], unix) if run.decisions else None,
    )


def gpu_views(run: InstanceRuntime, now_s: float) -> list[GpuView]:
    views = []
    for info in run.gpus:
        sample = run.samples.get(info.uuid)
        if sample is None:
            views.append(GpuView(uuid=info.uuid, name=info.name, clock_target_mhz=run.confirmed_mhz))
            continue
        views.append(
            GpuView(
                uuid=info.uuid,
                name=info.name,
                clock_target_mhz=run.confirmed_mhz,
                clock_actual_mhz=sample.clock_mhz,
                power_w=sample.power_w,
                energy_j=sample.energy_j,
                energy=energy_view(run.energy.get(info.uuid)),
                temperature_c=sample.temperature_c,
                utilization=sample.utilization,
                event_reasons=sample.event_reasons,
                age_s=now_s - sample.observed_s,
            )
        )
    return views


def energy_view(account: EnergyReading | None) -> EnergyAccountView | None:
    if account is None:
        return None
    return EnergyAccountView(
        estimated_j=account.estimated_j,
        resets_total=account.resets,
        refused_total=account.refused,
        frozen_total=account.frozen,
        gaps_total=account.gaps,
        disagreements_total=account.disagreements,
        disagrees=account.disagrees,
    )


def projection_view(run: InstanceRuntime) -> ProjectionView | None:
    decision, shape = run.last, run.shape()
    if decision is None or shape is None or decision.chosen is None:
        return None
    return ProjectionView(
        horizon_s=run.params.horizon_s,
        batch=decision.projected_batch,
        kv_tokens=decision.projected_kv_tokens,
        kv_usage=decision.projected_kv_tokens / shape.kv_capacity_tokens,
    )


def step_view(observation: Observation) -> StepView:
    check = observation.check
    predicted, measured, calibration = check.predicted_itl_s, check.measured_itl_s, check.calibration
    error = predicted / measured - 1.0 if predicted is not None and measured else None
    return StepView(
        predicted_s=predicted,
        measured_s=measured,
        error_ratio=error,
        bias=calibration.bias,
        upper_factor=calibration.upper_factor,
        coverage=calibration.coverage,
        drifted=calibration.drifted,
        regimes={
            name: RegimeView(bias=c.bias, upper_factor=c.upper_factor, coverage=c.coverage, samples=c.samples)
            for name, c in calibration.regimes.items()
        },
    )


def attainment_views(run: InstanceRuntime, now_s: float) -> dict[Metric, AttainmentView]:
    """Attainment since the first page the daemon saw of this engine run, and over the operator's window."""
    slo, first, last = run.slo, run.observation.first, run.observation.snapshot
    if first is None or last is None:
        return {}
    pairs = (
        (Metric.TTFT, slo.ttft, first.ttft_s, last.ttft_s),
        (Metric.TBT, slo.tbt, first.tbt_s, last.tbt_s),
        (Metric.E2E, slo.e2e, first.e2e_s, last.e2e_s),
    )
    out, budget = {}, run.promises.budget(now_s, slo)
    for metric, target, before, after in pairs:
        if target is None:
            continue
        since = _since(after, before)
        kept = within(since, target.limit_s)
        out[metric] = AttainmentView(
            limit_s=target.limit_s,
            quantile=target.quantile,
            met=kept.met,
            total=kept.total,
            ratio=kept.ratio,
            observed_s=quantile_s(since, target.quantile),
            window_s=run.promises.window_s,
            window_total=budget[metric].seen,
            window_missed=budget[metric].missed,
            window_permitted=budget[metric].permitted,
        )
    return out


def _since(after: Histogram, before: Histogram) -> Histogram:
    counts = tuple(a - b for a, b in zip(after.cumulative, before.cumulative, strict=True))
    return Histogram(after.bounds, counts, after.sum - before.sum, after.count - before.count)


def telemetry_view(run: InstanceRuntime, now_s: float) -> TelemetryView:
    seen = run.observation
    return TelemetryView(
        source=seen.source,
        tap=tap_view(seen, now_s) if run.tapped else None,
        age_s=seen.age_s(now_s),
        fresh=seen.snapshot is not None and seen.fault(now_s) is None,
        layout=seen.layout,
        polls_total=seen.polls,
        errors_total=dict(seen.errors),
        last_error=seen.last_error,
    )


def tap_view(seen: Observation, now_s: float) -> TapView:
    tap, drift = seen.tap, seen.estimator.by_class.drift
    return TapView(
        age_s=now_s - tap.last_s if tap.last_s is not None else None,
        records_total=tap.records,
        lost_total=tap.lost,
        step_s=tap.step_s,
        unused=tap.fault(),
        period_s=tap.period_s,
        progress=progress_view(seen),
        length_drift_ratio=drift.distance / drift.threshold,
        scheduler=scheduler_view(tap, now_s),
    )


def progress_view(seen: Observation) -> ProgressView:
    progress, unused = seen.tap.progress, seen.tap.fault() or seen.tap.progress.fault()
    return ProgressView(
        used=unused is None,
        unused=unused,
        matched_total=progress.score.matched,
        unmatched_total=progress.score.unmatched,
        vanished_total=progress.score.vanished,
        error_tokens=progress.score.error_tokens,
    )


def savings_view(run: InstanceRuntime) -> SavingsView | None:
    s = run.savings
    if s.baseline_j <= 0:
        return None
    return SavingsView(baseline_j=s.baseline_j, actual_j=s.actual_j, saved_j=s.saved_j, saved_ratio=s.ratio)


def override_view(run: InstanceRuntime, now_s: float) -> OverrideView | None:
    o = run.override
    if o is None:
        return None
    return OverrideView(instance=run.name, clock_mhz=o.clock_mhz, left_s=max(o.until_s - now_s, 0.0))


def decision_view(name: str, recorded: Recorded, unix: Unix) -> DecisionView:
    return DecisionView.of(
        name,
        recorded.decision,
        decided_unix_s=unix(recorded.decision.decided_s),
        regime=recorded.regime,
        applied=recorded.applied,
    )


def guard_view(link: GuardLink, needed: bool, now_s: float) -> GuardView:
    hello, seen = link.hello, link.status
    if not needed:
        return GuardView(state="unused", errors_total=link.errors)
    left = hello.lease_s - (now_s - link.renewed_s) if hello and link.renewed_s is not None else None
    return GuardView(
        state="connected" if link.fault is None else "disconnected",
        version=str(hello.version) if hello else None,
        lease_s=hello.lease_s if hello else None,
        lease_left_s=left,
        errors_total=link.errors,
        last_error=link.last_error,
        alarms={gpu.uuid: gpu.alarm for gpu in seen.gpus if gpu.alarm} if seen else {},
        yields_total=seen.yields if seen else None,
        disobeyed_total=seen.disobeyed if seen else None,
        driver_reloads_total=seen.driver_reloads if seen else None,
    )


def duration_view(durations: Durations) -> DurationView:
    return DurationView(
        bounds_s=BOUNDS_S,
        cumulative=durations.cumulative(),
        sum_s=durations.sum_s,
        count=durations.count,
        p50_s=durations.quantile_s(0.5),
        p99_s=durations.quantile_s(0.99),
        max_s=durations.max_s if durations.count else None,
    )


def versions_view(
    name: str, serving: int | None, held: bool, versions: list[Version], refit: RefitView
) -> ModelVersionsView:
    return ModelVersionsView(
        instance=name,
        serving=serving,
        held=held,
        versions=[version_view(version, version.number == serving) for version in versions],
        refit=refit,
    )


def version_view(version: Version, serving: bool) -> ModelVersionView:
    record, refitted = version.record, version.number != SHIPPED
    return ModelVersionView(
        version=version.number,
        serving=serving,
        state=version.state,
        detail=version.detail,
        created=record.created or None,
        parent=record.parent if refitted else None,
        samples=record.samples if refitted else None,
        champion_error_ratio=record.champion_error,
        challenger_error_ratio=record.challenger_error,
        reason=record.reason,
    )
