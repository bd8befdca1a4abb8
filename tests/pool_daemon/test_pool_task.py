"""The pool's task: what is planned is ordered where that is permitted, and nothing is taken away on doubt."""

from __future__ import annotations

import pytest
from pool_parts import PARAMS, Bench

from kvwatt.pool import ActionKind, MemberStatus
from kvwattd.config import Mode
from kvwattd.instances.scaler import ScaleEvent
from kvwattd.pool.manual import ManualScale
from kvwattd.regime import Regime

SETTLED = 12  # periods: cool-down, the time that fewer must be enough, and some


async def test_it_grows_with_the_rate_and_shrinks_after_it() -> None:
    """Another one is asked for when one does not carry what comes, and sent away when it is not needed."""
    bench = Bench()
    bench.put(a="ready")
    await bench.period(rate_per_s=1.0, count=SETTLED)
    assert bench.orders() == []
    await bench.period(rate_per_s=5.0, count=2)
    assert ("start", "b") in bench.orders()
    bench.put(b="ready")
    bench.scaler.applied.clear()
    await bench.period(rate_per_s=0.5, count=SETTLED)
    assert [action for action, _ in bench.orders()] and set(bench.orders()) <= {
        ("drain-to-stop", "a"),
        ("drain-to-stop", "b"),
    }
    assert bench.pool.plans.totals["up"] and bench.pool.plans.totals["down"]


async def test_shadow_mode_tells_and_orders_nothing() -> None:
    """The plan is there with its actions, marked as not applied."""
    bench = Bench()
    bench.scaler.acting = False
    bench.put(a="ready")
    await bench.period(rate_per_s=5.0, count=SETTLED)
    newest = bench.pool.plans.newest
    assert newest is not None and newest.plan.actions and not newest.applied
    assert bench.orders() == []
    assert len(bench.pool.plans.changes) == 1  # the same words every period are told once


@pytest.mark.parametrize("fault", ["page", "backend", "unknown"])
async def test_an_outage_takes_nothing_away_and_passes(fault: str) -> None:
    """No page, a failed call or an unknown member is not zero load; afterwards it goes on by itself."""
    bench = Bench()
    bench.put(a="ready", b="ready")
    await bench.period(rate_per_s=5.0, count=SETTLED)
    assert bench.pool.fault is None
    for _ in range(SETTLED):
        if fault == "backend":
            bench.scaler.errors["router", "unreachable"] = (
                bench.scaler.errors.get(("router", "unreachable"), 0) + 1
            )
        if fault == "unknown":
            bench.put(c="unknown")
        await bench.period(rate_per_s=0.2, silent="b" if fault == "page" else "")
        assert bench.pool.fault is not None
    assert bench.orders() == []
    bench.put(c="stopped")
    await bench.period(rate_per_s=0.2, count=SETTLED)
    assert bench.pool.fault is None
    assert [action for action, _ in bench.orders()][:1] == ["drain-to-stop"]


async def test_who_can_be_seen_may_ask_for_more() -> None:
    """The page of one of two is missing, and the other gets more than both carry: the third is started."""
    bench = Bench()
    bench.put(a="ready", b="ready")
    await bench.period(rate_per_s=5.0, count=SETTLED)
    await bench.period(rate_per_s=16.0, silent="b", count=3)
    assert bench.pool.fault is not None
    assert set(bench.orders()) == {("start", "c")}


async def test_a_gap_is_no_zero_for_the_forecast() -> None:
    """While a page is missing nothing is told to the learner."""
    bench = Bench()
    bench.put(a="ready", b="ready")
    await bench.period(rate_per_s=3.0, count=6)
    before = len(bench.learner.windows)
    await bench.period(rate_per_s=3.0, silent="a", count=6)
    assert len(bench.learner.windows) == before
    await bench.period(rate_per_s=3.0, count=6)
    assert len(bench.learner.windows) > before
    assert all(arrivals / dt_s == pytest.approx(3.0) for _, dt_s, arrivals in bench.learner.windows)


async def test_the_minimum_serves_before_anything_is_known() -> None:
    """Neither model nor rate: one is started, and what serves is left alone."""
    bench = Bench()
    bench.kinds.kind = None
    await bench.period()
    assert bench.orders() == [("start", "a")]
    bench.put(a="ready", b="ready", c="ready")
    bench.scaler.applied.clear()
    await bench.period(count=SETTLED)
    assert bench.orders() == []


async def test_a_number_by_hand_stands_until_its_time() -> None:
    """Up at once, within the bounds, and back to what the rate asks for when it is over."""
    bench = Bench()
    bench.put(a="ready")
    await bench.period(rate_per_s=0.5, count=SETTLED)
    bench.pool.set_manual(ManualScale(3, bench.now_s + 6.5, "operator"))
    await bench.period(rate_per_s=0.5)
    assert sorted(bench.orders()) == [("start", "b"), ("start", "c")]
    bench.put(b="ready", c="ready")
    bench.scaler.applied.clear()
    await bench.period(rate_per_s=0.5, count=4)
    assert bench.orders() == [] and bench.pool.plans.newest is not None
    assert bench.pool.plans.newest.state == "manual"
    await bench.period(rate_per_s=0.5, count=SETTLED)
    assert bench.pool.manual is None
    assert bench.orders()[0][0] == "drain-to-stop"


