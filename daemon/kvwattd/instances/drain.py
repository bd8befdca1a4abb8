"""Emptying a member before it sleeps or stops. No I/O, no clock.

Out of the router first, confirmed. Then several looks in a row must find neither running nor waiting requests
in the engine and no session in the router; one look that fails begins the count again. Only then the backend
is asked. A member that was never in the router since its start and does not answer yet has no requests to
finish: cancelling such a start does not wait.
"""

from __future__ import annotations

from kvwatt.pool import MemberStatus
from kvwattd.instances.backend import BackendState
from kvwattd.instances.scaler_params import OnDeadline, ScalerParams
from kvwattd.instances.scaler_record import Goal, Move, Record, Sight


def drain_sees(r: Record, s: Sight, now_s: float, p: ScalerParams) -> None:
    """Take in what was seen of a member under way to sleep or stop."""
    if s.backend is BackendState.STOPPED and not s.look.healthy:
        _done(r, now_s, MemberStatus.STOPPED, "is stopped")
    elif _crashed(s) and (r.ending or r.goal is Goal.SLEEP):
        r.failed_s = r.failed_s if r.failed_s is not None else now_s
        _done(r, now_s, MemberStatus.FAILED, "ended by itself while it was emptied")
    elif r.goal is Goal.SLEEP and _sleeps(s):
        _done(r, now_s, MemberStatus.ASLEEP, "sleeps")
    elif r.ending and now_s - r.ending_since_s > p.end_timeout_s:
        _never_ended(r, s, now_s, p)
    elif not r.ending and not r.told_late and now_s - r.goal_since_s > p.drain_timeout_s:
        _late(r, s, now_s, p)


def drain_move(r: Record, s: Sight) -> Move:
    """The next call for a member that the router has confirmed to be out."""
    if s.asleep and s.holds_requests:
        return Move.WAKE  # somebody reached it while it fell asleep: answer them first
    if r.ending and (Move.COUNT in r.asked or s.backend is BackendState.STOPPING):
        return Move.NONE  # asked; the next looks tell, or the deadline
    if r.goal is Goal.SLEEP and s.asleep and s.backend is BackendState.STARTING:
        return Move.NONE  # a wake is on its way: it can only be put to sleep again once it is up
    if r.goal is Goal.STOP and (r.force or _never_up(r, s) or _crashed(s)):
        return Move.FORCE_STOP
    return Move.COUNT


def empty(s: Sight, proof_s: float, sessions: int | None, counts_sessions: bool) -> bool:
    """Whether this look, taken after the withdrawal, shows that nothing is left to finish."""
    router_empty = sessions == 0 if counts_sessions else True
    return router_empty and s.at_s >= proof_s and s.look.quiet


def _sleeps(s: Sight) -> bool:
    """For good: nothing waits in it, the backend has done with it, and no wake is on its way."""
    on_its_way = s.backend in (BackendState.STARTING, BackendState.STOPPING)
    return s.look.asleep is True and not s.holds_requests and not on_its_way


def _crashed(s: Sight) -> bool:
    return s.backend is BackendState.FAILED and not s.look.healthy


def _never_up(r: Record, s: Sight) -> bool:
    return r.origin is MemberStatus.STOPPED and not r.served and not s.look.healthy


def _done(r: Record, now_s: float, status: MemberStatus, reason: str) -> None:
    """A member that failed before stays failed for its time, whatever it was brought to."""
    r.aim(Goal.REST, now_s)
    if r.failed_s is None or status is MemberStatus.FAILED:
        r.become(status, now_s, reason)


def _never_ended(r: Record, s: Sight, now_s: float, p: ScalerParams) -> None:
    """After a failed wake it is stopped; everything else is given up for a while."""
    if r.goal is Goal.SLEEP and r.failed_s is not None:
        r.aim(Goal.STOP, now_s, r.origin)
        r.ending = False
        r.reason = "does not fall asleep again: stopped"
        return
    what = "sleep" if r.goal is Goal.SLEEP else "stop"
    r.aim(Goal.REST, now_s)
    r.failed_s = now_s
    r.become(MemberStatus.FAILED, now_s, f"did not {what} within {p.end_timeout_s:g} s")


def _late(r: Record, s: Sight, now_s: float, p: ScalerParams) -> None:
    held = f"{s.look.running} running, {s.look.waiting} waiting"
    told = f"not empty after {p.drain_timeout_s:g} s ({held})"
    r.told_late = True
    if p.on_deadline is OnDeadline.UNDRAIN and r.failed_s is None and s.look.serving:
        r.aim(Goal.SERVE, now_s)
        r.become(MemberStatus.STARTING, now_s, f"{told}: back into service")
    elif p.on_deadline is OnDeadline.STOP_ANYWAY:
        r.goal, r.force = Goal.STOP, True
        r.reason = f"{told}: stopped anyway"
    else:
        r.reason = f"{told}: goes on waiting"
