"""A virtual pool: members, a router and the GPUs, driven through a day under one scaler.

The router sends a request to the ready member with the fewest unfinished ones for its weight, which is in
proportion to what its kind carries (HAProxy's `leastconn`: (n + 1) / weight, and 0 where n is 0; the one that
was given fewer so far among equals). Where none is ready it waits in the router, and its time there
counts in its TTFT and E2E. Energy is that of all GPUs of the setting, those that no member holds included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Protocol

from kvwatt.pool import ActionKind, Member, MemberStatus, PoolAction
from kvwatt.pool_weights import weights
from kvwatt_sim.day.server import HOLDS, Clocks, Kind, PoolError, Server
from kvwatt_sim.day.setting import Setting
from kvwatt_sim.replay.outcome import Outcome, merged
from kvwatt_sim.traces import TraceRequest

GRAIN_S = 0.5  # scalers are asked, and starts and drains end, on this grid
SAMPLE_S = 10.0
MOST_DRAIN_S = 3600.0


@dataclass(frozen=True, slots=True)
class View:
    """What a scaler may see. `arrivals`: since it was asked last; `queued`: in the router, nobody ready."""

    now_s: float
    members: tuple[Member, ...]
    arrivals: int
    queued: int


class Scaler(Protocol):
    """Who decides on the number of members; one object drives one day."""

    @property
    def period_s(self) -> float:
        """Seconds between two questions; inf: never asked."""

    def actions(self, view: View) -> Sequence[PoolAction]:
        """What to begin now."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The pool over the SAMPLE_S up to `at_s`; `clock_mhz`: mean of the ready members."""

    at_s: float
    ready: int
    starting: int
    draining: int
    asleep: int
    arrivals_per_s: float
    power_w: float
    clock_mhz: float


@dataclass(frozen=True, slots=True)
class DayRun:
    """`energy_j`: all GPUs until the end. `events`: time, member and what was begun."""

    energy_j: float
    outcome: Outcome
    events: tuple[tuple[float, str, ActionKind], ...]
    samples: tuple[Sample, ...]
    ready_s: dict[str, float] = field(default_factory=dict)  # seconds ready, by kind


