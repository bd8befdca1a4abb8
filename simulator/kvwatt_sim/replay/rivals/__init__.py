"""Other ways to set the clock, each as its source describes it, on the interface of every policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvwatt_sim.replay.controller import Controller, replay
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.rivals.agft import Agft
from kvwatt_sim.replay.rivals.hindsight import best_cap, best_pair
from kvwatt_sim.replay.rivals.race import RaceToIdle
from kvwatt_sim.replay.rivals.throttllem import ThrottLLeM
from kvwatt_sim.replay.rivals.voltana import Voltana
from kvwatt_sim.replay.scenario import Case


def _driven(factory: Callable[[Case], Controller]) -> Callable[[Case], Outcome]:
    def serve(case: Case) -> Outcome:
        return replay(case.card, case.shape, case.requests, factory(case), case.until_s)

    return serve


RIVALS: Mapping[str, Callable[[Case], Outcome]] = {
    "best-pair": best_pair,
    "best-cap": best_cap,
    "voltana": _driven(Voltana),
    "agft": _driven(Agft),
    "throttllem": _driven(ThrottLLeM),
    "throttllem-15": _driven(lambda case: ThrottLLeM(case, p95_error=0.15)),
    "throttllem-30": _driven(lambda case: ThrottLLeM(case, p95_error=0.30)),
    "race-to-idle": _driven(RaceToIdle),
}
