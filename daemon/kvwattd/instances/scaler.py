"""Moves instances between stopped, asleep and in service, without losing a request.

The scaler owns the truth about members. `apply` takes orders and returns; `step`, called every second or so,
moves everything on that can move, and is done within its deadlines whatever hangs outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from kvwattd.instances.backend import Backend
from kvwattd.instances.probe import Probe
from kvwattd.instances.router import Router

if TYPE_CHECKING:
    from kvwatt.pool import Member, MemberStatus, PoolAction
    from kvwattd.instances.journal import Journal


class OnDeadline(StrEnum):
    """What becomes of a drain that takes longer than `drain_timeout_s`: the operator's choice."""

    KEEP_WAITING = "keep-waiting"
    UNDRAIN = "undrain"  # back into service
    STOP_ANYWAY = "stop-anyway"  # requests that still run are cut off


@dataclass(frozen=True, slots=True)
class ScalerParams:
    """How the scaler behaves; durations in seconds.

    Args:
        minimum: members that keep serving: no drain begins that would leave fewer.
        start_timeout_s: from the order to start or wake until it serves; then FAILED and cleaned up.
        drain_timeout_s: from the withdrawal until it is empty; then `on_deadline`.
        on_deadline: what then.
        quiet_looks: looks in a row that must find the engine and the router empty.
        end_timeout_s: from the order to stop or sleep until it is so; then FAILED.
        retry_s: how long a FAILED member is left alone.
        dead_looks: looks in a row without health until a serving member counts as dead (1 where its port
            refuses connections or its backend says that it ended).
        call_timeout_s: of each call of backend, router and probe, on top of their own deadlines.
        step_s: how long one `step` waits for calls; what takes longer goes on beside the next steps.
        warm_up: whether a new member must answer one request before it is admitted.
    """

    minimum: int = 1
    start_timeout_s: float = 600.0
    drain_timeout_s: float = 600.0
    on_deadline: OnDeadline = OnDeadline.KEEP_WAITING
    quiet_looks: int = 3
    end_timeout_s: float = 120.0
    retry_s: float = 120.0
    dead_looks: int = 3
    call_timeout_s: float = 30.0
    step_s: float = 1.0
    warm_up: bool = True


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """One change of one member, for log, metrics and REST. `at_s` is monotonic."""

    at_s: float
    member: str
    was: MemberStatus
    status: MemberStatus
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An order that was not taken, and why."""

    action: PoolAction
    reason: str


class Scaler:
    """Members, their transitions and the journal of what was intended.

    Args:
        kinds: member name -> engine kind ("tp2"), every member that may exist.
        backend: starts, stops, sleeps and wakes.
        router: spreads the requests.
        probe: asks the engines.
        journal: what was intended, on disk.
        params: limits and deadlines.
        now: monotonic seconds.
        unix: seconds since 1970, for the journal only.
        act: False (shadow mode): looks and tells, and orders nothing of anybody.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        backend: Backend,
        router: Router,
        probe: Probe,
        journal: Journal,
        params: ScalerParams,
        now: Callable[[], float],
        unix: Callable[[], float],
        *,
        act: bool = True,
    ) -> None:
        raise NotImplementedError

    @property
    def acting(self) -> bool:
        """Whether it orders anything of anybody."""
        raise NotImplementedError

    @acting.setter
    def acting(self, act: bool) -> None:
        """Switch to or from shadow. What is under way stands still meanwhile; deadlines go on."""
        raise NotImplementedError

    @property
    def params(self) -> ScalerParams:
        """Limits and deadlines; may be replaced between steps."""
        raise NotImplementedError

    @params.setter
    def params(self, params: ScalerParams) -> None:
        raise NotImplementedError

    async def adopt(self) -> None:
        """Take over what runs: read the journal, withdraw what is asleep, go on with what was begun.

        Called once before the first step; may be left out, then the first step does it.
        """
        raise NotImplementedError

    def members(self) -> tuple[Member, ...]:
        """Every member as of the last step, in the order of `kinds`."""
        raise NotImplementedError

    def reason_of(self, member: str) -> str:
        """Why it has its status, in plain words."""
        raise NotImplementedError

    async def apply(self, actions: Sequence[PoolAction]) -> tuple[Refusal, ...]:
        """Take orders; they are carried out by the coming steps. Returns those refused, with the reason.

        Refused: what does not fit the member's status, what would leave fewer than `minimum` in service, an
        unknown member, everything while `acting` is False.
        """
        raise NotImplementedError

    async def step(self) -> None:
        """Look at everything and move on what can move. Never raises for what the outside world does."""
        raise NotImplementedError

    def take_events(self) -> tuple[ScaleEvent, ...]:
        """Changes since the last call (the newest 1,000), oldest first."""
        raise NotImplementedError

    @property
    def errors(self) -> Mapping[tuple[str, str], int]:
        """Failed calls so far by (`backend`|`router`|`probe`|`journal`, cause), for metrics."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop moving anything on; members stay as they are, the journal tells the next run."""
        raise NotImplementedError
