"""Frozen words of the decision over instances: members of a pool, kinds of engine, plans and actions.

A pool is a number of interchangeable-by-kind vLLM servers ("members") behind one router. Times are
monotonic seconds passed in by the caller. `plan()` itself lives in `pool_plan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, isfinite
from typing import Protocol

from kvwatt.capacity_table import CapacityTable


class MemberStatus(StrEnum):
    """What a member is doing; only READY serves new requests."""

    STOPPED = "stopped"  # no process; GPUs free
    ASLEEP = "asleep"  # process and GPUs held, weights off (vLLM sleep mode)
    STARTING = "starting"  # asked to start or wake; not ready
    READY = "ready"  # serves and is in the router
    DRAINING = "draining"  # out of the router, finishing what runs
    FAILED = "failed"  # a start or a stop that did not come; not tried before `retry_s`
    UNKNOWN = "unknown"  # cannot be told: counts as neither capacity nor free


class ActionKind(StrEnum):
    """What may be asked of a member; `LEGAL_FROM` says in which status."""

    START = "start"
    WAKE = "wake"
    DRAIN_TO_SLEEP = "drain-to-sleep"
    DRAIN_TO_STOP = "drain-to-stop"
    CANCEL_START = "cancel-start"  # back to where it came from
    UNDRAIN = "undrain"  # a draining member goes back into service


# A failed member may be started anew after `retry_s`, and a sleeping one stopped (its GPUs are wanted).
LEGAL_FROM: Mapping[ActionKind, frozenset[MemberStatus]] = {
    ActionKind.START: frozenset({MemberStatus.STOPPED, MemberStatus.FAILED}),
    ActionKind.WAKE: frozenset({MemberStatus.ASLEEP}),
    ActionKind.DRAIN_TO_SLEEP: frozenset({MemberStatus.READY}),
    ActionKind.DRAIN_TO_STOP: frozenset({MemberStatus.READY, MemberStatus.ASLEEP}),
    ActionKind.CANCEL_START: frozenset({MemberStatus.STARTING}),
    ActionKind.UNDRAIN: frozenset({MemberStatus.DRAINING}),
}


@dataclass(frozen=True, slots=True)
class Member:
    """One server. `since_s`: when its status began. `kv_usage` is 0..1; counts are of requests.

    `gpus`: the GPUs it runs on or would be placed on, as UUIDs or any stable names; members that share
    one cannot hold it at the same time. Empty: it has GPUs of its own that nobody else uses.
    """

    name: str
    kind: str
    status: MemberStatus
    since_s: float
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    gpus: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.name or not self.kind:
            raise ValueError(f"a member needs a name and a kind, got {self.name!r} and {self.kind!r}")
        if self.running < 0 or self.waiting < 0:
            raise ValueError(f"{self.name}: running and waiting must be >= 0")
        if not 0.0 <= self.kv_usage <= 1.0:
            raise ValueError(f"{self.name}: kv_usage must be 0..1, got {self.kv_usage}")


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What the planner knows of a kind. Watts are of the whole group of GPUs.

    `start_s`, `start_j`: from stopped until ready, and the energy beyond what stopped draws in that time;
    `wake_*` likewise from asleep. `ready_idle_w`: ready without requests. `asleep_w`, `stopped_w`: parked
    (0 where a stopped member's GPUs are released to somebody else).
    """

    name: str
    gpus: int
    start_s: float
    start_j: float
    wake_s: float
    wake_j: float
    ready_idle_w: float
    asleep_w: float
    stopped_w: float
    can_sleep: bool
    can_stop: bool
    points: CapacityTable

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"{self.name}: gpus must be >= 1, got {self.gpus}")
        for key in ("start_s", "start_j", "wake_s", "wake_j", "ready_idle_w", "asleep_w", "stopped_w"):
            _not_negative(f"{self.name}.{key}", getattr(self, key))


class RateOutlook(Protocol):
    """What the planner asks of a forecast; `forecast.RateForecast` and `RateSummary` are such."""

    def mean_per_s(self, horizon_s: float) -> float:
        """Expected rate of arrivals per second `horizon_s` from now."""

    def cautious_per_s(self, level: float, horizon_s: float) -> float:
        """What the traffic stays below with at least the probability `level`: capacity is planned for it."""


