"""What the scaler knows of one member, and what it was told to make of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from kvwatt.pool import MemberStatus
from kvwattd.instances.backend import BackendState, Withdrawn
from kvwattd.instances.probe import Look


class Goal(StrEnum):
    """Where a member is being brought. REST: nowhere; it is as it is seen to be."""

    REST = "rest"
    SERVE = "serve"
    SLEEP = "sleep"
    STOP = "stop"


DRAINS = frozenset({Goal.SLEEP, Goal.STOP})


class Move(StrEnum):
    """One call to the outside for one member."""

    NONE = "none"
    WITHDRAW = "withdraw"
    ADMIT = "admit"
    START = "start"
    WAKE = "wake"
    WARM_UP = "warm-up"
    COUNT = "count"  # ask the router for sessions; after enough looks, end it
    FORCE_STOP = "force-stop"


@dataclass(frozen=True, slots=True)
class Sight:
    """What one step saw of a member. `at_s`: when it began to look; `in_router` None: cannot be told."""

    at_s: float
    look: Look
    backend: BackendState
    in_router: bool | None

    @property
    def asleep(self) -> bool:
        """Whether requests would hang: either of the two says so."""
        return self.look.asleep is True or self.backend is BackendState.ASLEEP

    @property
    def holds_requests(self) -> bool:
        """Whether it is known to run or queue any."""
        return bool(self.look.running) or bool(self.look.waiting)


@dataclass(slots=True)
class Record:
    """One member. Times are monotonic seconds.

    `origin`: where a start came from, None: it was found coming up or serving. `served`: was in the router
    since its start. `proof`: the router confirmed that it is out; None: it may be in. `ending`: the backend
    was asked for sleep or stop and what became of it is not known yet.
    """

    name: str
    kind: str
    gpus: frozenset[str] = frozenset()
    status: MemberStatus = MemberStatus.UNKNOWN
    since_s: float = 0.0
    reason: str = "not looked at yet"
    goal: Goal = Goal.REST
    goal_since_s: float = 0.0
    origin: MemberStatus | None = None
    served: bool = False
    failed_s: float | None = None
    force: bool = False
    ending: bool = False
    ending_since_s: float = 0.0
    proof: Withdrawn | None = None
    sight: Sight | None = None
    asked: dict[Move, float] = field(default_factory=dict)
    warmed: bool = False
    quiet: int = 0
    misses: int = 0
    streak: int = 0  # looks in a row that found it serving
    stopped_looks: int = 0
    told_late: bool = False
    router_tells: bool = False  # it has said before whether this member is in

    def aim(self, goal: Goal, now_s: float, origin: MemberStatus | None = None) -> None:
        """Begin to bring it somewhere; what was asked for before counts no more."""
        self.goal, self.goal_since_s, self.origin = goal, now_s, origin
        self.asked = {}
        self.warmed = self.force = self.told_late = False
        self.quiet = self.stopped_looks = 0
        if goal is Goal.SERVE and origin is MemberStatus.STOPPED:
            self.served = False
        if goal not in DRAINS:
            self.ending = False

    def become(self, status: MemberStatus, now_s: float, reason: str) -> None:
        """Change its status; the same status with another reason keeps its time."""
        if status is not self.status:
            self.status, self.since_s = status, now_s
        self.reason = reason

    @property
    def alive(self) -> bool:
        """In service, and the last look found it healthy and awake."""
        return self.status is MemberStatus.READY and self.sight is not None and self.sight.look.serving

    @property
    def serving(self) -> bool:
        """Alive, and in the router for certain, where the router can tell."""
        sight = self.sight
        if sight is None or not self.alive:
            return False
        return sight.in_router is True or (sight.in_router is None and not self.router_tells)
