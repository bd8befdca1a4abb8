"""Moves instances between stopped, asleep and in service, without losing a request.

The scaler owns the truth about members. `apply` takes orders and returns; `step`, called every second or so,
looks at everything, decides anew for every member from what it sees and from where the member is being
brought (`scaler_rules.py`, `drain.py`), and makes at most one call per member (`scaler_moves.py`). What hangs
outside holds up its own member only.

The router and the engines tell what is so; the journal tells only what was wanted. So a restart in any phase
of a start or a drain goes on from what it finds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from kvwatt.pool import Member, MemberStatus, PoolAction
from kvwattd.instances.backend import Backend, BackendState
from kvwattd.instances.journal import Entry, Journal
from kvwattd.instances.probe import Look, Probe
from kvwattd.instances.router import Router
from kvwattd.instances.scaler_journal import kept, taken_up
from kvwattd.instances.scaler_moves import Mover
from kvwattd.instances.scaler_orders import refusal, take
from kvwattd.instances.scaler_params import OnDeadline, ScalerParams
from kvwattd.instances.scaler_record import DRAINS, Goal, Move, Record, Sight
from kvwattd.instances.scaler_rules import advance, may_serve_now, next_move

__all__ = ["OnDeadline", "Refusal", "ScaleEvent", "Scaler", "ScalerParams"]

log = logging.getLogger(__name__)

MAX_EVENTS: Final = 1000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """One change of one member, for log, metrics and REST. `at_s` is monotonic."""

    at_s: float
    member: str
    was: MemberStatus
    status: MemberStatus
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An order that was not taken, and why."""

    action: PoolAction
    reason: str


