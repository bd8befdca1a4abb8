"""Arrivals, the minimum, tables on disk: each by its law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_parts import PARAMS, kind, page

from kvwatt.pool import ActionKind, Member, MemberStatus, PlanMemory
from kvwattd.instances.router import RouterError
from kvwattd.pool import capacity
from kvwattd.pool.arrivals import Arrivals
from kvwattd.pool.capacity_worker import TABLE, Group, Job, Promise, Shape, Table
from kvwattd.pool.minimum import to_minimum
from kvwattd.pool.minutes import Minutes
from kvwattd.pool.pace import PacedLearner
from kvwattd.pool.shares import Shares


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=5),
    st.floats(0.5, 10.0),
)
def test_arrivals_are_what_finished_and_what_is_inside(
    members: list[tuple[int, int, int]], dt_s: float
) -> None:
    """With a page at both ends of the window, every request that came is counted once."""
    seen = Arrivals()
    names = [str(n) for n in range(len(members))]
    assert seen.window(10.0, {name: page(10.0, 5.0, running=3) for name in names}) is None
    now = {
        name: page(10.0 + dt_s, 5.0 + done, running, waiting)
        for name, (done, running, waiting) in zip(names, members, strict=True)
    }
    window = seen.window(10.0 + dt_s, now)
    came = sum(done + running + waiting - 3 for done, running, waiting in members)
    assert window is not None and (window.start_s, window.dt_s) == (10.0, pytest.approx(dt_s))
    assert window.arrivals == pytest.approx(max(came, 0), abs=1e-6)


def test_what_cannot_be_counted_is_a_gap() -> None:
    """A member without a page, a new one, and one that restarted: not zero, not a guess."""
    seen = Arrivals()
    seen.window(0.0, {"a": page(0.0, 10.0)})
    assert seen.window(1.0, {"a": page(1.0, 12.0), "b": None}) is None
    assert seen.seen_per_s == pytest.approx(2.0), "of who can be seen"
    assert seen.window(2.0, {"a": page(2.0, 14.0), "b": page(2.0, 100.0)}) is None
    both = seen.window(3.0, {"a": page(3.0, 16.0), "b": page(3.0, 101.0)})
    assert both is not None and both.arrivals == pytest.approx(3.0)
    assert seen.window(4.0, {"a": page(4.0, 0.0), "b": page(4.0, 102.0)}) is None
    assert seen.window(5.0, {}) is None


async def test_shares_are_told_where_kinds_differ(caplog: pytest.LogCaptureFixture) -> None:
    """In proportion to what each carries, at every plan; a router that fails is told of once."""
    told: list[Mapping[str, int]] = []

    async def weigh(weights: Mapping[str, int]) -> None:
        told.append(weights)
        if len(told) > 1:
            raise RouterError("unreachable", "nobody is there")

    members = [Member("a", "tp1", MemberStatus.READY, 0.0), Member("b", "tp2", MemberStatus.READY, 0.0)]
    kinds = {"tp1": kind(1.0), "tp2": replace(kind(4.0), name="tp2")}
    shares = Shares(weigh)
    await shares.keep(members, {"tp1": kind()})
    assert told == []
    for _ in range(3):
        await shares.keep(members, kinds)
    assert told == [{"a": 64, "b": 256}] * 3
    assert caplog.text.count("nobody is there") == 1


def minutes_of(prompts: Sequence[float], per_minute: int, variation: float) -> Minutes:
    """Minutes whose prompts have these means, each of so many requests that vary so much by themselves."""
    rng, seen = np.random.default_rng(100), Minutes()
    total = np.zeros(3)
    for number, mean in enumerate(prompts):
        tokens = rng.gamma(variation**-2, mean * variation**2, per_minute).sum()
        now = replace(
            page(60.0 * number, total[0]), prompt_tokens_total=total[1], generation_tokens_total=total[2]
        )
        seen.observe(60.0 * number, {"a": now, "b": page(0.0)})
        total += (per_minute, tokens, per_minute * 3e5 / mean)
    return seen


def test_minutes_of_long_prompts_are_told_apart() -> None:
    """As far as chance does not explain them; answers move as they did; few minutes tell nothing."""
    moving = [500.0, 1000.0, 1500.0] * 30
    assert minutes_of(moving[:20], 200, 1.0).groups(1.0) == ()
    found = minutes_of(moving, 200, 1.0).groups(1.0)
    assert [round(group.prompts, 1) for group in found] == [0.5, 1.0, 1.5]
    assert found[0].outputs > found[1].outputs > found[2].outputs
    assert sum(group.share for group in found) == pytest.approx(1.0)
    still = minutes_of([1000.0] * 90, 10, 1.0)
    assert all(group.prompts == pytest.approx(1.0, abs=0.15) for group in still.groups(1.0))
    assert max(group.prompts for group in still.groups(0.0)) > 1.25, "by chance"


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(MemberStatus), st.floats(0.0, 1000.0), st.sets(st.sampled_from("wxyz"), max_size=2)
    ),
    min_size=1,
    max_size=6,
)


@given(MEMBERS)
def test_the_minimum_takes_nothing_away(found: list[tuple[MemberStatus, float, set[str]]]) -> None:
    """Only what brings one, never more than are missing, and never two on one GPU."""
    members = [
        Member(str(n), "tp1", status, since_s, gpus=frozenset(gpus))
        for n, (status, since_s, gpus) in enumerate(found)
    ]
    plan = to_minimum(1000.0, members, PARAMS, PlanMemory(), "a test")
    coming = [m for m in members if m.status in (MemberStatus.READY, MemberStatus.STARTING)]
    assert len(plan.actions) <= max(PARAMS.minimum - len(coming), 0)
    by_name = {member.name: member for member in members}
    held = [
        gpu for m in members if m.status not in (MemberStatus.STOPPED, MemberStatus.FAILED) for gpu in m.gpus
    ]
    for action in plan.actions:
        assert action.action in (ActionKind.START, ActionKind.WAKE, ActionKind.UNDRAIN)
        if action.action is ActionKind.START:
            assert not by_name[action.member].gpus & set(held)


def test_a_sleeping_one_is_woken_before_a_stopped_one_is_started() -> None:
    """The quickest way; one that failed just now is left alone."""
    members = [
        Member("stopped", "tp1", MemberStatus.STOPPED, 0.0),
        Member("failed", "tp1", MemberStatus.FAILED, 999.0),
        Member("asleep", "tp1", MemberStatus.ASLEEP, 0.0),
    ]
    plan = to_minimum(1000.0, members, PARAMS, PlanMemory(), "a test")
    assert [(a.member, a.action) for a in plan.actions] == [("asleep", ActionKind.WAKE)]
    alone = to_minimum(1000.0, [members[1]], PARAMS, PlanMemory(), "a test")
    assert alone.actions == ()


JOB = Job(
    upper_factor=1.1,
    clocks_mhz=(900, 2520),
    shape=Shape(block_size=16, num_blocks=100, max_num_seqs=8, max_num_batched_tokens=512, tp=1),
    slo={"tbt": Promise(limit_s=0.1, quantile=0.99)},
    prompts=(100.0, 300.0),
    outputs=(10.0, 30.0),
    dispersion=1.5,
    groups=(Group(0.5, 0.8, 1.1), Group(0.5, 1.2, 0.9)),
)
MADE = Table(
    job=JOB,
    model="m",
    rates_per_s=(0.0, 2.0),
    watts=((60.0, 75.0), (110.0, 150.0)),
    max_rates_per_s=(1.0, 2.0),
)


def test_a_table_is_outdated_by_what_it_rests_on() -> None:
    """Another model, promise or length makes another table; a small move of lengths does not."""
    assert not capacity.outdated(MADE, JOB, "m")
    assert capacity.outdated(MADE, JOB, "another")
    longer = JOB.model_copy(update={"outputs": (12.0, 40.0)})
    assert capacity.outdated(MADE, longer, "m")
    assert not capacity.outdated(MADE, JOB.model_copy(update={"outputs": (10.0, 31.0)}), "m")
    tighter = {"tbt": Promise(limit_s=0.05, quantile=0.99)}
    assert capacity.outdated(MADE, JOB.model_copy(update={"slo": tighter}), "m")


@pytest.mark.parametrize("content", [None, "", "{", '{"job": 1}', "half"])
def test_a_table_that_cannot_be_read_is_made_anew(tmp_path: Path, content: str | None) -> None:
    """No file, an empty or a damaged one: as if there were none; a sound one comes back as it was."""
    whole = MADE.model_dump_json()
    if content is not None:
        (tmp_path / TABLE).write_text(whole[: len(whole) // 2] if content == "half" else content)
    assert capacity.read(tmp_path) is None
    (tmp_path / TABLE).write_text(whole)
    found = capacity.read(tmp_path)
    assert found == MADE and found.capacity().max_rate_per_s == 2.0


def test_a_table_of_nonsense_is_refused(tmp_path: Path) -> None:
    """Numbers that are no table are not planned with."""
    broken = MADE.model_copy(update={"watts": ((60.0, 75.0),)})
    (tmp_path / TABLE).write_text(broken.model_dump_json())
    assert capacity.read(tmp_path) is None


def test_a_short_day_is_learned_as_a_whole_one() -> None:
    """The same arrivals in a hundredth of the time: rates a hundredfold, the same shape."""
    whole, short = PacedLearner(86_400.0), PacedLearner(864.0)
    for n in range(200):
        arrivals = 100.0 + 50.0 * (n % 2)
        whole.observe(n * 100.0, 100.0, arrivals)
        short.observe(n * 1.0, 1.0, arrivals)
    long, quick = whole.forecast(20_000.0), short.forecast(200.0)
    assert long is not None and quick is not None
    assert quick.mean_per_s(3.0) == pytest.approx(100.0 * long.mean_per_s(300.0), rel=1e-9)
    assert quick.cautious_per_s(0.95, 3.0) == pytest.approx(
        100.0 * long.cautious_per_s(0.95, 300.0), rel=1e-9
    )
