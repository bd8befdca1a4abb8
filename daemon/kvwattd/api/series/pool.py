"""Series of the pool. Without one there are no samples, and nothing autoscales on a zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from kvwattd.api.schemas import KindView, PlanState, PoolView, StatusView
from kvwattd.api.series.base import Samples, Series, one


def _of_kinds(name: str, help_: str, value: Callable[[KindView], float | None]) -> Series[StatusView]:
    def samples(view: StatusView) -> Samples:
        return [((kind.kind,), value(kind)) for kind in view.pool.kinds]

    return Series(name, help_, samples, ("kind",))


def _of_pool(name: str, help_: str, value: Callable[[PoolView], float | None]) -> Series[StatusView]:
    return one(name, help_, lambda view: value(view.pool) if view.pool.enabled else None)


def _forecast(view: StatusView) -> Samples:
    seen = view.pool.forecast
    if seen is None:
        return []
    return [(("now",), seen.now_per_s), (("mean",), seen.mean_per_s), (("upper",), seen.quantile_per_s)]


def _plan_state(view: StatusView) -> Samples:
    plan = view.pool.plan
    return [((state,), float(state == plan.state)) for state in get_args(PlanState)] if plan else []


def _errors(view: StatusView) -> Samples:
    found = [(*key.partition(":")[::2], count) for key, count in view.pool.errors_total.items()]
    return [((who, cause), count) for who, cause, count in found]


POOL_SERIES: tuple[Series[StatusView], ...] = (
    _of_kinds(
        "kvwatt_instances_desired",
        "Ready instances wanted, by kind; an autoscaler may follow it.",
        lambda k: k.desired,
    ),
    _of_kinds("kvwatt_instances_ready", "Instances in service.", lambda k: k.ready),
    _of_kinds("kvwatt_instances_starting", "Instances that start or wake up.", lambda k: k.starting),
    _of_kinds("kvwatt_instances_draining", "Instances that finish what they have.", lambda k: k.draining),
    _of_kinds("kvwatt_instances_asleep", "Instances that sleep.", lambda k: k.asleep),
    _of_kinds("kvwatt_instances_stopped", "Instances that are stopped.", lambda k: k.stopped),
    _of_kinds("kvwatt_instances_failed", "Instances whose start or stop did not come.", lambda k: k.failed),
    _of_kinds("kvwatt_instances_unknown", "Instances of which nothing can be told.", lambda k: k.unknown),
    _of_kinds(
        "kvwatt_instance_capacity_requests",
        "Largest request rate of one instance within its promises, per second.",
        lambda k: k.capacity_per_s,
    ),
    _of_kinds("kvwatt_instance_start_seconds", "Time that a start takes, in seconds.", lambda k: k.start_s),
    _of_pool("kvwatt_pool_acting", "1 when actions are carried out, 0 when told only.", lambda p: p.acting),
    _of_pool(
        "kvwatt_pool_fault",
        "1 while nothing is scaled down because something cannot be seen, else 0.",
        lambda p: p.fault is not None,
    ),
    _of_pool("kvwatt_pool_manual", "1 while the number is set by hand.", lambda p: p.manual is not None),
    Series(
        "kvwatt_pool_plan_state",
        "1 for what the newest plan came to, else 0; its reason in words: GET /api/v1/pool.",
        _plan_state,
        ("state",),
    ),
    Series(
        "kvwatt_pool_plans",
        "Plans by what they came to.",
        lambda v: [((state,), count) for state, count in v.pool.plans_total.items()],
        ("state",),
        counter=True,
    ),
    Series(
        "kvwatt_scale_events",
        "Scale actions by action and outcome.",
        lambda v: [((str(e.action), e.outcome), e.count) for e in v.pool.scale_events_total],
        ("action", "outcome"),
        counter=True,
    ),
    Series(
        "kvwatt_pool_errors",
        "Failed calls of backend, router and probe, by whom and cause.",
        _errors,
        ("part", "cause"),
        counter=True,
    ),
    Series(
        "kvwatt_forecast_requests",
        "Requests per second to the whole pool: now, and over a start's time as mean and planned-for upper.",
        _forecast,
        ("value",),
    ),
    _of_pool(
        "kvwatt_forecast_horizon_seconds",
        "How far the request rate is forecast, in seconds.",
        lambda p: p.forecast.horizon_s if p.forecast else None,
    ),
    _of_pool(
        "kvwatt_forecast_quantile_ratio",
        "Quantile of the request rate that capacity is planned for, 0 to 1.",
        lambda p: p.forecast.quantile if p.forecast else None,
    ),
)