class Pool:
    """`clocks(kind)` makes the controller of one member. `capacity_per_s`: by kind, what the router's weights
    are in proportion to; of the kinds themselves by default."""

    def __init__(
        self,
        setting: Setting,
        scaler: Scaler,
        clocks: Callable[[Kind], Clocks],
        capacity_per_s: Mapping[str, float] | None = None,
    ) -> None:
        self.setting, self._scaler = setting, scaler
        known = capacity_per_s or {name: kind.capacity_per_s for name, kind in setting.kinds.items()}
        self._weights = weights(known)
        room = len(setting.requests)
        self.servers = [
            Server(place.name, place.kind, place.gpus, lambda k=place.kind: clocks(k), room)  # type: ignore[misc]
            for place in setting.places
        ]
        self._by_name = {server.name: server for server in self.servers}
        self.now_s, self._parked_j = 0.0, 0.0
        self._waiting: deque[TraceRequest] = deque()
        self._arrivals = self._sampled = 0
        self._events: list[tuple[float, str, ActionKind]] = []
        self._samples: list[Sample] = []
        self._sample_j = 0.0
        self._ready_s: dict[str, float] = {}

    @property
    def energy_j(self) -> float:
        return self._parked_j + sum(server.energy_j for server in self.servers)

    def run(self) -> DayRun:
        """The whole day, and on until everything has finished."""
        setting, place = self.setting, 0
        for name in setting.ready_at_start:
            self._by_name[name].begin_ready()
        asked_s = 0.0
        while self.now_s < setting.until_s - 1e-9 or self._unfinished():
            if self.now_s > setting.until_s + MOST_DRAIN_S:
                raise PoolError(f"requests are still unfinished {MOST_DRAIN_S:g} s after the day")
            if self.now_s >= asked_s - 1e-9:
                self._ask()
                asked_s = self._next_question_s(asked_s)
            place = self._grain(place, self.now_s + GRAIN_S)
        return self._result()

    def _next_question_s(self, asked_s: float) -> float:
        period_s = self._scaler.period_s
        return inf if period_s == inf else asked_s + ceil(period_s / GRAIN_S) * GRAIN_S

    def _grain(self, place: int, until_s: float) -> int:
        """One step of the grid; returns the place of the next request."""
        requests = self.setting.requests
        while place < len(requests) and requests[place].arrival_s < until_s:
            self._arrivals += 1
            self._sampled += 1
            self._route(requests[place])
            place += 1
        free = self.setting.gpus - self.held()
        self._parked_j += len(free) * self.setting.parked_w * (until_s - self.now_s)
        for server in self.servers:
            server.advance(until_s)
            if server.status is MemberStatus.READY:
                kind = server.kind.name
                self._ready_s[kind] = self._ready_s.get(kind, 0.0) + until_s - self.now_s
        self.now_s = until_s
        self._settle()
        if until_s >= (len(self._samples) + 1) * SAMPLE_S - 1e-9:
            self._sample()
        return place

    def held(self) -> set[str]:
        """GPUs that a member holds."""
        return {gpu for server in self.servers if server.status in HOLDS for gpu in server.gpus}

    def _route(self, request: TraceRequest) -> None:
        ready = [server for server in self.servers if server.status is MemberStatus.READY]
        if not ready:
            self._waiting.append(request)
            return
        if request.arrival_s > self.now_s:  # not one that had to wait here
            for server in ready:
                server.advance(request.arrival_s)
        least = min(ready, key=lambda s: (_load(s.unfinished, self._weights[s.kind.name]), s.given))
        least.give(request)

    def _flush(self) -> None:
        while self._waiting and any(s.status is MemberStatus.READY for s in self.servers):
            self._route(self._waiting.popleft())

    def _ask(self) -> None:
        members = tuple(server.view for server in self.servers)
        actions = self._scaler.actions(View(self.now_s, members, self._arrivals, len(self._waiting)))
        self._arrivals = 0
        for action in actions:
            self.begin(action)
        self._settle()

    def _settle(self) -> None:
        """Finish starts and drains; who waits in the router goes where somebody is ready."""
        for server in self.servers:
            server.settle()
        self._flush()

    def begin(self, action: PoolAction) -> None:
        """Raises PoolError for an unknown member, an illegal action or GPUs that somebody holds."""
        if action.member not in self._by_name:
            raise PoolError(f"no member {action.member}")
        server = self._by_name[action.member]
        if action.action is ActionKind.START and server.gpus & self.held():
            raise PoolError(f"{server.name}: its GPUs {sorted(server.gpus & self.held())} are held")
        server.begin(action.action)
        self._events.append((self.now_s, action.member, action.action))

    def _unfinished(self) -> int:
        return len(self._waiting) + sum(server.unfinished for server in self.servers)

    def _sample(self) -> None:
        by = [server.status for server in self.servers]
        ready = [s.clock_mhz for s in self.servers if s.status is MemberStatus.READY]
        sample = Sample(
            self.now_s,
            len(ready),
            by.count(MemberStatus.STARTING),
            by.count(MemberStatus.DRAINING),
            by.count(MemberStatus.ASLEEP),
            self._sampled / SAMPLE_S,
            (self.energy_j - self._sample_j) / SAMPLE_S,
            sum(ready) / len(ready) if ready else 0.0,
        )
        self._samples.append(sample)
        self._sampled, self._sample_j = 0, self.energy_j

    def _result(self) -> DayRun:
        outcome = merged([server.outcome() for server in self.servers])
        return DayRun(self.energy_j, outcome, tuple(self._events), tuple(self._samples), self._ready_s)


def _load(unfinished: int, weight: int) -> float:
    """By which HAProxy's `leastconn` orders servers."""
    return (unfinished + 1) / weight if unfinished else 0.0
