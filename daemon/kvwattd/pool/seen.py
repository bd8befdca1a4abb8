"""What the pool's task knows of its members from their telemetry, and why it would rather not act on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvwatt.pool import Member, MemberStatus
from kvwatt.state import EngineSnapshot
from kvwattd.instance import InstanceRuntime

MAY_HAVE_REQUESTS = frozenset({MemberStatus.READY, MemberStatus.DRAINING})
_PARKED = frozenset({MemberStatus.STOPPED, MemberStatus.ASLEEP, MemberStatus.STARTING})


def pages(
    members: Iterable[Member], runs: Mapping[str, InstanceRuntime], now_s: float
) -> dict[str, EngineSnapshot | None]:
    """The newest page of everyone who may have requests; None where it cannot be trusted."""
    found: dict[str, EngineSnapshot | None] = {}
    for member in members:
        if member.status in MAY_HAVE_REQUESTS:
            seen = runs[member.name].observation
            found[member.name] = seen.snapshot if seen.fault(now_s) is None else None
    return found


def fault(
    members: Iterable[Member], runs: Mapping[str, InstanceRuntime], now_s: float, failed_calls: int
) -> str | None:
    """Why load and members cannot be told for certain: then nothing is taken away. None if they can."""
    if failed_calls:
        return f"{failed_calls} calls of backend, router or probe failed since the last plan"
    for member in members:
        if member.status is MemberStatus.UNKNOWN:
            return f"{member.name}: its state cannot be told"
        if member.status not in MAY_HAVE_REQUESTS:
            continue
        seen = runs[member.name].observation
        reason = seen.fault(now_s)
        if reason is not None:
            return f"{member.name}: {reason}"
        if seen.snapshot is None:
            return f"{member.name}: no page yet"
    return None


def park(member: Member, run: InstanceRuntime, reason: str, lowest_mhz: int | None) -> None:
    """Expect nothing of an engine that is at rest as intended, and all of every other one."""
    if member.status not in _PARKED:
        run.unpark()
        return
    clock_mhz = lowest_mhz if member.status is MemberStatus.ASLEEP else None
    run.park(
        f"{member.status} in the pool: {reason}" if reason else f"{member.status} in the pool", clock_mhz
    )
