"""Makes the calls that the rules ask for, one at a time per member, each under a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from kvwatt.pool import MemberStatus
from kvwattd.instances.backend import Backend, BackendError, Cause, Cuts, Withdrawn
from kvwattd.instances.drain import empty
from kvwattd.instances.probe import Probe
from kvwattd.instances.router import Router, RouterError
from kvwattd.instances.scaler_params import ScalerParams
from kvwattd.instances.scaler_record import DRAINS, Goal, Move, Record, Sight
from kvwattd.instances.scaler_rules import fail, serve

log = logging.getLogger(__name__)

# A backend that answers one of these will not do better at the next try.
_FINAL = frozenset(
    {Cause.FORBIDDEN, Cause.UNKNOWN_MEMBER, Cause.STATE, Cause.UNSUPPORTED, Cause.PLACEMENT, Cause.FAILED}
)


class Mover:
    """The outside as the scaler's moves see it. `errors`: failed calls by (whom, cause)."""

    def __init__(
        self,
        backend: Backend,
        router: Router,
        probe: Probe,
        now: Callable[[], float],
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self._backend = backend
        self._router = router
        self._probe = probe
        self._now = now
        self._save = save
        self.errors: Counter[tuple[str, str]] = Counter()

    async def make(self, r: Record, s: Sight, move: Move, p: ScalerParams) -> None:
        """Make one move of one member. Never raises for what the outside does."""
        calls = {
            Move.WITHDRAW: self._withdraw,
            Move.ADMIT: self._admit,
            Move.START: self._start,
            Move.WAKE: self._wake,
            Move.WARM_UP: self._warm_up,
            Move.COUNT: self._count,
            Move.FORCE_STOP: self._force_stop,
        }
        try:
            async with asyncio.timeout(p.call_timeout_s):
                await calls[move](r, s, p)
        except RouterError as error:
            self.errors["router", error.cause] += 1
            self._hindered(r, f"the router: {error.detail}")
        except BackendError as error:
            self.errors["backend", error.cause] += 1
            self._refused(r, move, error)
        except TimeoutError:
            whom = "router" if move in (Move.WITHDRAW, Move.ADMIT) else "backend"
            self.errors[whom, Cause.DEADLINE] += 1
            self._hindered(r, f"{move} was not answered within {p.call_timeout_s:g} s")

    async def _withdraw(self, r: Record, s: Sight, p: ScalerParams) -> None:
        await self._router.withdraw(r.name)
        r.proof = Withdrawn(r.name, self._router.name, self._now())
        r.quiet = 0

    async def _admit(self, r: Record, s: Sight, p: ScalerParams) -> None:
        r.proof = None  # from here on it may be in, whatever the answer
        await self._router.admit(r.name)
        if r.goal in DRAINS:
            return  # ordered away meanwhile: the next step withdraws it
        serve(r, self._now(), "serves")

    async def _start(self, r: Record, s: Sight, p: ScalerParams) -> None:
        r.proof = None  # a router may take in what comes up
        await self._backend.start(r.name)
        r.asked[Move.START] = self._now()
        r.reason = "asked to start"

    async def _wake(self, r: Record, s: Sight, p: ScalerParams) -> None:
        r.proof = None
        await self._backend.wake(r.name)
        r.asked[Move.WAKE] = self._now()
        r.ending = False  # whatever put it to sleep has come to its end

    async def _warm_up(self, r: Record, s: Sight, p: ScalerParams) -> None:
        """The moves after it need a new look."""
        r.warmed = await self._probe.warm_up(r.name)
        r.reason = "warmed up" if r.warmed else "does not answer the warm-up request yet"
        if not r.warmed:
            self.errors["probe", "warm-up"] += 1

    async def _count(self, r: Record, s: Sight, p: ScalerParams) -> None:
        """One look more or the count anew; then the router is told once more, and one look later it ends.

        The second withdrawal lets a router shut the member off for good now that it is empty: HAProxy's
        drain state lets requests with a cookie through, its maintenance state none.
        """
        assert r.proof is not None  # noqa: S101  # the rules withdraw first
        counts = self._router.counts_sessions
        sessions = await self._router.sessions(r.name) if counts else None
        if not empty(s, r.proof.at_s, sessions, counts):
            r.quiet = 0
            self._say(
                r, f"waits for {s.look.running} running, {s.look.waiting} waiting, {sessions} in the router"
            )
            return
        r.quiet += 1
        if r.quiet == p.quiet_looks:
            await self._router.withdraw(r.name)
        elif r.quiet > p.quiet_looks:
            r.quiet = 0
            await self._end(r)

    async def _force_stop(self, r: Record, s: Sight, p: ScalerParams) -> None:
        """The operator's choice, or nothing was ever sent to it; the backend may still refuse (busy)."""
        await self._end(r)

    async def _end(self, r: Record) -> None:
        """Written down before it is asked: after a crash nobody takes it back into service too early."""
        assert r.proof is not None  # noqa: S101  # the rules withdraw first
        if not r.ending:
            r.ending, r.ending_since_s = True, self._now()
            await self._save()
        goal = r.goal
        if goal is Goal.SLEEP:
            await self._backend.sleep(r.name, r.proof)
        elif r.force and isinstance(self._backend, Cuts):
            await self._backend.cut(r.name)
        else:
            await self._backend.stop(r.name)
        if r.goal is goal:
            r.asked[Move.COUNT] = self._now()
            self._say(r, f"empty: asked to {goal}")

    def _refused(self, r: Record, move: Move, error: BackendError) -> None:
        """What the backend will not do at the next try either is not asked for ever."""
        if move in (Move.COUNT, Move.FORCE_STOP):
            if error.cause == Cause.IN_ROUTER:
                r.proof = None
            if error.cause not in (Cause.UNREACHABLE, Cause.DEADLINE):
                r.ending = False
            if error.cause in _FINAL:
                self._not_ended(r, error)
                return
        elif error.cause in _FINAL and r.goal is Goal.SERVE:
            fail(r, self._now(), f"the backend: {error.detail}")
            return
        self._hindered(r, f"the backend: {error.detail}")

    def _not_ended(self, r: Record, error: BackendError) -> None:
        """Emptied, but it cannot be put away: the rules take it back if it serves."""
        failed_s = r.failed_s
        r.aim(Goal.REST, self._now())
        r.failed_s = failed_s
        if failed_s is None:
            r.become(MemberStatus.UNKNOWN, self._now(), f"cannot be put away, the backend: {error.detail}")
        else:
            r.reason = f"{r.reason}; cannot be cleaned up, the backend: {error.detail}"[:500]

    def _hindered(self, r: Record, reason: str) -> None:
        if r.reason != reason:
            log.warning("instance %s: %s", r.name, reason)
        r.reason = reason

    def _say(self, r: Record, reason: str) -> None:
        if not r.told_late and r.failed_s is None:
            r.reason = reason
