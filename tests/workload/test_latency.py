from __future__ import annotations

import pytest

from kvwatt.state import Metric, Slo, SloTarget
from kvwatt_sim.latency import Attainment, quantile, report
from kvwatt_sim.loadgen import RequestRecord

SLO = Slo(ttft=SloTarget(1.0), tbt=SloTarget(0.1), e2e=SloTarget(10.0))
END_S = 100.0


def _record(due_s: float, ttft_s: float | None, tbt_s: float, tokens: int, done: bool) -> RequestRecord:
    record = RequestRecord(due_s=due_s, prompt_tokens=10, output_tokens=tokens, sent_s=due_s)
    if ttft_s is not None:
        record.first_token_s = due_s + ttft_s
        record.last_token_s = record.first_token_s + tbt_s * (tokens - 1)
        record.tokens = tokens
        record.gaps_s = [tbt_s] * (tokens - 1)
        record.done_s = record.last_token_s if done else None
    return record


def test_finished_requests_are_judged_on_every_metric() -> None:
    """A finished request keeps or breaks each promise by its own latencies."""
    kept, slow = _record(0.0, 0.5, 0.05, 11, done=True), _record(1.0, 2.0, 0.2, 101, done=True)
    summary = report([kept, slow], SLO, END_S)
    assert summary.attainment == {metric: Attainment(met=1, judged=2) for metric in Metric}
    assert (summary.finished, summary.unfinished, summary.failed, summary.tokens) == (2, 0, 0, 112)
    assert summary.quantiles_s[Metric.TBT][0.5] == pytest.approx(0.05)
    assert summary.quantiles_s[Metric.TBT][0.99] == pytest.approx(0.2)
    assert summary.quantiles_s[Metric.E2E][0.99] == pytest.approx(22.0)
    assert summary.itl_p99_s == pytest.approx(0.2)


def test_unfinished_requests_are_judged_by_what_is_certain() -> None:
    """Before its deadline an unfinished request counts for TTFT and TBT only; after it E2E is broken."""
    fresh = report([_record(95.0, 0.5, 0.05, 21, done=False)], SLO, END_S).attainment
    assert fresh == {
        Metric.TTFT: Attainment(1, 1),
        Metric.TBT: Attainment(1, 1),
        Metric.E2E: Attainment(0, 0),
    }
    overdue = report([_record(80.0, 0.5, 0.05, 21, done=False)], SLO, END_S).attainment
    assert overdue[Metric.E2E] == Attainment(met=0, judged=1)


def test_requests_without_a_first_token_break_ttft_once_overdue() -> None:
    """Waiting longer than the limit breaks TTFT; waiting less says nothing yet."""
    waiting = [_record(98.0, None, 0.0, 0, done=False), _record(99.5, None, 0.0, 0, done=False)]
    assert report(waiting, SLO, END_S).attainment[Metric.TTFT] == Attainment(met=0, judged=1)
    assert report(waiting, SLO, END_S).unfinished == 2


def test_failed_requests_break_every_promise() -> None:
    """An error is never left out of the attainment."""
    failed = _record(0.0, 0.1, 0.01, 5, done=True)
    failed.error = "cut after 5 tokens"
    summary = report([failed], SLO, END_S)
    assert summary.attainment == {metric: Attainment(met=0, judged=1) for metric in Metric}
    assert summary.failed == 1


def test_only_promised_metrics_are_judged() -> None:
    """A metric without a target has quantiles but no attainment."""
    summary = report([_record(0.0, 0.5, 0.05, 11, done=True)], Slo(tbt=SloTarget(0.1)), END_S)
    assert set(summary.attainment) == {Metric.TBT}
    assert summary.quantiles_s[Metric.TTFT][0.5] == pytest.approx(0.5)


def test_nothing_observed_is_none() -> None:
    """Without requests there are no quantiles and no attainment ratio."""
    summary = report([], SLO, END_S)
    assert summary.quantiles_s[Metric.TTFT] == {0.5: None, 0.99: None}
    assert summary.attainment[Metric.E2E].ratio is None


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0] * 99 + [5.0], 0.99, 1.0), ([1.0] * 98 + [5.0, 6.0], 0.99, 5.0)],
)
def test_quantiles_are_observed_values(values: list[float], level: float, expected: float) -> None:
    """A quantile is the smallest value that a share `level` does not exceed."""
    assert quantile(values, level) == expected
