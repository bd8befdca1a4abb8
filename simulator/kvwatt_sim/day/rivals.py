"""Other ways to choose the number of members, each as its source describes it.

Everybody starts members that are stopped and drains before stopping; a member that drains is taken back into
service where one is wanted, and a start that is not wanted any more is cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf

from kvwatt.pool import ActionKind, Member, MemberStatus, PoolAction
from kvwatt_sim.day.pool import View
from kvwatt_sim.day.server import Kind

UP = (MemberStatus.READY, MemberStatus.STARTING)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Brings the pool to `members` at the start and leaves it there."""

    members: frozenset[str]
    period_s: float = inf

    def actions(self, view: View) -> Sequence[PoolAction]:
        extra = [m for m in view.members if m.status is MemberStatus.READY and m.name not in self.members]
        starts = [m for m in view.members if m.status is MemberStatus.STOPPED and m.name in self.members]
        return [
            *(PoolAction(m.name, ActionKind.DRAIN_TO_STOP, "not in the fixed pool") for m in extra),
            *(PoolAction(m.name, ActionKind.START, "in the fixed pool") for m in starts),
        ]


def toward(members: Sequence[Member], desired: Mapping[str, int]) -> list[PoolAction]:
    """What brings the pool to `desired` members per kind; kinds left out: none.

    Nothing is taken away before everything wanted is ready (shadow instancing)."""
    kinds = {member.kind for member in members}
    added = [action for kind in kinds for action in _more(members, kind, desired.get(kind, 0))]
    ready = {kind: sum(m.status is MemberStatus.READY for m in members if m.kind == kind) for kind in kinds}
    if added or any(ready[kind] < desired.get(kind, 0) for kind in kinds):
        return added
    return [action for kind in kinds for action in _less(members, kind, desired.get(kind, 0))]


def _more(members: Sequence[Member], kind: str, wanted: int) -> list[PoolAction]:
    mine = [m for m in members if m.kind == kind]
    missing = wanted - sum(m.status in UP for m in mine)
    found: list[PoolAction] = []
    for status, action in (
        (MemberStatus.DRAINING, ActionKind.UNDRAIN),
        (MemberStatus.STOPPED, ActionKind.START),
    ):
        for member in mine:
            if len(found) < missing and member.status is status and _free(member, members):
                found.append(PoolAction(member.name, action, f"{wanted} wanted"))
    return found


def _free(member: Member, members: Sequence[Member]) -> bool:
    """No other member holds one of its GPUs."""
    off = (MemberStatus.STOPPED, MemberStatus.FAILED)
    return not any(m.gpus & member.gpus for m in members if m.name != member.name and m.status not in off)


def _less(members: Sequence[Member], kind: str, wanted: int) -> list[PoolAction]:
    mine = [m for m in members if m.kind == kind and m.status in UP]
    extra = len(mine) - wanted
    # A start that is under way costs nothing to leave; then who has the least to finish.
    mine.sort(key=lambda m: (m.status is MemberStatus.READY, m.running + m.waiting))
    return [
        PoolAction(
            m.name,
            ActionKind.CANCEL_START if m.status is MemberStatus.STARTING else ActionKind.DRAIN_TO_STOP,
            f"{wanted} wanted",
        )
        for m in mine[: max(extra, 0)]
    ]


def waiting(member: Member) -> float:
    """`vllm:num_requests_waiting`, as the vLLM production stack's KEDA tutorial scales on."""
    return float(member.waiting)


def outstanding(member: Member) -> float:
    """Running and waiting requests."""
    return float(member.running + member.waiting)


def kv_use(member: Member) -> float:
    """`vllm:kv_cache_usage_perc`, 0..1."""
    return member.kv_usage


@dataclass
class Threshold:
    """KEDA on a Prometheus query, through the horizontal pod autoscaler it makes.

    desired = ceil(sum over ready members of `metric` / `target`), unchanged within 10 % of the target
    (the autoscaler's tolerance); at once up, down to the highest wish of the last `stabilization_s`.
    KEDA's defaults: a question every 30 s, stabilization 300 s (its cool-down of 300 s only ends at zero)."""

    kind: str
    metric: Callable[[Member], float]
    target: float
    maximum: int
    period_s: float
    stabilization_s: float
    minimum: int = 1
    _wishes: deque[tuple[float, int]] = field(default_factory=deque, init=False)

    def actions(self, view: View) -> Sequence[PoolAction]:
        ready = [m for m in view.members if m.status is MemberStatus.READY]
        if not ready:
            return []
        total = sum(self.metric(m) for m in ready) + view.queued
        use = total / (self.target * len(ready))
        wish = len(ready) if abs(use - 1.0) <= 0.1 else ceil(total / self.target - 1e-9)
        wish = min(max(wish, self.minimum), self.maximum)
        self._wishes.append((view.now_s, wish))
        while self._wishes[0][0] < view.now_s - self.stabilization_s:
            self._wishes.popleft()
        return toward(view.members, {self.kind: max(w for _, w in self._wishes)})


@dataclass
class Paper:
    """throttLL'eM's autoscaler: the least engines whose profiled capacity holds the request rate.

    Asked every 10 s. `sizes`: pools it may choose from, as members per kind, in order of GPUs. Scales up at
    once, in the shadow; down only `grace_s` after the last time up. What the summaries at hand do not say
    and is chosen here: the rate is the mean over `rate_s`; capacity is used up to `use`."""

    kinds: Mapping[str, Kind]
    sizes: Sequence[Mapping[str, int]]
    use: float
    rate_s: float
    grace_s: float
    period_s: float = 10.0
    _counts: deque[tuple[float, int]] = field(default_factory=deque, init=False)
    _held: int = field(default=-1, init=False)
    _up_s: float = field(default=0.0, init=False)

    def actions(self, view: View) -> Sequence[PoolAction]:
        self._counts.append((view.now_s, view.arrivals))
        while self._counts[0][0] <= view.now_s - self.rate_s:
            self._counts.popleft()
        over_s = min(self.rate_s, view.now_s)
        if over_s <= 0.0:
            return []
        wanted = self._wanted(sum(count for _, count in self._counts) / over_s)
        if wanted > self._held:
            self._up_s = view.now_s
        if wanted > self._held or view.now_s - self._up_s >= self.grace_s:
            self._held = wanted
        return toward(view.members, self.sizes[self._held])

    def _wanted(self, rate_per_s: float) -> int:
        for index, size in enumerate(self.sizes):
            if rate_per_s <= self.use * sum(n * self.kinds[k].capacity_per_s for k, n in size.items()):
                return index
        return len(self.sizes) - 1
