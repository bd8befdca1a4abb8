"""A scaler on a fake world, stepped in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fake_world import Engine, FakeBackend, FakeProbe, FakeRouter, FakeWorld, MemoryJournal

from kvwatt.pool import ActionKind, MemberStatus, PoolAction
from kvwattd.instances.scaler import Refusal, Scaler
from kvwattd.instances.scaler_params import ScalerParams

STEP_S = 1.0
PARAMS = ScalerParams(
    minimum=1,
    start_timeout_s=60.0,
    drain_timeout_s=60.0,
    end_timeout_s=20.0,
    retry_s=30.0,
    look_timeout_s=2.0,
    call_timeout_s=8.0,
)


class Stage:
    """Use inside a virtual loop."""

    def __init__(self, names: str = "abc", params: ScalerParams = PARAMS) -> None:
        self.params = params
        self.now: Callable[[], float] = asyncio.get_running_loop().time
        self.world = FakeWorld(tuple(names), self.now, params.minimum)
        self.journal = MemoryJournal()
        self.seen: list[tuple[str, MemberStatus]] = []
        self.scaler = self._new()

    def _new(self) -> Scaler:
        return Scaler(
            dict.fromkeys(self.world.members, "tp1"),
            FakeBackend(self.world),
            FakeRouter(self.world),
            FakeProbe(self.world),
            self.journal,
            self.params,
            self.now,
            lambda: 1.7e9 + self.now(),
        )

    async def crash(self) -> None:
        """SIGKILL: calls in flight are cut, nothing is written any more."""
        for task in list(self.scaler._moving.values()):
            task.cancel()
        await asyncio.gather(*self.scaler._moving.values(), return_exceptions=True)
        self.scaler = self._new()

    async def steps(self, count: int = 1) -> None:
        for _ in range(count):
            self.world.tick()
            await self.scaler.step()
            self.seen += [(event.member, event.status) for event in self.scaler.take_events()]
            await asyncio.sleep(STEP_S)
            self.world.tick()

    async def until(self, holds: Callable[[], bool], limit: int = 200) -> None:
        for _ in range(limit):
            if holds():
                return
            await self.steps()
        raise AssertionError(f"not within {limit} steps: {self.describe()}")

    async def order(self, member: str, action: ActionKind) -> tuple[Refusal, ...]:
        return await self.scaler.apply([PoolAction(member, action, "a test")])

    def status(self, member: str) -> MemberStatus:
        return next(m.status for m in self.scaler.members() if m.name == member)

    def serve(self, *names: str) -> None:
        for name in names:
            self.world.put(name, Engine.UP, admitted=True)

    def describe(self) -> str:
        told = [f"{m.name} {m.status}: {self.scaler.reason_of(m.name)}" for m in self.scaler.members()]
        engines = [f"{m.name} {m.engine} {len(m.requests)}" for m in self.world.members.values()]
        return f"{told} {engines} router {sorted(self.world.in_router)} broken {self.world.broken[:5]}"
