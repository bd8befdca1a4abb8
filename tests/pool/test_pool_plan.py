"""plan(): what it may never do, whatever the pool looks like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_world import World, kind, members

from kvwatt.capacity_table import CapacityTable
from kvwatt.forecast import RateLearner
from kvwatt.pool import (
    LEGAL_FROM,
    ActionKind,
    Member,
    MemberStatus,
    PlanMemory,
    PoolParams,
    PoolPlan,
    PoolState,
    RateSummary,
)
from kvwatt.pool_actions import Crew, arrivals
from kvwatt.pool_plan import plan

KINDS = {
    "tp1": kind("tp1", 1, can_sleep=True),
    "tp2": kind("tp2", 2),
}
UP = (ActionKind.START, ActionKind.WAKE, ActionKind.UNDRAIN)
DOWN = (ActionKind.DRAIN_TO_SLEEP, ActionKind.DRAIN_TO_STOP)
GPUS = tuple(f"gpu{i}" for i in range(4))
SLOTS = [("tp1", frozenset({g})) for g in GPUS] + [
    ("tp2", frozenset(GPUS[:2])),
    ("tp2", frozenset(GPUS[2:])),
]


@st.composite
def pools(draw: st.DrawFn, *, shared: bool = True) -> tuple[PoolState, PoolParams, PlanMemory]:
    """Any statuses that can be: no two members hold the same GPU."""
    held: set[str] = set()
    made = []
    for i, (name, gpus) in enumerate(SLOTS if shared else SLOTS[:4]):
        statuses = [MemberStatus.STOPPED, MemberStatus.FAILED]
        if not gpus & held:
            statuses += [s for s in MemberStatus if s not in statuses]
        status = draw(st.sampled_from(statuses))
        if status not in (MemberStatus.STOPPED, MemberStatus.FAILED):
            held |= gpus
        since_s = draw(st.sampled_from([0.0, 500.0, 900.0, 995.0]))
        made.append(Member(f"{name}-{i}", name, status, since_s, draw(st.integers(0, 9)), gpus=gpus))
    low = draw(st.floats(0.0, 14.0))
    rate = RateSummary(low, low * draw(st.floats(1.0, 1.5)))
    minimum = draw(st.integers(1, 2))
    params = PoolParams(minimum, draw(st.integers(minimum, 4)), gpus=4, start_timeout_s=300.0)
    memory = PlanMemory(
        last_up_s=draw(st.sampled_from([-np.inf, 0.0, 990.0])),
        last_down_s=draw(st.sampled_from([-np.inf, 0.0, 990.0])),
        less_since_s=draw(st.sampled_from([np.inf, 0.0, 980.0])),
        tried_s=draw(st.dictionaries(st.sampled_from([m.name for m in made]), st.just(950.0))),
    )
    return PoolState(1000.0, tuple(made), rate, draw(st.booleans())), params, memory


@settings(max_examples=150, deadline=None)
@given(pools())
def test_actions_are_legal_and_within_bounds(case: tuple[PoolState, PoolParams, PlanMemory]) -> None:
    """Every action fits its member's status; starts stay below the maximum, drains above the minimum."""
    state, params, memory = case
    made = plan(state, KINDS, params, memory)
    by_name = {m.name: m for m in state.members}
    assert len({a.member for a in made.actions}) == len(made.actions)
    for action in made.actions:
        assert by_name[action.member].status in LEGAL_FROM[action.action]
        assert action.reason
    ready = sum(m.status is MemberStatus.READY for m in state.members)
    cancelled = sum(a.action is ActionKind.CANCEL_START for a in made.actions)
    coming = ready + sum(m.status in (MemberStatus.STARTING, MemberStatus.UNKNOWN) for m in state.members)
    started = sum(a.action in UP for a in made.actions)
    assert started == 0 or coming - cancelled + started <= params.maximum
    left = [a for a in made.actions if a.action in DOWN and by_name[a.member].status is MemberStatus.READY]
    assert not left or ready - len(left) >= params.minimum
    assert made == plan(state, KINDS, params, memory)


