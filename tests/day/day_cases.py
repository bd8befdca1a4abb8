"""A small pool for the tests: four L20 and a few minutes of the built-in workload."""

from __future__ import annotations

from collections.abc import Sequence

from kvwatt.pool import ActionKind, PoolAction
from kvwatt.state import Slo, SloTarget
from kvwatt_sim.cards import load
from kvwatt_sim.day.pool import View
from kvwatt_sim.day.server import Kind
from kvwatt_sim.day.setting import Place, Setting
from kvwatt_sim.day.traffic import day_requests
from kvwatt_sim.replay.scenario import Promises, clocks
from kvwatt_sim.workload import generate

CARD = load("l20")
SLO = Slo(SloTarget(6.0), SloTarget(0.2), SloTarget(50.0))
KIND = Kind("tp1", CARD, CARD.engine_shape(), clocks(CARD)[::12], 4.5, 20.0, 3.0, 90.0, 65.0)
NAMES = tuple(f"l20-{i}" for i in range(4))


def small(rates: Sequence[float], day_s: float, seed: int = 100, reference: Sequence[str] = NAMES) -> Setting:
    """Four L20, parked at 36 W; `reference` are ready at the start."""
    places = tuple(Place(name, KIND, frozenset({f"g{i}"})) for i, name in enumerate(NAMES))
    gpus = frozenset(gpu for place in places for gpu in place.gpus)
    requests = day_requests(rates, generate(6.0, 1200.0, seed=0), day_s, seed)
    return Setting(
        "small", places, gpus, 36.0, tuple(reference), requests, tuple(rates), day_s, Promises(SLO)
    )


class Script:
    """Begins what is written for a moment, on the 0.5 s grid."""

    period_s = 0.5

    def __init__(self, *lines: tuple[float, str, ActionKind]) -> None:
        self._lines = lines
        self.seen: list[View] = []

    def actions(self, view: View) -> Sequence[PoolAction]:
        self.seen.append(view)
        return [PoolAction(name, kind, "test") for at, name, kind in self._lines if at == view.now_s]
