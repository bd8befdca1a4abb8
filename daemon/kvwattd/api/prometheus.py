"""The daemon's own /metrics: a StatusView rendered when scraped. Base units, `kvwatt_` names.

A value that is unknown has no sample: an outage must not read as zero. The registry is private, so
that several daemons (in tests, in the demo) live in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvwattd.api.schemas import DurationView, PoolView, StatusView
from kvwattd.api.series import GPU_SERIES, INSTANCE_SERIES, LEDGER_SERIES, POOL_SERIES, STATUS_SERIES, Series

T = TypeVar("T")
DURATION = (
    "kvwatt_decision_duration_seconds",
    "Time to decide for one instance, from projection to clock, in seconds.",
)
START = (
    "kvwatt_instance_start_duration_seconds",
    "Time from the order to start or wake until in service, in seconds.",
)
Labelled = Sequence[tuple[tuple[str, ...], T]]


class StatusCollector(Collector):
    """Asks for the status at each scrape; holds nothing between scrapes."""

    def __init__(self, status: Callable[[], StatusView]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Empty: registering must not ask for a status before the daemon has one."""
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        instances = [((view.name,), view) for view in status.instances]
        gpus = [((view.name, gpu.uuid), gpu) for view in status.instances for gpu in view.gpus]
        yield from (_render(series, (), [((), status)]) for series in STATUS_SERIES)
        yield _durations(status.decision_duration)
        yield from (_render(series, (), [((), status)]) for series in POOL_SERIES)
        yield _start_times(status.pool)
        yield from (_render(series, (), [((), status)]) for series in LEDGER_SERIES)
        yield from (_render(series, ("instance",), instances) for series in INSTANCE_SERIES)
        yield from (_render(series, ("instance", "gpu"), gpus) for series in GPU_SERIES)


def registry_of(status: Callable[[], StatusView]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return registry


def _render(series: Series[T], names: tuple[str, ...], items: Labelled[T]) -> Metric:
    kind = CounterMetricFamily if series.counter else GaugeMetricFamily
    family = kind(series.name, series.help, labels=[*names, *series.labels])
    for labels, item in items:
        for extra, value in series.samples(item):
            if value is not None:
                family.add_metric([*labels, *extra], float(value))
    return family


def _durations(view: DurationView) -> Metric:
    buckets = [(repr(b), float(n)) for b, n in zip(view.bounds_s, view.cumulative, strict=True)]
    return HistogramMetricFamily(
        *DURATION,
        buckets=[*buckets, ("+Inf", float(view.count))],
        sum_value=view.sum_s,
    )


def _start_times(pool: PoolView) -> Metric:
    family = HistogramMetricFamily(*START, labels=("kind", "action"))
    for seen in pool.start_times:
        buckets = [(repr(b), float(n)) for b, n in zip(seen.bounds_s, seen.cumulative, strict=True)]
        family.add_metric(
            [seen.kind, str(seen.action)], [*buckets, ("+Inf", float(seen.count))], sum_value=seen.sum_s
        )
    return family
