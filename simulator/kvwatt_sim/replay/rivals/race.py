"""Race to idle: the top clock while anything is inside, the lowest while nothing is."""

from __future__ import annotations

from dataclasses import dataclass

from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import Case


@dataclass(frozen=True, slots=True)
class RaceToIdle:
    """Controller that looks ten times a second."""

    case: Case
    period_s: float = 0.1

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        busy = plant.running + plant.waiting > 0
        return self.case.clocks_mhz[-1 if busy else 0]