class Scaler:
    """Members, their transitions and the journal of what was intended.

    Args:
        kinds: member name -> engine kind ("tp2"), every member that may exist.
        backend: starts, stops, sleeps and wakes.
        router: spreads the requests.
        probe: asks the engines.
        journal: what was intended, on disk.
        params: limits and deadlines.
        now: monotonic seconds.
        unix: seconds since 1970, for the journal only.
        act: False (shadow mode): looks and tells, and orders nothing of anybody.
        gpus: member name -> the GPUs it has or would have; only handed on in `members()`.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        backend: Backend,
        router: Router,
        probe: Probe,
        journal: Journal,
        params: ScalerParams,
        now: Callable[[], float],
        unix: Callable[[], float],
        *,
        act: bool = True,
        gpus: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        gpus = gpus or {}
        self._records = {n: Record(n, kind, gpus.get(n, frozenset())) for n, kind in kinds.items()}
        self._backend = backend
        self._router = router
        self._probe = probe
        self._journal = journal
        self._now = now
        self._unix = unix
        self._epoch_s = unix() - now()
        self._noted = dict.fromkeys(kinds, MemberStatus.UNKNOWN)
        self._mover = Mover(backend, router, probe, now, self._save)
        self._moving: dict[str, asyncio.Task[None]] = {}
        self._events: deque[ScaleEvent] = deque(maxlen=MAX_EVENTS)
        self._adopted = False
        self.params = params
        self.acting = act

    def members(self) -> tuple[Member, ...]:
        """Every member as of the last step, in the order of `kinds`."""
        return tuple(_member(record) for record in self._records.values())

    def reason_of(self, member: str) -> str:
        """Why it has its status, in plain words. Raises KeyError for an unknown member."""
        return self._records[member].reason

    async def adopt(self) -> None:
        """Read what an earlier run intended. Called once before the first step, or by it."""
        self._adopted = True
        entries = await self._journal.read()
        now_s, unix_s = self._now(), self._unix()
        for name, entry in entries.items():
            if name in self._records:
                taken_up(self._records[name], entry, now_s, unix_s)
            else:
                log.warning("instances: what was begun with %r is dropped: no such instance", name)

    async def apply(self, actions: Sequence[PoolAction]) -> tuple[Refusal, ...]:
        """Take orders; they are carried out by the coming steps. Returns those refused, with the reason.

        Refused: what does not fit the member's status, what would leave fewer than `minimum` in service, an
        unknown member, everything while `acting` is False.
        """
        if not self._adopted:
            await self.adopt()
        refused = []
        for action in actions:
            why = self._refusal(action)
            if why is not None:
                refused.append(Refusal(action, why))
                continue
            record = self._records[action.member]
            take(record, action, self._now())
            self._note(record)
        await self._save()
        return tuple(refused)

    async def step(self) -> None:
        """Look at everything and move on what can move. Never raises for what the outside world does."""
        if not self._adopted:
            await self.adopt()
        sights = await self._look()
        for name, sight in sights.items():
            if name not in self._moving:
                self._advance(self._records[name], sight)
        if not self.acting:
            return
        self._keep_minimum()
        await self._save()
        await self._move(sights)
        await self._save()

    def take_events(self) -> tuple[ScaleEvent, ...]:
        """Changes since the last call (the newest 1,000), oldest first."""
        events = tuple(self._events)
        self._events.clear()
        return events

    @property
    def errors(self) -> Mapping[tuple[str, str], int]:
        """Failed calls so far by (`backend`|`router`|`probe`|`journal`, cause), for metrics."""
        return {**self._mover.errors, ("journal", "disk"): self._journal.errors}

    async def close(self) -> None:
        """Stop moving anything on; members stay as they are, the journal tells the next run."""
        moving = list(self._moving.values())
        for task in moving:
            task.cancel()
        await asyncio.gather(*moving, return_exceptions=True)
        if self._adopted:  # else the journal is still the run's before
            await self._save()

    async def _look(self) -> dict[str, Sight]:
        """One look at everything, each part under the deadline of a look.

        An engine that is being stopped is left alone: a question that its API server hands on to an engine
        that has ended seems never to be answered, and vLLM's shutdown then waits (seen once with 0.32).
        """
        at_s = self._now()
        nothing: Mapping[str, BackendState] = {}
        states, admitted = await asyncio.gather(
            self._in_time(self._backend.states(), nothing, "backend"),
            self._in_time(self._router.admitted(), None, "router"),
        )
        names = [name for name in self._records if states.get(name) is not BackendState.STOPPING]
        waiting = (self._in_time(self._probe.look(name), Look(healthy=False), "probe") for name in names)
        looks = dict(zip(names, await asyncio.gather(*waiting), strict=True))
        sights = {}
        for name in self._records:
            look = looks.get(name, Look(healthy=False))
            in_router = self._in_router(look) if admitted is None else name in admitted
            sights[name] = Sight(at_s, look, states.get(name, BackendState.UNKNOWN), in_router)
        return sights

    def _in_router(self, look: Look) -> bool | None:
        """Of a router that cannot be asked; in shadow mode what serves is taken to get requests."""
        return None if self.acting or not look.serving else True

    async def _in_time(self, call: Coroutine[Any, Any, _T], otherwise: _T, whom: str) -> _T:
        """Whatever goes wrong with a look, it is something that cannot be told."""
        try:
            async with asyncio.timeout(self.params.look_timeout_s):
                return await call
        except Exception as error:
            self._mover.errors[whom, "look"] += 1
            log.debug("instances: looking at the %s failed: %r", whom, error)
            return otherwise

    def _advance(self, record: Record, sight: Sight) -> None:
        advance(record, sight, self._now(), self.params, spare=self._spare(record))
        self._note(record)

    def _spare(self, record: Record) -> bool:
        """Whether enough others serve for certain."""
        others = sum(other.serving for other in self._records.values() if other is not record)
        return others >= self.params.minimum

    def _move_of(self, name: str, sight: Sight) -> Move:
        """The rules' move; nobody that may serve is withdrawn while it is needed."""
        record = self._records[name]
        move = next_move(record, sight, self.params)
        if move is Move.WITHDRAW and may_serve_now(sight) and not self._spare(record):
            record.reason = "waits to be withdrawn: too few others are known to serve"
            return Move.NONE
        return move

    def _keep_minimum(self) -> None:
        """Take drains back while too few serve: one that died may have been counted on."""
        missing = self.params.minimum - sum(record.alive for record in self._records.values())
        coming = [
            r for r in self._records.values() if r.goal is Goal.SERVE and r.sight and r.sight.look.serving
        ]
        for record in self._records.values():
            if missing <= len(coming):
                return
            sight = record.sight
            kept_back = record.goal in DRAINS and not record.ending and record.failed_s is None
            if kept_back and record.served and sight is not None and sight.look.serving:
                record.aim(Goal.SERVE, self._now())
                told = f"back into service: fewer than {self.params.minimum} would serve"
                record.become(MemberStatus.STARTING, self._now(), told)
                self._note(record)
                coming.append(record)

    async def _move(self, sights: Mapping[str, Sight]) -> None:
        """One call per member; withdrawals of what sleeps before anything else."""
        moves = {
            name: self._move_of(name, sight) for name, sight in sights.items() if name not in self._moving
        }
        urgent = {n for n, m in moves.items() if m is Move.WITHDRAW and sights[n].asleep}
        for first in (True, False):
            for name, move in moves.items():
                if move is not Move.NONE and (name in urgent) is first:
                    self._begin(name, sights[name], move)
            begun = [task for name, task in self._moving.items() if name in moves]
            if begun:
                await asyncio.wait(begun, timeout=self.params.step_s)

    def _begin(self, name: str, sight: Sight, move: Move) -> None:
        record = self._records[name]

        async def run() -> None:
            try:
                await self._mover.make(record, sight, move, self.params)
            except Exception:
                log.exception("instance %s: %s went wrong", name, move)
            finally:
                del self._moving[name]
                self._note(record)

        self._moving[name] = asyncio.create_task(run(), name=f"{move} {name}")

    def _refusal(self, action: PoolAction) -> str | None:
        if not self.acting:
            return "shadow mode: nothing is ordered"
        record = self._records.get(action.member)
        if record is None:
            return f"{action.member!r} is none of {', '.join(self._records)}"
        serving = sum(r.serving for r in self._records.values() if r is not record)
        can_drain = self._router.name != "none"
        return refusal(record, action, serving, self._now(), self.params, self._backend.can_sleep, can_drain)

    def _note(self, record: Record) -> None:
        was = self._noted[record.name]
        if record.status is was:
            return
        self._noted[record.name] = record.status
        now_s = self._now()
        self._events.append(ScaleEvent(now_s, record.name, was, record.status, record.reason))
        log.info("instance %s: %s -> %s: %s", record.name, was, record.status, record.reason)

    async def _save(self) -> None:
        def entries() -> Mapping[str, Entry]:
            found = {r.name: kept(r, self._epoch_s) for r in self._records.values()}
            return {name: entry for name, entry in found.items() if entry is not None}

        await self._journal.write(entries)


def _member(r: Record) -> Member:
    look = r.sight.look if r.sight is not None else Look(healthy=False)
    return Member(
        name=r.name,
        kind=r.kind,
        status=r.status,
        since_s=r.since_s,
        running=look.running or 0,
        waiting=look.waiting or 0,
        kv_usage=look.kv_usage or 0.0,
        gpus=r.gpus,
    )
