"""Several engines behind a router that sends a conversation where its past is, some of them asleep.

A member that sleeps holds no KV pool: what it kept is gone when it wakes (vLLM's sleep level 1 discards the
cache). It is put to sleep when the last request has left, and is sent nothing from the moment it is to go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from zlib import crc32

from kvwatt.state import EngineShape
from kvwatt_sim.cards import Card
from kvwatt_sim.prefix.conversations import Hashed
from kvwatt_sim.prefix.serving import PERIOD_S, Result, Serving

LOADED = 1.25  # of the mean requests inside: a member with more is passed over by who could go elsewhere


class Status(StrEnum):
    """`WAKING` and `LEAVING` are sent nothing."""

    READY = "ready"
    LEAVING = "leaving"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass(frozen=True, slots=True)
class Sleep:
    """Seconds from asleep to ready, watts of the group meanwhile and while asleep."""

    wake_s: float
    waking_w: float
    asleep_w: float


@dataclass
class Member:
    """One engine and whether it holds its pool."""

    serving: Serving
    status: Status = Status.READY
    ready_s: float = 0.0
    held_s: float = 0.0  # with a pool

    @property
    def awake(self) -> bool:
        return self.status in (Status.READY, Status.LEAVING)


@dataclass
class Fleet:
    """`act(fleet, now_s, arrivals)` is asked every second; it calls `resize` and sets members' budgets."""

    card: Card
    shape: EngineShape
    sleep: Sleep
    members: list[Member]
    done: list[Result] = field(default_factory=list)  # of pools that are gone
    wakes: int = 0

    @property
    def ready(self) -> list[Member]:
        return [member for member in self.members if member.status is Status.READY]

    def resize(self, count: int, now_s: float) -> None:
        """So many members are to hold a pool: who leaves comes back first, then sleepers wake."""
        wanted = max(min(count, len(self.members)), 1)
        coming = [m for m in self.members if m.status in (Status.READY, Status.WAKING)]
        back = sorted((m for m in self.members if m not in coming), key=lambda m: m.status is Status.ASLEEP)
        for member in back[: max(wanted - len(coming), 0)]:
            self._fetch(member, now_s)
        ready = sorted(self.ready, key=lambda m: m.serving.inside)
        for member in ready[: max(len(coming) - wanted, 0)][: len(ready) - 1]:
            member.status = Status.LEAVING

    def _fetch(self, member: Member, now_s: float) -> None:
        if member.status is Status.LEAVING:
            member.status = Status.READY
            return
        member.status, member.ready_s = Status.WAKING, now_s + self.sleep.wake_s
        self.wakes += 1

    def route(self, item: Hashed) -> Member:
        """Where the conversation's hash says, unless that member is much fuller than the mean."""
        ready = self.ready
        full = LOADED * (sum(m.serving.inside for m in ready) + 1) / len(ready)
        order = sorted(ready, key=lambda m: crc32(f"{item.conversation}/{self.members.index(m)}".encode()))
        return next((m for m in order if m.serving.inside < full), order[0])

    def move(self, until_s: float) -> None:
        """Everybody serves, sleeps or wakes until then."""
        for member in self.members:
            serving, began_s = member.serving, member.serving.now_s
            if member.awake:
                serving.move(until_s)
                member.held_s += max(serving.now_s - began_s, 0.0)
            elif member.status is Status.ASLEEP:
                serving.idle(until_s, self.sleep.asleep_w)
            else:
                serving.idle(until_s, self.sleep.waking_w)
            self._settle(member, until_s)

    def _settle(self, member: Member, now_s: float) -> None:
        if member.status is Status.WAKING and now_s >= member.ready_s:
            member.status = Status.READY
        if member.status is Status.LEAVING and not member.serving.inside:
            self.done.append(member.serving.ended())
            fresh = Serving(self.card, self.shape)
            fresh.now_s = member.serving.now_s
            member.serving, member.status = fresh, Status.ASLEEP

    def ended(self, duration_s: float) -> Result:
        """All together."""
        parts = [*self.done, *(member.serving.ended() for member in self.members)]
        total = Result(duration_s=duration_s)
        for part in parts:
            total.energy_j += part.energy_j
            total.busy_s += part.busy_s
            total.prefill_tokens += part.prefill_tokens
            total.hit_tokens += part.hit_tokens
            total.asked_tokens += part.asked_tokens
            total.preemptions += part.preemptions
            total.records += part.records
        return total


Act = Callable[[Fleet, float, int], None]


def serve_fleet(fleet: Fleet, traffic: Sequence[Hashed], act: Act, until_s: float) -> Result:
    """Serve until `until_s` is over and everybody has finished."""
    coming, now_s, arrivals = deque(enumerate(traffic)), 0.0, 0
    while now_s < until_s or coming or any(member.serving.inside for member in fleet.members):
        act(fleet, now_s, arrivals)
        now_s, arrivals = now_s + PERIOD_S, 0
        while (coming[0][1].request.arrival_s if coming else inf) <= now_s:
            number, item = coming.popleft()
            fleet.route(item).serving.send(number, item)
            arrivals += 1
        fleet.move(now_s)
    return fleet.ended(now_s)


def fleet_of(card: Card, shape: EngineShape, count: int, sleep: Sleep) -> Fleet:
    """All ready."""
    return Fleet(card, shape, sleep, [Member(Serving(card, shape)) for _ in range(count)])
