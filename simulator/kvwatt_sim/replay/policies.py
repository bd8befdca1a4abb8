"""The policies that can be compared, by name: each serves a case and gives what came of it.

Most are a controller that is asked again and again (`controlled`); those that search in hindsight
replay the case many times. A name may carry a number after its last dash: `fixed-1200`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvwatt.policy import PolicyParams
from kvwatt_sim.replay.controller import Controller, FixedClock, replay
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.oracle import best_found
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.rivals import RIVALS
from kvwatt_sim.replay.rivals.hindsight import best_clock, best_fixed
from kvwatt_sim.replay.scenario import Case

Policy = Callable[[Case], Outcome]


class PolicyError(ValueError):
    """A policy that does not exist; names it and what is accepted."""


def controlled(factory: Callable[[Case], Controller]) -> Policy:
    """The policy that drives `case` by a fresh controller of `factory`."""

    def run(case: Case) -> Outcome:
        return replay(case.card, case.shape, case.requests, factory(case), case.until_s)

    return run


def kvwatt(case: Case, tapped: bool = True) -> KvwattController:
    """kvwatt with its usual settings and a model trained on the plant's profile."""
    return KvwattController(
        case.card,
        case.shape,
        compiled_model(case.card, case.clocks_mhz, case.shape),
        case.promises.slo,
        PolicyParams(reaction_s=0.8),
        tapped=tapped,
    )


def best_found_in_hindsight(case: Case) -> Outcome:
    """The oracle's schedule (see `oracle`), from the best fixed clock; that one where nothing is better."""
    clock, fixed = best_clock(case)
    found = best_found(case, [[clock]])
    return fixed if found is None else found.outcome


def worst_attainment(case: Case, outcome: Outcome) -> float:
    """The share kept of the promise that was kept least."""
    return min(outcome.attainment(case.promises.slo).values())


def policy(name: str) -> Policy:
    """The policy called `name`. Raises PolicyError."""
    base, _, number = name.rpartition("-")
    if base == "fixed" and number.isdigit():
        return controlled(lambda _: FixedClock(int(number)))
    if name not in POLICIES:
        known = ", ".join((*POLICIES, "fixed-MHZ"))
        raise PolicyError(f"policy = {name!r}: one of {known} is accepted")
    return POLICIES[name]


POLICIES: Mapping[str, Policy] = {
    "kvwatt": controlled(kvwatt),
    "kvwatt-poll": controlled(lambda case: kvwatt(case, tapped=False)),
    "max": controlled(lambda _: FixedClock(None)),
    "best-fixed": best_fixed,
    "best-found": best_found_in_hindsight,
    **RIVALS,
}