def test_who_is_stopped_for_another_is_not_woken_too() -> None:
    """One order for a member: the sleeping one goes for the kind that was looked at first."""
    members = (
        Member("tp1-0", "tp1", MemberStatus.STOPPED, 0.0, 0, gpus=frozenset(GPUS[:1])),
        Member("tp2-4", "tp2", MemberStatus.ASLEEP, 0.0, 0, gpus=frozenset(GPUS[:2])),
    )
    crew = Crew(1000.0, members, KINDS, PoolParams(1, 4, gpus=4), {}, 4)
    asked = arrivals(crew, {"tp1": 1, "tp2": 1})
    assert [(a.member, a.action) for a in asked] == [("tp2-4", ActionKind.DRAIN_TO_STOP)]


@settings(max_examples=100, deadline=None)
@given(pools())
def test_no_two_on_one_gpu(case: tuple[PoolState, PoolParams, PlanMemory]) -> None:
    """What is started or woken shares no GPU with anybody who holds it."""
    state, params, memory = case
    by_name = {m.name: m for m in state.members}
    free = (MemberStatus.STOPPED, MemberStatus.FAILED)
    holding = {g for m in state.members if m.status not in free for g in m.gpus}
    for action in plan(state, KINDS, params, memory).actions:
        if action.action is ActionKind.START:
            gpus = by_name[action.member].gpus
            assert not gpus & holding
            holding |= gpus


@settings(max_examples=100, deadline=None)
@given(pools())
def test_telemetry_out_takes_nobody_away(case: tuple[PoolState, PoolParams, PlanMemory]) -> None:
    """Without telemetry no ready member is drained, and what serves or is on its way stays wanted."""
    state, params, memory = case
    blind = replace(state, telemetry_ok=False, rate=RateSummary(0.0, 0.0))
    made = plan(blind, KINDS, params, memory)
    by_name = {m.name: m for m in state.members}
    assert not [
        a for a in made.actions if a.action in DOWN and by_name[a.member].status is MemberStatus.READY
    ]
    for name, count in made.desired.items():
        assert count >= sum(m.kind == name and m.status is MemberStatus.READY for m in state.members)


@settings(max_examples=100, deadline=None)
@given(pools(), st.floats(0.0, 20.0))
def test_what_is_seen_asks_for_more_and_never_for_less(
    case: tuple[PoolState, PoolParams, PlanMemory], seen_per_s: float
) -> None:
    """Blind in part: whatever is seen, nobody ready goes; every kind is wanted at least as without it."""
    state, params, memory = case
    blind = replace(state, telemetry_ok=False)
    quiet, busy = (plan(s, KINDS, params, memory) for s in (blind, replace(blind, seen_per_s=seen_per_s)))
    assert all(busy.desired[kind] >= n for kind, n in quiet.desired.items())
    assert not [a for a in busy.actions if a.action in DOWN and a.member not in _stopped_for(busy)]


def _stopped_for(made: PoolPlan) -> set[str]:
    """Sleeping members whose GPUs are wanted."""
    return {a.member for a in made.actions if "GPUs are wanted" in a.reason}


def test_one_blind_member_does_not_hold_up_the_others() -> None:
    """One of two cannot be told; the other gets more than one carries, or has a queue: a third is started."""
    made = members(3, 1)
    made["l20-1"] = replace(made["l20-1"], status=MemberStatus.UNKNOWN)
    calm = PoolState(0.0, tuple(made.values()), RateSummary(1.0, 1.1), telemetry_ok=False, seen_per_s=2.0)
    assert plan(calm, {"l20": kind()}, PoolParams(1, 3), PlanMemory()).actions == ()
    queue = replace(calm, members=(replace(made["l20-0"], waiting=400), *calm.members[1:]))
    for state in (replace(calm, seen_per_s=4.0), queue):
        found = plan(state, {"l20": kind()}, PoolParams(1, 3), PlanMemory())
        assert [(a.member, a.action) for a in found.actions] == [("l20-2", ActionKind.START)]
        assert "are seen" in found.reason


