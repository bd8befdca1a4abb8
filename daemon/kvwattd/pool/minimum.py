"""The plan while nothing can be planned: the minimum serves, and what serves goes on serving. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvwatt.pool import ActionKind, Member, MemberStatus, PlanMemory, PoolAction, PoolParams, PoolPlan

COMING = frozenset({MemberStatus.READY, MemberStatus.STARTING})
# The quickest way first.
WAYS = (
    (MemberStatus.DRAINING, ActionKind.UNDRAIN),
    (MemberStatus.ASLEEP, ActionKind.WAKE),
    (MemberStatus.STOPPED, ActionKind.START),
    (MemberStatus.FAILED, ActionKind.START),
)
_FREE = frozenset({MemberStatus.STOPPED, MemberStatus.FAILED})


def to_minimum(
    now_s: float, members: Sequence[Member], params: PoolParams, memory: PlanMemory, why: str
) -> PoolPlan:
    """Bring as many as are missing, each on GPUs that no other one holds."""
    coming = [member for member in members if member.status in COMING]
    held = {gpu for member in members if member.status not in _FREE for gpu in member.gpus}
    actions: list[PoolAction] = []
    for status, action in WAYS:
        for member in members:
            if member.status is not status or len(coming) >= params.minimum:
                continue
            if status is MemberStatus.FAILED and now_s - member.since_s < params.retry_s:
                continue
            if status in _FREE and member.gpus & held:
                continue
            held |= member.gpus
            coming.append(member)
            actions.append(PoolAction(member.name, action, f"fewer than {params.minimum} serve; {why}"))
    desired = dict(Counter(member.kind for member in coming))
    reason = f"{why}: at least {params.minimum}, and what serves goes on"
    return PoolPlan(now_s, desired, tuple(actions), reason, memory)
