"""Who sets a member's clock: the controllers of the single-instance replay, told of starts and wake-ups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from kvwatt_sim.day.server import Clocks, Kind
from kvwatt_sim.day.setting import Setting
from kvwatt_sim.replay.controller import Controller, FixedClock
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.rivals.throttllem import ThrottLLeM
from kvwatt_sim.replay.scenario import Case

Maker = Callable[[Kind], Clocks]


@dataclass
class Plain:
    """A controller that keeps nothing from one stretch of service to the next."""

    inner: Controller

    @property
    def period_s(self) -> float:
        return self.inner.period_s

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        return self.inner.target(now_s, plant)

    def resumed(self, now_s: float, restarted: bool) -> None:
        pass


class Scheduled:
    """A clock that was fixed beforehand for every moment: `clock(now_s, kind)`."""

    period_s = 1.0

    def __init__(self, kind: Kind, clock: Callable[[float, Kind], int]) -> None:
        self._kind, self._clock = kind, clock

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        return self._clock(now_s, self._kind)

    def resumed(self, now_s: float, restarted: bool) -> None:
        pass


def fixed(clock_mhz: int | None) -> Maker:
    """One clock; None: driver default."""
    return lambda kind: Plain(FixedClock(clock_mhz, inf))


def throttllem(setting: Setting) -> Maker:
    """throttLL'eM's clock, with the true lengths and the plant's own law."""

    def make(kind: Kind) -> Clocks:
        return Plain(
            ThrottLLeM(Case(kind.card, kind.clocks_mhz, kind.shape, (), setting.promises, setting.until_s))
        )

    return make
