"""A misbehaving world: random faults, orders, crashes of the scaler and deaths of engines.

At every step: nothing asleep is in the router, no withdrawal goes below the minimum, nothing sleeps or stops
with requests, nothing runs twice (`FakeWorld.broken`). When the faults end, everything comes to rest, what
runs is in service or being emptied on order, and nothing is orphaned.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from fake_stage import PARAMS, Stage
from fake_world import Engine, Hurt
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run_virtual

from kvwatt.pool import LEGAL_FROM, ActionKind, MemberStatus

STEPS = 120
CALM_STEPS = 260
STILL = {Engine.OFF, Engine.ASLEEP, Engine.DEAD}
REST = {MemberStatus.READY, MemberStatus.ASLEEP, MemberStatus.STOPPED}


class Trouble:
    """What happens between steps, drawn from one random stream."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._rng = random.Random(seed)
        self.happened: set[str] = set()

    async def strike(self) -> None:
        rng, world = self._rng, self._stage.world
        for _ in range(rng.choice((0, 1, 3))):
            world.request(rng.choice((0.5, 3.0, 20.0)))
        dice = rng.random()
        if dice < 0.35:
            await self._order()
        elif dice < 0.45:
            self._hurt()
        elif dice < 0.55:
            world.hurt.clear()
            self._heal()
        elif dice < 0.58:
            self._kill()
        elif dice < 0.60:
            world.restart_router()
            self.happened.add("router restarted")
        elif dice < 0.64:
            await self._stage.crash()
            self.happened.add("scaler killed")
        elif dice < 0.68:
            self._slow()

    def calm(self) -> None:
        """No more faults."""
        world = self._stage.world
        world.hurt.clear()
        self._heal()
        world.never_up.clear()
        world.takes_s = {"start": 20.0, "wake": 3.0, "sleep": 2.0, "stop": 4.0}

    def _heal(self) -> None:
        for member in self._stage.world.members.values():
            member.mute = False

    async def _order(self) -> None:
        """Mostly orders that fit, as a planner gives; some that do not."""
        rng = self._rng
        member = rng.choice(self._stage.scaler.members())
        fitting = [kind for kind, statuses in LEGAL_FROM.items() if member.status in statuses]
        kind = rng.choice(fitting if fitting and rng.random() < 0.9 else list(ActionKind))
        if not await self._stage.order(member.name, kind):
            self.happened.add(kind)

    def _hurt(self) -> None:
        rng, world = self._rng, self._stage.world
        part = rng.choice(("router", "backend", "probe", "one backend", "one mute"))
        self.happened.add(part)
        name = rng.choice(list(world.members))
        if part == "one mute":
            world.members[name].mute = True
        else:
            where = f"backend:{name}" if part == "one backend" else part
            world.hurt[where] = rng.choice(list(Hurt))

    def _kill(self) -> None:
        self._stage.world.die(self._rng.choice(list(self._stage.world.members)))
        self.happened.add("engine died")

    def _slow(self) -> None:
        rng, world = self._rng, self._stage.world
        world.takes_s["start"] = rng.choice((5.0, 50.0, 90.0))
        world.takes_s["wake"] = rng.choice((1.0, 70.0))
        world.takes_s["sleep"] = rng.choice((0.5, 15.0))
        world.never_up = set(rng.sample(list(world.members), rng.choice((0, 1))))
        self.happened.add("slow")


async def _trouble(seed: int) -> set[str]:
    stage = Stage("abcd", replace(PARAMS, minimum=random.Random(seed).choice((1, 2))))
    stage.serve("a", "b", "c")
    stage.world.put("d", Engine.ASLEEP)
    trouble = Trouble(stage, seed)
    await stage.steps(2)
    for step in range(STEPS):
        await stage.steps()
        assert not stage.world.broken, f"seed {seed}, step {step}: {stage.describe()}"
        await trouble.strike()
    trouble.calm()
    for _ in range(CALM_STEPS):
        await stage.steps()
        moving = {m.engine for m in stage.world.members.values()} - {Engine.UP, *STILL}
        if not moving and {m.status for m in stage.scaler.members()} <= REST | {MemberStatus.FAILED}:
            break
    await stage.steps(int(PARAMS.retry_s) + 30)
    assert not stage.world.broken, f"seed {seed}: {stage.describe()}"
    _nothing_orphaned(stage, seed)
    return trouble.happened


def _nothing_orphaned(stage: Stage, seed: int) -> None:
    """What runs is known to run; what is known to serve serves."""
    for member in stage.scaler.members():
        fake = stage.world.members[member.name]
        told = f"seed {seed}: {member.name}: {stage.describe()}"
        if fake.engine is Engine.UP:
            assert member.status is MemberStatus.READY, told
            assert member.name in stage.world.in_router, told
        elif fake.engine is Engine.ASLEEP:
            assert member.status is MemberStatus.ASLEEP, told
        elif fake.engine is Engine.OFF:
            assert member.status is MemberStatus.STOPPED, told
        else:
            assert fake.engine is Engine.DEAD, told
            assert member.status is MemberStatus.FAILED, told
        assert (member.name in stage.world.in_router) is (member.status is MemberStatus.READY), told


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_is_lost_in_a_misbehaving_world(seed: int) -> None:
    """Random sequences; a failing one prints its seed."""
    run_virtual(_trouble(seed))


@pytest.mark.parametrize("seeds", [range(15)])
def test_the_world_misbehaves_in_every_way(seeds: range) -> None:
    """The sequences are no easy ones: all faults and all orders occur."""
    happened: set[str] = set()
    for seed in seeds:
        happened |= run_virtual(_trouble(seed))
    assert happened >= set(ActionKind) | {"router", "backend", "probe", "one backend", "one mute"}
    assert happened >= {"engine died", "router restarted", "scaler killed", "slow"}
