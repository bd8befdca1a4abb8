"""Engines, a router and a backend in virtual time that hurt as told, and that know what must never happen.

`World.broken` holds every violation with its time. A call that is hurt raises, hangs, or is carried out and
then raises: the caller cannot tell which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.journal import Entry, Journal
from kvwattd.instances.probe import Look
from kvwattd.instances.router import RouterError


class Hurt(StrEnum):
    """What may be wrong with a part of the world."""

    FAILS = "fails"
    HANGS = "hangs"
    LIES_ABOUT_FAILURE = "carried out, then fails"


class Engine(StrEnum):
    OFF = "off"
    COMING = "coming"
    UP = "up"
    DOZING = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"
    STOPPING = "stopping"
    DEAD = "dead"


@dataclass
class FakeMember:
    """One engine. `until_s`: end of COMING, DOZING, WAKING or STOPPING; `requests`: when each ends."""

    name: str
    engine: Engine = Engine.OFF
    until_s: float = 0.0
    requests: list[float] = field(default_factory=list)
    processes: int = 0
    mute: bool = False  # the probe gets no answer


class FakeWorld:
    """All of it. `takes_s`: how long a start, wake, sleep and stop take."""

    def __init__(self, names: tuple[str, ...], now: Callable[[], float], minimum: int) -> None:
        self.members = {name: FakeMember(name) for name in names}
        self.now = now
        self.minimum = minimum
        self.in_router: set[str] = set()
        self.hurt: dict[str, Hurt] = {}  # "router", "backend", "probe" or "backend:NAME"
        self.takes_s = {"start": 20.0, "wake": 3.0, "sleep": 2.0, "stop": 4.0}
        self.never_up: set[str] = set()
        self.forced_allowed = False
        self.broken: list[str] = []
        self.lost = 0
        self.calls: list[tuple[str, str]] = []

    def tick(self) -> None:
        """Let what is due happen."""
        now_s = self.now()
        ends = {
            Engine.COMING: Engine.UP,
            Engine.DOZING: Engine.ASLEEP,
            Engine.WAKING: Engine.UP,
            Engine.STOPPING: Engine.OFF,
        }
        for member in self.members.values():
            if member.engine in ends and now_s >= member.until_s:
                stuck = member.engine is Engine.COMING and member.name in self.never_up
                if not stuck:
                    self._arrive(member, ends[member.engine])
            if member.engine is Engine.UP:
                member.requests = [end_s for end_s in member.requests if end_s > now_s]
        self.check()

    def check(self) -> None:
        for member in self.members.values():
            if member.engine in (Engine.ASLEEP, Engine.DOZING) and member.name in self.in_router:
                self._violated(f"{member.name} is {member.engine} and in the router")
            if member.processes > 1:
                self._violated(f"{member.name} runs {member.processes} times")

    def request(self, lasts_s: float) -> None:
        """One request to the emptiest member in the router that is up, as HAProxy's health check has it."""
        up = [self.members[n] for n in self.in_router if self.members[n].engine is not Engine.OFF]
        good = [m for m in up if m.engine in (Engine.UP, Engine.ASLEEP, Engine.DOZING)]
        if good:
            chosen = min(good, key=lambda m: (len(m.requests), m.name))
            if chosen.engine is not Engine.UP:
                self._violated(f"a request went to {chosen.name}, which is {chosen.engine}")
            chosen.requests.append(self.now() + lasts_s)

    def die(self, name: str) -> None:
        """The process ends by itself."""
        member = self.members[name]
        if member.engine not in (Engine.OFF, Engine.DEAD):
            member.engine, member.processes = Engine.DEAD, 0
            member.requests.clear()

    def restart_router(self) -> None:
        """Its runtime state is gone; every server is disabled in its configuration."""
        self.in_router.clear()

    def put(self, name: str, engine: Engine, *, admitted: bool = False) -> None:
        """A state to begin with."""
        member = self.members[name]
        member.engine = engine
        member.processes = 0 if engine in (Engine.OFF, Engine.DEAD) else 1
        if admitted:
            self.in_router.add(name)

    def serving(self) -> list[str]:
        return [n for n in self.in_router if self.members[n].engine is Engine.UP]

    def begin(self, name: str, engine: Engine, what: str) -> None:
        member = self.members[name]
        member.engine, member.until_s = engine, self.now() + self.takes_s[what]

    def ends(self, name: str, what: str) -> None:
        """Sleep or stop takes effect: nothing may be running."""
        member = self.members[name]
        if name in self.in_router:
            self._violated(f"{what} of {name} while in the router")
        if member.requests and not self.forced_allowed:
            self._violated(f"{what} of {name} with {len(member.requests)} requests")
        self.lost += len(member.requests)

    async def hurts(self, part: str, effect: Callable[[], None], member: str = "") -> None:
        """Carry out a call as the part's state allows."""
        self.calls.append((part, member))
        hurt = self.hurt.get(f"{part}:{member}") or self.hurt.get(part)
        if hurt is Hurt.HANGS:
            await asyncio.sleep(10_000.0)
        if hurt is not Hurt.FAILS:
            effect()
            self.check()
        if hurt is not None:
            if part == "router":
                raise RouterError("unreachable", "hurt")
            raise BackendError(
                Cause.DEADLINE if hurt is Hurt.LIES_ABOUT_FAILURE else Cause.UNREACHABLE, "hurt"
            )

    def _arrive(self, member: FakeMember, engine: Engine) -> None:
        member.engine = engine
        if engine is Engine.OFF:
            member.processes = 0
            member.requests.clear()

    def _violated(self, what: str) -> None:
        self.broken.append(f"{self.now():.1f} s: {what}")


