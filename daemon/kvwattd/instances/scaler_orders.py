"""Which orders fit a member's state, and what they set it to. No I/O, no clock."""

from __future__ import annotations

from kvwatt.pool import LEGAL_FROM, ActionKind, MemberStatus, PoolAction
from kvwattd.instances.backend import BackendState
from kvwattd.instances.scaler_params import ScalerParams
from kvwattd.instances.scaler_record import DRAINS, Goal, Record

_DRAIN = {ActionKind.DRAIN_TO_SLEEP: Goal.SLEEP, ActionKind.DRAIN_TO_STOP: Goal.STOP}
_BACK = {MemberStatus.STOPPED: Goal.STOP, MemberStatus.ASLEEP: Goal.SLEEP}


def refusal(
    r: Record,
    action: PoolAction,
    others_serving: int,
    now_s: float,
    p: ScalerParams,
    can_sleep: bool,
    can_drain: bool,
) -> str | None:
    """Why an order is not taken; None: it is. `others_serving`: how many stay when this member goes."""
    kind = action.action
    if r.status not in LEGAL_FROM[kind]:
        return f"{kind} does not fit: {r.name} is {r.status} ({r.reason})"
    if kind in _DRAIN:
        return _drain_refusal(r, kind, others_serving, p, can_sleep, can_drain)
    if kind is ActionKind.START and r.status is MemberStatus.FAILED:
        return _retry_refusal(r, now_s, p)
    if kind is ActionKind.CANCEL_START and r.origin is None:
        return f"{r.name} serves already, it only goes back into the router"
    if kind is ActionKind.UNDRAIN and (r.ending or r.force):
        return f"{r.name} was asked to {r.goal} already"
    return None


def take(r: Record, action: PoolAction, now_s: float) -> None:
    """Set the member's goal; the steps bring it there."""
    kind = action.action
    if kind in _DRAIN:
        if r.status is MemberStatus.ASLEEP:
            r.become(MemberStatus.ASLEEP, now_s, action.reason)
        r.aim(_DRAIN[kind], now_s)
        r.become(MemberStatus.DRAINING, now_s, action.reason)
        return
    if kind is ActionKind.CANCEL_START:
        assert r.origin is not None  # noqa: S101  # refused otherwise
        r.aim(_BACK[r.origin], now_s, r.origin)
        r.become(MemberStatus.DRAINING, now_s, action.reason)
        return
    r.failed_s = None
    r.aim(Goal.SERVE, now_s, r.origin if kind is ActionKind.UNDRAIN else _origin(r))
    r.become(MemberStatus.STARTING, now_s, action.reason)


def _origin(r: Record) -> MemberStatus | None:
    """Where a start comes from; None: it runs already, and is none of ours to clean up."""
    if r.sight is None:
        return None
    if r.sight.asleep:
        return MemberStatus.ASLEEP
    ended = r.sight.backend in (BackendState.STOPPED, BackendState.FAILED)
    return MemberStatus.STOPPED if ended else None


def _drain_refusal(
    r: Record, kind: ActionKind, others_serving: int, p: ScalerParams, can_sleep: bool, can_drain: bool
) -> str | None:
    if not can_drain:
        return "no router is configured: nobody can tell when its requests have ended"
    if kind is ActionKind.DRAIN_TO_SLEEP and not can_sleep:
        return "this backend cannot put instances to sleep"
    if r.status is MemberStatus.READY and others_serving < p.minimum:
        return f"only {others_serving} others serve, the minimum is {p.minimum}"
    return None


def _retry_refusal(r: Record, now_s: float, p: ScalerParams) -> str | None:
    if r.goal in DRAINS:
        return f"{r.name} is still being cleaned up"
    if r.failed_s is not None and now_s - r.failed_s < p.retry_s:
        return f"{r.name} failed {now_s - r.failed_s:.0f} s ago, is tried again after {p.retry_s:g} s"
    return None