def test_kinds_side_by_side_only_where_the_router_can_weigh() -> None:
    """mixed = False: one kind carries it all, though a mix would draw less; changing over still overlaps."""
    made = {
        "a": Member("a", "tp1", MemberStatus.READY, 0.0, gpus=frozenset({"g0"})),
        "b": Member("b", "tp2", MemberStatus.STOPPED, 0.0, gpus=frozenset({"g2", "g3"})),
        "c": Member("c", "tp2", MemberStatus.STOPPED, 0.0, gpus=frozenset({"g4", "g5"})),
    }
    kinds = {"tp1": kind("tp1", 1), "tp2": kind("tp2", 2)}
    for mixed, wanted in ((True, {"tp1": 1, "tp2": 1}), (False, {"tp1": 0, "tp2": 2})):
        world = World(kinds, PoolParams(1, 3, mixed=mixed), lambda _: RateSummary(7.0, 7.5), dict(made))
        world.run(1000.0)
        assert world.ready() == wanted
        assert all(sum(r.values()) >= 1 for r in world.ready_log)


@settings(max_examples=100, deadline=None)
@given(pools(shared=False), st.floats(1.0, 3.0))
def test_more_traffic_never_wants_less(case: tuple[PoolState, PoolParams, PlanMemory], factor: float) -> None:
    """The same pool and memory with a higher forecast: at least as much capacity is wanted."""
    state, params, memory = case
    assert isinstance(state.rate, RateSummary)
    more = RateSummary(state.rate.now_per_s * factor, state.rate.upper_per_s * factor)

    def capacity(s: PoolState) -> float:
        wanted = plan(s, KINDS, params, memory).desired
        return sum(n * KINDS[name].points.max_rate_per_s for name, n in wanted.items())

    assert capacity(replace(state, rate=more)) >= capacity(state) - 1e-9


class Counted:
    """Poisson arrivals at a rate, seen by the learner every period."""

    def __init__(self, rate_per_s: float, seed: int, period_s: float = 5.0) -> None:
        self.rate_per_s, self.period_s = rate_per_s, period_s
        self.random, self.learner = np.random.default_rng(seed), RateLearner()

    def __call__(self, now_s: float) -> object:
        start_s = now_s - self.period_s
        self.learner.observe(start_s, self.period_s, self.random.poisson(self.rate_per_s * self.period_s))
        return self.learner.forecast(now_s) or RateSummary(self.rate_per_s, self.rate_per_s)


@pytest.mark.parametrize("ready", [1, 4])
def test_constant_rate_settles(ready: int) -> None:
    """At a constant rate, its counts random, the number of members changes at most once after settling."""
    changes = {}
    for rate in np.arange(ready / 8.0, 11.6, 1.5):
        world = World({"l20": kind()}, PoolParams(1, 4), Counted(float(rate), 100), members(4, ready))
        world.run(2400.0)
        changes[float(rate)] = world.changes(900.0)
    assert max(changes.values()) <= 1, changes


def test_start_that_does_not_come_is_cancelled_and_another_tried() -> None:
    """l20-1 never becomes ready: cancelled after the time-out, and l20-2 serves instead."""
    params = PoolParams(1, 4, start_timeout_s=200.0, retry_s=10_000.0)
    world = World(
        {"l20": kind()}, params, lambda _: RateSummary(4.0, 4.4), members(4, 1), frozenset({"l20-1"})
    )
    world.run(1200.0)
    cancelled = [a for p in world.plans for a in p.actions if a.action is ActionKind.CANCEL_START]
    assert [a.member for a in cancelled] == ["l20-1"]
    assert "200 s" in cancelled[0].reason
    assert world.members["l20-2"].status is MemberStatus.READY
    assert world.members["l20-1"].status is MemberStatus.STOPPED


def test_failed_member_is_replaced() -> None:
    """One of two ready members fails: another is started at once."""
    world = World({"l20": kind()}, PoolParams(1, 4), lambda _: RateSummary(4.0, 4.4), members(4, 2))
    world.run(100.0)
    world.members["l20-0"] = replace(world.members["l20-0"], status=MemberStatus.FAILED, since_s=100.0)
    world.run(300.0)
    assert world.ready() == {"l20": 2}


def test_survivors_must_carry_what_stays() -> None:
    """Two members at 2.8/s each of 3: one alone would be at 93 %: both stay, though one could carry it."""
    world = World(
        {"l20": kind()},
        PoolParams(1, 2, load_max=1.0, survivors_load_max=0.9),
        lambda _: RateSummary(2.5, 2.8),
        members(2, 2),
    )
    world.run(2000.0)
    assert world.ready() == {"l20": 2}
    world.outlook = lambda _: RateSummary(2.3, 2.6)
    world.run(4000.0)
    assert world.ready() == {"l20": 1}


