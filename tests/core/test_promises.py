"""Promises counted from the tap's single requests, or from the growth of the page's histograms."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from blank_page import BLANK
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.state import EngineSnapshot, Histogram, Metric, Slo, SloTarget
from kvwattd.promises import Judged, Promises
from kvwattd.promises_top import AtTop
from kvwattd.vllm_plugin.wire import Finished

SLO = Slo(SloTarget(1.0, 0.9), SloTarget(0.1, 0.9), SloTarget(10.0, 0.9))


def page(at_s: float, met: float, total: float) -> EngineSnapshot:
    """`met` of `total` requests within every limit of SLO since the server's start."""
    counted = {
        name: Histogram((limit_s, inf), (met, total), 0.0, total)
        for name, limit_s in (("ttft_s", 1.0), ("tbt_s", 0.1), ("e2e_s", 10.0))
    }
    return replace(BLANK, observed_s=at_s, **counted)


def done(e2e_s: float, decode_s: float = 1.0, tokens: int = 21, reason: int = 0) -> Finished:
    return Finished(reason, 100, tokens, e2e_s=e2e_s, decode_s=decode_s)


def test_pages_alone_count_what_grew_between_them() -> None:
    """What was served before the first page belongs to nobody's window."""
    promises = Promises(60.0)
    promises.on_page(page(0.0, 500.0, 1000.0), SLO, None)
    promises.on_page(page(1.0, 507.0, 1010.0), SLO, None)
    for metric in Metric:
        tally = promises.budget(1.0, SLO)[metric]
        assert (tally.seen, tally.missed, tally.permitted) == (10.0, 3.0, pytest.approx(1.0))


def test_single_requests_count_exactly_where_they_are_told() -> None:
    """The page's buckets are not asked: a wait of 0.99 s keeps a promise of 1 s."""
    promises = Promises(60.0)
    promises.on_page(page(0.0, 0.0, 0.0), SLO, Judged((), ()))
    judged = Judged([0.99, 1.01, 0.2], [done(9.99), done(10.01), done(5.0, decode_s=2.2)])
    promises.on_page(page(1.0, 0.0, 50.0), SLO, judged)
    budget = promises.budget(1.0, SLO)
    assert {m: (t.seen, t.missed) for m, t in budget.items()} == {
        Metric.TTFT: (3.0, 1.0),
        Metric.E2E: (3.0, 1.0),
        Metric.TBT: (3.0, 1.0),
    }


def test_aborted_requests_and_single_tokens_are_not_judged() -> None:
    """Who gave up was not served late, and one token has no time between tokens."""
    promises = Promises(60.0)
    promises.on_page(page(0.0, 0.0, 0.0), SLO, Judged((), ()))
    promises.on_page(page(1.0, 0.0, 0.0), SLO, Judged((), [done(99.0, reason=2), done(1.0, tokens=1)]))
    budget = promises.budget(1.0, SLO)
    assert budget[Metric.E2E].seen == 1.0
    assert budget[Metric.TBT].seen == 0.0


def test_other_promises_are_counted_anew_and_a_restart_keeps_the_window() -> None:
    """Misses of a limit that is no longer promised are forgiven; a restarted engine forgives nothing."""
    promises = Promises(60.0)
    promises.on_page(page(0.0, 0.0, 0.0), SLO, None)
    promises.on_page(page(1.0, 0.0, 10.0), SLO, None)
    promises.restart()
    promises.on_page(page(2.0, 0.0, 3.0), SLO, None)
    assert promises.budget(2.0, SLO)[Metric.TTFT].missed == 10.0
    looser = replace(SLO, ttft=SloTarget(5.0, 0.9))
    promises.on_page(page(3.0, 0.0, 3.0), looser, None)
    assert promises.budget(3.0, looser)[Metric.TTFT].seen == 0.0


def test_counters_that_went_back_count_nothing() -> None:
    """A server that restarted unseen is no promise broken."""
    promises = Promises(60.0)
    promises.on_page(page(0.0, 5.0, 10.0), SLO, None)
    promises.on_page(page(1.0, 0.0, 2.0), SLO, None)
    assert promises.budget(1.0, SLO)[Metric.E2E].seen == 0.0


def test_another_window_starts_empty_and_the_same_one_goes_on() -> None:
    """Only a change of the setting forgets."""
    promises = Promises(60.0)
    promises.on_page(page(0.0, 0.0, 0.0), SLO, None)
    promises.on_page(page(1.0, 1.0, 2.0), SLO, None)
    promises.over(60.0)
    assert promises.budget(1.0, SLO)[Metric.TTFT].seen == 2.0
    promises.over(120.0)
    assert promises.budget(1.0, SLO)[Metric.TTFT].seen == 0.0


def test_misses_that_the_top_clock_would_have_made_are_told_apart() -> None:
    """At half the top clock's speed 12 s would have been 6 s there, in time; 24 s still too late."""
    promises = Promises(60.0)
    for second in range(30):
        promises.on_page(page(float(second), 0.0, 0.0), SLO, Judged((), ()), stretch=2.0)
    judged = Judged([1.5, 2.5], [done(12.0), done(24.0), done(5.0, decode_s=2.2), done(5.0, decode_s=4.4)])
    promises.on_page(page(30.0, 0.0, 0.0), SLO, judged, stretch=2.0)
    told = {m: (t.missed, t.unavoidable) for m, t in promises.budget(30.0, SLO).items()}
    assert told == {Metric.TTFT: (2.0, 1.0), Metric.TBT: (2.0, 1.0), Metric.E2E: (2.0, 1.0)}


@given(st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(0.5, 4.0)), max_size=60), st.floats(0.0, 200.0))
def test_no_time_is_longer_at_the_top_clock(steps: list[tuple[float, float]], last_s: float) -> None:
    """Nor shorter than by the largest stretch; the same without any."""
    top, plain, now_s = AtTop(), AtTop(), 0.0
    for gone_s, stretch in steps:
        now_s += gone_s
        top.on_time(now_s, stretch)
        plain.on_time(now_s, 1.0)
    assert last_s / 4.0 - 1e-6 <= top.seconds(last_s) <= last_s + 1e-6
    assert plain.seconds(last_s) == pytest.approx(last_s, abs=1e-6)
