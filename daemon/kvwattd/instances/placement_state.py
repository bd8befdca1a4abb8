"""Whether a GPU is free, busy, foreign or broken, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kvwattd.instances.placement_reading import Use

# A context without a model, a driver's own share, a screen: less is nobody's work.
TOLERATED_BYTES = 1 << 30


class GpuState(StrEnum):
    """What may be done with a GPU: something may be started on a FREE one only."""

    FREE = "free"
    BUSY = "busy"  # members' processes, nobody else's
    FOREIGN = "foreign"  # somebody uses it who is none of ours, or it is split by MIG
    BROKEN = "broken"
    UNKNOWN = "unknown"  # it cannot be read, or not whose the processes are


@dataclass(frozen=True, slots=True)
class GpuUse:
    """A GPU as placement sees it.

    Args:
        members: those whose processes are on it, whatever its state.
        reason: why it is not free or busy.
        lowest_mhz: its lowest clock, None where it cannot be read.
        claimed: the member that is about to start on it.
    """

    state: GpuState
    members: tuple[str, ...] = ()
    reason: str = ""
    lowest_mhz: int | None = None
    claimed: str = ""


def judge(use: Use, owners: Mapping[str, Collection[int]] | None, xid: str = "") -> GpuUse:
    """`owners`: member -> its processes; None: that cannot be told. `xid`: its last hardware error."""
    members = tuple(sorted(m for m, pids in (owners or {}).items() if use.compute.keys() & set(pids)))
    problems = "; ".join((*use.problems, *([xid] if xid else [])))
    if problems:
        return GpuUse(GpuState.BROKEN, members, problems, use.lowest_mhz)
    if use.mig:
        return GpuUse(GpuState.FOREIGN, members, "it is split by MIG", use.lowest_mhz)
    if owners is None and use.compute:
        return GpuUse(
            GpuState.UNKNOWN, (), f"whose are the processes {_listed(use, use.compute)}?", use.lowest_mhz
        )
    if foreign := _foreign(use, owners or {}):
        return GpuUse(GpuState.FOREIGN, members, foreign, use.lowest_mhz)
    return GpuUse(GpuState.BUSY if members else GpuState.FREE, members, "", use.lowest_mhz)


def _foreign(use: Use, owners: Mapping[str, Collection[int]]) -> str:
    ours = {pid for pids in owners.values() for pid in pids}
    others = use.compute.keys() - ours
    if others:
        return f"used by {_listed(use, others)}"
    if use.graphics_bytes > TOLERATED_BYTES:
        return f"{use.graphics_bytes >> 20} MiB are used for graphics"
    told = sum(used or 0 for used in use.compute.values()) + use.graphics_bytes
    untold = any(used is None for used in use.compute.values())
    hidden = use.used_bytes - told
    if hidden > TOLERATED_BYTES and not untold:
        return f"{hidden >> 20} MiB are used by processes that cannot be seen from here"
    return ""


def _listed(use: Use, pids: Collection[int]) -> str:
    shown = [f"{pid} ({use.names.get(pid, '?')})" for pid in sorted(pids)[:4]]
    return ", ".join(shown) + (" and more" if len(pids) > len(shown) else "")


def choose(count: int, pool: Sequence[str], usable: Collection[str]) -> tuple[str, ...]:
    """`count` GPUs of the pool, neighbours in its order (0-1, 2-3, ...) where it can be; empty: too few."""
    for first in range(0, len(pool) - count + 1, max(count, 1)):
        group = tuple(pool[first : first + count])
        if all(gpu in usable for gpu in group):
            return group
    single = [gpu for gpu in pool if gpu in usable]
    return tuple(single[:count]) if len(single) >= count else ()


def parked(uses: Mapping[str, GpuUse], asleep: Collection[str]) -> dict[str, tuple[int, int]]:
    """UUID -> the range of clocks (MHz) to wish for on GPUs that run nothing of anybody: the lowest there is.

    Those are the free ones and those that only sleeping members hold. A foreign, broken or unknown GPU is
    left alone, so is one with a member that is up, that is about to start, or that cannot be told.
    """
    wishes = {}
    for uuid, use in uses.items():
        free = use.state is GpuState.FREE and not use.claimed
        idle = free or (use.state is GpuState.BUSY and set(use.members) <= set(asleep))
        if idle and use.lowest_mhz is not None:
            wishes[uuid] = (use.lowest_mhz, use.lowest_mhz)
    return wishes