def test_new_kind_serves_before_the_old_leaves() -> None:
    """Traffic that asks for the large engine: somebody is ready all the time while they change over."""
    large = kind("tp2", 2, points=kind("tp2", 2).points)
    small = kind("tp1", 1)
    made = {
        "a": Member("a", "tp1", MemberStatus.READY, 0.0, gpus=frozenset({"g0"})),
        "b": Member("b", "tp2", MemberStatus.STOPPED, 0.0, gpus=frozenset({"g2", "g3"})),
    }
    world = World({"tp1": small, "tp2": large}, PoolParams(1, 2), lambda _: RateSummary(5.0, 5.5), made)
    world.run(1000.0)
    assert all(sum(r.values()) >= 1 for r in world.ready_log)
    assert world.ready()["tp2"] == 1


def test_what_has_no_free_gpus_does_not_block_what_has() -> None:
    """Two GPUs are free but no pair: the small engine is started although the large one would be cheaper."""
    made = {
        "a": Member("a", "tp1", MemberStatus.READY, 0.0, gpus=frozenset({"g0"})),
        "b": Member("b", "tp1", MemberStatus.READY, 0.0, gpus=frozenset({"g2"})),
        "c": Member("c", "tp1", MemberStatus.STOPPED, 0.0, gpus=frozenset({"g1"})),
        "d": Member("d", "tp2", MemberStatus.STOPPED, 0.0, gpus=frozenset({"g0", "g1"})),
        "e": Member("e", "tp2", MemberStatus.STOPPED, 0.0, gpus=frozenset({"g2", "g3"})),
    }
    cheap = replace(KINDS["tp2"], points=replace_watts(KINDS["tp2"].points, 0.2))
    state = PoolState(0.0, tuple(made.values()), RateSummary(7.0, 7.5), True)
    actions = plan(state, {**KINDS, "tp2": cheap}, PoolParams(1, 5), PlanMemory()).actions
    assert [(a.member, a.action) for a in actions] == [("c", ActionKind.START)]


def replace_watts(points: CapacityTable, factor: float) -> CapacityTable:
    return CapacityTable(points.clocks_mhz, points.rates_per_s, points.watts * factor, points.max_rates_per_s)


def test_below_the_minimum_all_that_may_is_started() -> None:
    """Three are wanted at least, one serves, one failed a moment ago: the third is started."""
    made = members(3, 1)
    made["l20-1"] = replace(made["l20-1"], status=MemberStatus.FAILED, since_s=-1.0)
    state = PoolState(0.0, tuple(made.values()), RateSummary(0.5, 0.6), True)
    actions = plan(state, {"l20": kind()}, PoolParams(3, 3), PlanMemory()).actions
    assert [(a.member, a.action) for a in actions] == [("l20-2", ActionKind.START)]


def test_a_sleeper_is_stopped_when_that_pays() -> None:
    """At a low rate the member that left sleeps at first, and is stopped when it repays the way back."""
    nap = kind(can_sleep=True, start_j=90_000.0)
    deep = kind(can_sleep=True)
    for own, end in ((nap, MemberStatus.ASLEEP), (deep, MemberStatus.STOPPED)):
        world = World({"l20": own}, PoolParams(1, 2), lambda _: RateSummary(1.0, 1.1), members(2, 2))
        world.run(1500.0)
        assert world.members["l20-0"].status is end


def test_reason_names_the_numbers() -> None:
    """The explanation says the forecast, what is there, and what would be drawn."""
    state = PoolState(0.0, tuple(members(4, 1).values()), RateSummary(4.0, 4.4), True)
    made = plan(state, {"l20": kind()}, PoolParams(1, 4), PlanMemory())
    for part in ("4.4/s", "80%", "1 l20 carry 3/s", "2 l20"):
        assert part in made.reason
    assert made.clocks_mhz["l20"] in kind().points.clocks_mhz


def test_unknown_kind_is_refused() -> None:
    """A member of a kind the planner knows nothing of is a mistake of the caller."""
    state = PoolState(0.0, tuple(members(1, 1).values()), RateSummary(1.0, 1.0), True)
    with pytest.raises(ValueError, match="l20"):
        plan(state, {}, PoolParams(), PlanMemory())
