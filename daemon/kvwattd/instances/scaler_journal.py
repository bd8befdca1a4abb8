"""A member's record to its journal entry and back. Monotonic times become wall time, as a restart needs."""

from __future__ import annotations

from typing import Literal

from kvwatt.pool import MemberStatus
from kvwattd.instances.journal import Entry
from kvwattd.instances.scaler_record import DRAINS, Goal, Record

_ORIGINS: dict[MemberStatus | None, Literal["stopped", "asleep"] | None] = {
    MemberStatus.STOPPED: "stopped",
    MemberStatus.ASLEEP: "asleep",
}


def kept(r: Record, epoch_s: float) -> Entry | None:
    """What must outlive a crash; None: nothing is under way with it. `epoch_s`: wall time of monotonic 0."""
    if r.goal is Goal.REST and r.failed_s is None:
        return None
    return Entry(
        goal=r.goal,
        since_unix_s=round(epoch_s + r.goal_since_s),
        origin=_ORIGINS.get(r.origin),
        served=r.served,
        ending=r.ending,
        force=r.force,
        failed_unix_s=None if r.failed_s is None else round(epoch_s + r.failed_s),
    )


def taken_up(r: Record, entry: Entry, now_s: float, unix_s: float) -> None:
    """Go on with what an earlier run began; a wall clock that went back only makes a deadline later."""
    origin = None if entry.origin is None else MemberStatus(entry.origin)
    r.aim(entry.goal, now_s - max(unix_s - entry.since_unix_s, 0.0), origin)
    r.served, r.ending, r.force = entry.served, entry.ending, entry.force
    r.ending_since_s = now_s
    if entry.failed_unix_s is not None:
        r.failed_s = now_s - max(unix_s - entry.failed_unix_s, 0.0)
    if r.failed_s is not None:
        r.become(MemberStatus.FAILED, now_s, "failed before the restart")
    elif r.goal in DRAINS:
        r.become(MemberStatus.DRAINING, now_s, "was being emptied before the restart")
    elif r.goal is Goal.SERVE:
        r.become(MemberStatus.STARTING, now_s, "was being started before the restart")
