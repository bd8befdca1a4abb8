"""Which members to act on, once it is known how many of each kind are wanted.

Coming: a draining member is taken back, else a sleeping one woken, else a stopped one started, else one
that failed long enough ago; a member whose start did not come waits `retry_s` before it is tried again.
Going: the one with the least to finish, and only when everybody wanted is ready (the new serve before the
old go). GPUs are never given to two: what a sleeping member holds is freed first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvwatt.pool import ActionKind, EngineKind, Member, MemberStatus, PoolAction, PoolParams

COMING = frozenset({MemberStatus.READY, MemberStatus.STARTING})
HOLDING = frozenset(
    {
        MemberStatus.READY,
        MemberStatus.STARTING,
        MemberStatus.DRAINING,
        MemberStatus.ASLEEP,
        MemberStatus.UNKNOWN,
    }
)
_ORDER = {
    MemberStatus.DRAINING: (0, ActionKind.UNDRAIN),
    MemberStatus.ASLEEP: (1, ActionKind.WAKE),
    MemberStatus.STOPPED: (2, ActionKind.START),
    MemberStatus.FAILED: (3, ActionKind.START),
}


@dataclass(frozen=True, slots=True)
class Crew:
    """The members at one moment, and which may be tried."""

    now_s: float
    members: tuple[Member, ...]
    kinds: Mapping[str, EngineKind]
    params: PoolParams
    tried_s: Mapping[str, float]
    gpus: int

    def count(self, statuses: Iterable[MemberStatus]) -> dict[str, int]:
        """Members per kind with one of these statuses."""
        wanted = frozenset(statuses)
        out: dict[str, int] = {}
        for member in self.members:
            out[member.kind] = out.get(member.kind, 0) + (member.status in wanted)
        return out

    def late(self) -> list[Member]:
        """Members whose start has taken longer than `start_timeout_s`."""
        limit_s = self.params.start_timeout_s
        return [
            m for m in self.members if m.status is MemberStatus.STARTING and self.now_s - m.since_s > limit_s
        ]

    def triable(self, member: Member) -> bool:
        """It may be asked to come into service."""
        retry_s = self.params.retry_s
        if self.now_s - self.tried_s.get(member.name, -float("inf")) < retry_s:
            return False
        if member.status is MemberStatus.FAILED:
            return self.now_s - member.since_s >= retry_s
        return member.status in _ORDER

    def serving(self) -> tuple[Member, ...]:
        """Members that serve, will, or may be asked to: what mixes are made from."""
        late = {m.name for m in self.late()}
        return tuple(
            m for m in self.members if (m.status in COMING and m.name not in late) or self.triable(m)
        )

    def reach(self) -> dict[str, int]:
        """How many more of each kind, each by itself, could begin to come now: their GPUs are free, or held
        by members that only sleep."""
        firm = [m for m in self.members if m.status in HOLDING and m.status is not MemberStatus.ASLEEP]
        return {kind: self._reach_of(kind, firm) for kind in {m.kind for m in self.members}}

    def _reach_of(self, kind: str, firm: Sequence[Member]) -> int:
        names = frozenset[str]().union(*(m.gpus for m in firm))
        used = sum(self.kinds[m.kind].gpus for m in firm)
        found = 0
        for member in self.members:
            if member.kind != kind or not self.triable(member):
                continue
            size = self.kinds[kind].gpus
            back = member.status is MemberStatus.DRAINING  # has its GPUs already
            if back or (not member.gpus & names and used + size <= self.gpus):
                found += 1
                names, used = names | member.gpus, used + (0 if back else size)
        return found

    def lead_s(self) -> float:
        """Seconds until one more could serve: the quickest way there is now."""
        ways = [_lead_s(m, self.kinds[m.kind]) for m in self.members if self.triable(m)]
        return min(ways, default=0.0)


def _lead_s(member: Member, kind: EngineKind) -> float:
    if member.status is MemberStatus.DRAINING:
        return 0.0
    return kind.wake_s if member.status is MemberStatus.ASLEEP else kind.start_s


def arrivals(crew: Crew, wanted: Mapping[str, int]) -> list[PoolAction]:
    """What to begin so that `wanted` members per kind are ready or coming."""
    late = {m.name for m in crew.late()}
    have: dict[str, int] = {}
    for member in crew.members:
        if member.status in COMING and member.name not in late:
            have[member.kind] = have.get(member.kind, 0) + 1
    held = [m for m in crew.members if m.status in HOLDING]
    room = crew.params.maximum - sum(
        m.status in COMING or m.status is MemberStatus.UNKNOWN for m in crew.members
    )
    out: list[PoolAction] = []
    for kind in sorted(wanted):
        missing = min(wanted[kind] - have.get(kind, 0), room)
        for member in _candidates(crew, kind):
            if missing <= 0:
                break
            if any(action.member == member.name for action in out):
                continue  # it is stopped for another's sake
            blocked_by = _holders(member, held, crew)
            if blocked_by is not None and not blocked_by:
                _, action = _ORDER[member.status]
                out.append(PoolAction(member.name, action, _came(member, wanted[kind], have.get(kind, 0))))
                held.append(member)
                missing, room = missing - 1, room - 1
            elif blocked_by:
                out.extend(_freed(blocked_by, member, crew, out))
    return out


def _candidates(crew: Crew, kind: str) -> list[Member]:
    able = [m for m in crew.members if m.kind == kind and crew.triable(m)]
    return sorted(able, key=lambda m: (_ORDER[m.status][0], m.name))


def _holders(member: Member, held: Sequence[Member], crew: Crew) -> list[Member] | None:
    """Who holds what `member` needs: nobody (empty), these, or None where only fewer GPUs would help."""
    if member.status in HOLDING:
        return []
    others = [m for m in held if m.name != member.name]
    sharing = [m for m in others if m.gpus & member.gpus]
    if sharing:
        return sharing
    used = sum(crew.kinds[m.kind].gpus for m in others)
    if used + crew.kinds[member.kind].gpus <= crew.gpus:
        return []
    sleeping = [m for m in others if m.status is MemberStatus.ASLEEP]
    return sleeping[:1] or None


def _freed(holders: Sequence[Member], wanting: Member, crew: Crew, out: list[PoolAction]) -> list[PoolAction]:
    """Sleeping members stopped for the sake of `wanting`, where all that is in the way sleeps."""
    if not all(m.status is MemberStatus.ASLEEP and crew.kinds[m.kind].can_stop for m in holders):
        return []
    chosen = {action.member for action in out}
    reason = f"its GPUs are wanted for {wanting.name}"
    return [PoolAction(m.name, ActionKind.DRAIN_TO_STOP, reason) for m in holders if m.name not in chosen]


def _came(member: Member, wanted: int, have: int) -> str:
    return f"{wanted} of {member.kind} wanted, {have} ready or coming"


def departure(crew: Crew, wanted: Mapping[str, int], to_stop: bool) -> PoolAction | None:
    """One ready member too many, if everybody wanted is ready and the minimum stays; else None."""
    ready = crew.count({MemberStatus.READY})
    if any(ready.get(kind, 0) < n for kind, n in wanted.items()):
        return None
    if sum(ready.values()) <= crew.params.minimum:
        return None
    spare = [
        m
        for m in crew.members
        if m.status is MemberStatus.READY and ready[m.kind] > wanted.get(m.kind, 0) and _can_go(crew, m)
    ]
    if not spare:
        return None
    member = min(spare, key=lambda m: (m.running + m.waiting, m.name))
    kind = crew.kinds[member.kind]
    stop = kind.can_stop and (not kind.can_sleep or (to_stop and worth_stopping(kind, crew.params.stay_s)))
    action = ActionKind.DRAIN_TO_STOP if stop else ActionKind.DRAIN_TO_SLEEP
    wants = wanted.get(member.kind, 0)
    reason = f"{wants} of {member.kind} are enough, {ready[member.kind]} ready; it has the least to finish"
    return PoolAction(member.name, action, reason)


def _can_go(crew: Crew, member: Member) -> bool:
    kind = crew.kinds[member.kind]
    return kind.can_stop or kind.can_sleep


def worth_stopping(kind: EngineKind, stay_s: float) -> bool:
    """What a stopped member draws less than a sleeping one repays the longer way back within `stay_s`."""
    return kind.can_stop and (kind.asleep_w - kind.stopped_w) * stay_s > kind.start_j - kind.wake_j
