"""The virtual pool: every request is served once by a ready member, every joule of every GPU is counted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from day_cases import CARD, KIND, NAMES, Script, small
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.pool import LEGAL_FROM, ActionKind, MemberStatus, PoolAction
from kvwatt_sim.day.clocks import fixed
from kvwatt_sim.day.pool import DayRun, Pool, View
from kvwatt_sim.day.rivals import Fixed
from kvwatt_sim.day.server import PoolError
from kvwatt_sim.day.setting import Setting
from kvwatt_sim.gpu import power_w
from kvwatt_sim.replay.controller import FixedClock, replay_group
from kvwatt_sim.replay.plant import MAX_TOKENS

START, WAKE, CANCEL = ActionKind.START, ActionKind.WAKE, ActionKind.CANCEL_START
STOP, SLEEP, UNDRAIN = ActionKind.DRAIN_TO_STOP, ActionKind.DRAIN_TO_SLEEP, ActionKind.UNDRAIN
IDLE_W = power_w(CARD, CARD.boost_mhz, 0.0, 0.0)


def run(setting: Setting, scaler: Any) -> DayRun:
    return Pool(setting, scaler, fixed(None)).run()


def kept_all(setting: Setting, done: DayRun) -> None:
    """Each request finished once, with its own arrival and its own tokens."""
    served = done.outcome.served
    mine = sorted((r.arrival_s, r.prompt_tokens, min(r.output_tokens, MAX_TOKENS)) for r in setting.requests)
    rows = zip(served.arrival_s, served.prompt_tokens, served.output_tokens, strict=True)
    assert sorted((float(a), int(p), int(o)) for a, p, o in rows) == mine
    assert (served.first_s >= served.arrival_s).all()


def test_a_fixed_pool_is_the_group_of_plants() -> None:
    """The same energy and times as the replay of plants behind the same router."""
    setting = small([6.0, 3.0], 120.0)
    done = run(setting, Fixed(frozenset(NAMES)))
    kept_all(setting, done)
    controllers = [FixedClock(None) for _ in NAMES]
    theirs = replay_group(CARD, KIND.shape, setting.requests, controllers, done.outcome.duration_s)
    assert done.energy_j == pytest.approx(sum(o.energy_j for o in theirs))
    ours = done.outcome.served
    assert np.allclose(np.sort(ours.last_s), np.sort(np.concatenate([o.served.last_s for o in theirs])))


def test_an_empty_day_costs_what_the_states_draw() -> None:
    """Parked, starting, asleep and idle, each for as long as it lasted."""
    setting = small([0.0], 100.0, reference=NAMES[:1])
    script = Script((10.0, NAMES[1], START), (40.0, NAMES[1], SLEEP), (60.0, NAMES[1], WAKE))
    done = run(setting, script)
    other_j = 10.0 * 36.0 + 20.0 * KIND.starting_w + 10.0 * IDLE_W + 20.0 * KIND.asleep_w
    other_j += 3.0 * KIND.starting_w + 37.0 * IDLE_W
    assert done.energy_j == pytest.approx(100.0 * IDLE_W + other_j + 2 * 100.0 * 36.0)
    assert done.ready_s["tp1"] == pytest.approx(100.0 + 10.0 + 37.0)


def test_a_drain_ends_what_runs_and_gets_nothing_new() -> None:
    """The member that drains stops only when its last request has its last token."""
    setting = small([8.0], 90.0, reference=NAMES[:2])
    script = Script((30.0, NAMES[0], STOP))
    done = run(setting, script)
    kept_all(setting, done)
    mine = [(v.now_s, next(m for m in v.members if m.name == NAMES[0])) for v in script.seen]
    inside = [m.running + m.waiting for _, m in mine if m.status is MemberStatus.DRAINING]
    assert inside[0] > 5
    assert all(a >= b for a, b in pairwise(inside))
    assert mine[-1][1].status is MemberStatus.STOPPED


def test_who_comes_while_nobody_is_ready_waits_and_it_counts() -> None:
    """Latencies run from the arrival at the router, not from when a member took the request."""
    setting = small([2.0], 60.0, reference=NAMES[:1])
    script = Script((5.0, NAMES[0], STOP), (10.0, NAMES[1], START))
    done = run(setting, script)
    kept_all(setting, done)
    served = done.outcome.served
    waited = (served.arrival_s > 5.0) & (served.arrival_s < 30.0)
    assert waited.sum() > 30
    assert (served.first_s[waited] >= 30.0).all()
    assert max(v.queued for v in script.seen) == waited.sum()


def test_what_is_not_legal_is_refused() -> None:
    """A start of what runs, an unknown member, and GPUs that somebody holds."""
    for line in ((0.0, NAMES[0], START), (0.0, NAMES[1], STOP), (0.0, "nobody", START)):
        with pytest.raises(PoolError):
            run(small([1.0], 10.0, reference=NAMES[:1]), Script(line))


class Restless:
    """Begins legal actions by chance; at least one member stays ready or is on its way."""

    period_s = 2.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.begun = 0

    def actions(self, view: View) -> list[PoolAction]:
        found = []
        kinds = list(ActionKind)
        for member in view.members:
            kind = kinds[int(self._rng.integers(len(kinds)))]
            if member.status in LEGAL_FROM[kind] and self._rng.random() < 0.5:
                found.append(PoolAction(member.name, kind, "chance"))
        self.begun += len(found)
        return found


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), rate=st.floats(0.5, 8.0))
def test_nothing_is_lost_however_the_pool_changes(seed: int, rate: float) -> None:
    """Random starts, drains, sleeps, wake-ups and cancels: all is served, energy is bounded."""
    setting = small([rate, rate / 2], 80.0, seed)
    scaler = Restless(np.random.default_rng(seed))
    pool = Pool(setting, Until(scaler, 80.0), fixed(None))
    done = pool.run()
    kept_all(setting, done)
    assert scaler.begun >= 5
    most_w = 4 * CARD.power_cap_w
    assert 4 * 36.0 * 80.0 <= done.energy_j <= most_w * done.outcome.duration_s


class Until:
    """`inner` until a moment; then somebody is started so that the day can end."""

    period_s = 2.0

    def __init__(self, inner: Restless, until_s: float) -> None:
        self._inner, self._until_s = inner, until_s

    def actions(self, view: View) -> list[PoolAction]:
        if view.now_s < self._until_s:
            return self._inner.actions(view)
        if any(m.status in (MemberStatus.READY, MemberStatus.STARTING) for m in view.members):
            return []
        able = {MemberStatus.STOPPED: START, MemberStatus.ASLEEP: WAKE, MemberStatus.DRAINING: UNDRAIN}
        first = next(m for m in view.members if m.status in able)
        return [PoolAction(first.name, able[first.status], "the day ends")]
