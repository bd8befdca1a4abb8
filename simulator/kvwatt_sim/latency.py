"""What the clients saw: quantiles of TTFT, TBT and E2E, and the share of requests within each promise.

TTFT and E2E count from the request's due time. TBT is the mean time between the tokens of one request
(defined from two tokens on). A request that is unfinished when the measurement ends is judged by what is
certain: the first token if it came, or the promise broken if it is overdue; the mean time between its
tokens so far; E2E broken if it is overdue. A request that failed breaks every promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from kvwatt.state import Metric, Slo, SloTarget
from kvwatt_sim.loadgen import RequestRecord


@dataclass(frozen=True, slots=True)
class Attainment:
    """`met` of `judged` requests were within the limit."""

    met: int
    judged: int

    @property
    def ratio(self) -> float | None:
        """None when no request could be judged."""
        return self.met / self.judged if self.judged else None


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """One replay's latencies in seconds. Quantiles are None where nothing was observed."""

    requests: int
    finished: int
    unfinished: int
    failed: int
    tokens: int
    quantiles_s: dict[Metric, dict[float, float | None]]
    itl_p99_s: float | None
    attainment: dict[Metric, Attainment]


def report(
    records: Sequence[RequestRecord], slo: Slo, end_s: float, levels: Sequence[float] = (0.5, 0.99)
) -> LatencyReport:
    """Summarise `records` as they stood at `end_s` (monotonic seconds)."""
    values = {metric: [v for r in records if (v := observed_s(r, metric)) is not None] for metric in Metric}
    targets = {Metric.TTFT: slo.ttft, Metric.TBT: slo.tbt, Metric.E2E: slo.e2e}
    failed = sum(record.error is not None for record in records)
    finished = sum(record.done_s is not None and record.error is None for record in records)
    return LatencyReport(
        requests=len(records),
        finished=finished,
        unfinished=len(records) - finished - failed,
        failed=failed,
        tokens=sum(record.tokens for record in records),
        quantiles_s={m: {level: quantile(values[m], level) for level in levels} for m in Metric},
        itl_p99_s=quantile([gap for record in records for gap in record.gaps_s], 0.99),
        attainment={
            metric: _attainment(records, metric, target, end_s)
            for metric, target in targets.items()
            if target is not None
        },
    )


def observed_s(record: RequestRecord, metric: Metric) -> float | None:
    """The latency of one request, None where it is not known (yet)."""
    match metric:
        case Metric.TTFT:
            return None if record.first_token_s is None else record.first_token_s - record.due_s
        case Metric.TBT:
            if record.first_token_s is None or record.last_token_s is None or record.tokens < 2:
                return None
            return (record.last_token_s - record.first_token_s) / (record.tokens - 1)
        case Metric.E2E:
            if record.done_s is None or record.error is not None:
                return None
            return record.done_s - record.due_s


def quantile(values: Sequence[float], level: float) -> float | None:
    """The smallest value that at least a share `level` of the values does not exceed; None of nothing."""
    if not 0.0 < level <= 1.0:
        raise ValueError(f"level must lie in (0, 1], got {level}")
    if not values:
        return None
    rank = ceil(level * len(values) - 1e-9)  # 0.07 * 100 is a hair above 7
    return sorted(values)[max(rank, 1) - 1]


def verdict(record: RequestRecord, metric: Metric, target: SloTarget, end_s: float) -> bool | None:
    """Whether the promise was kept; None when that is not known at `end_s`."""
    if record.error is not None:
        return False
    value_s = observed_s(record, metric)
    if value_s is not None:
        return value_s <= target.limit_s
    pending = metric is not Metric.TBT and record.done_s is None
    return False if pending and end_s - record.due_s > target.limit_s else None


def _attainment(
    records: Sequence[RequestRecord], metric: Metric, target: SloTarget, end_s: float
) -> Attainment:
    verdicts = [v for record in records if (v := verdict(record, metric, target, end_s)) is not None]
    return Attainment(met=sum(verdicts), judged=len(verdicts))
