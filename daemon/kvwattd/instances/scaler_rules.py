"""What follows from a look at a member: its status, and the next call. No I/O, no clock.

Level-triggered: every step decides anew from what is seen and from the goal, never from what was done last.
So a restart needs the goal only, and a lost call is made again.
"""

from __future__ import annotations

from kvwatt.pool import MemberStatus
from kvwattd.instances.backend import BackendState
from kvwattd.instances.drain import drain_move, drain_sees
from kvwattd.instances.scaler_params import ScalerParams
from kvwattd.instances.scaler_record import DRAINS, Goal, Move, Record, Sight

_UP = frozenset({BackendState.RUNNING, BackendState.STARTING})
_ENDED = frozenset({BackendState.STOPPED, BackendState.FAILED})
_OUT = frozenset({MemberStatus.ASLEEP, MemberStatus.STOPPED, MemberStatus.FAILED})


def advance(r: Record, s: Sight, now_s: float, p: ScalerParams, spare: bool) -> None:
    """Take in what was seen: counters, status, and the goal where it was reached or failed.

    `spare`: enough others serve, so that this one may be given up for silence alone.
    """
    r.sight = s
    r.misses = 0 if s.look.healthy else r.misses + 1
    r.streak = r.streak + 1 if s.look.serving else 0
    r.stopped_looks = r.stopped_looks + 1 if s.backend in _ENDED and not s.look.healthy else 0
    r.router_tells = r.router_tells or s.in_router is not None
    if s.in_router is True:
        r.proof = None
        r.served = r.served or s.look.healthy
    if r.goal is Goal.SERVE:
        _serve_sees(r, s, now_s, p)
    elif r.goal in DRAINS:
        drain_sees(r, s, now_s, p)
    if r.goal is Goal.REST:
        _rest(r, s, now_s, p, spare)


def next_move(r: Record, s: Sight, p: ScalerParams) -> Move:
    """The call to make now."""
    if r.goal is Goal.SERVE:
        return _serve_move(r, s, p)
    if r.proof is None and (r.goal in DRAINS or r.status in _OUT):
        return Move.WITHDRAW
    if r.goal in DRAINS:
        return drain_move(r, s)
    if r.status is MemberStatus.READY and s.in_router is False and s.look.serving:
        return Move.ADMIT
    return Move.NONE


def may_serve_now(s: Sight) -> bool:
    """Whether requests may be reaching it, and be answered."""
    ended = s.look.gone or s.backend in _ENDED | {BackendState.STOPPING}
    return s.in_router is not False and not s.asleep and not ended


def fail(r: Record, now_s: float, reason: str) -> None:
    """Give a member up for a while, and bring back to where it came from what was started by us."""
    back = {MemberStatus.STOPPED: Goal.STOP, MemberStatus.ASLEEP: Goal.SLEEP}
    origin = r.origin
    goal = Goal.REST if origin is None or r.goal is not Goal.SERVE else back[origin]
    r.aim(goal, now_s, origin)
    r.failed_s = now_s
    r.become(MemberStatus.FAILED, now_s, reason)


def _serve_sees(r: Record, s: Sight, now_s: float, p: ScalerParams) -> None:
    if s.look.serving and not s.asleep:
        if s.in_router is True and s.backend in _UP:
            serve(r, now_s, "serves and is in the router")
        return
    ours = r.origin is MemberStatus.STOPPED
    if (r.asked or not ours) and s.backend is BackendState.FAILED:
        fail(r, now_s, "the backend calls it failed before it served")
    elif (r.asked or not ours) and r.stopped_looks > p.dead_looks:
        fail(r, now_s, "it ended before it served")
    elif now_s - r.goal_since_s > p.start_timeout_s:
        fail(r, now_s, f"it did not serve within {p.start_timeout_s:g} s")


def serve(r: Record, now_s: float, reason: str) -> None:
    """The member is in service."""
    r.aim(Goal.REST, now_s)
    r.served, r.failed_s, r.proof = True, None, None
    r.become(MemberStatus.READY, now_s, reason)


def _serve_move(r: Record, s: Sight, p: ScalerParams) -> Move:
    """Waking comes before withdrawing: it is what ends the wait of a request that got there."""
    if s.asleep:
        if Move.WAKE not in r.asked:
            return Move.WAKE
        return Move.WITHDRAW if r.proof is None else Move.NONE
    if s.look.serving and s.backend in _UP | {BackendState.UNKNOWN}:
        needs_warming = p.warm_up and not r.warmed and r.origin is not None
        return Move.WARM_UP if needs_warming else Move.ADMIT
    if s.in_router is True and r.origin is MemberStatus.STOPPED and not r.asked:
        return Move.WITHDRAW  # no request before it was warmed up
    ended = s.backend in _ENDED and not s.look.healthy
    if ended and r.origin is MemberStatus.STOPPED and Move.START not in r.asked:
        return Move.START
    return Move.NONE


