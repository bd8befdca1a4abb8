"""Rivals' scalers against their sources' descriptions, and the oracle's plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from day_cases import KIND, NAMES, small
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.pool import ActionKind, Member, MemberStatus, PoolAction
from kvwatt_sim.day import clocks
from kvwatt_sim.day.oracle import planned, sizes
from kvwatt_sim.day.policies import best, play
from kvwatt_sim.day.pool import View
from kvwatt_sim.day.profile import Profile
from kvwatt_sim.day.result import row, worst
from kvwatt_sim.day.rivals import Fixed, Paper, Threshold, outstanding, toward, waiting

S = MemberStatus


def members(*statuses: MemberStatus, load: int = 0) -> tuple[Member, ...]:
    return tuple(
        Member(name, "tp1", status, 0.0, running=load if status is S.READY else 0, gpus=frozenset({name}))
        for name, status in zip("abcd", statuses, strict=False)
    )


def begun(actions: Sequence[PoolAction]) -> list[tuple[str, ActionKind]]:
    return [(action.member, action.action) for action in actions]


def test_more_are_taken_back_before_they_are_started() -> None:
    """A draining member is warm; a stopped one takes a start."""
    asked = toward(members(S.READY, S.STOPPED, S.DRAINING, S.STOPPED), {"tp1": 3})
    assert begun(asked) == [("c", ActionKind.UNDRAIN), ("b", ActionKind.START)]


def test_starts_are_cancelled_before_anybody_drains() -> None:
    """What is not ready yet serves nobody."""
    asked = toward(members(S.READY, S.READY, S.READY, S.STARTING), {"tp1": 3})
    assert begun(asked) == [("d", ActionKind.CANCEL_START)]


def test_the_old_engine_serves_until_the_new_one_is_ready() -> None:
    """Shadow instancing: nothing drains while what is wanted only starts."""
    pool = (
        Member("big", "tp4", S.READY, 0.0, gpus=frozenset({"g0"})),
        Member("small", "tp2", S.STOPPED, 0.0, gpus=frozenset({"g1"})),
    )
    assert begun(toward(pool, {"tp2": 1})) == [("small", ActionKind.START)]
    starting = (pool[0], replace(pool[1], status=S.STARTING))
    assert begun(toward(starting, {"tp2": 1})) == []
    ready = (pool[0], replace(pool[1], status=S.READY))
    assert begun(toward(ready, {"tp2": 1})) == [("big", ActionKind.DRAIN_TO_STOP)]


def test_a_member_whose_gpus_are_held_is_not_started() -> None:
    """Two members that share a GPU never hold it together."""
    pool = (
        Member("one", "tp1", S.READY, 0.0, gpus=frozenset({"g0"})),
        Member("two", "tp2", S.STOPPED, 0.0, gpus=frozenset({"g0", "g1"})),
    )
    assert begun(toward(pool, {"tp1": 1, "tp2": 1})) == []


def threshold(**more: float) -> Threshold:
    return Threshold("tp1", outstanding, 10.0, 4, period_s=30.0, stabilization_s=300.0, **more)


def test_a_threshold_goes_up_at_once_and_down_after_the_stabilization() -> None:
    """ceil(sum / target); the highest wish of the last 300 s."""
    scaler = threshold()
    up = scaler.actions(View(0.0, members(S.READY, S.READY, S.STOPPED, S.STOPPED, load=16), 0, 0))
    assert begun(up) == [("c", ActionKind.START), ("d", ActionKind.START)]
    quiet = members(S.READY, S.READY, S.READY, S.READY, load=1)
    assert begun(scaler.actions(View(270.0, quiet, 0, 0))) == []
    down = begun(scaler.actions(View(301.0, quiet, 0, 0)))
    assert down == [(name, ActionKind.DRAIN_TO_STOP) for name in "abc"]


@given(load=st.integers(0, 60), queued=st.integers(0, 50))
def test_within_the_tolerance_nothing_changes(load: int, queued: int) -> None:
    """Within 10 % of the target the number stays; otherwise it is the ceiling of the share."""
    pool = members(S.READY, S.READY, S.STOPPED, S.STOPPED, load=load)
    actions = begun(threshold().actions(View(0.0, pool, 0, queued)))
    total = 2 * load + queued
    wish = min(max(-(-total // 10), 1), 4)
    if abs(total / 20.0 - 1.0) <= 0.1:
        wish = 2
    assert len(actions) == abs(wish - 2)


def test_a_queue_threshold_looks_at_who_waits_only() -> None:
    """A full batch is not a queue."""
    pool = members(S.READY, S.READY, S.READY, S.STOPPED, load=200)
    scaler = Threshold("tp1", waiting, 5.0, 4, 30.0, 0.0)
    assert len(scaler.actions(View(0.0, pool, 0, 0))) == 2  # down to one


def paper(**more: float) -> Paper:
    kinds = {"tp1": KIND}
    every = [{"tp1": n} for n in (1, 2, 3, 4)]
    return Paper(kinds, every, use=1.0, rate_s=30.0, grace_s=60.0, **more)


def test_the_papers_autoscaler_takes_the_least_that_carries_the_rate() -> None:
    """4.5 requests a second each: 10 a second need three."""
    scaler = paper()
    pool = members(S.READY, S.STOPPED, S.STOPPED, S.STOPPED)
    assert scaler.actions(View(0.0, pool, 0, 0)) == []
    assert len(scaler.actions(View(10.0, pool, 100, 0))) == 2


def test_the_papers_autoscaler_has_a_grace_period() -> None:
    """It may grow in it and not shrink."""
    scaler = paper()
    pool = members(S.READY, S.READY, S.READY, S.STOPPED)
    scaler.actions(View(10.0, pool, 120, 0))
    for at in (20.0, 30.0, 40.0, 50.0, 60.0):
        assert scaler.actions(View(at, pool, 0, 0)) == []
    assert len(scaler.actions(View(70.0, pool, 0, 0))) == 2


def known() -> Profile:
    """Watts rise with clock and rate; the lowest clock carries half of what the top one does."""
    rates = np.linspace(0.0, 5.0, 6)
    watts = np.stack([70.0 + 10.0 * rates, 100.0 + 20.0 * rates], axis=1)
    kept = np.stack([np.where(rates <= 2.0, 1.0, 0.9), np.where(rates <= 4.0, 1.0, 0.9)], axis=1)
    return Profile((900, 2520), rates, watts, kept)


def test_the_oracle_has_enough_for_every_window() -> None:
    """The pool and the clock chosen for a window carry its rate."""
    setting = small([1.0, 3.0, 8.0, 12.0, 1.0], 600.0)
    made = planned(setting, {"tp1": known()}, use=1.0)
    points = known().table()
    for rate, choice in zip(setting.rates_per_s, made.choices, strict=True):
        assert choice.count * points.max_rate_at(choice.clock_mhz) >= rate
    assert made.choices[0].count < 4
    assert sizes(setting) == [{"tp1": n} for n in (1, 2, 3, 4)]


def test_what_was_planned_is_ready_when_its_window_begins() -> None:
    """Starts are asked for early enough."""
    setting = small([1.0, 12.0], 240.0, reference=NAMES[:1])
    made = planned(setting, {"tp1": known()}, use=1.0)
    done = play(setting, made, lambda kind: clocks.Scheduled(kind, made.clock))
    at_start = next(sample for sample in done.samples if sample.at_s >= setting.window_s)
    assert at_start.ready >= made.choices[1].count > 1


def test_the_best_keeps_the_promises_or_keeps_most() -> None:
    """Less energy does not count where a promise is broken."""
    setting = small([4.0], 60.0)
    slow, fast = (row(setting, play(setting, Fixed(frozenset(NAMES[:n])), clocks.fixed(900))) for n in (1, 4))
    assert best([slow, fast])["energy_j"] == (slow if worst(slow) >= 0.99 else fast)["energy_j"]
    assert slow["energy_j"] != pytest.approx(fast["energy_j"])