@dataclass(frozen=True, slots=True)
class RateSummary:
    """A rate that is known by a mean and one upper value, whatever the horizon (tests, oracles)."""

    now_per_s: float
    upper_per_s: float

    def __post_init__(self) -> None:
        _not_negative("now_per_s", self.now_per_s)
        if not self.now_per_s <= self.upper_per_s < inf:
            raise ValueError(f"upper_per_s must be finite and >= now_per_s, got {self.upper_per_s}")

    def mean_per_s(self, horizon_s: float) -> float:
        return self.now_per_s

    def cautious_per_s(self, level: float, horizon_s: float) -> float:
        return self.upper_per_s if level > 0.5 else self.now_per_s


@dataclass(frozen=True, slots=True)
class PoolState:
    """The pool at `observed_s`. `telemetry_ok` False: never scale down, never read as zero load.

    `seen_per_s`: arrivals at the members that can be seen: the pool's rate is at least that."""

    observed_s: float
    members: tuple[Member, ...]
    rate: RateOutlook
    telemetry_ok: bool
    seen_per_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative("seen_per_s", self.seen_per_s)
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError(f"members need distinct names, got {sorted(names)}")


@dataclass(frozen=True, slots=True)
class PoolAction:
    """One thing to begin now, and why."""

    member: str
    action: ActionKind
    reason: str


@dataclass(frozen=True, slots=True)
class PlanMemory:
    """Cool-down and hysteresis state; handed back to `plan()` at the next call. Empty at the start."""

    last_up_s: float = -inf
    last_down_s: float = -inf
    less_since_s: float = inf  # since when fewer would do, without a break
    desired: Mapping[str, int] = field(default_factory=dict)
    tried_s: Mapping[str, float] = field(default_factory=dict)  # member: when its start was cancelled
    regrets: int = (
        0  # members that were wanted back soon after they left; each doubles the wait before the next
    )


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """`desired`: ready members wanted per kind. `actions`: only what can be begun now."""

    decided_s: float
    desired: Mapping[str, int]
    actions: tuple[PoolAction, ...]
    reason: str
    memory: PlanMemory
    expected_w: float = 0.0  # of the whole pool at the desired number, at the expected rate
    clocks_mhz: Mapping[str, int] = field(default_factory=dict)  # best at that number, per kind wanted


@dataclass(frozen=True, slots=True)
class PoolParams:
    """Operator's settings.

    `minimum`, `maximum`: ready members over all kinds. `gpus`: that the pool may hold at once (None: as
    many as its members name). `cooldown_s`: after any change nothing is taken away for so long.
    `less_for_s`: fewer must have been enough for so long before one goes. `load_max`: share of
    their largest rate up to which those who serve are enough; `survivors_load_max`: and those who stay after
    one left. `forecast_quantile`: quantile of the rate
    that capacity is planned for. `drain_s`: how long a drain usually takes. `stay_s`: how long a change is
    expected to last; a start must repay itself in it. `mixed`: whether members of several kinds may serve
    side by side for long; False where the router cannot give each its share.
    """

    minimum: int = 1
    maximum: int = 1
    gpus: int | None = None
    period_s: float = 5.0
    cooldown_s: float = 60.0
    less_for_s: float = 60.0
    start_timeout_s: float = 600.0
    retry_s: float = 120.0
    load_max: float = 0.9
    survivors_load_max: float = 0.8
    forecast_quantile: float = 0.8
    drain_s: float = 30.0
    stay_s: float = 900.0
    min_gain_ratio: float = 0.02
    mixed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise ValueError(f"need 1 <= minimum <= maximum, got {self.minimum} and {self.maximum}")
        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"gpus must be >= 1 or None, got {self.gpus}")
        for key in ("period_s", "start_timeout_s", "stay_s"):
            if not 0.0 < getattr(self, key) < inf:
                raise ValueError(f"{key} must be positive and finite, got {getattr(self, key)}")
        for key in ("cooldown_s", "less_for_s", "retry_s", "drain_s", "min_gain_ratio"):
            _not_negative(key, getattr(self, key))
        for key in ("load_max", "survivors_load_max"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise ValueError(f"{key} must be in (0, 1], got {getattr(self, key)}")
        if self.survivors_load_max > self.load_max:  # who left would be wanted back at once
            told = (
                f"survivors_load_max must be <= load_max, got {self.survivors_load_max} and {self.load_max}"
            )
            raise ValueError(told)
        if not 0.5 <= self.forecast_quantile < 1.0:
            raise ValueError(f"forecast_quantile must be in [0.5, 1), got {self.forecast_quantile}")


def _not_negative(key: str, value: float) -> None:
    if not (isfinite(value) and value >= 0.0):
        raise ValueError(f"{key} must be finite and >= 0, got {value}")