def _rest(r: Record, s: Sight, now_s: float, p: ScalerParams, spare: bool) -> None:
    if s.asleep:
        _asleep(r, s, now_s, p)
    elif r.status is MemberStatus.READY:
        _ready(r, s, now_s, p, spare)
    elif s.look.serving and _may_serve(r, s, now_s, p):
        if s.in_router is True and s.backend in _UP | {BackendState.UNKNOWN}:
            serve(r, now_s, "was found serving, in the router")
        elif s.backend in _UP:
            _found(r, now_s, "was found serving, out of the router")
        else:
            r.become(MemberStatus.UNKNOWN, now_s, f"serves, but the backend calls it {s.backend}")
    elif _may_be_needed(r, s, spare):
        r.failed_s = None
        r.become(MemberStatus.UNKNOWN, now_s, "does not answer; kept in the router: too few others serve")
    elif _given_up(r, now_s, p):
        return
    elif s.in_router is True and s.backend not in _ENDED:
        _silent(r, now_s, p, spare)
    else:
        _settle(r, s, now_s)


def _asleep(r: Record, s: Sight, now_s: float, p: ScalerParams) -> None:
    if s.holds_requests:
        r.aim(Goal.SLEEP, now_s)
        r.become(MemberStatus.DRAINING, now_s, "requests wait in it though it sleeps: woken to answer them")
        return
    if not _given_up(r, now_s, p):
        r.become(MemberStatus.ASLEEP, now_s, "sleeps")


def _ready(r: Record, s: Sight, now_s: float, p: ScalerParams, spare: bool) -> None:
    """Keep it, unless it is known to have ended, or was silent for long and enough others serve."""
    if s.backend is BackendState.STOPPING:
        r.aim(Goal.STOP, now_s)
        r.ending, r.ending_since_s = True, now_s
        r.become(MemberStatus.DRAINING, now_s, "is being stopped by somebody else")
    elif s.look.healthy:
        r.become(MemberStatus.READY, now_s, "serves")
    elif s.look.gone or s.backend in _ENDED:
        fail(r, now_s, "ended while in service")
    elif r.misses >= p.dead_looks:
        if spare:
            fail(r, now_s, f"has not answered {r.misses} looks")
        else:
            r.become(
                MemberStatus.READY, now_s, f"has not answered {r.misses} looks; kept: too few others serve"
            )


def _silent(r: Record, now_s: float, p: ScalerParams, spare: bool) -> None:
    """Found in the router after a restart, and not heard yet: it may serve well."""
    if r.misses >= p.dead_looks and spare:
        fail(r, now_s, f"is in the router and has not answered {r.misses} looks")
    else:
        r.become(MemberStatus.UNKNOWN, now_s, "is in the router and does not answer")


def _may_be_needed(r: Record, s: Sight, spare: bool) -> bool:
    """Given up for its silence, not out of the router yet, and by now the others are too few."""
    given_up = r.status is MemberStatus.FAILED and r.proof is None and s.in_router is not False
    return given_up and not spare and not s.look.gone and s.backend not in _ENDED


def _may_serve(r: Record, s: Sight, now_s: float, p: ScalerParams) -> bool:
    """After a failure only once it has shown itself for a while, or when it has never left the router."""
    if r.failed_s is not None and s.in_router is True and r.goal is Goal.REST:
        return s.backend is not BackendState.STOPPING
    return s.backend is not BackendState.STOPPING and (r.failed_s is None or r.streak >= p.dead_looks)


def _given_up(r: Record, now_s: float, p: ScalerParams) -> bool:
    if r.failed_s is None:
        return False
    if now_s - r.failed_s < p.retry_s:
        return True
    r.failed_s = None
    return False


def _found(r: Record, now_s: float, reason: str) -> None:
    r.aim(Goal.SERVE, now_s)
    r.become(MemberStatus.STARTING, now_s, reason)


def _settle(r: Record, s: Sight, now_s: float) -> None:
    """Nothing serves there and nothing was ordered."""
    if s.backend is BackendState.STOPPED:
        if s.look.healthy:
            r.become(MemberStatus.UNKNOWN, now_s, "is stopped, but something answers at its address")
        else:
            r.become(MemberStatus.STOPPED, now_s, "is stopped")
    elif s.backend is BackendState.FAILED:
        r.failed_s = now_s
        r.become(MemberStatus.FAILED, now_s, "has ended by itself")
    elif s.backend in _UP:
        _found(r, now_s, "was found coming up")
    else:
        r.become(MemberStatus.UNKNOWN, now_s, f"the backend calls it {s.backend} and it does not serve")