class FakeRouter:
    name = "fake"
    counts_sessions = True

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def admit(self, member: str) -> None:
        def effect() -> None:
            engine = self._world.members[member].engine
            if engine is not Engine.UP:
                self._world.broken.append(f"{self._world.now():.1f} s: {member} admitted while {engine}")
            self._world.in_router.add(member)

        await self._world.hurts("router", effect, member)

    async def withdraw(self, member: str) -> None:
        def effect() -> None:
            serving = self._world.serving()
            if member in serving and len(serving) - 1 < self._world.minimum:
                self._world.broken.append(f"{self._world.now():.1f} s: {member} withdrawn, {serving} serve")
            self._world.in_router.discard(member)

        await self._world.hurts("router", effect, member)

    async def sessions(self, member: str) -> int | None:
        await self._world.hurts("router", lambda: None, member)
        return len(self._world.members[member].requests)

    async def admitted(self) -> frozenset[str] | None:
        if self._world.hurt.get("router") is Hurt.HANGS:
            await asyncio.sleep(10_000.0)
        return None if "router" in self._world.hurt else frozenset(self._world.in_router)

    async def close(self) -> None: ...


_SEEN = {
    Engine.OFF: BackendState.STOPPED,
    Engine.COMING: BackendState.STARTING,
    Engine.UP: BackendState.RUNNING,
    Engine.DOZING: BackendState.STOPPING,
    Engine.ASLEEP: BackendState.ASLEEP,
    Engine.WAKING: BackendState.STARTING,
    Engine.STOPPING: BackendState.STOPPING,
    Engine.DEAD: BackendState.FAILED,
}


class FakeBackend:
    name = "fake"
    can_sleep = True

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def states(self) -> Mapping[str, BackendState]:
        if self._world.hurt.get("backend") is Hurt.HANGS:
            await asyncio.sleep(10_000.0)
        if "backend" in self._world.hurt:
            return dict.fromkeys(self._world.members, BackendState.UNKNOWN)
        return {
            name: BackendState.UNKNOWN if f"backend:{name}" in self._world.hurt else _SEEN[member.engine]
            for name, member in self._world.members.items()
        }

    async def start(self, member: str) -> None:
        def effect() -> None:
            fake = self._world.members[member]
            if fake.engine in (Engine.OFF, Engine.DEAD):
                self._world.begin(member, Engine.COMING, "start")
                fake.processes += 1

        await self._world.hurts("backend", effect, member)

    async def wake(self, member: str) -> None:
        def effect() -> None:
            if self._world.members[member].engine in (Engine.ASLEEP, Engine.DOZING):
                self._world.begin(member, Engine.WAKING, "wake")

        await self._world.hurts("backend", effect, member)

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        def effect() -> None:
            if self._world.members[member].engine is Engine.UP:
                self._world.ends(member, "sleep")
                self._world.begin(member, Engine.DOZING, "sleep")

        assert withdrawn.member == member
        await self._world.hurts("backend", effect, member)

    async def stop(self, member: str) -> None:
        def effect() -> None:
            fake = self._world.members[member]
            if fake.engine is Engine.DEAD:
                fake.engine = Engine.OFF
            elif fake.engine not in (Engine.OFF, Engine.STOPPING):
                self._world.ends(member, "stop")
                self._world.begin(member, Engine.STOPPING, "stop")

        await self._world.hurts("backend", effect, member)

    async def close(self) -> None: ...


class FakeProbe:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def look(self, member: str) -> Look:
        fake = self._world.members[member]
        if self._world.hurt.get("probe") is Hurt.HANGS:
            await asyncio.sleep(10_000.0)
        if fake.mute or "probe" in self._world.hurt:
            return Look(healthy=False)
        if fake.engine in (Engine.OFF, Engine.DEAD):
            return Look(healthy=False, gone=True)
        if fake.engine in (Engine.COMING, Engine.STOPPING):
            return Look(healthy=False)
        asleep = fake.engine in (Engine.ASLEEP, Engine.DOZING, Engine.WAKING)
        count = len(fake.requests)
        return Look(
            healthy=True, asleep=asleep, running=min(count, 2), waiting=max(count - 2, 0), kv_usage=0.1
        )

    async def warm_up(self, member: str) -> bool:
        return self._world.members[member].engine is Engine.UP and "probe" not in self._world.hurt

    async def close(self) -> None: ...


class MemoryJournal(Journal):
    """Outlives the scaler as a disk does."""

    def __init__(self) -> None:
        super().__init__(None)
        self.members: Mapping[str, Entry] = {}

    async def read(self) -> Mapping[str, Entry]:
        return self.members

    async def write(self, members: Callable[[], Mapping[str, Entry]]) -> None:
        self.members = {name: Entry.model_validate(e.model_dump()) for name, e in members().items()}