async def test_fewer_by_hand_keep_the_minimum() -> None:
    """One by hand of three: two go, one after the other."""
    bench = Bench()
    bench.put(a="ready", b="ready", c="ready")
    await bench.period(rate_per_s=6.0, count=SETTLED)
    assert bench.orders() == []
    bench.pool.set_manual(ManualScale(1, bench.now_s + 100.0, "operator"))
    for _ in range(SETTLED):
        await bench.period(rate_per_s=0.5)
        for _, member in bench.orders():
            bench.put(**{member: "stopped"})
    assert len(bench.orders()) == 2
    assert list(bench.scaler.statuses.values()).count(MemberStatus.READY) == 1


async def test_what_rests_as_intended_is_no_failure() -> None:
    """Stopped, asleep and starting members are parked; what failed or cannot be told is not."""
    bench = Bench()
    bench.put(a="ready", b="asleep", c="failed")
    await bench.period(rate_per_s=1.0)
    for run in bench.runs.values():
        run.samples = {}
        run.tick(bench.now_s, Mode.ACTIVE, None)
    regimes = {name: run.regime for name, run in bench.runs.items()}
    assert regimes["b"] is Regime.PARKED and regimes["a"] is not Regime.PARKED
    assert regimes["c"] is not Regime.PARKED
    bench.put(b="ready")
    await bench.period(rate_per_s=1.0)
    bench.runs["b"].tick(bench.now_s, Mode.ACTIVE, None)
    assert bench.runs["b"].regime is not Regime.PARKED


@pytest.mark.parametrize(
    ("status", "mode", "held_mhz"),
    [("asleep", Mode.ACTIVE, 900), ("asleep", Mode.SHADOW, None), ("stopped", Mode.ACTIVE, None)],
)
async def test_only_a_sleeping_engine_is_held_low(status: str, mode: Mode, held_mhz: int | None) -> None:
    """Its context keeps the clock up; a stopped one's GPU is left to the driver; shadow writes nothing."""
    bench = Bench()
    bench.put(a="ready", b=status)
    await bench.period()
    assert bench.runs["b"].tick(bench.now_s, mode, None) == held_mhz


async def test_a_fault_of_ours_is_told_and_tried_again() -> None:
    """An exception in one step ends neither the task nor the daemon."""
    bench = Bench()
    await bench.period()
    assert bench.runs["b"].resting is not None
    bench.scaler.broken = RuntimeError("a bug")
    await bench.pool._guarded(bench.pool.step)
    assert bench.runs["b"].resting is None
    assert bench.pool.fault is not None and "a bug" in bench.pool.fault
    bench.scaler.broken = None
    bench.put(a="ready")
    await bench.period(rate_per_s=1.0, count=SETTLED)
    assert bench.pool.fault is None


async def test_a_forecast_that_is_no_number_is_learned_anew() -> None:
    """Nothing is planned with it, and the next windows are learned from."""
    bench = Bench()
    bench.put(a="ready")
    await bench.period(rate_per_s=1.0, count=SETTLED)
    bench.learner.windows.append((0.0, 1.0, float("nan")))
    bench.pool._fold(None, bench.now_s)
    assert bench.pool.forecast is None
    await bench.period(rate_per_s=1.0, count=SETTLED)
    assert bench.pool.forecast is not None and bench.orders() == []


async def test_starts_are_counted_and_timed() -> None:
    """A start that came is one done, with its duration; failure and cancellation are told apart."""
    bench = Bench()
    stages = [
        (1.0, "a", MemberStatus.STOPPED, MemberStatus.STARTING),
        (8.0, "a", MemberStatus.STARTING, MemberStatus.READY),
        (9.0, "b", MemberStatus.STOPPED, MemberStatus.STARTING),
        (10.0, "b", MemberStatus.STARTING, MemberStatus.FAILED),
        (11.0, "c", MemberStatus.ASLEEP, MemberStatus.STARTING),
        (12.0, "c", MemberStatus.STARTING, MemberStatus.ASLEEP),
        (13.0, "a", MemberStatus.READY, MemberStatus.DRAINING),
        (15.0, "a", MemberStatus.DRAINING, MemberStatus.STOPPED),
    ]
    bench.scaler.events = [ScaleEvent(at, name, was, now, "") for at, name, was, now in stages]
    await bench.pool.step()
    counts = bench.pool.counts
    assert dict(counts.events) == {
        (ActionKind.START, "begun"): 2,
        (ActionKind.START, "done"): 1,
        (ActionKind.START, "failed"): 1,
        (ActionKind.WAKE, "begun"): 1,
        (ActionKind.WAKE, "cancelled"): 1,
        (ActionKind.DRAIN_TO_STOP, "begun"): 1,
        (ActionKind.DRAIN_TO_STOP, "done"): 1,
    }
    assert bench.gone == ["b", "a"]  # failed and stopped: their GPUs may be placed on again
    assert counts.expected_s("tp1", ActionKind.START) == 7.0
    assert counts.expected_s("tp1", ActionKind.WAKE) is None


def test_the_settings_of_the_bench_let_it_shrink() -> None:
    """Guard against passing on nothing: a period must be shorter than what is waited for."""
    assert PARAMS.period_s * SETTLED > PARAMS.cooldown_s + PARAMS.less_for_s
