"""Other ways to set the clock, each as its source describes it, on the interface of every policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.rivals.hindsight import best_cap, best_pair
from kvwatt_sim.replay.scenario import Case

RIVALS: Mapping[str, Callable[[Case], Outcome]] = {
    "best-pair": best_pair,
    "best-cap": best_cap,
}
