"""A pool's task over parts that do what they are told and remember what was asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from blank_page import BLANK

from kvwatt.capacity_table import CapacityTable
from kvwatt.policy import PolicyParams
from kvwatt.pool import EngineKind, Member, MemberStatus, PoolAction, PoolParams, RateOutlook, RateSummary
from kvwatt.pool_plan import plan
from kvwatt.state import EngineSnapshot
from kvwattd.config import InstanceConfig, parse_config
from kvwattd.durations import Durations
from kvwattd.instance import InstanceRuntime
from kvwattd.instances.scaler import Refusal, ScaleEvent
from kvwattd.observation import Observation
from kvwattd.pool.counts import ScaleCounts
from kvwattd.pool.task import Pool

NAMES = ("a", "b", "c")
PARAMS = PoolParams(
    minimum=1, maximum=3, period_s=1.0, cooldown_s=4.0, less_for_s=2.0, load_max=1.0, survivors_load_max=0.95
)
POLL_S = 0.5


def page(at_s: float, finished: float = 0.0, running: int = 0, waiting: int = 0) -> EngineSnapshot:
    """A page of an engine whose steps go on."""
    steps = replace(BLANK.iterations, count=at_s * 20.0, cumulative=(at_s * 20.0,))
    return replace(
        BLANK,
        observed_s=at_s,
        running=running,
        waiting=waiting,
        requests_finished_total=finished,
        iterations=steps,
    )


def kind(top_per_s: float = 3.0) -> EngineKind:
    """An L20 by its order of magnitude."""
    share = np.array([0.5, 1.0])
    rates = np.linspace(0.0, top_per_s, 5)
    watts = 75.0 + 150.0 * (rates[:, None] / (top_per_s * share)) * np.array([0.7, 1.0])
    return EngineKind(
        name="tp1",
        gpus=1,
        start_s=2.0,
        start_j=100.0,
        wake_s=1.0,
        wake_j=10.0,
        ready_idle_w=75.0,
        asleep_w=61.0,
        stopped_w=36.0,
        can_sleep=False,
        can_stop=True,
        points=CapacityTable((900, 2520), rates, watts, top_per_s * share),
    )


def configuration(**pool: object) -> dict[str, Any]:
    """Three members that one command starts."""
    return {
        "slo": {"tbt": {"limit_s": 0.1}},
        "pool": {"enabled": True, **pool},
        "instance": [
            {"name": name, "url": f"http://127.0.0.1:{8000 + n}", "gpus": [str(n)], "command": ["true"]}
            for n, name in enumerate(NAMES)
        ],
    }


def runtime(config: InstanceConfig) -> InstanceRuntime:
    whole = parse_config(configuration())
    return InstanceRuntime(
        config, whole.slo_of(config), PolicyParams(), Observation(POLL_S, 1.5), Durations(), tapped=False
    )


class FakeScaler:
    """Members that change when they are told, at once; refuses what it does not act on."""

    def __init__(self) -> None:
        self.acting = True
        self.statuses = dict.fromkeys(NAMES, MemberStatus.STOPPED)
        self.since_s = dict.fromkeys(NAMES, 0.0)
        self.applied: list[PoolAction] = []
        self.errors: dict[tuple[str, str], int] = {}
        self.events: list[ScaleEvent] = []
        self.load: dict[str, tuple[int, int]] = {}
        self.steps = 0
        self.broken: Exception | None = None

    def members(self) -> tuple[Member, ...]:
        return tuple(
            Member(
                name, "tp1", status, self.since_s[name], *self.load.get(name, (0, 0)), gpus=frozenset({name})
            )
            for name, status in self.statuses.items()
        )

    def reason_of(self, member: str) -> str:
        return "told so"

    async def step(self) -> None:
        self.steps += 1
        if self.broken is not None:
            raise self.broken

    def take_events(self) -> tuple[ScaleEvent, ...]:
        events, self.events = tuple(self.events), []
        return events

    async def apply(self, actions: Sequence[PoolAction]) -> tuple[Refusal, ...]:
        assert self.acting, "shadow mode orders nothing"
        self.applied += actions
        return ()

    async def close(self) -> None:
        """Nothing is held."""


class FixedKinds:
    """One kind, as it was given; None is not known yet."""

    def __init__(self, known: EngineKind | None) -> None:
        self.kind = known

    def refresh(self, members: tuple[Member, ...], now_s: float) -> None:
        """Nothing is learned."""

    def known(self) -> Mapping[str, EngineKind]:
        return {} if self.kind is None else {"tp1": self.kind}

    async def close(self) -> None:
        """Nothing is held."""


class NewestRate:
    """The rate of the newest window is what will come."""

    def __init__(self) -> None:
        self.windows: list[tuple[float, float, float]] = []

    def observe(self, start_s: float, dt_s: float, arrivals: float) -> None:
        self.windows.append((start_s, dt_s, arrivals))

    def forecast(self, now_s: float) -> RateOutlook | None:
        if not self.windows:
            return None
        rate = self.windows[-1][2] / self.windows[-1][1]
        return RateSummary(rate, rate * 1.2)


class Bench:
    """The task and its parts; `period` lets a plan's time pass with `rate_per_s` spread over who is ready."""

    def __init__(self, known: EngineKind | None = None) -> None:
        self.now_s = 100.0
        config = parse_config(configuration())
        self.runs = {item.name: runtime(item) for item in config.instances}
        self.scaler = FakeScaler()
        self.kinds = FixedKinds(kind() if known is None else known)
        self.learner = NewestRate()
        self.finished = dict.fromkeys(NAMES, 0.0)
        self.gone: list[str] = []
        self.pool = Pool(
            self.runs,
            self.scaler,  # type: ignore[arg-type]
            self.kinds,
            lambda: self.learner,
            plan,
            PARAMS,
            ScaleCounts(dict.fromkeys(NAMES, "tp1")),
            lambda: self.now_s,
            lambda run: 900,
            names=("process", "http-sd"),
            targets=lambda members, acting: (),
            gone=self.gone.append,
            release=self.scaler.close,
        )

    def put(self, **statuses: str) -> None:
        """Members as they are from now on."""
        for name, status in statuses.items():
            self.scaler.statuses[name] = MemberStatus(status)
            self.scaler.since_s[name] = self.now_s

    async def period(self, rate_per_s: float = 0.0, silent: str = "", count: int = 1) -> None:
        """`silent`: members whose page does not come."""
        for _ in range(count):
            self.now_s += PARAMS.period_s
            ready = [n for n, s in self.scaler.statuses.items() if s is MemberStatus.READY]
            for name in ready:
                self.finished[name] += rate_per_s * PARAMS.period_s / len(ready)
                if name not in silent:
                    self.runs[name].observation.on_page(page(self.now_s, self.finished[name]))
                else:
                    self.runs[name].observation.on_error("unreachable", "nobody there")
            await self.pool.step()
            await self.pool.plan()

    def orders(self) -> list[tuple[str, str]]:
        """What was asked of the scaler so far."""
        return [(str(action.action), action.member) for action in self.scaler.applied]
